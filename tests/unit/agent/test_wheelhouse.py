# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib
from ansible_collections.derms.edge.plugins.plugin_utils.wheelhouse import (
    EXTRAS,
    TARGETS,
    Target,
    Wheel,
    WheelhouseError,
    batches,
    built_wheel,
    cached_path,
    fetch,
    file_sha256,
    opened,
    parsed_lock,
    release_version,
    require_programs,
)
from flit_core.buildapi import build_sdist
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
from tools.lock_wheels import accepted_tags, best_wheel

AGENT = ROOT / "agent"
TARGET = Target("3.10", "x86_64")
VERSION = "9.8.7+h0123456789.py310"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the agent's source, as a checkout elsewhere has it."""
    copy = tmp_path / "agent"
    shutil.copytree(AGENT, copy, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    return copy


def locked(target: Target) -> list[Wheel]:
    return parsed_lock((AGENT / "locks" / target.lock_name).read_text(encoding="utf-8"), target.lock_name)


# --- the committed locks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.lock_name)
def test_every_wheel_of_a_lock_runs_on_its_target(target: Target) -> None:
    accepted = accepted_tags(target)
    wheels = locked(target)
    assert [wheel.file for wheel in wheels if accepted.keys().isdisjoint(parse_wheel_filename(wheel.file)[3])] == []
    for wheel in wheels:
        name, version, _build, _tags = parse_wheel_filename(wheel.file)
        assert (name, str(version)) == (canonicalize_name(wheel.name), wheel.version)
    assert len({wheel.name for wheel in wheels}) == len(wheels)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.lock_name)
def test_a_lock_has_what_the_agent_asks_for(target: Target) -> None:
    project = tomllib.loads((AGENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    versions = {canonicalize_name(wheel.name): wheel.version for wheel in locked(target)}
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_each_target_has_its_lock_and_there_is_no_other() -> None:
    assert {path.name for path in (AGENT / "locks").iterdir()} == {target.lock_name for target in TARGETS}


@pytest.mark.parametrize(
    ("files", "best"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp310-cp310-manylinux_2_17_x86_64.whl"], 1),
        (["a-1-cp310-cp310-manylinux_2_17_x86_64.whl", "a-1-cp310-cp310-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp39-abi3-manylinux2014_x86_64.whl", "a-1-cp311-cp311-manylinux2014_x86_64.whl"], 0),
        (["a-1-cp310-cp310-manylinux_2_17_aarch64.whl", "a-1-cp310-cp310-musllinux_1_2_x86_64.whl"], None),
        (["a-1-cp310-cp310-manylinux_2_35_x86_64.whl"], None),
    ],
)
def test_the_wheel_that_fits_best_is_taken_and_one_that_does_not_fit_never(files: list[str], best: int | None) -> None:
    wheels = [{"url": f"https://index.example/{file}", "hashes": {"sha256": "0"}} for file in files]
    found = best_wheel({"name": "a", "version": "1", "wheels": wheels}, accepted_tags(TARGET))
    assert (found.file if found else None) == (None if best is None else files[best])


def test_a_line_that_is_no_locks_is_told_with_its_place() -> None:
    line = f"a==1 --hash=sha256:{'0' * 64}  # a-1-py3-none-any.whl"
    assert parsed_lock(f"# a lock\n\n{line}\n", "lock.txt")[0].lock_line == line
    with pytest.raises(WheelhouseError, match=r"lock\.txt:2: found 'a==1', expected"):
        parsed_lock(f"{line}\na==1\n", "lock.txt")


# --- a release's version ----------------------------------------------------------------------------------------------


def append(path: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        with (source / path).open("a", encoding="utf-8") as stream:
            stream.write("\n# changed\n")

    return change


def rename(source: Path) -> None:
    module = source / "src" / "derms_agent" / "one_line.py"
    module.rename(module.with_name("other_line.py"))


def touch(source: Path) -> None:
    os.utime(source / "src" / "derms_agent" / "cli.py", (0, 0))


def compile_it(source: Path) -> None:
    cache = source / "src" / "derms_agent" / "__pycache__"
    cache.mkdir()
    (cache / "cli.cpython-313.pyc").touch()


def add_tests(source: Path) -> None:
    (source / "tests").mkdir()
    (source / "tests" / "test_new.py").touch()


CODE, PROFILE = "src/derms_agent/cli.py", "src/derms_agent/profiles/keba_p30.yml"


@pytest.mark.parametrize("change", [append(CODE), append(PROFILE), append("pyproject.toml"), rename])
def test_other_content_is_another_version(source: Path, change: Callable[[Path], None]) -> None:
    before = release_version(source, "lock", TARGET)
    change(source)
    assert release_version(source, "lock", TARGET) != before


@pytest.mark.parametrize("change", [touch, compile_it, add_tests])
def test_what_is_not_in_the_wheel_is_the_same_version(source: Path, change: Callable[[Path], None]) -> None:
    before = release_version(AGENT, "lock", TARGET)
    change(source)
    assert release_version(source, "lock", TARGET) == before


def test_another_lock_or_python_is_another_version() -> None:
    versions = {release_version(AGENT, lock, target) for lock in ("one", "two") for target in (TARGET, TARGETS[-1])}
    assert len(versions) == 4
    project = tomllib.loads((AGENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(version.startswith(f"{project['version']}+h") for version in versions)


def test_without_a_source_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match=f"{tmp_path}.*pyproject"):
        release_version(tmp_path, "lock", TARGET)


# --- the control node -------------------------------------------------------------------------------------------------


def test_this_control_node_has_what_makes_a_release() -> None:
    require_programs()


def test_a_control_node_without_pip_is_told_what_to_install(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    program = tmp_path / "bare" / "bin" / "python"
    called = f"from {require_programs.__module__} import require_programs; require_programs()"
    done = subprocess.run(
        [program, "-c", called],
        env={"PYTHONPATH": str(ROOT / "collections")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"WheelhouseError: {program}: found no pip and no flit_core; " in last
    assert "`make setup` installs them" in last


# --- the archive of a built collection --------------------------------------------------------------------------------


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the agent's archive, as tools/build_collection makes it."""
    directory = tmp_path / "carried"
    directory.mkdir()
    monkeypatch.chdir(AGENT)
    build_sdist(str(directory))
    return directory


def test_an_archive_gives_the_release_that_its_checkout_gives(carried: Path, tmp_path: Path) -> None:
    with opened(carried) as source, opened(AGENT) as checkout:
        assert checkout == AGENT
        for target in TARGETS:
            locks = [(tree / "locks" / target.lock_name).read_text("utf-8") for tree in (source, checkout)]
            assert locks[0] == locks[1]
            assert release_version(source, locks[0], target) == release_version(checkout, locks[1], target)
        _, one = built_wheel(source, VERSION, tmp_path / "one")
        _, two = built_wheel(checkout, VERSION, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert not source.exists()


def test_without_a_source_or_one_archive_it_says_what_it_found(carried: Path, tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match=f"{tmp_path}: found 0 archives.*make collection"), opened(tmp_path):
        pass
    shutil.copy(next(carried.iterdir()), carried / "derms_agent-0.0.1.tar.gz")
    with pytest.raises(WheelhouseError, match=f"{carried}: found 2 archives"), opened(carried):
        pass


# --- the agent's own wheel --------------------------------------------------------------------------------------------


def test_two_builds_of_one_source_are_the_same_file(source: Path, tmp_path: Path) -> None:
    for path in source.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o600)
    one, first = built_wheel(AGENT, VERSION, tmp_path / "one")
    two, second = built_wheel(source, VERSION, tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    assert one == two
    assert (one.version, one.file, one.sha256) == (VERSION, first.name, file_sha256(first))


def test_what_was_built_is_not_built_again(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _, first = built_wheel(source, VERSION, cache)
    shutil.rmtree(source)
    assert built_wheel(source, VERSION, cache)[1] == first


def test_a_source_that_cannot_be_built_is_told_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "pyproject.toml").write_text("not toml", encoding="utf-8")
    cache = tmp_path / "cache"
    with pytest.raises(WheelhouseError, match="could not be built"):
        built_wheel(source, VERSION, cache)
    assert not list(cache.rglob("*.whl"))


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheel, Path]:
    """Return a wheel that an index has, and where."""
    return built_wheel(AGENT, VERSION, tmp_path_factory.mktemp("index"))


@pytest.fixture
def index(published: tuple[Wheel, Path], monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Lead pip to a directory in an index's place; return the wheel in it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(published[1].parent))
    return published[0]


def test_what_the_cache_lacks_is_downloaded_and_what_it_holds_is_not(
    index: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch([index], TARGET, tmp_path)
    assert file_sha256(cached_path(tmp_path, index)) == index.sha256
    monkeypatch.setattr(subprocess, "run", None)
    fetch([index], TARGET, tmp_path)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.lock_name)
def test_a_wheel_for_one_python_and_processor_is_had_whatever_this_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    """A control node downloads for a field gateway of another kind."""
    tag = f"cp{target.python.replace('.', '')}"
    file = tmp_path / f"only-1.0-{tag}-{tag}-manylinux_2_17_{target.machine}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in (("METADATA", "Metadata-Version: 2.1\nName: only\nVersion: 1.0\n"), ("RECORD", "")):
            archive.writestr(f"only-1.0.dist-info/{name}", text)
        archive.writestr("only-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = Wheel("only", "1.0", file.name, file_sha256(file))
    fetch([wheel], target, tmp_path / "cache")
    assert file_sha256(cached_path(tmp_path / "cache", wheel)) == wheel.sha256


def test_a_cached_file_that_was_altered_is_downloaded_anew(index: Wheel, tmp_path: Path) -> None:
    cached = cached_path(tmp_path, index)
    cached.parent.mkdir()
    cached.write_bytes(b"not a wheel")
    fetch([index], TARGET, tmp_path)
    assert file_sha256(cached) == index.sha256


def test_a_wheel_of_another_hash_is_refused_and_not_kept(index: Wheel, tmp_path: Path) -> None:
    other = Wheel(index.name, index.version, index.file, "0" * 64)
    with pytest.raises(WheelhouseError, match=r"(?s)could not download derms_agent.*copy .* from one that has them"):
        fetch([other], TARGET, tmp_path)
    assert not list(tmp_path.rglob("*.whl"))


@given(sizes=st.lists(st.integers(0, 30), max_size=12))
def test_parcels_hold_each_wheel_once_and_end_at_their_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("wheels")
    wheels = []
    for number, size in enumerate(sizes):
        path = directory / f"{number}.whl"
        path.write_bytes(b"x" * size)
        wheels.append((Wheel(str(number), "1", path.name, ""), path))
    parcels = list(batches(wheels, 20))
    assert sorted(wheel.name for parcel in parcels for wheel, _ in parcel) == sorted(str(n) for n in range(len(sizes)))
    for parcel in parcels:
        assert parcel
        # Without its last, the largest, a parcel is within the size.
        assert sum(path.stat().st_size for _, path in parcel[:-1]) < 20
