# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes: what names them, and what they take over from the machine and from Debian's packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.recipes import PLATFORMS, rhel9
from tests.hosts.recipes.debian import acquire_options, debian_sources
from tests.hosts.recipes.platform import recipe_hash
from tests.hosts.recipes.rpm import Deb, Rpm, file_lines, required_rpms, upstream_version


def files(directory: Path, **texts: str) -> list[Path]:
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return sorted(directory.iterdir())


def test_equal_recipes_have_one_name_wherever_they_lie(tmp_path: Path) -> None:
    first, second = (files(tmp_path / name, a="1", b="2") for name in ("x", "y"))
    assert recipe_hash(first) == recipe_hash(reversed(second))


@pytest.mark.parametrize("texts", [{"a": "1", "b": "3"}, {"a": "1", "c": "2"}, {"a": "12", "b": ""}, {"a": "1"}])
def test_any_change_is_another_recipe(tmp_path: Path, texts: dict[str, str]) -> None:
    assert recipe_hash(files(tmp_path / "x", a="1", b="2")) != recipe_hash(files(tmp_path / "y", **texts))


def test_a_recipe_names_all_of_its_own_modules() -> None:
    for platform in PLATFORMS.values():
        assert {path.name for path in platform.sources} >= {f"{platform.name}.py", "debian.py"}
    assert "rpm.py" in {path.name for path in PLATFORMS["rhel9"].sources}


DEBIAN = """\
Types: deb
URIs: https://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
"""


def test_only_debian_12s_main_archive_is_taken_from_the_machines_sources() -> None:
    others = """\
Types: deb
URIs: https://other.invalid/
Suites: nodistro
Components: main

Types: deb
URIs: https://mirror.invalid/debian
Suites: bookworm
Components: main
Enabled: no
"""
    assert debian_sources([], [f"{DEBIAN}\n\n{others}"]) == DEBIAN


def test_sources_in_one_line_are_understood() -> None:
    text = """\
# deb https://mirror.invalid/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/d.gpg] https://mirror.invalid/debian bookworm-security main contrib
deb https://other.invalid/linux bookworm stable
deb-src https://mirror.invalid/debian bookworm main
"""
    assert debian_sources([text], []) == (
        "Types: deb\nURIs: https://mirror.invalid/debian\nSuites: bookworm-security\nComponents: main contrib\n"
        "Signed-By: /usr/share/keyrings/d.gpg\n"
    )


def test_a_machine_of_another_distribution_has_no_sources_of_debian_12() -> None:
    assert (
        debian_sources(["deb https://mirror.invalid/ubuntu noble main"], [DEBIAN.replace("bookworm", "trixie")]) == ""
    )


def test_how_packages_are_fetched_is_taken_over_and_nothing_else() -> None:
    dump = """\
APT::Architecture "amd64";
Acquire "";
Acquire::http::Proxy "http://proxy.invalid:3128";
Acquire::Languages "none";
DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";
"""
    assert acquire_options(dump) == 'Acquire::http::Proxy "http://proxy.invalid:3128";\n'


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [("4.3-2+deb12u3", "4.3"), ("1:3.0.9-1", "3.0.9"), ("3.0.22-1~deb12u1", "3.0.22"), ("20230311", "20230311")],
)
def test_an_rpm_has_its_upstreams_version(debian: str, upstream: str) -> None:
    assert upstream_version(debian) == upstream


def test_an_rpm_needs_what_its_debian_package_needs_beyond_the_base() -> None:
    debs = {
        "chrony": Deb(Path("c.deb"), "chrony", "4.3", (("libc6",), ("ucf", "libmnl0"), ("tzdata",))),
        "libmnl0": Deb(Path("m.deb"), "libmnl0", "1", ()),
    }
    rpm = Rpm("chrony", debs=("chrony",), requires=("python3-systemd",))
    assert required_rpms(rpm, debs, {"chrony": "chrony", "libmnl0": "libmnl"}) == ["libmnl", "python3-systemd"]


def test_configuration_links_and_the_users_directories_are_marked(tmp_path: Path) -> None:
    for name in ("etc/chrony", "usr/sbin", "var/lib/chrony", "var/spool/empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/chrony.conf").touch()
    (tmp_path / "etc/chrony/chrony.conf").symlink_to("../chrony.conf")
    (tmp_path / "usr/sbin/chronyd").touch()
    assert sorted(file_lines(Rpm("chrony", user="chrony", owned=("var/lib/chrony",)), tmp_path)) == [
        '"/etc/chrony/chrony.conf"',
        '"/usr/sbin/chronyd"',
        '%attr(0750, chrony, chrony) %dir "/var/lib/chrony"',
        '%config(noreplace) "/etc/chrony.conf"',
        '%dir "/var/spool/empty"',
    ]


def test_every_base_package_is_known_under_one_name_only() -> None:
    assert len(set(rhel9.IN_THE_BASE.values())) == len(rhel9.IN_THE_BASE)
    assert not set(rhel9.IN_THE_BASE.values()) & {rpm.name for rpm in rhel9.OFFERED}
