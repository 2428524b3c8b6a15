# SPDX-License-Identifier: GPL-3.0-or-later
"""RPMs with RHEL's names, paths, units and users, made of Debian's binaries."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.hosts.programs import run

RELEASE = "1.el9"
# Not needed on a host, and most of what there is.
DOCUMENTATION = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/locale",
    "usr/share/doc-base",
)


@dataclass(frozen=True)
class Deb:
    """A downloaded Debian package."""

    path: Path
    name: str
    version: str
    needs: tuple[tuple[str, ...], ...]
    """What it depends on: each a choice of names."""


@dataclass(frozen=True)
class Rpm:
    """A package as RHEL has it. Paths are relative to the root."""

    name: str
    version: str = ""
    """Left empty: that of the first Debian package."""
    debs: tuple[str, ...] = ()
    """The Debian packages whose files it holds; without any, and without files, it is a mere entry in the database."""
    drops: tuple[str, ...] = ()
    """Patterns of paths that are Debian's own."""
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    """Files that are taken from the base's root."""
    edits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    """On installation presets decide on these; nothing is started."""
    user: str = ""
    owned: tuple[str, ...] = ()
    """Directories that are made for the user."""
    requires: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()


def upstream_version(debian_version: str) -> str:
    """Return the upstream part of a Debian version, in characters that an RPM version may have."""
    upstream = debian_version.rsplit(":", maxsplit=1)[-1].rsplit("-", 1)[0].split("+", maxsplit=1)[0]
    return re.sub(r"[^A-Za-z0-9.~]", ".", upstream)


def control_fields(paragraph: str) -> dict[str, str]:
    """Return the one-line fields of a Debian control paragraph."""
    return dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))


def read_deb(path: Path) -> Deb:
    """Read what a package file says of itself."""
    fields = control_fields(run("dpkg-deb", "--field", path, "Package", "Version", "Depends", "Pre-Depends"))
    needs = ", ".join(filter(None, (fields.get("Depends"), fields.get("Pre-Depends"))))
    choices = tuple(
        tuple(re.split(r"[ (:]", name.strip())[0] for name in need.split("|")) for need in needs.split(",") if need
    )
    return Deb(path, fields["Package"], fields["Version"], choices)


def required_rpms(rpm: Rpm, debs: Mapping[str, Deb], held_by: Mapping[str, str]) -> list[str]:
    """Return the RPMs that an RPM needs: its own list, and what its Debian packages need beyond the base."""
    needed = set(rpm.requires)
    for deb in rpm.debs:
        for choice in debs[deb].needs:
            if (name := next((name for name in choice if name in debs), None)) is not None:
                needed.add(held_by[name])
    return sorted(needed - {rpm.name})


def spec(rpm: Rpm, version: str, requires: Iterable[str], stage: Path) -> str:
    """Return the RPM's spec: its files are ready in the stage, and copied."""
    units = " ".join(rpm.units)
    lines = [
        f"Name: {rpm.name}",
        f"Version: {version}",
        f"Release: {RELEASE}",
        f"Summary: {rpm.name} as a test host has it",
        "License: as its Debian package",
        "AutoReqProv: no",
        *(f"Requires: {name}" for name in requires),
        *(f"Provides: {name}" for name in rpm.provides),
        "%description",
        f"{rpm.name} as a test host has it.",
        "%install",
        f"mkdir -p %{{buildroot}} && cp -a {stage}/. %{{buildroot}}/",
    ]
    if rpm.user:
        lines += [
            "%pre",
            f"getent group {rpm.user} >/dev/null || groupadd -r {rpm.user}",
            f"getent passwd {rpm.user} >/dev/null || useradd -r -g {rpm.user} -d / -s /sbin/nologin {rpm.user}",
        ]
    lines += ["%post", "ldconfig"]
    if units:
        lines += [
            "systemctl daemon-reload",
            f"if [ $1 -eq 1 ]; then systemctl --no-reload preset {units}; fi",
            "%preun",
            f"if [ $1 -eq 0 ]; then systemctl --no-reload disable --now {units}; fi",
            "%postun",
            "systemctl daemon-reload",
        ]
    lines += ["%files", *file_lines(rpm, stage)]
    return "\n".join(lines) + "\n"


def file_lines(rpm: Rpm, stage: Path) -> Iterable[str]:
    """Return the %files lines: configuration is marked as such, and directories are listed where they would be lost."""
    owned = {f"/{path}" for path in rpm.owned}
    for directory, names, files in os.walk(stage):
        inside = "/" + os.path.relpath(directory, stage).removeprefix(".")
        if inside in owned:
            yield f'%attr(0750, {rpm.user}, {rpm.user}) %dir "{inside}"'
        elif not files and not names and inside != "/":
            yield f'%dir "{inside}"'
        for name in [*files, *(name for name in names if Path(directory, name).is_symlink())]:
            path = os.path.join(inside, name)  # noqa: PTH118 (a path on the host, as text)
            configuration = path.startswith("/etc/") and not Path(directory, name).is_symlink()
            yield f'{"%config(noreplace) " if configuration else ""}"{path}"'


def merge_usr(stage: Path) -> None:
    """Move what Debian 12 still ships outside of /usr to where it lies on every merged system."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if (outside := stage / name).is_dir():
            shutil.copytree(outside, stage / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(outside)


def fill_stage(rpm: Rpm, debs: Mapping[str, Deb], root: Path, stage: Path) -> None:
    """Lay out the RPM's files."""
    stage.mkdir(parents=True)
    for deb in rpm.debs:
        run("dpkg-deb", "--extract", debs[deb].path, stage)
    merge_usr(stage)
    for directory in DOCUMENTATION:
        shutil.rmtree(stage / directory, ignore_errors=True)
    for pattern in rpm.drops:
        for path in stage.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name, (old, new) in rpm.edits.items():
        before = (stage / name).read_text(encoding="utf-8")
        (stage / name).write_text(before.replace(old, new), encoding="utf-8")
    add_files(rpm, root, stage)


def add_files(rpm: Rpm, root: Path, stage: Path) -> None:
    """Add the RPM's files that come from no Debian package."""
    for name, text in rpm.files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(text, encoding="utf-8")
        (stage / name).chmod(0o755 if text.startswith("#!") else 0o644)
    for name, source in rpm.copies.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / source, stage / name)
    for name, target in rpm.links.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).symlink_to(target)
    for directory in rpm.owned:
        (stage / directory).mkdir(parents=True, exist_ok=True)


def build(rpms: Iterable[Rpm], deb_files: Iterable[Path], root: Path, repository: Path) -> None:
    """Build the RPMs, and one under its Debian name for each further package that they need; index them all."""
    debs = {deb.name: deb for deb in map(read_deb, deb_files)}
    # Whatever was not downloaded is in the base already.
    wanted = [replace(rpm, debs=tuple(name for name in rpm.debs if name in debs)) for rpm in rpms]
    held_by = {deb: rpm.name for rpm in wanted for deb in rpm.debs}
    wanted += [Rpm(name, debs=(name,)) for name in debs if name not in held_by]
    held_by |= {name: name for name in debs if name not in held_by}

    with tempfile.TemporaryDirectory(dir=repository.parent) as scratch:

        def build_one(rpm: Rpm) -> None:
            work = Path(scratch, rpm.name)
            fill_stage(rpm, debs, root, work / "stage")
            version = rpm.version or upstream_version(debs[rpm.debs[0]].version)
            spec_file = work / f"{rpm.name}.spec"
            spec_file.write_text(
                spec(rpm, version, required_rpms(rpm, debs, held_by), work / "stage"), encoding="utf-8"
            )
            settings = {
                "_topdir": work,
                "_rpmdir": repository,
                "__os_install_post": "%{nil}",
                "debug_package": "%{nil}",
                "_build_id_links": "none",
                "_binary_payload": "w1.gzdio",
            }
            defines = [word for name, value in settings.items() for word in ("--define", f"{name} {value}")]
            run("rpmbuild", "-bb", "--quiet", "--buildroot", work / "buildroot", *defines, spec_file)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(build_one, wanted))
    run("createrepo_c", "--quiet", repository)


def sign_copies(repository: Path, names: Iterable[str], signed: Path) -> None:
    """Make a repository of signed copies beside the others, with the key (`key.asc`) and its `fingerprint`.

    The key is made for the occasion, and its private half is gone when this returns.
    """
    packages = [package for name in names for package in repository.glob(f"*/{name}-[0-9]*.rpm")]
    signed.mkdir()
    for package in packages:
        shutil.copy2(package, signed)
    with tempfile.TemporaryDirectory() as keyring:
        gpg = ("gpg", "--homedir", keyring, "--batch")
        run(
            *gpg,
            "--passphrase",
            "",
            "--quick-generate-key",
            "Test hosts <packages@test-hosts.invalid>",
            "rsa3072",
            "sign",
            "never",
        )
        run(*gpg, "--armor", "--output", signed / "key.asc", "--export")
        listing = run(*gpg, "--with-colons", "--fingerprint")
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        (signed / "fingerprint").write_text(f"{fingerprint}\n", encoding="ascii")
        settings = {"__gpg": shutil.which("gpg"), "_gpg_path": keyring, "_gpg_name": fingerprint}
        defines = [word for name, value in settings.items() for word in ("--define", f"{name} {value}")]
        run("rpmsign", "--addsign", *defines, *signed.glob("*.rpm"))
        run("gpgconf", "--homedir", keyring, "--kill", "all")
    run("createrepo_c", "--quiet", signed)
