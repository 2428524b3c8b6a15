# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for raw registers, run as Ansible runs them, against the twin's chargers as devices without a profile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.module_utils import device_state
from ansible_collections.derms.edge.plugins.modules import modbus_registers, modbus_registers_info
from derms_agent import depot as depots
from derms_agent.twin import Twin

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {limit_kva: 60}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 100, allocator: gateway-1}}
buses:
  line: {gateway: gateway-1, transport: rtu_over_tcp, host: 127.0.0.1, port: 1502, baud_rate: 115200,
         timeout_s: 0.3, gateway_timeout_s: 0.1}
devices:
  charger-[1:3]:
    bus: line
    unit_id: 1..3
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 30}
    evses: {rating_a: 16}
"""
# The remote lock of a Heidelberg: 1 is unlocked, as it comes.
LOCK = {"name": "lock", "address": 260, "type": "u16", "value": 0}
FAILSAFE = {"name": "failsafe", "address": 263, "type": "u16", "scale": 0.1, "unit": "A", "value": 9}


@dataclass
class Field:
    twin: Twin
    depot_file: Path
    port: int

    @property
    def written(self) -> list[tuple[int, int, tuple[int, ...]]]:
        return [(write.unit, write.address, write.words) for write in self.twin.writes]


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    """Serve the depot's devices from another thread."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    file = tmp_path / "depot.yml"
    file.write_text(DEPOT)
    fields: list[Field] = []

    async def serve() -> None:
        async with Twin(depots.load(file), seed=1) as twin:
            found = await twin.serve(lambda _host, _port: ("127.0.0.1", 0))
            file.write_text(DEPOT.replace("1502", str(found["line"][1])))
            fields.append(Field(twin, file, found["line"][1]))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield fields[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a module with no depot file and no agent, unless arguments say otherwise; give its result."""

    def call(module: ModuleType, check: bool = False, **arguments: Any) -> dict[str, Any]:
        places = {
            "socket": str(tmp_path / "none.sock"),
            "state_directory": str(tmp_path),
            "depot_file": str(tmp_path / "none.yml"),
        }
        given = {"_ansible_check_mode": check, "_ansible_diff": True, "address_base": "one", **places, **arguments}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def raw(field: Field, *units: int) -> list[dict[str, Any]]:
    """Return the line's units as devices that nothing is known of."""
    at = {"host": "127.0.0.1", "port": field.port, "framer": "rtu_over_tcp"}
    return [{"name": f"raw-{unit}", "unit_id": unit, **at} for unit in units]


def test_check_apply_check_again_apply_again(run: Run, field: Field) -> None:
    given = {"devices": raw(field, 1, 2, 3), "registers": [LOCK, FAILSAFE]}
    predicted = run(modbus_registers, check=True, **given)
    assert predicted["changed"]
    assert [device["status"] for device in predicted["devices"]] == ["changed"] * 3
    assert not field.written
    done = run(modbus_registers, **given)
    assert [device["after"] for device in done["devices"]] == [device["after"] for device in predicted["devices"]]
    assert done["drift"] == predicted["drift"]
    assert done["diff"] == predicted["diff"]
    assert sorted(field.written) == sorted((unit, *at) for unit in (1, 2, 3) for at in ((259, (0,)), (262, (90,))))
    assert done["drift"][1] == {
        "device": "raw-1",
        "what": "failsafe",
        "is": "6 A (holding 262 = 60)",
        "should_be": "9 A (holding 262 = 90)",
    }
    assert "failsafe: 9 A (holding 262 = 90)\n" in done["diff"][0]["after"]
    field.twin.writes.clear()
    for check in (True, False):
        again = run(modbus_registers, check=check, **given)
        assert (again["changed"], again["drift"], again["diff"]) == (False, [], [])
        assert {device["status"] for device in again["devices"]} == {"ok"}
    assert not field.written


def test_values_of_one_device(run: Run, field: Field) -> None:
    first, second = raw(field, 1, 2)
    result = run(modbus_registers, devices=[first, {**second, "values": {"failsafe": 12.0}}], registers=[FAILSAFE])
    assert [device["after"]["failsafe"] for device in result["devices"]] == [9, 12]


def test_a_device_that_does_not_answer_leaves_the_others_done(run: Run, field: Field) -> None:
    result = run(modbus_registers, devices=raw(field, 1, 9, 3), registers=[FAILSAFE])
    assert [device["status"] for device in result["devices"]] == ["changed", "unreachable", "changed"]
    assert (result["failed"], result["changed"]) == (True, True)
    assert "raw-9 unreachable" in result["msg"]
    excused = run(modbus_registers, devices=raw(field, 1, 9), registers=[FAILSAFE], max_failures="50%")
    assert not excused.get("failed")
    assert "raw-9 unreachable" in excused["not_verified"][0]


def test_no_further_device_is_begun(run: Run, field: Field) -> None:
    result = run(modbus_registers, devices=raw(field, 9, 1), registers=[FAILSAFE], on_error="fail")
    assert [device["status"] for device in result["devices"]] == ["unreachable", "unknown"]
    assert not field.written


@pytest.mark.parametrize(
    ("registers", "said"),
    [
        ([{**FAILSAFE, "max": 8}], "registers.failsafe.value: found 9, expected at most 8 A"),
        ([{**FAILSAFE, "min": 6.05}], "registers.failsafe.min: found 6.05, expected a value that the point can hold"),
        ([FAILSAFE, LOCK | {"address": 263}], "registers.lock.address: found 262, within failsafe, expected registers"),
    ],
)
def test_mistakes_fail_before_anything_is_asked(
    run: Run, field: Field, registers: list[dict[str, Any]], said: str
) -> None:
    result = run(modbus_registers, devices=raw(field, 1), registers=registers)
    assert result["failed"]
    assert said in result["msg"]
    assert not field.written


def test_an_address_means_nothing_without_its_base(run: Run, field: Field) -> None:
    result = run(modbus_registers, devices=raw(field, 1), registers=[FAILSAFE], address_base=None)
    assert "address_base" in result["msg"]


def test_what_control_and_device_settings_answer_for_is_refused(run: Run, field: Field) -> None:
    limit = {"name": "limit", "address": 262, "type": "u16", "value": 60}
    for devices in (raw(field, 2), [{"name": "raw-2", "bus": "line", "unit_id": 2}]):
        result = run(
            modbus_registers, devices=devices, registers=[limit, FAILSAFE, LOCK], depot_file=str(field.depot_file)
        )
        assert result["failed"]
        limits, fallbacks = result["msg"].splitlines()
        assert "register limit: found holding 261 of charger-2" in limits
        assert "control owns current_limit" in limits
        assert "device_settings writes failsafe_current" in fallbacks
    assert not field.written


def test_a_bus_of_the_depot(run: Run, field: Field) -> None:
    devices = [{"name": "raw-2", "bus": "line", "unit_id": 2}]
    result = run(modbus_registers, devices=devices, registers=[LOCK], depot_file=str(field.depot_file))
    assert result["devices"][0]["status"] == "changed"
    unknown = run(modbus_registers, check=True, devices=devices, registers=[LOCK])
    assert unknown["devices"][0]["status"] == "unknown"
    assert "no depot file" in unknown["devices"][0]["detail"]


def test_a_depot_file_that_cannot_be_read_stops_it(run: Run, field: Field) -> None:
    field.depot_file.write_text(yaml.safe_dump({"plugin": "derms.edge.depot", "depot": "small"}))
    result = run(modbus_registers, devices=raw(field, 1), registers=[LOCK], depot_file=str(field.depot_file))
    assert result["failed"]
    assert "does not say which registers control owns" in result["msg"]
    assert not field.written


def test_a_gateway_without_an_agent(run: Run, field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "INTERFACE", -1)
    given = {"devices": raw(field, 1, 2), "agent_directory": str(tmp_path)}
    for module, registers in ((modbus_registers, [LOCK]), (modbus_registers_info, [bare(LOCK)])):
        checked = run(module, check=True, registers=registers, **given)
        assert not checked.get("failed")
        assert [device["status"] for device in checked["devices"]] == ["unknown", "unknown"]
        assert "the agent's interface is version" in checked["not_verified"][0]
        assert run(module, registers=registers, **given)["failed"]
    assert not field.written


def bare(register: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in register.items() if key != "value"}


def test_reading(run: Run, field: Field) -> None:
    result = run(modbus_registers_info, devices=raw(field, 1, 2), registers=[bare(LOCK), bare(FAILSAFE)])
    assert not result["changed"]
    assert [device["values"] for device in result["devices"]] == [{"lock": 1, "failsafe": 6}] * 2
    assert result["devices"][0]["registers"][1] == {
        "name": "failsafe",
        "outcome": "ok",
        "value": 6,
        "unit": "A",
        "table": "holding",
        "address": 262,
        "words": [60],
        "detail": "",
    }
    assert not field.written


def test_what_is_expected_of_a_living_device(run: Run, field: Field) -> None:
    version = {"name": "version", "table": "input", "address": 5, "type": "u16"}
    found = run(modbus_registers_info, devices=raw(field, 1), registers=[version])["devices"][0]["registers"][0]
    words = f"0x{found['words'][0]:04x}"
    alive = run(modbus_registers_info, devices=raw(field, 1), registers=[{**version, "expect": words}])
    assert alive["devices"][0]["status"] == "ok"
    dead = run(modbus_registers_info, devices=raw(field, 1), registers=[{**version, "expect": "SunS"}])
    assert dead["failed"]
    assert f"version: found {words[2:]}, expected SunS" in dead["msg"]
