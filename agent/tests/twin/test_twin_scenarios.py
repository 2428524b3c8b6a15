# SPDX-License-Identifier: Apache-2.0
"""Scenario files, the control socket, the documentation's examples, and the command itself."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from derms_agent.twin import Arrivals, FaultKind, Rehearsal, ScenarioError, Settings, Twin, control, scenario
from derms_agent.twin.choice import find_depot
from derms_agent.twin.cli import main

if TYPE_CHECKING:
    from agent.tests.twin.conftest import MakeDepot

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "inventories" / "demo"
DOCUMENT = (ROOT / "docs" / "twin.md").read_text(encoding="utf-8")

DEPOT = """
plugin: derms.edge.depot
depot: two
site: {limit_kva: 40}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 63, allocator: gateway-1}}
buses:
  a: {gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: PORT_A}
devices:
  charger-1: {bus: a, unit_id: 1, profile: heidelberg_energy_control, circuit: main, evses: {rating_a: 16},
              settings: {failsafe_current: 6, failsafe_timeout: 30}}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def ask(twin: Rehearsal, command: Any) -> dict[str, Any]:
    return control.answer(twin, command if isinstance(command, str) else json.dumps(command))


def test_the_documentations_commands_work_on_the_demo() -> None:
    twin = Rehearsal(find_depot(DEMO))
    lines = [line for block in blocks("json") for line in block.splitlines()]
    assert len(lines) >= 12
    for line in lines:
        assert ask(twin, line)["ok"], line


def test_the_documentations_scenario_runs_on_the_demo() -> None:
    depot = find_depot(DEMO)
    (text,) = blocks("yaml")
    found = scenario.read(text, "twin.md", depot)
    assert (found.arrivals, found.settings, len(found.events)) == (Arrivals.NONE, Settings.DECLARED, 6)
    twin = Rehearsal(depot, scenario=found)
    twin.advance(20)
    assert twin.faults().keys() == {"charger-003"}
    assert twin.outlet("charger-001").current_a > 6
    twin.advance(580)
    assert twin.outlet("charger-001").vehicle is None
    assert twin.faults().keys() == {"charger-001"}
    assert twin.frequency_hz == pytest.approx(50 - 0.3 * 95 / 295 + 0, abs=0.3)


def test_the_documentation_lists_every_fault() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", DOCUMENT.split("## Faults")[1].split("## Scenarios")[0], re.MULTILINE)
    assert rows == [kind.value for kind in FaultKind]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "events:\n  - {at: 10, fault: silnt, on: device-1}\n",
            ["2:21: events.0.fault: found 'silnt'; expected one of silent, slow,.*; the nearest is silent"],
        ),
        (
            "events:\n  - {at: 10, fault: silent, on: devise-1}\n",
            ["2:33: events.0.on: found 'devise-1'; expected a device or bus .*; the nearest is device-1"],
        ),
        ("events:\n  - {fault: silent, on: device-1}\n", ["2:5: events.0.at: found nothing; expected a number from 0"]),
        (
            "events:\n  - {at: -1, fault: silent, on: device-1}\n",
            ["2:10: events.0.at: found -1; expected a number from 0"],
        ),
        (
            "events:\n  - {at: 1, fautl: silent, on: device-1}\n",
            ["2:13: events.0.fautl: found 'fautl'; expected one of fault, clear, .*; the nearest is fault"],
        ),
        (
            "events:\n  - {at: 1, fault: slow, on: device-1, for: 3}\n",
            ["2:40: events.0.for: found 'for'; expected one of fault, on, ms, code, for_s; the nearest is for_s"],
        ),
        (
            "events:\n  - {at: 1, fault: frozen_duty, on: bus-1}\n",
            ["2:37: events.0.on: found 'bus-1'; expected a device or bus that can be frozen_duty"],
        ),
        (
            "events:\n  - {at: 1, plug_in: device-1, soc_percent: 130}\n",
            ["2:45: events.0.soc_percent: found 130; expected a number from 0 to 100"],
        ),
        (
            "events:\n  - {at: 1, unplug: device-1, clear: all}\n",
            ["2:5: events.0: found clear and unplug; expected exactly one of fault"],
        ),
        ("events:\n  - {at: 1}\n", ["2:5: events.0: found nothing to do; expected exactly one of fault"]),
        (
            "events:\n  - {at: 1, frequency_hz: [[0, 50], [5, 500]]}\n",
            ["2:41: events.0.frequency_hz.1.1: found 500; expected a number from 40 to 70"],
        ),
        (
            "events:\n  - {at: 1, base_load: mane, a: [1, 2]}\n",
            ["2:24: events.0.base_load: found 'mane'.*nearest is main", "2:33: events.0.a: .*three currents in A"],
        ),
        ("arrivals: nobody\n", ["1:11: arrivals: found 'nobody'; expected one of default, none"]),
        ("arivals: none\n", ["1:1: arivals: found 'arivals'; expected one of arrivals.*nearest is arrivals"]),
        ("arrivals: none\narrivals: default\n", ["2:1: arrivals: found the key a second time"]),
        ("events: {at: 3}\n", ["1:9: events: found no list; expected a list"]),
        ("- 3\n", ["1:1: the file: found no mapping"]),
        ("events: [\n", ["2:1: .*no YAML"]),
    ],
)
def test_a_mistake_in_a_scenario_is_told_with_its_place(make_depot: MakeDepot, text: str, problems: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.read(text, "rehearsal.yml", make_depot("keba_p30"))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(problems), lines
    for line, problem in zip(lines, problems, strict=True):
        assert re.match("rehearsal.yml:" + problem, line), line


def test_commands_are_answered_and_mistakes_told(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("keba_p30"))
    assert ask(twin, {"fault": "exception", "on": "device-1", "code": 6}) == {"ok": True}
    assert ask(twin, {"status": True})["faults"] == {"device-1": ["exception"]}
    assert ask(twin, {"clear": "device-1"}) == {"ok": True}
    assert ask(twin, {"status": True})["faults"] == {}
    assert "nearest is device-1" in ask(twin, {"clear": "devise-1"})["problems"][0]
    for nonsense in ("", "{", "3", '"x"', "[]", "{}", '{"writes": -1}', '{"fault": {}}', '{"plug_in": "nowhere"}'):
        found = ask(twin, nonsense)
        assert not found["ok"]
        assert found["problems"]


def test_the_record_of_writes_can_be_read_on(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("heidelberg_energy_control"))
    from derms_agent.profiles.point import Table  # noqa: PLC0415 - only here

    for limit in (60, 70, 80):
        twin.write("bus-1", 1, Table.HOLDING, 261, (limit,))
        twin.advance(1)
    first = ask(twin, {"writes": 0})
    assert [write["words"] for write in first["writes"]] == [[60], [70], [80]]
    assert [write["at_s"] for write in first["writes"]] == [0, 1, 2]
    assert first["next"] == 3
    assert ask(twin, {"writes": 2})["writes"][0]["words"] == [80]
    assert ask(twin, {"writes": 3})["writes"] == []


@pytest.mark.anyio
async def test_the_socket_is_the_owners_and_is_taken_over_from_the_dead_only(
    make_depot: MakeDepot, tmp_path: Path
) -> None:
    path = tmp_path / "twin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    twin = Twin(make_depot("keba_p30"))
    async with control.serving(partial(control.answer, twin), path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError, match="in use"):
            async with control.serving(partial(control.answer, twin), path):
                pass
        import anyio  # noqa: PLC0415 - only here

        answer = await anyio.to_thread.run_sync(control.send, path, '{"unplug": "device-1"}')
        assert json.loads(answer) == {"ok": True}
    assert not path.exists()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_the_command_serves_answers_and_ends(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "two.yml").write_text(DEPOT.replace("PORT_A", str(port)))
    (tmp_path / "hosts.yml").write_text("all: {hosts: {x: {}}}\n")
    path = tmp_path / "twin.sock"
    command = [sys.executable, "-c", "import sys; from derms_agent.twin.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*command, str(tmp_path), "--control", str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == (f"a: 127.0.0.1 port {port}, Modbus/TCP: charger-1 (unit 1, heidelberg_energy_control)\n")
        assert lines[2] == "ready: 1 devices, 1 EVSEs\n"
        with socket.create_connection(("127.0.0.1", port), timeout=2) as wire:
            wire.sendall(bytes.fromhex("00 01 00 00 00 06 01 03 01 06 00 01"))
            assert wire.recv(64).hex(" ") == "00 01 00 00 00 05 01 03 02 00 3c"
        found = subprocess.run(
            [*command, "send", str(path), '{"status": true}'], capture_output=True, text=True, timeout=10, check=True
        )
        assert json.loads(found.stdout)["evses"].keys() == {"charger-1"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_what_keeps_the_command_from_starting_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    assert "expected one with the line `plugin: derms.edge.depot`" in told(tmp_path)
    assert "found nothing" in told(tmp_path / "none.yml")
    depot = tmp_path / "two.yml"
    depot.write_text(DEPOT.replace("PORT_A", "1502").replace("profile: heid", "profile: haid"))
    assert "two.yml:10:" in told(depot)
    depot.write_text(DEPOT.replace("127.0.0.1", "203.0.113.77").replace("PORT_A", "1502"))
    assert told(depot).startswith("203.0.113.77 port 1502: this machine has no such address")
    bad = tmp_path / "bad.yml"
    bad.write_text("evnts: []\n")
    assert "bad.yml:1:1: evnts" in told(depot, "--scenario", bad)
    (tmp_path / "three.yml").write_text(depot.read_text().replace("depot: two", "depot: three"))
    assert "expected --depot with one of them" in told(tmp_path)
    assert "expected a running twin's control socket" in told("send", tmp_path / "no.sock", "{}")
