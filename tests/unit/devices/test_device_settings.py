# SPDX-License-Identifier: GPL-3.0-or-later
"""The module device_settings as Ansible calls it: what it returns, and when it fails; its devices are the twin's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import derms_agent.device_state
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import device_settings
from anyio.from_thread import BlockingPortal, start_blocking_portal
from derms_agent import profiles
from derms_agent.depot.plain import depot_document
from derms_agent.device_state.run import depot_of
from derms_agent.twin import Fault, FaultKind, Twin

ROOT = Path(__file__).parents[3]
GATEWAY = "gateway-1"
FRONT, YARD = ("front-1", "front-2"), ("yard-1", "yard-2", "yard-3")
FAILSAFE_A, TIMEOUT_MS = 262, 257
SECRET_S = 37
OLDEST_PYTHON = "3.9"


def document() -> dict[str, Any]:
    """Return a small depot, written out as the inventory has it."""
    keba = {"unit_id": 255, "profile": "keba_p30", "circuit": "main", "evses": {"rating_a": 16}}
    heidelberg = {"bus": "line", "profile": "heidelberg_energy_control", "circuit": "main", "evses": {"rating_a": 16}}
    settings = {"failsafe_current": 6, "failsafe_timeout": 30}
    buses = {"line": {"gateway": GATEWAY, "transport": "rtu_over_tcp", "host": "192.0.2.20", "baud_rate": 115200}}
    for number, name in enumerate([*FRONT, "back"]):
        gateway = "gateway-2" if name == "back" else GATEWAY
        buses[name] = {"gateway": gateway, "transport": "tcp", "host": f"192.0.2.{number + 31}"}
    return {
        "plugin": "derms.edge.depot",
        "depot": "small",
        "site": {"limit_kva": 100},
        "gateways": {GATEWAY: {"address": "192.0.2.1"}, "gateway-2": {"address": "192.0.2.2"}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 150, "base_load_a": 10, "allocator": GATEWAY}},
        "buses": buses,
        "devices": {
            **{name: {**heidelberg, "unit_id": int(name[-1]), "settings": settings} for name in YARD},
            **{name: {**keba, "bus": name, "settings": {**settings, "failsafe_persist": "kept"}} for name in FRONT},
            "back": {**keba, "bus": "back", "settings": settings},
            "bare": {**heidelberg, "unit_id": 9},
        },
    }


@dataclass
class Field:
    """What the devices hold, and the module's arguments that lead to them."""

    twin: Twin
    portal: BlockingPortal
    arguments: dict[str, Any]

    def silence(self, device: str) -> None:
        """Have a device answer nothing."""
        self.portal.call(self.twin.fault, device, Fault(kind=FaultKind.SILENT))

    def holds(self, device: str, **settings: Any) -> None:
        """Give a device settings by hand."""
        at = self.twin.depot.devices[device]
        for name, value in settings.items():
            point = profiles.load(at.profile).points[name]
            place = (at.bus, at.unit_id, point.table, point.address, point.encode(value))
            self.portal.call(self.twin.write, *place)
        self.twin.writes.clear()

    def written(self) -> list[tuple[str, int, int, tuple[int, ...]]]:
        """Return what came over the wire since anything was given by hand."""
        return sorted((one.bus, one.unit, one.address, tuple(one.words)) for one in self.twin.writes)

    def run(self, *, check: bool = False, **params: Any) -> dict[str, Any]:
        """Run the module on them."""
        return run(check=check, **{**self.arguments, **params})


def run(*, check: bool = False, **params: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return its result."""
    said = io.StringIO()
    with (
        patch_module_args({**params, "_ansible_check_mode": check, "_ansible_diff": True}),
        redirect_stdout(said),
        pytest.raises(SystemExit),
    ):
        device_settings.main()
    result: dict[str, Any] = json.loads(said.getvalue())
    return result


def on_localhost(
    arguments: dict[str, Any], directory: Path, interpreter: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run the module by Ansible itself, on an interpreter of this machine."""
    task = {"name": "Ask", "derms.edge.device_settings": arguments, "vars": {"ansible_python_interpreter": interpreter}}
    playbook = directory / "play.yml"
    play = {"name": "Run", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(playbook), *options]
    # The tree's own configuration is used, which names the collection.
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {device["name"]: device["status"] for device in result["devices"]}


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Return the module's arguments on a gateway that has no agent; nobody answers at the depot's addresses."""
    paths = {"agent_directory": tmp_path / "opt", "socket": tmp_path / "socket", "state_directory": tmp_path}
    return {"depot": document(), "gateway": GATEWAY, **{name: str(path) for name, path in paths.items()}}


@pytest.fixture
def field(arguments: dict[str, Any]) -> Iterator[Field]:
    """Serve the depot's devices on loopback. The module asks them directly: no agent runs."""
    depot = depot_of(arguments["depot"])
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Twin(depot)) as twin:
        for name, (host, port) in portal.call(twin.serve, lambda _host, _port: ("127.0.0.1", 0)).items():
            arguments["depot"]["buses"][name] |= {"host": host, "port": port}
        yield Field(twin, portal, arguments)


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this interpreter know nothing of the agent, as a gateway's own."""
    monkeypatch.setitem(sys.modules, "derms_agent.device_state.calls", None)


# --- no agent, or another ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_agent")
def test_a_dry_run_of_a_bare_gateway_says_that_its_devices_are_unknown(arguments: dict[str, Any]) -> None:
    result = run(check=True, **arguments)
    assert not result.get("failed")
    assert not result["changed"]
    assert statuses(result) == dict.fromkeys([*YARD, *FRONT], "unknown")
    python = Path(arguments["agent_directory"], "current", "bin", "python")
    why = f"unknown: the agent is not on this gateway yet: there is no {python}"
    assert result["not_verified"] == [f"yard-1, yard-2, yard-3, front-1, front-2 {why}"]
    assert (result["drift"], result["diff"], result["notes"]) == ([], [], [])


@pytest.mark.usefixtures("no_agent")
def test_what_devices_share_is_declared_of_each(arguments: dict[str, Any]) -> None:
    depot = depot_document(depot_of(arguments["depot"]))
    assert "settings" not in depot["devices"]["back"], "its profile's devices share all of them"
    result = run(check=True, **{**arguments, "depot": depot, "gateway": "gateway-2"})
    assert statuses(result) == {"back": "unknown"}


@pytest.mark.usefixtures("no_agent")
def test_a_run_on_a_bare_gateway_fails(arguments: dict[str, Any]) -> None:
    result = run(**arguments)
    assert result["failed"]
    assert result["msg"].startswith(
        "5 of 5 devices: yard-1, yard-2, yard-3, front-1, front-2 unknown: the agent is not"
    )
    assert statuses(result) == dict.fromkeys([*YARD, *FRONT], "unknown")


@pytest.mark.parametrize("check", [True, False])
def test_an_agent_of_another_interface_is_not_asked(
    field: Field, monkeypatch: pytest.MonkeyPatch, *, check: bool
) -> None:
    field.holds("yard-2", failsafe_current=10)
    monkeypatch.setattr(derms_agent.device_state, "INTERFACE", 99)
    result = field.run(check=check)
    assert bool(result.get("failed")) is not check
    assert set(statuses(result).values()) == {"unknown"}
    assert result["devices"][0]["detail"] == "the agent's interface is version 99, the collection's 2"
    assert field.written() == []


def test_it_starts_on_another_python_with_a_depot_larger_than_a_pipe(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A depot of more than the 64 KiB that a pipe holds."""
    python = Path(arguments["agent_directory"], "current", "bin", "python")
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    arguments["depot"] |= {"devices": {**arguments["depot"]["devices"], "x" * 200_000: {}}}
    done = on_localhost(arguments, tmp_path, "/usr/bin/python3")
    # It is the agent's own code that finds the mistake in the depot.
    assert "expected" in done.stdout, done.stdout + done.stderr
    assert "devices.xxxx" in done.stdout


@pytest.mark.usefixtures("no_agent")
def test_a_release_from_before_devices_could_be_asked_is_told_apart_from_one_that_fails(
    arguments: dict[str, Any],
) -> None:
    python = Path(arguments["agent_directory"], "current", "bin", "python")
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python3")
    result = run(check=True, **arguments)
    why = f"the agent in service at {python} is too old: it has no derms_agent.device_state"
    assert {device["detail"] for device in result["devices"]} == {why}
    python.unlink()
    python.write_text("#!/bin/sh\ncat > /dev/null\necho 'no space left' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    result = run(check=True, **arguments)
    assert result["failed"]
    assert result["msg"] == "derms_agent.device_state failed: no space left"


def test_a_bare_gateway_of_the_oldest_python(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Python 3.9 is what RHEL 9 comes with."""
    found = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{OLDEST_PYTHON}.*"))
    if not found:
        pytest.skip(f"no Python {OLDEST_PYTHON} here")
    done = on_localhost(arguments, tmp_path, str(found[-1] / "bin" / "python"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the agent is not on this gateway yet" in done.stdout


# --- check, apply, check again, apply again ---------------------------------------------------------------------------


def test_what_a_dry_run_finds_is_repaired_once(field: Field) -> None:
    field.holds("yard-2", failsafe_current=10)
    field.holds("front-1", failsafe_timeout=45)
    drift = [
        {
            "device": "small yard-2",
            "what": "failsafe_current",
            "is": "10 A (holding 262 = 100)",
            "should_be": "6 A (holding 262 = 60)",
        },
        {
            "device": "small front-1",
            "what": "failsafe_timeout",
            "is": "45 s (holding 1602 = 0 45)",
            "should_be": "30 s (holding 5018 = 30)",
        },
    ]
    diff = [
        {
            "before_header": name,
            "after_header": name,
            "before": f"{entry['what']}: {entry['is']}\n",
            "after": f"{entry['what']}: {entry['should_be']}\n",
        }
        for name, entry in zip(("yard-2", "front-1"), drift, strict=True)
    ]
    found = dict.fromkeys([*YARD, *FRONT], "ok") | {"yard-2": "changed", "front-1": "changed"}
    for check in (True, False):
        result = field.run(check=check)
        assert (result["changed"], result["drift"], result["diff"]) == (True, drift, diff)
        assert statuses(result) == found
        device = next(one for one in result["devices"] if one["name"] == "yard-2")
        assert device["before"] == {"failsafe_current": 10.0, "failsafe_timeout": 30}
        assert device["after"] == {"failsafe_current": 6.0, "failsafe_timeout": 30}
        # Of those that hold what is declared for them, nothing is repeated.
        assert result["devices"][0] == {"name": "yard-1", "status": "ok", "changed": False}
        if check:
            assert field.written() == []
    # What KEBA cannot show goes along with what is written anyhow.
    written = [("front-1", 255, 5018, (30,)), ("front-1", 255, 5020, (1,)), ("line", 2, FAILSAFE_A, (60,))]
    assert field.written() == written
    for check in (True, False):
        result = field.run(check=check)
        assert (result["changed"], result["drift"], result["diff"], result["not_verified"]) == (False, [], [], [])
        assert set(statuses(result).values()) == {"ok"}
        assert field.written() == written
    note = "front-1, front-2: failsafe_persist cannot be read; it is written whenever another setting is"
    assert result["notes"] == [note]


def test_only_what_was_chosen_is_touched_and_the_recap_is_told_so(field: Field) -> None:
    for name in YARD:
        field.holds(name, failsafe_current=10)
    result = field.run(only=["yard-2"])
    assert statuses(result) == {"yard-2": "changed"}
    assert result["scope"] == "devices yard-2"
    assert field.written() == [("line", 2, FAILSAFE_A, (60,))]
    wrong = field.run(only=["yrad-*"])
    assert wrong["msg"] == "only: found yrad-*, expected a device of depot small, or a pattern of some"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_dead_device_fails_the_task_after_all_others_were_done(field: Field) -> None:
    field.holds("front-2", failsafe_timeout=45)
    field.silence("front-1")
    result = field.run()
    assert result["failed"]
    assert result["msg"].startswith("1 of 5 devices: front-1 unreachable: ")
    assert statuses(result) == dict.fromkeys([*YARD, *FRONT], "ok") | {"front-1": "unreachable", "front-2": "changed"}
    assert result["changed"]


@pytest.mark.parametrize(
    ("allowed", "fails"), [("0", True), ("1", False), ("19%", True), ("20%", False), ("100%", False)]
)
def test_so_many_devices_may_fail(field: Field, allowed: str, *, fails: bool) -> None:
    field.silence("front-1")
    result = field.run(check=True, max_failures=allowed)
    assert bool(result.get("failed")) is fails
    assert [one.split(":")[0] for one in result["not_verified"]] == ([] if fails else ["front-1 unreachable"])


@pytest.mark.parametrize("text", ["some", "-1", "5 %", "%", "1.5"])
def test_a_share_that_is_none_is_named(field: Field, text: str) -> None:
    field.silence("front-1")
    result = field.run(check=True, max_failures=text)
    assert result["msg"] == f"max_failures: found {text}, expected a number or a percentage, such as 2 or 5%"


def test_a_device_that_does_not_hold_what_it_took_is_never_excused(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    field.holds("yard-1", failsafe_current=10)
    monkeypatch.setattr(field.twin.units["line", 1], "write", lambda *_: None)
    result = field.run(max_failures="100%")
    assert result["failed"]
    assert "yard-1 verify_failed" in result["msg"]


def test_a_depot_that_is_none_is_refused_before_anything_is_asked(field: Field) -> None:
    field.arguments["depot"]["devices"]["yard-1"]["settings"]["failsafe_current"] = 99
    result = field.run()
    assert result["msg"].startswith("depot: devices.yard-1.settings.failsafe_current: found 99")
    assert field.run(gateway="gateway-9")["failed"]


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
def test_a_secret_is_in_no_result(field: Field, monkeypatch: pytest.MonkeyPatch, *, check: bool) -> None:
    original = profiles.load("heidelberg_energy_control")
    points = {**original.points, "failsafe_timeout": replace(original.points["failsafe_timeout"], secret=True)}
    secret = replace(original, points=points)
    whole = {**profiles.load_all(), original.name: secret}
    monkeypatch.setattr(profiles, "load_all", lambda: whole)
    monkeypatch.setattr(profiles, "load", whole.__getitem__)
    for name in YARD:
        field.arguments["depot"]["devices"][name]["settings"] = {"failsafe_current": 6, "failsafe_timeout": SECRET_S}
    result = field.run(check=check)
    assert result["changed"]
    assert result["drift"][0] == {
        "device": "small yard-1",
        "what": "failsafe_timeout",
        "is": "hidden",
        "should_be": "hidden",
    }
    # What the module was called with is told by some versions of Ansible only, and then without the depot.
    called = result.pop("invocation", {"module_args": {}})
    assert "depot" not in called["module_args"]
    assert str(SECRET_S) not in json.dumps(result)
    if not check:
        assert field.written() == [("line", unit, TIMEOUT_MS, (SECRET_S * 1000,)) for unit in (1, 2, 3)]
