# SPDX-License-Identifier: Apache-2.0
"""Declared raw registers on other people's servers, read back by mbpoll, which shares nothing with us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from derms_agent.device_state.access import Access
from derms_agent.device_state.declared_registers import Declaration, declare
from derms_agent.device_state.registers import converge, converged, gather
from derms_agent.device_state.results import DeviceResult, Status
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import Bus, Transport

Start = Callable[[list[str]], int]
Poll = Callable[..., list[int]]
Ran = Callable[..., dict[str, Any]]


def register(name: str, address: int, kind: str, value: object, **more: Any) -> dict[str, Any]:
    return {"name": name, "address": address, "type": kind, "value": value, **more}


REGISTERS = [
    register("amps", 5004, "u16", 6.5, scale=0.001, unit="A"),
    register("below zero", 5005, "i16", -40),
    register("turned around", 5006, "u32", 0x12345678, word_order="little"),
    register("float", 5008, "f32", 16.25),
    register("wide", 5010, "u64", 0x0102030405060708),
    register("field", 7000, "bits", 0xA, length=1, mask=0x00F0),
    register("by sixteen", 7001, "u16", 1, write_fc="16"),
]
WORDS = {
    5003: (5003, 6500, 0xFFD8, 0x5678, 0x1234, 0x4182, 0x0000, 0x0102, 0x0304, 0x0506, 0x0708, 5014),
    7000: (7000 & ~0x00F0 | 0x00A0, 1, 7002),
}
"""What mbpoll has to find; every register held its own address before, and those around ours still do."""


@pytest.fixture
def run(tmp_path: Path) -> Ran:
    """Return what converges one device on a port and gives its result."""

    def once(port: int, *registers: dict[str, Any], check: bool = False, **more: Any) -> dict[str, Any]:
        given = {
            "address_base": "zero",
            "devices": [{"name": "other", "host": "127.0.0.1", "port": port}],
            "registers": list(registers),
            "limits": {"verify_s": 0.3},
            **more,
        }
        nowhere = {"depot_file": tmp_path / "none.yml", "socket": tmp_path / "none.sock", "state_directory": tmp_path}
        (result,) = converged(given, check=check, **nowhere)
        return result

    return once


def assert_four_steps(run: Ran, port: int, mbpoll: Poll, *more: dict[str, Any]) -> None:
    registers = (*REGISTERS, *more)
    predicted = run(port, *registers, check=True)
    assert mbpoll(port, 5003, 12) == list(range(5003, 5015)), "a check writes nothing"
    done = run(port, *registers)
    assert (predicted["status"], done["status"]) == ("changed", "changed"), done["detail"]
    assert done["after"] == predicted["after"]
    for address, words in WORDS.items():
        assert mbpoll(port, address, len(words)) == list(words)
    for check in (True, False):
        again = run(port, *registers, check=check)
        assert (again["status"], again["changed"]) == ("ok", False)


def test_libmodbus(libmodbus_server: list[str], start: Start, mbpoll: Poll, run: Ran) -> None:
    port = start(libmodbus_server)
    coils = register("coils", 8, "bits", 0b0111, table="coil", length=4)
    switch = register("switch", 101, "bits", False, table="coil")
    assert_four_steps(run, port, mbpoll, coils, switch)
    assert mbpoll(port, 6, 8, "0") == [0, 1, 1, 1, 1, 0, 0, 1]
    assert mbpoll(port, 100, 3, "0") == [0, 0, 0]


def test_modbus_serial(javascript: Callable[[str], list[str]], start: Start, mbpoll: Poll, run: Ran) -> None:
    port = start(javascript("modbus_serial_server.js"))
    assert_four_steps(run, port, mbpoll)
    beyond = run(port, register("there", 100, "u16", 7), register("beyond", 60_000, "u16", 7))
    assert (beyond["status"], beyond["changed"]) == ("refused", False)
    assert mbpoll(port, 100, 1) == [100], "with one register refused, none is written"
    # It takes writes to coils, and forgets them.
    forgotten = run(port, register("coil", 8, "bits", True, table="coil"))
    assert (forgotten["status"], forgotten["changed"]) == ("verify_failed", False)
    assert "shows False, expected True" in forgotten["detail"]


def test_jsmodbus_answers_out_of_order(
    javascript: Callable[[str], list[str]], start: Start, mbpoll: Poll, run: Ran
) -> None:
    port = start(javascript("jsmodbus_server.js"))
    assert_four_steps(run, port, mbpoll)
    # Its units share their registers, so they are to hold the same; six are asked at a time.
    given: dict[str, Any] = {
        "address_base": "one",
        "devices": [{"name": f"unit {unit}", "host": "127.0.0.1", "unit_id": unit} for unit in range(1, 25)],
        "registers": [register(f"r{at}", at + 1, "u16", at + 7) for at in range(9000, 9400, 100)],
        "limits": {"per_bus": 6},
    }
    declaration = declare(given)
    found = anyio.run(on_one_connection, port, declaration, "gather")
    assert [result.held() for result in found] == [{f"r{at}": at for at in range(9000, 9400, 100)}] * 24
    done = anyio.run(on_one_connection, port, declaration, "converge")
    assert {result.status for result in done} <= {Status.OK, Status.CHANGED}
    assert {result.name for result in done if result.status is Status.OK} >= {f"unit {unit}" for unit in range(13, 25)}
    for at in range(9000, 9400, 100):
        assert mbpoll(port, at - 1, 3) == [at - 1, at + 7, at + 1]


async def on_one_connection(port: int, declaration: Declaration, verb: str) -> list[DeviceResult]:
    """Ask all devices on a bus that has six requests in flight."""
    name = declaration.targets[0].bus_name
    bus = ModbusBus(Bus(name=name, gateway="", transport=Transport.TCP, host="127.0.0.1", port=port, max_in_flight=6))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bus.run)
        access = Access({name: bus})
        found = await (gather(declaration, access) if verb == "gather" else converge(declaration, access, check=False))
        tasks.cancel_scope.cancel()
    return found
