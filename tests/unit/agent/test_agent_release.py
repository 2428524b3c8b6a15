# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.derms.edge.plugins.module_utils.kept_files import KeptFiles
from ansible_collections.derms.edge.plugins.module_utils.text_files import drift
from ansible_collections.derms.edge.plugins.modules import agent_release
from ansible_collections.derms.edge.plugins.plugin_utils.wheelhouse import Wheel, built_wheel, packed

ROLES = Path(__file__).parents[3] / "roles"
ROLE_SPECS = ROLES / "agent" / "meta" / "argument_specs.yml"
UNIT = "derms-orchestrator.service"
OLDEST, OLD, NEW = (f"0.1.0+h{digit * 10}.py310" for digit in "123")
PYTHON = ".".join(str(part) for part in sys.version_info[:2])

# What systemd answers of the unit is in the file "states", one answer a line; the last stays. Of another unit it is in
# the file of its name: its state, and the status with which it restarts.
FOLLOWER = "derms-grid-gateway.service"
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"{here}/calls"
for unit; do true; done
if [ "$1" = restart ] && [ -f "{here}/refused" ] && grep -qx "$(cat "{here}/refused")" "{here}/unit"; then
  echo "Unit $unit has a bad unit file setting." >&2
  exit 1
fi
if [ -f "{here}/$unit" ]; then
  [ "$1" != show ] || head -n 1 "{here}/$unit" | tr ' ' '\\n'
  [ "$1" != restart ] || exit "$(tail -n 1 "{here}/$unit")"
  exit 0
fi
[ "$1" = show ] || exit 0
head -n 1 "{here}/states" | tr ' ' '\\n'
[ "$(wc -l <"{here}/states")" -le 1 ] || sed -i 1d "{here}/states"
"""
JOURNALCTL = "#!/bin/sh\necho the last words\n"
AGENT = """#!/bin/sh
echo '{{"version": "{version}", "ready": {ready}}}'
"""


def run(*, check: bool = False, **params: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return its result."""
    said = io.StringIO()
    with (
        patch_module_args({**params, "_ansible_check_mode": check}),
        redirect_stdout(said),
        pytest.raises(SystemExit),
    ):
        agent_release.main()
    result: dict[str, Any] = json.loads(said.getvalue())
    return result


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return where releases are to be; it is not there yet."""
    return tmp_path / "opt" / "derms"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for systemd, whose unit is active; return the directory with its calls and states."""
    here = tmp_path / "systemd"
    program(here / "bin" / "systemctl", SYSTEMCTL.format(here=here))
    program(here / "bin" / "journalctl", JOURNALCTL)
    answers(here, "ActiveState=active NRestarts=0")
    (here / "calls").touch()
    monkeypatch.setenv("PATH", f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return here


def calls(systemd: Path, verb: str) -> list[str]:
    lines = (systemd / "calls").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split()[0] == verb]


def release(directory: Path, version: str, *, ready: bool = True, says: str | None = None, age_s: int = 0) -> Path:
    """Make a release as a finished build leaves it, its program answering what the unit would."""
    made = directory / version
    program(made / "bin" / "python", "#!/bin/sh\n")
    (made / "pyvenv.cfg").write_text("home = /usr/bin\n", encoding="utf-8")
    program(made / "bin" / "derms-agent", AGENT.format(version=says or version, ready=json.dumps(ready)))
    site = made / "lib" / "python3.10" / "site-packages"
    code = site / "derms_agent" / "__init__.py"
    code.parent.mkdir(parents=True)
    code.write_text("# the agent\n", encoding="utf-8")
    digest = base64.urlsafe_b64encode(hashlib.sha256(code.read_bytes()).digest()).decode().rstrip("=")
    record = site / f"derms_agent-{version}.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text(f"derms_agent/__init__.py,sha256={digest},12\n{record.parent.name}/RECORD,,\n", encoding="utf-8")
    wheel = f"derms_agent-{version}-py3-none-any.whl"
    (made / "requirements.txt").write_text(f"derms-agent=={version} --hash=sha256:0  # {wheel}\n", encoding="utf-8")
    (directory / "wheels").mkdir(exist_ok=True)
    (directory / "wheels" / wheel).touch()
    marker = made / "release.json"
    marker.write_text("{}", encoding="utf-8")
    written_s = marker.stat().st_mtime - age_s
    os.utime(marker, (written_s, written_s))
    return made


def in_service(directory: Path, version: str) -> None:
    (directory / "current").symlink_to(version)


def served(directory: Path) -> str:
    return str((directory / "current").readlink())


def install(directory: Path, version: str = NEW, *, check: bool = False, **params: Any) -> dict[str, Any]:
    wanted = {"python": PYTHON, "machine": platform.machine(), "version": version}
    return run(
        check=check,
        **{"state": "installed", "directory": str(directory), "interpreter": sys.executable, "releases": [wanted]}
        | params,
    )


def put_in_service(directory: Path, version: str | None = NEW, *, check: bool = False, **params: Any) -> dict[str, Any]:
    wanted = {"state": "current", "directory": str(directory), "version": version, "health_timeout_s": 1}
    return run(check=check, **wanted | params)


def answers(systemd: Path, *states: str) -> None:
    """Have systemctl answer with one state after the other."""
    (systemd / "states").write_text("".join(f"{state}\n" for state in states), encoding="utf-8")


def follower(systemd: Path, state: str, *, restarts: bool = True) -> dict[str, Any]:
    """Have another unit in that state; return what names it to the module."""
    (systemd / FOLLOWER).write_text(f"ActiveState={state}\n{int(not restarts)}\n", encoding="utf-8")
    return {"followers": [FOLLOWER]}


# --- what is there, and what is wanted --------------------------------------------------------------------------------


def test_a_bare_host_lacks_the_release_and_a_dry_run_makes_nothing(directory: Path) -> None:
    found = install(directory, check=True)
    assert found["drift"] == [drift("agent", "absent", NEW)]
    assert (found["changed"], found["to_build"], found["before"], found["version"]) == (True, True, "", NEW)
    assert not directory.exists()


def test_a_python_that_is_yet_to_be_installed_is_taken_at_its_name(directory: Path) -> None:
    wanted = {"python": "3.99", "machine": platform.machine(), "version": NEW}
    assert install(directory, check=True, interpreter="python3.99", releases=[wanted])["python"] == "3.99"
    nameless = install(directory, check=True, interpreter="no-such-python", releases=[wanted])
    assert "no-such-python" in nameless["msg"]


def test_a_python_that_no_release_is_for_is_refused_with_those_that_are(directory: Path) -> None:
    offered = [{"python": "3.99", "machine": "z80", "version": NEW}]
    said = install(directory, releases=offered)["msg"]
    assert "the agent runs on 3.99 on z80" in said
    (named,) = re.findall(r"See (\w+)\.$", said)
    specs = yaml.safe_load(ROLE_SPECS.read_text(encoding="utf-8"))
    assert named in specs["argument_specs"]["main"]["options"]


def test_what_is_as_declared_is_no_drift(directory: Path) -> None:
    release(directory, NEW)
    in_service(directory, NEW)
    found = install(directory)
    assert (found["changed"], found["drift"], found["to_build"]) == (False, [], False)


def test_an_upgrade_is_one_line(directory: Path) -> None:
    release(directory, OLD)
    in_service(directory, OLD)
    assert install(directory, check=True)["drift"] == [drift("agent", OLD, NEW)]


@pytest.mark.parametrize("place", ["/srv", f"/srv/{NEW}", f"../elsewhere/{NEW}", "no-such-release"])
def test_a_link_that_leads_elsewhere_is_drift(directory: Path, place: str) -> None:
    release(directory, NEW)
    in_service(directory, place)
    found = install(directory, check=True)
    assert found["drift"] == [drift(str(directory / "current"), place, NEW)]
    assert (found["before"], found["to_build"]) == ("", False)


def test_a_directory_in_the_links_place_is_drift(directory: Path) -> None:
    release(directory, NEW)
    (directory / "current").mkdir()
    assert install(directory, check=True)["drift"] == [drift(str(directory / "current"), "no link", NEW)]


def test_code_that_was_altered_or_removed_is_drift(directory: Path) -> None:
    made = release(directory, NEW)
    in_service(directory, NEW)
    code = made / "lib" / "python3.10" / "site-packages" / "derms_agent" / "__init__.py"
    code.write_text("# not the agent\n", encoding="utf-8")
    found = install(directory, check=True)
    assert (found["drift"], found["to_build"]) == ([drift(str(code), "not as released", "as released")], True)
    code.unlink()
    assert install(directory, check=True)["drift"] == [drift(str(code), "not as released", "as released")]


def test_a_release_without_its_mark_was_cut_off(directory: Path) -> None:
    release(directory, OLD)
    in_service(directory, OLD)
    (release(directory, NEW) / "release.json").unlink()
    found = install(directory, OLD, check=True)
    assert found["drift"] == [drift(str(directory / NEW), "present", "absent")]
    assert install(directory, NEW, check=True)["to_build"]


def test_a_release_too_many_is_drift_and_goes(directory: Path) -> None:
    for age_s, version in ((0, NEW), (10, OLD), (20, OLDEST)):
        release(directory, version, age_s=age_s)
    in_service(directory, NEW)
    assert install(directory, check=True)["drift"] == [drift(str(directory / OLDEST), "present", "absent")]
    assert (directory / OLDEST).is_dir()
    assert install(directory)["changed"]
    assert sorted(path.name for path in directory.glob("0.*")) == [OLD, NEW]
    assert install(directory)["drift"] == []


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a small agent's requirements and its wheel."""
    source = tmp_path_factory.mktemp("source")
    package = source / "src" / "derms_agent"
    package.mkdir(parents=True)
    (source / "README.md").write_text("a small agent\n", encoding="utf-8")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n\n'
        '[project]\nname = "derms-agent"\ndescription = "small"\nversion = "0.1.0"\n\n'
        '[project.scripts]\nderms-agent = "derms_agent:main"\n',
        encoding="utf-8",
    )
    (package / "__init__.py").write_text(
        '__version__ = "0.1.0"\n\ndef main():\n    print("derms-agent", __version__)\n', encoding="utf-8"
    )
    made, path = built_wheel(source, NEW, tmp_path_factory.mktemp("cache"))
    return made.lock_line + "\n" + pip_wheel(path.parent), path


def pip_wheel(directory: Path) -> str:
    """Make a wheel of the pip that runs here; return how a lock names it."""
    pip = distribution("pip")
    wheel = directory / f"pip-{pip.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        record = ""
        for file in pip.files or ():
            if file.parts[0] in ("..", "__pycache__") or file.suffix == ".pyc" or file.name == "INSTALLER":
                continue
            record += f"{file},{f'sha256={file.hash.value},{file.size}' if file.hash else ','}\n"
            if file.name != "RECORD":
                archive.write(str(file.locate()), str(file))
        archive.writestr(f"pip-{pip.version}.dist-info/RECORD", record)
    return f"pip=={pip.version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}  # {wheel.name}\n"


def store(directory: Path, wheel: Path) -> dict[str, Any]:
    parcel = [(Wheel(path.stem, "", path.name, ""), path) for path in wheel.parent.glob("*.whl")]
    with packed(parcel) as archive:
        return run(state="stored", directory=str(directory), upload=str(archive))


@pytest.mark.parametrize("name", ["../a.whl", "a/b.whl", "a.txt", "directory"])
def test_nothing_but_wheels_is_kept_of_what_was_sent(directory: Path, tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "sent.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type = tarfile.DIRTYPE if name == "directory" else tarfile.REGTYPE
        archive.addfile(member, io.BytesIO())

    said = run(state="stored", directory=str(directory), upload=str(tmp_path / "sent.tar"))

    assert said["failed"]
    assert said["msg"] == f"{name}: found among the wheels that were sent, expected wheels alone"
    assert [path.name for path in directory.rglob("*") if path.is_file()] == []


def test_wheels_that_were_sent_are_kept_for_all_to_read(directory: Path, wheel: tuple[str, Path]) -> None:
    store(directory, wheel[1])
    kept = directory / "wheels" / wheel[1].name
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (wheel[1].read_bytes(), 0o644)
    known = install(directory)["wheels"]
    assert known[wheel[1].name] == hashlib.sha256(wheel[1].read_bytes()).hexdigest()
    assert sorted(known) == sorted(path.name for path in wheel[1].parent.glob("*.whl"))


def test_a_release_is_built_from_the_wheels_alone_and_found_whole(directory: Path, wheel: tuple[str, Path]) -> None:
    store(directory, wheel[1])
    (directory / NEW).mkdir()
    (directory / NEW / "left by a cut-off build").touch()
    assert install(directory, requirements=wheel[0])["drift"] == [drift("agent", "absent", NEW)]
    assert not (directory / NEW / "left by a cut-off build").exists()
    in_service(directory, NEW)
    assert install(directory)["drift"] == []
    loose = [path for path in (directory / NEW).rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert loose == []


def test_a_wheel_that_is_not_the_locked_one_leaves_no_release(directory: Path, wheel: tuple[str, Path]) -> None:
    store(directory, wheel[1])
    failed = install(directory, requirements=re.sub("sha256:[0-9a-f]+", f"sha256:{'0' * 64}", wheel[0], count=1))
    assert "HASHES" in failed["msg"]
    assert not (directory / NEW).exists()


def test_a_pip_that_is_not_the_locked_one_is_not_run(directory: Path, wheel: tuple[str, Path]) -> None:
    store(directory, wheel[1])
    pip = next((directory / "wheels").glob("pip-*.whl"))
    pip.write_bytes(pip.read_bytes() + b"more")
    assert install(directory, requirements=wheel[0])["msg"] == f"{pip} does not have the hash that the lock names"
    assert not (directory / NEW).exists()
    assert "no pip among them" in install(directory, requirements=wheel[0].splitlines()[0])["msg"]


def own_code(directory: Path) -> Path:
    (code,) = (directory / NEW).glob("lib/python*/site-packages/derms_agent/__init__.py")
    return code


def says(directory: Path) -> str:
    """Return what the program of the release that is in service says of itself."""
    told = subprocess.run([directory / "current" / "bin" / "derms-agent"], capture_output=True, text=True, check=True)
    return told.stdout.strip()


@pytest.fixture
def serving(directory: Path, wheel: tuple[str, Path]) -> Path:
    """Have the small agent in service; return where releases are."""
    store(directory, wheel[1])
    assert "failed" not in install(directory, requirements=wheel[0])
    in_service(directory, NEW)
    return directory


def test_what_was_altered_in_service_is_put_back_and_nothing_else_is_touched(
    serving: Path, wheel: tuple[str, Path]
) -> None:
    untouched = {path: path.lstat().st_ino for path in (serving / NEW).rglob("*") if "derms_agent" not in str(path)}
    code, script = own_code(serving), serving / NEW / "bin" / "derms-agent"
    released, start = code.read_text(encoding="utf-8"), script.read_text(encoding="utf-8")
    code.write_text(released.replace("derms-agent", "another-agent"), encoding="utf-8")
    assert says(serving).startswith("another-agent")
    os.utime(serving / NEW / "release.json", (0, 0))
    script.unlink()
    altered = sorted(entry["what"] for entry in install(serving, requirements=wheel[0])["drift"])
    assert altered == sorted([str(code), str(script)])
    assert (code.read_text(encoding="utf-8"), script.read_text(encoding="utf-8")) == (released, start)
    assert says(serving) == f"derms-agent {NEW}"
    del untouched[script]
    assert {path: path.lstat().st_ino for path in untouched if path.name not in ("release.json", "bin")} == {
        path: number for path, number in untouched.items() if path.name not in ("release.json", "bin")
    }
    (compiled,) = code.parent.glob("__pycache__/*.pyc")
    assert int.from_bytes(compiled.read_bytes()[8:12], "little") == int(code.stat().st_mtime)
    # A unit that still runs what was altered started before, so its restart is owed.
    assert (serving / NEW / "release.json").stat().st_mtime > 0
    assert install(serving)["drift"] == []
    assert sorted(path.name for path in serving.iterdir()) == [NEW, "current", "wheels"]


@pytest.mark.parametrize("lost", ["derms_agent", "pip", "bin/python", "pyvenv.cfg", "release.json"])
def test_a_release_in_service_is_mended_whatever_it_lacks(serving: Path, wheel: tuple[str, Path], lost: str) -> None:
    for path in [*serving.glob(f"{NEW}/lib/python*/site-packages/{lost}*"), *serving.glob(f"{NEW}/{lost}")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (serving / NEW / "witness").touch()
    assert install(serving, requirements=wheel[0])["changed"]
    assert (serving / NEW / "witness").is_file()
    assert says(serving) == f"derms-agent {NEW}"
    assert install(serving)["drift"] == []


@pytest.mark.parametrize("emptied", ["pip/__init__.py", "pip-*/RECORD", "pip-*/METADATA", "../../../pyvenv.cfg"])
def test_what_a_power_cut_left_empty_is_found_and_put_back(
    serving: Path, wheel: tuple[str, Path], emptied: str
) -> None:
    (site,) = (serving / NEW).glob("lib/python*/site-packages")
    (file,) = site.glob(emptied)
    brought = file.read_bytes()
    file.write_bytes(b"")
    found = install(serving, check=True)
    assert found["to_build"]
    damaged = {"RECORD": serving / NEW / "lib", "pyvenv.cfg": serving / NEW}.get(file.name, file)
    assert [entry["what"] for entry in found["drift"]] == [str(damaged)]
    install(serving, requirements=wheel[0])
    assert file.read_bytes() == brought
    assert install(serving)["drift"] == []


def test_a_record_that_is_damaged_is_found(serving: Path) -> None:
    (record,) = (serving / NEW).glob("lib/python*/site-packages/pip-*/RECORD")
    for damaged in (b"\0" * 4096, b"\xff\n", b"pip/__init__.py\n"):
        record.write_bytes(damaged)
        assert [entry["what"] for entry in install(serving, check=True)["drift"]] == [str(serving / NEW / "lib")]


def test_a_release_is_on_the_disk_before_it_is_marked(
    directory: Path, wheel: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(directory, wheel[1])
    program, marker = directory / NEW / "bin" / "derms-agent", directory / NEW / "release.json"
    synced: list[tuple[bool, bool]] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append((program.is_file(), marker.exists())))
    install(directory, requirements=wheel[0])
    assert (synced, marker.is_file()) == ([(True, False)], True)


def test_a_release_in_service_that_cannot_be_mended_stays_as_it_is(serving: Path, wheel: tuple[str, Path]) -> None:
    code = own_code(serving)
    code.write_text(code.read_text(encoding="utf-8") + "# altered\n", encoding="utf-8")
    (serving / "wheels" / wheel[1].name).write_bytes(b"another")
    assert "HASHES" in install(serving, requirements=wheel[0])["msg"]
    assert code.read_text(encoding="utf-8").endswith("# altered\n")
    assert says(serving) == f"derms-agent {NEW}"
    assert sorted(path.name for path in serving.iterdir()) == [NEW, "current", "wheels"]


# --- in service -------------------------------------------------------------------------------------------------------


def test_a_dry_run_puts_nothing_in_service(directory: Path, systemd: Path) -> None:
    release(directory, OLD)
    release(directory, NEW)
    in_service(directory, OLD)
    assert put_in_service(directory, check=True)["drift"] == [drift(UNIT, f"runs {OLD}", "restarted")]
    assert served(directory) == OLD
    assert not (systemd / "calls").read_text(encoding="utf-8")


def test_the_release_is_put_in_service_and_the_one_before_is_kept(directory: Path, systemd: Path) -> None:
    for age_s, version in ((0, NEW), (10, OLD), (20, OLDEST)):
        release(directory, version, age_s=age_s)
    in_service(directory, OLD)
    done = put_in_service(directory)
    assert (done["before"], done["changed"]) == (OLD, True)
    assert served(directory) == NEW
    assert calls(systemd, "restart") == [f"restart --no-block {UNIT}"]
    assert sorted(path.name for path in directory.glob("0.*")) == [OLD, NEW]
    assert {path.name.split("-")[1] for path in (directory / "wheels").iterdir()} == {OLD, NEW}
    assert install(directory)["drift"] == []


def test_at_every_instant_of_the_switch_there_is_a_release_in_service(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut, or a crash of the unit, may come at each."""
    for version in (OLD, NEW):
        release(directory, version)
    in_service(directory, OLD)
    releases = agent_release.Releases(directory)
    found: list[str] = []
    for name in ("unlink", "symlink_to", "replace"):
        step = getattr(Path, name)

        def seen(path: Path, *given: Any, step: Callable[..., Any] = step, **more: Any) -> Any:
            done = step(path, *given, **more)
            found.append(releases.in_service())
            return done

        monkeypatch.setattr(Path, name, seen)
    releases.point_to(NEW)
    assert found == [OLD, NEW]


def test_a_release_that_never_was_in_service_is_not_the_one_before(directory: Path, systemd: Path) -> None:
    """Also where it is the newest, such as one that a run built and was cut off with."""
    never = f"0.1.0+h{'4' * 10}.py310"
    for age_s, version in ((0, NEW), (10, never), (20, OLD), (30, OLDEST)):
        release(directory, version, age_s=age_s)
    in_service(directory, OLD)
    predicted = [entry["what"] for entry in install(directory)["drift"]]
    assert str(directory / OLD) not in predicted
    assert "failed" not in put_in_service(directory)
    assert calls(systemd, "restart") == [f"restart --no-block {UNIT}"]
    assert sorted(path.name for path in directory.glob("0.*")) == [OLD, NEW]
    # Later as well, when no copies tell any more which one ran.
    release(directory, never, age_s=-10)
    assert install(directory)["drift"] == [drift(str(directory / never), "present", "absent")]
    assert sorted(path.name for path in directory.glob("0.*")) == [OLD, NEW]
    assert install(directory)["drift"] == []


def test_a_unit_that_takes_its_time_is_waited_for(directory: Path, systemd: Path) -> None:
    release(directory, NEW)
    (systemd / "states").write_text(
        "ActiveState=activating NRestarts=0\nActiveState=active NRestarts=0\n", encoding="utf-8"
    )
    assert put_in_service(directory, health_timeout_s=10)["changed"]
    assert len(calls(systemd, "show")) == 2


@pytest.fixture
def upgrade(directory: Path, tmp_path: Path, systemd: Path) -> Callable[..., dict[str, Any]]:
    """Return what upgrades from the old release, with files that change between: one changes, one is new."""
    changed, added = tmp_path / "etc" / "agent.conf", tmp_path / "etc" / "limits.conf"
    changed.parent.mkdir()
    changed.write_text("OLD\n", encoding="utf-8")
    changed.chmod(0o640)
    release(directory, OLD, age_s=10)
    in_service(directory, OLD)
    assert systemd.is_dir()

    def upgraded(**params: Any) -> dict[str, Any]:
        files = [str(changed), str(added)]
        install(directory, configuration=files)
        # A run that is cut off here and repeated must not take the new files for the old ones.
        changed.write_text("NEW\n", encoding="utf-8")
        install(directory, configuration=files)
        changed.chmod(0o600)
        added.write_text("NEW\n", encoding="utf-8")
        return put_in_service(directory, configuration=files, **params)

    return upgraded


def configuration(tmp_path: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777)
        for path in (tmp_path / "etc").iterdir()
    }


OLD_CONFIGURATION = {"agent.conf": ("OLD\n", 0o640)}


def test_a_release_that_is_well_keeps_its_configuration(
    directory: Path, tmp_path: Path, upgrade: Callable[..., dict[str, Any]]
) -> None:
    release(directory, NEW)
    assert upgrade()["changed"]
    assert {text for text, _ in configuration(tmp_path).values()} == {"NEW\n"}
    assert not (directory / "before").exists()


@pytest.mark.parametrize(
    ("wrong", "last"),
    [("not ready", f"{NEW} not ready"), ("another version", f"{OLDEST} ready")],
)
def test_a_release_that_does_not_answer_as_it_should_goes_back_with_its_configuration(
    tmp_path: Path, systemd: Path, upgrade: Callable[..., dict[str, Any]], wrong: str, last: str
) -> None:
    directory = tmp_path / "opt" / "derms"
    release(directory, NEW, ready=wrong != "not ready", says=OLDEST if wrong == "another version" else NEW)
    failed = upgrade()
    assert failed["failed"]
    assert f"no answer as {NEW} within 1 s; last: {last}" in failed["msg"]
    assert f"Went back to {OLD}, which is in service again" in failed["msg"]
    assert "the last words" in failed["msg"]
    assert failed["rolled_back"] == ["agent", *(str(tmp_path / "etc" / name) for name in ("agent.conf", "limits.conf"))]
    assert served(directory) == OLD
    assert configuration(tmp_path) == OLD_CONFIGURATION
    assert len(calls(systemd, "restart")) == len(calls(systemd, "daemon-reload")) == 2
    assert not (directory / "before").exists()


def cut_off(*_: Any) -> str:
    raise OSError("the run was cut off")


@pytest.mark.parametrize("well", [True, False])
def test_an_upgrade_that_was_cut_off_before_the_release_answered_is_judged_by_the_next_run(
    directory: Path, tmp_path: Path, upgrade: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    files = [str(tmp_path / "etc" / name) for name in ("agent.conf", "limits.conf")]
    # Built after the one in service, and never in service: nothing to go back to.
    release(directory, OLDEST)
    release(directory, NEW, ready=well)

    with monkeypatch.context() as patched:
        patched.setattr(agent_release.Gateway, "ailment", cut_off)
        assert upgrade()["msg"] == "the run was cut off"
    assert served(directory) == NEW

    unproven = drift("agent", f"{NEW}, not seen to be well", NEW)
    assert unproven in install(directory, check=True, configuration=files)["drift"]
    found = install(directory, configuration=files)
    assert (found["changed"], found["to_build"], unproven in found["drift"]) == (True, False, True)
    done = put_in_service(directory, configuration=files)
    assert done.get("rolled_back", []) == ([] if well else ["agent", *files])
    assert served(directory) == (NEW if well else OLD)
    assert (configuration(tmp_path) == OLD_CONFIGURATION) != well
    assert not (directory / "before").exists()
    if well:
        assert install(directory, configuration=files)["drift"] == []


def test_a_roll_back_that_was_cut_off_is_done_by_the_next_run(
    directory: Path, tmp_path: Path, upgrade: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    release(directory, NEW, ready=False)
    with monkeypatch.context() as patched:
        patched.setattr(agent_release.Gateway, "_gone_back", cut_off)
        assert upgrade()["msg"] == "the run was cut off"
    assert (served(directory), configuration(tmp_path)) == (NEW, OLD_CONFIGURATION)
    files = [str(tmp_path / "etc" / name) for name in ("agent.conf", "limits.conf")]
    assert install(directory, configuration=files)["changed"]
    assert f"Went back to {OLD}" in put_in_service(directory, configuration=files)["msg"]
    assert served(directory) == OLD


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_configuration_that_the_same_release_does_not_run_with_goes_back(
    directory: Path, tmp_path: Path, systemd: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    release(directory, NEW)
    in_service(directory, NEW)
    changed, added = tmp_path / "etc" / "agent.conf", tmp_path / "etc" / "limits.conf"
    changed.parent.mkdir()
    changed.write_text("OLD\n", encoding="utf-8")
    changed.chmod(0o640)
    files = [str(changed), str(added)]
    # As the module does that is about to change them.
    KeptFiles(files, directory / "before").keep(directory / "current")
    for path in (changed, added):
        path.write_text("NEW\n", encoding="utf-8")
    if interrupted:
        with monkeypatch.context() as patched:
            patched.setattr(agent_release.Gateway, "ailment", cut_off)
            assert put_in_service(directory, configuration=files)["msg"] == "the run was cut off"
        assert install(directory, configuration=files)["drift"] == [drift("agent", f"{NEW}, not seen to be well", NEW)]
    (systemd / "calls").write_text("", encoding="utf-8")
    answers(systemd, "ActiveState=failed NRestarts=0", "ActiveState=active NRestarts=0")
    failed = put_in_service(directory, configuration=files)
    assert f"Went back to {NEW} with the configuration before, which is in service again" in failed["msg"]
    assert failed["rolled_back"] == files
    assert (served(directory), configuration(tmp_path)) == (NEW, OLD_CONFIGURATION)
    assert len(calls(systemd, "restart")) == len(calls(systemd, "daemon-reload")) == 2
    assert install(directory, configuration=files)["drift"] == []


def test_copies_that_a_run_was_cut_off_with_before_it_changed_anything_go(directory: Path, tmp_path: Path) -> None:
    conf = tmp_path / "agent.conf"
    conf.write_text("OLD\n", encoding="utf-8")
    release(directory, OLD)
    in_service(directory, OLD)
    release(directory, NEW)
    assert install(directory, configuration=[str(conf)])["changed"]
    assert (directory / "before").is_dir()
    # The release before is wanted again: it has run all the while.
    found = install(directory, OLD, configuration=[str(conf)])["drift"]
    assert [entry for entry in found if entry["what"] == "agent"] == []
    assert not (directory / "before").exists()


@pytest.mark.usefixtures("systemd")
def test_a_file_that_an_older_collection_kept_no_copy_of_stays_where_its_copies_go_back(
    directory: Path, tmp_path: Path
) -> None:
    """Its run was cut off, and the next one is a newer collection's, which would go back with one more file."""
    conf, unit = tmp_path / "agent.conf", tmp_path / "derms-grid-gateway.service"
    for path in (conf, unit):
        path.write_text("OLD\n", encoding="utf-8")
    release(directory, OLD)
    in_service(directory, OLD)
    release(directory, NEW, ready=False)
    older = KeptFiles([str(conf)], directory / "before")
    older.keep(directory / "current")
    (directory / "before" / "files").unlink(missing_ok=True)
    conf.write_text("NEW\n", encoding="utf-8")
    files = [str(conf), str(unit)]
    install(directory, configuration=files)
    assert put_in_service(directory, configuration=files)["rolled_back"] == ["agent", str(conf)]
    assert (conf.read_text(encoding="utf-8"), unit.read_text(encoding="utf-8")) == ("OLD\n", "OLD\n")


def test_copies_and_the_list_of_them_are_on_the_disk_before_they_are_seen(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "agent.conf"
    conf.write_text("OLD\n", encoding="utf-8")
    release(directory, OLD)
    in_service(directory, OLD)
    synced: list[tuple[str, bool]] = []

    def seen(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (directory / "before").is_dir()))

    monkeypatch.setattr(os, "fsync", seen)
    KeptFiles([str(conf)], directory / "before").keep(directory / "current")
    copy = directory / ".before" / str(conf).lstrip("/")
    for path in (directory / ".before" / "files", copy, copy.parent, directory / ".before"):
        assert (str(path), False) in synced
    assert synced[-1] == (str(directory), True)


def test_copies_are_never_seen_in_part(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "agent.conf"
    conf.write_text("OLD\n", encoding="utf-8")
    release(directory, OLD)
    in_service(directory, OLD)
    kept = KeptFiles([str(conf)], directory / "before")
    kept.keep(directory / "current")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(OSError, match="cut off"):
            kept.forget()
    assert not (directory / "before").exists()
    kept.keep(directory / "current")
    assert not kept.differ()
    kept.forget()
    assert sorted(path.name for path in directory.iterdir()) == [OLD, "current", "wheels"]


def test_what_goes_back_is_nobody_elses_to_read_on_its_way(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, left = tmp_path / "depot.yml", tmp_path / ".depot.yml.before"
    conf.write_text("a password\n", encoding="utf-8")
    conf.chmod(0o640)
    release(directory, OLD)
    in_service(directory, OLD)
    kept = KeptFiles([str(conf)], directory / "before")
    kept.keep(directory / "current")
    # Of a run that was cut off.
    left.touch(mode=0o644)
    modes: list[int] = []
    copystat = shutil.copystat

    def seen(source: Path, place: Path, **options: Any) -> None:
        modes.append(place.stat().st_mode & 0o777)
        copystat(source, place, **options)

    monkeypatch.setattr(shutil, "copystat", seen)
    kept.put_back()
    assert (modes, conf.stat().st_mode & 0o777) == ([0o600], 0o640)
    assert not left.exists()


def test_where_nothing_changed_there_is_nothing_to_go_back_to(directory: Path, systemd: Path) -> None:
    release(directory, NEW, ready=False)
    in_service(directory, NEW)
    failed = put_in_service(directory)
    assert ("nothing to go back to" in failed["msg"], failed["rolled_back"]) == (True, [])
    assert len(calls(systemd, "restart")) == 1


def test_a_unit_that_crashes_again_and_again_is_not_waited_for(
    directory: Path, tmp_path: Path, systemd: Path, upgrade: Callable[..., dict[str, Any]]
) -> None:
    release(directory, NEW)
    (systemd / "states").write_text(
        "ActiveState=activating NRestarts=4\nActiveState=active NRestarts=0\n", encoding="utf-8"
    )
    failed = upgrade(health_timeout_s=60)
    assert "does not stay up: activating after 4 restarts" in failed["msg"]
    assert configuration(tmp_path) == OLD_CONFIGURATION
    assert len(calls(systemd, "show")) == 2


def test_when_the_old_release_is_not_well_either_both_are_told(
    directory: Path, systemd: Path, upgrade: Callable[..., dict[str, Any]]
) -> None:
    release(directory, NEW)
    answers(systemd, "ActiveState=failed NRestarts=0")
    assert f"Went back to {OLD}, which is not well either: {UNIT} does not stay up" in upgrade()["msg"]
    assert served(directory) == OLD


@pytest.mark.parametrize("before", ["well", "refused", "same release"])
def test_a_unit_that_systemd_refuses_goes_back(directory: Path, systemd: Path, before: str) -> None:
    """Such as one with a bad setting, or that is masked: it never starts, so it never fails either."""
    old = NEW if before == "same release" else OLD
    for version in {old, NEW}:
        release(directory, version)
    in_service(directory, old)
    unit = systemd / "unit"
    unit.write_text("old\n", encoding="utf-8")
    (systemd / "refused").write_text(".*" if before == "refused" else "new", encoding="utf-8")
    KeptFiles([str(unit)], directory / "before").keep(directory / "current")
    unit.write_text("new\n", encoding="utf-8")
    failed = put_in_service(directory, configuration=[str(unit)])
    assert "bad unit file setting" in failed["msg"]
    assert ("which is not well either: " if before == "refused" else "is in service again") in failed["msg"]
    assert (served(directory), unit.read_text(encoding="utf-8")) == (old, "old\n")
    assert failed["rolled_back"] == [*([] if old == NEW else ["agent"]), str(unit)]
    assert not (directory / "before").exists()


def test_with_no_release_before_a_unit_that_systemd_refuses_leaves_no_link(directory: Path, systemd: Path) -> None:
    release(directory, NEW)
    (systemd / "unit").write_text("new\n", encoding="utf-8")
    (systemd / "refused").write_text("new", encoding="utf-8")
    assert "the unit is stopped" in put_in_service(directory)["msg"]
    assert not (directory / "current").is_symlink()


def test_the_link_goes_back_where_the_configuration_cannot(
    directory: Path, tmp_path: Path, upgrade: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    release(directory, NEW, ready=False)
    with monkeypatch.context() as patched:
        patched.setattr(KeptFiles, "put_back", cut_off)
        failed = upgrade()
    assert "The configuration before could not be put back: the run was cut off" in failed["msg"]
    assert f"Went back to {OLD}" in failed["msg"]
    assert (served(directory), failed["rolled_back"]) == (OLD, ["agent"])
    # What could not be done is there for the next run to do.
    files = [str(tmp_path / "etc" / name) for name in ("agent.conf", "limits.conf")]
    assert put_in_service(directory, configuration=files)["rolled_back"] == ["agent", *files]
    assert configuration(tmp_path) == OLD_CONFIGURATION


def test_with_no_release_before_the_unit_is_stopped(directory: Path, systemd: Path) -> None:
    release(directory, NEW, ready=False)
    failed = put_in_service(directory)
    assert f"There was no release before {NEW}: the unit is stopped" in failed["msg"]
    assert not (directory / "current").is_symlink()
    assert calls(systemd, "stop") == [f"stop {UNIT}"]
    assert set(failed["rolled_back"]) == {"agent", str(directory / "current")}


@pytest.mark.parametrize("ran", [True, False])
def test_a_link_that_led_elsewhere_leads_there_again(directory: Path, tmp_path: Path, systemd: Path, ran: bool) -> None:
    """What a run says is rolled back is as it was: the link, the configuration, and whether the unit runs."""
    link, conf = directory / "current", tmp_path / "agent.conf"
    conf.write_text("OLD\n", encoding="utf-8")
    release(directory, NEW, ready=False)
    link.symlink_to(tmp_path / "elsewhere")
    answers(systemd, f"ActiveState={'active' if ran else 'inactive'} NRestarts=0", "ActiveState=active NRestarts=0")
    assert drift(str(link), str(tmp_path / "elsewhere"), NEW) in install(directory, configuration=[str(conf)])["drift"]
    conf.write_text("NEW\n", encoding="utf-8")
    failed = put_in_service(directory, configuration=[str(conf)])
    assert failed["rolled_back"] == ["agent", str(link), str(conf)]
    assert served(directory) == str(tmp_path / "elsewhere")
    assert conf.read_text(encoding="utf-8") == "OLD\n"
    assert len(calls(systemd, "restart")) == (2 if ran else 1)
    assert len(calls(systemd, "stop")) == (0 if ran else 1)


@pytest.mark.parametrize("state", ["active NRestarts=4", "activating NRestarts=0", "reloading NRestarts=0"])
def test_what_else_runs_the_release_is_restarted_once_it_is_well(directory: Path, systemd: Path, state: str) -> None:
    release(directory, NEW)
    other = follower(systemd, state)
    predicted = put_in_service(directory, check=True, **other)
    assert not calls(systemd, "restart")
    done = put_in_service(directory, **other)
    assert calls(systemd, "restart") == [f"restart --no-block {UNIT}", f"restart {FOLLOWER}"]
    both = [drift(unit, "runs no release", "restarted") for unit in (UNIT, FOLLOWER)]
    assert predicted["drift"] == done["drift"] == both


@pytest.mark.parametrize("state", ["inactive", "deactivating", "failed", "activating NRestarts=1"])
def test_what_does_not_run_stays_so_and_takes_nothing_back(directory: Path, systemd: Path, state: str) -> None:
    release(directory, NEW)
    done = put_in_service(directory, **follower(systemd, state, restarts=False))
    assert served(directory) == NEW
    assert calls(systemd, "restart") == [f"restart --no-block {UNIT}"]
    assert done["drift"] == [drift(UNIT, "runs no release", "restarted")]


def test_a_release_that_another_unit_does_not_start_with_goes_back(
    directory: Path, systemd: Path, upgrade: Callable[..., dict[str, Any]]
) -> None:
    release(directory, NEW)
    failed = upgrade(**follower(systemd, "active", restarts=False))
    assert failed["msg"].startswith(f"{FOLLOWER} does not start: ")
    assert f"Went back to {OLD}, which is not well either: {FOLLOWER} does not start" in failed["msg"]
    assert served(directory) == OLD


def test_what_ran_beforehand_runs_again_after_it_failed_with_the_new_release(
    directory: Path, systemd: Path, upgrade: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    release(directory, NEW, ready=False)
    other = follower(systemd, "active")
    well = agent_release.Gateway.unit_ailment

    def fails_meanwhile(gateway: agent_release.Gateway, version: str) -> str:
        follower(systemd, "failed")
        return well(gateway, version)

    monkeypatch.setattr(agent_release.Gateway, "unit_ailment", fails_meanwhile)
    assert f"Went back to {OLD}, which is in service again" in upgrade(**other)["msg"]
    assert calls(systemd, "restart")[-1] == f"restart {FOLLOWER}"


@pytest.mark.parametrize("well", [True, False])
def test_a_unit_of_another_that_alone_has_changed_is_judged_alone(directory: Path, systemd: Path, well: bool) -> None:
    mark = release(directory, NEW, age_s=10) / "release.json"
    in_service(directory, NEW)
    marked_s, other = mark.stat().st_mtime, follower(systemd, "active")
    unit = systemd / "unit"
    unit.write_text("old\n", encoding="utf-8")
    if not well:
        (systemd / "refused").write_text("new", encoding="utf-8")
    KeptFiles([str(unit)], directory / "before").keep(directory / "current")
    unit.write_text("new\n", encoding="utf-8")
    wanted: dict[str, Any] = {"followers_only": True, "configuration": [str(unit)], **other}
    expected = [drift(FOLLOWER, f"runs {NEW}", "restarted")]
    assert put_in_service(directory, check=True, **wanted)["drift"] == expected
    done = put_in_service(directory, **wanted)
    if well:
        assert (done["drift"], unit.read_text(encoding="utf-8")) == (expected, "new\n")
    else:
        assert done["msg"].startswith(f"{FOLLOWER} does not start: ")
        assert f"Went back to {NEW} with the configuration before, which is in service again" in done["msg"]
        assert (done["rolled_back"], unit.read_text(encoding="utf-8")) == ([str(unit)], "old\n")
    assert set(calls(systemd, "restart")) == {f"restart {FOLLOWER}"}
    assert len(calls(systemd, "restart")) == len(calls(systemd, "daemon-reload")) == (1 if well else 2)
    # As young as before, so that nobody owes the other unit a restart.
    assert (served(directory), mark.stat().st_mtime) == (NEW, marked_s)
    assert not (directory / "before").exists()


def test_without_a_version_it_is_the_one_in_service(directory: Path, systemd: Path) -> None:
    assert "current: found absent, expected a link to a release" in put_in_service(directory, version=None)["msg"]
    release(directory, NEW)
    in_service(directory, NEW)
    assert put_in_service(directory, version=None)["version"] == NEW
    assert calls(systemd, "restart") == [f"restart --no-block {UNIT}"]


def of_role(name: str, variable: str, **variables: Any) -> Any:
    """Return a variable of a role, by the role's own others and some more."""
    text = (ROLES / name / "vars" / "main.yml").read_text(encoding="utf-8")
    own = yaml.safe_load(text)
    trusted = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in own.items()}
    return Templar(loader=DataLoader(), variables={**trusted, **variables}).template(trusted[variable])


def test_the_grid_gateways_unit_goes_back_with_the_release() -> None:
    assert of_role("grid_gateway", "grid_gateway_unit_file") in of_role("agent", "agent_restored_files")


UNCHANGED, CHANGED = {"changed": False}, {"changed": True}


@pytest.mark.parametrize("changed", ["agent_release", "agent_files", "agent_units", "nothing", "nobody has looked"])
def test_for_the_grid_gateways_unit_alone_the_orchestrator_is_not_restarted(changed: str) -> None:
    looked = dict.fromkeys(("agent_release", "agent_files", "agent_units"), UNCHANGED)
    found = {} if changed == "nobody has looked" else {**looked, changed: CHANGED}
    assert of_role("agent", "agent_is_restarted", **found) is (changed != "nothing")


@pytest.mark.parametrize(("vtn", "followers"), [({"derms_vtn_url": "https://vtn.example/"}, [FOLLOWER]), ({}, [])])
def test_a_grid_gateway_that_has_no_vtn_any_more_is_not_restarted(vtn: dict[str, str], followers: list[str]) -> None:
    """Without one it would not start, and each run would take the depot file's change back."""
    assert of_role("agent", "agent_followers", **vtn) == followers


def test_what_is_not_whole_is_not_put_in_service(directory: Path, systemd: Path) -> None:
    release(directory, OLD)
    in_service(directory, OLD)
    shutil.rmtree(release(directory, NEW) / "lib")
    assert "was not put in service" in put_in_service(directory)["msg"]
    assert served(directory) == OLD
    assert not (systemd / "calls").read_text(encoding="utf-8")


def test_what_is_no_link_is_not_replaced_by_one(directory: Path, systemd: Path) -> None:
    release(directory, NEW)
    (directory / "current").mkdir()
    refused = put_in_service(directory)
    assert ("is in the way" in refused["msg"], refused["rolled_back"]) == (True, [])
    assert (directory / "current").is_dir()
    assert not (systemd / "calls").read_text(encoding="utf-8")
