# SPDX-License-Identifier: Apache-2.0
"""Raw registers against devices of memory that record every request, answer as told, and are judged with `struct`."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent import depot as depots
from derms_agent.device_state.access import Access
from derms_agent.device_state.declared_registers import Declaration, DeclarationError, declare
from derms_agent.device_state.registers import converge, gather
from derms_agent.device_state.results import DeviceResult, Status
from derms_agent.drivers.errors import BusError, ConnectionLost, NoAnswer, Refused, Unreachable
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.settings import Outcome, Registers
from derms_agent.model import Value
from derms_agent.profiles.point import Table

pytestmark = pytest.mark.anyio

DEMO = Path(__file__).parents[3] / "inventories/demo/depot.yml"
GW = "gw.example:502"
ILLEGAL_ADDRESS, DEVICE_FAILURE = 2, 4
FOLLOW_S = 12.0
QUICK = {"verify_s": 0.05, "timeout_s": 0.1}


@dataclass(frozen=True)
class Request:
    unit_id: int
    table: Table
    address: int
    count: int
    words: tuple[int, ...] = ()
    function: int | None = None


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request; where it is `done`, the device has carried a write out all the same."""

    error: Callable[[str], BusError]
    done: bool = False


def silent(said: str) -> BusError:
    return NoAnswer(said, may_have_happened=True)


def hung_up(said: str) -> BusError:
    return ConnectionLost(said, may_have_happened=True)


def refusing(code: int) -> Callable[[str], BusError]:
    return lambda said: Refused(said, code)


@dataclass
class Memory:
    """Implements RegisterBus. `cells` are what units hold; what is not there is refused unless `default` stands in.

    `mirrors` show a written register elsewhere too. `unasked` are told of each request before it is answered.
    """

    cells: dict[tuple[int, Table, int], int] = field(default_factory=dict)
    default: Callable[[int, Table, int], int] | None = None
    fault: Callable[[Request], Fault | None] = lambda _request: None
    mirrors: Mapping[int, int] = field(default_factory=dict)
    obeys: bool = True
    takes_s: float = 0.0
    before: Callable[[Request], None] = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    writes_wait_s: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def writes(self) -> list[Request]:
        return [request for request in self.requests if request.words]

    def put(self, address: int, *words: int, unit_id: int = 1, table: Table = Table.HOLDING) -> None:
        for at, word in enumerate(words):
            self.cells[unit_id, table, address + at] = word

    def words(self, address: int, count: int, unit_id: int = 1, table: Table = Table.HOLDING) -> tuple[int, ...]:
        return tuple(self._cell(unit_id, table, address + at) for at in range(count))

    def _cell(self, unit_id: int, table: Table, address: int) -> int:
        if (unit_id, table, address) in self.cells or self.default is None:
            return self.cells[unit_id, table, address]
        return self.default(unit_id, table, address)

    async def _answer(self, request: Request) -> tuple[int, ...]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await anyio.sleep(self.takes_s)
        self.at_once -= 1
        self.before(request)
        self.requests.append(request)
        fault = self.fault(request)
        if fault is None or fault.done:
            answer = self._carry_out(request)
        if fault is not None:
            raise fault.error(str(request))
        return answer

    def _carry_out(self, request: Request) -> tuple[int, ...]:
        if not request.words:
            try:
                return self.words(request.address, request.count, request.unit_id, request.table)
            except KeyError as missing:
                raise Refused(f"no register {missing}", ILLEGAL_ADDRESS) from None
        if self.obeys:
            self.put(request.address, *request.words, unit_id=request.unit_id, table=request.table)
            for at, word in enumerate(request.words):
                shown = self.mirrors.get(request.address + at)
                if shown is not None:
                    self.put(shown, word, unit_id=request.unit_id)
        return ()

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        assert priority is Priority.CONFIGURATION
        assert deadline_s > 0
        return await self._answer(Request(unit_id, table, address, count))

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        assert priority is Priority.CONFIGURATION
        assert deadline_s > 0
        self.writes_wait_s.append(deadline_s)
        await self._answer(Request(unit_id, table, address, len(values), tuple(values), function))


def arguments(*registers: dict[str, Any], units: int = 1, **more: Any) -> dict[str, Any]:
    devices = [{"name": f"dev-{at + 1}", "host": "gw.example", "unit_id": at + 1} for at in range(units)]
    return {"address_base": "zero", "devices": devices, "registers": list(registers), "limits": QUICK, **more}


def register(name: str = "r", address: int = 100, kind: str = "u16", **more: Any) -> dict[str, Any]:
    return {"name": name, "address": address, "type": kind, **more}


async def applied(declaration: Declaration, bus: Memory, *, check: bool = False) -> list[DeviceResult]:
    return await converge(declaration, Access({GW: bus}), check=check)


async def one(bus: Memory, *registers: dict[str, Any], check: bool = False, **more: Any) -> DeviceResult:
    (result,) = await applied(declare(arguments(*registers, **more)), bus, check=check)
    return result


# The four steps


def laid(kind: str, value: float, word_order: str = "big", byte_order: str = "big") -> tuple[int, ...]:
    code = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}[kind]
    data = struct.pack(f">{code}", value)
    pairs = [data[at : at + 2] for at in range(0, len(data), 2)]
    if word_order == "little":
        pairs.reverse()
    return tuple(int.from_bytes(pair, byte_order) for pair in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (register(kind="u16", scale=0.001, unit="A", value=6), (6000,)),
        (register(kind="i16", value=-5, offset=-40), laid("i16", 35)),
        (register(kind="u32", value=70000, word_order="little"), laid("u32", 70000, "little")),
        (register(kind="i32", value=-70000, byte_order="little"), laid("i32", -70000, "big", "little")),
        (register(kind="u64", value=2**40 + 3), laid("u64", 2**40 + 3)),
        (register(kind="i64", value=-(2**40)), laid("i64", -(2**40))),
        (register(kind="f32", value=16.1), (0x4180, 0xCCCC)),  # the largest that is not above it
        (register(kind="f64", value=16.1, word_order="little"), laid("f64", 16.1, "little")),
        (register(kind="string", length=4, value="depot-1"), (0x6465, 0x706F, 0x742D, 0x3100)),
        (register(kind="bits", length=2, value=0x12345678), (0x1234, 0x5678)),
        (register(kind="bits", table="coil", value=True), (1,)),
        (register(kind="bits", table="coil", length=3, value=5), (1, 0, 1)),
    ],
    ids=lambda found: found["type"] if isinstance(found, dict) else "",
)
async def test_check_apply_check_again_apply_again(declared: dict[str, Any], words: tuple[int, ...]) -> None:
    table = Table(declared.get("table", "holding"))
    bus = Memory()
    bus.put(100, *(0,) * len(words), table=table)
    predicted = await one(bus, declared, check=True)
    assert (predicted.status, predicted.changed, bus.writes) == (Status.CHANGED, True, [])
    done = await one(bus, declared)
    assert (done.status, done.changed) == (Status.CHANGED, True)
    assert bus.writes == [Request(1, table, 100, len(words), words)]
    (first,), (second,) = predicted.settings, done.settings
    assert (first.before, first.after, first.registers_wanted) == (second.before, second.after, second.registers_wanted)
    assert second.registers_wanted == Registers(table, 100, words)
    for check in (True, False):
        again = await one(bus, declared, check=check)
        assert (again.status, again.changed) == (Status.OK, False)
        assert again.settings[0].after == again.settings[0].before == second.after
    assert len(bus.writes) == 1


async def test_a_value_is_quantised_before_it_is_compared_and_never_more_than_asked() -> None:
    bus = Memory()
    bus.put(100, 160)
    result = await one(bus, register(scale=0.1, unit="A", value=16.09))
    assert (result.status, result.settings[0].wanted, bus.writes) == (Status.OK, 16.0, [])


async def test_what_is_written_in_one_place_and_shown_in_another() -> None:
    bus = Memory(mirrors={5016: 1601})
    bus.put(1600, 0, 6000)
    failsafe = register(
        "failsafe", 5016, scale=0.001, unit="A", value=8, min=6, max=63, readback_address=1600, readback_type="u32"
    )
    assert (await one(bus, failsafe, check=True)).settings[0].before == 6
    result = await one(bus, failsafe)
    assert (result.status, result.settings[0].after) == (Status.CHANGED, 8)
    assert result.settings[0].registers_before == Registers(Table.HOLDING, 1600, (0, 6000))
    assert result.settings[0].registers_wanted == Registers(Table.HOLDING, 5016, (8000,))
    assert [(request.address, request.count) for request in bus.requests] == [
        (1600, 2),
        (1600, 2),
        (5016, 1),
        (1600, 2),
    ]
    assert (await one(bus, failsafe)).status is Status.OK


@pytest.mark.parametrize(
    ("base", "address", "table"), [("zero", 5004, "holding"), ("one", 5005, "holding"), ("modicon", 405005, None)]
)
async def test_the_three_bases(base: str, address: int, table: str | None) -> None:
    bus = Memory()
    bus.put(5004, 1)
    assert (await one(bus, register(address=address, table=table, value=2), address_base=base)).changed
    assert bus.writes == [Request(1, Table.HOLDING, 5004, 1, (2,))]


# Masks, tolerances, functions


async def test_other_bits_are_as_they_are_when_it_is_written() -> None:
    def elsewhere(_request: Request) -> None:
        if len(bus.requests) == 1:  # after the first read, and before the one that the write begins with
            bus.put(100, bus.words(100, 1)[0] ^ 0x8000)

    bus = Memory(before=elsewhere)
    bus.put(100, 0x8F0F)
    field_ = register(kind="bits", mask=0x00F0, length=1, value=0xA)
    assert (await one(bus, field_)).settings[0].before == 0
    assert bus.words(100, 1) == (0x0FAF,)


async def test_two_fields_of_one_register_are_both_held() -> None:
    bus = Memory()
    bus.put(100, 0xFFFF)
    low = register("low", mask=0x000F, kind="bits", value=1)
    high = register("high", mask=0x0F00, kind="u16", value=2)
    assert (await one(bus, low, high)).status is Status.CHANGED
    assert bus.words(100, 1) == (0xF2F1,)
    assert (await one(bus, low, high)).status is Status.OK


async def test_tolerance() -> None:
    bus = Memory()
    bus.put(100, 161)
    near = register(scale=0.1, value=16, tolerance=0.1)
    assert (await one(bus, near)).status is Status.OK
    assert (await one(bus, {**near, "tolerance": 0.05})).status is Status.CHANGED
    bus.put(100, *laid("f32", 16.100001))
    assert (await one(bus, register(kind="f32", value=16.1))).status is Status.OK, "one part in 16 million"
    bus.put(100, *laid("u32", 50_000_000))
    assert (await one(bus, register(kind="u32", scale=0.001, value=50_000.001))).status is Status.CHANGED, "two steps"


@pytest.mark.parametrize(("declared", "function"), [("auto", None), ("6", 6), ("16", 16)])
async def test_functions(declared: str, function: int | None) -> None:
    bus = Memory()
    bus.put(100, 0)
    await one(bus, register(value=1, write_fc=declared))
    assert [request.function for request in bus.writes] == [function]


async def test_reads_join_through_declared_gaps_only() -> None:
    bus = Memory()
    bus.put(100, 1, 2, 3, 4, 5)
    both = (register("a", 100, value=1), register("b", 103, value=4))
    await one(bus, *both)
    await one(bus, *both, limits={**QUICK, "max_gap": 2})
    assert [(request.address, request.count) for request in bus.requests] == [(100, 1), (103, 1), (100, 4)]


# What cannot be known


@pytest.mark.parametrize("blind", [False, True])
async def test_what_is_only_written_is_unknown_and_never_changed(blind: bool) -> None:
    bus = Memory()
    declared = register(value=1, write_only=True)
    predicted = await one(bus, declared, check=True, blind=blind)
    assert (predicted.status, predicted.changed, bus.requests) == (Status.OK, False, [])
    result = await one(bus, declared, blind=blind)
    assert (result.status, result.changed) == (Status.OK, False)
    assert [(one.outcome, one.shown) for one in result.settings] == [(Outcome.UNKNOWN, False)]
    assert bus.writes == bus.requests == [Request(1, Table.HOLDING, 100, 1, (1,))] * blind


async def test_what_is_only_written_goes_out_beside_a_change() -> None:
    bus = Memory()
    bus.put(101, 0)
    both = (register(value=1, write_only=True), register("s", 101, value=2))
    assert (await one(bus, *both)).status is Status.CHANGED
    assert [request.address for request in bus.writes] == [100, 101]
    assert (await one(bus, *both)).status is Status.OK
    assert len(bus.writes) == 2


async def test_what_is_not_to_be_verified_is_not_read_back() -> None:
    bus = Memory(obeys=False)
    bus.put(100, 0)
    result = await one(bus, register(value=1, verify="none"))
    assert (result.status, result.settings[0].after) == (Status.CHANGED, 1)
    assert "not read back" in result.settings[0].detail
    assert [bool(request.words) for request in bus.requests] == [False, True]


async def test_a_volatile_register_is_told_and_not_written() -> None:
    bus = Memory()
    bus.put(100, 40, 7)
    result = await one(bus, register("percent", volatile=True, value=100), register("kept", 101, value=7))
    assert (result.status, result.changed, bus.writes) == (Status.OK, False, [])
    percent, _ = result.settings
    assert (percent.before, percent.after, percent.wanted) == (40, 40, 100)
    assert "changes by itself" in percent.detail


@pytest.mark.parametrize("fault", [Fault(silent, done=True), Fault(hung_up, done=True)])
async def test_a_write_in_doubt_is_read_back_and_not_sent_again(fault: Fault) -> None:
    bus = Memory(fault=lambda request: fault if request.words else None)
    bus.put(100, 0)
    result = await one(bus, register(value=1))
    assert (result.status, len(bus.writes)) == (Status.CHANGED, 1)
    assert "read back after" in result.settings[0].detail


@pytest.mark.parametrize("verify", ["readback", "none"])
async def test_a_write_that_was_lost_is_indeterminate_and_the_rest_is_left(verify: str) -> None:
    bus = Memory(fault=lambda request: Fault(silent) if request.words else None)
    bus.put(100, 0, 0)
    declared = declare(arguments(register(value=1, verify=verify), register("s", 101, value=1)))
    with anyio.move_on_after(30):
        (result,) = await converge(declared, Access({GW: bus}), check=False, clock=Quick())
    assert (result.status, result.changed, len(bus.writes)) == (Status.INDETERMINATE, False, 1)
    assert [one.outcome for one in result.settings] == [Outcome.INDETERMINATE, Outcome.UNKNOWN]


@dataclass
class Quick:
    """A clock on which each look takes a second."""

    now_s: float = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


async def test_a_device_that_does_not_hold_what_it_took() -> None:
    bus = Memory(obeys=False)
    bus.put(100, 3)
    result = await one(bus, register("amps", value=1))
    assert (result.status, result.changed) == (Status.VERIFY_FAILED, False)
    assert result.detail == "amps: the device took the write and shows 3, expected 1"


async def test_a_register_that_the_device_has_not_is_not_written() -> None:
    bus = Memory()
    bus.put(101, 0)
    result = await one(bus, register("typo", value=1), register("right", 101, value=1))
    assert (result.status, bus.writes) == (Status.REFUSED, [])
    assert result.settings[0].detail == "the device refuses to show typo, without which it cannot be written"


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unreachable, Status.UNREACHABLE), (NoAnswer, Status.UNREACHABLE), (refusing(DEVICE_FAILURE), Status.REFUSED)],
)
async def test_a_device_that_cannot_be_read(error: Callable[[str], BusError], status: Status) -> None:
    bus = Memory(fault=lambda _request: Fault(error))
    result = await one(bus, register(value=1))
    assert (result.status, result.changed, bus.writes) == (status, False, [])


async def test_a_device_that_is_lost_before_the_write() -> None:
    bus = Memory(fault=lambda request: Fault(Unreachable) if request.words else None)
    bus.put(100, 0)
    result = await one(bus, register(value=1))
    assert (result.status, result.changed) == (Status.UNKNOWN, False)
    assert "nothing was written" in result.detail


# Mistakes


@pytest.mark.parametrize(
    ("declared", "more", "said"),
    [
        (register(value=70, scale=0.001), {}, "registers.r.value: found 70, expected 0 to 65.535"),
        (register(value=5, min=6, max=63), {}, "registers.r.value: found 5, expected 6 to 63"),
        (register(value="6"), {}, "registers.r.value: found '6', expected a number"),
        (register(value=[6]), {}, "registers.r.value: found [6], expected a number, a text, or true or false"),
        (register(value=float("nan")), {}, "registers.r.value: found nan, expected a number"),
        (register(), {}, "registers.r.value: found none for dev-1, expected one"),
        (register(value=1, min=0.5), {}, "registers.r.min: found 0.5, expected a value that the point can hold"),
        (register(value=1, length=2), {}, "registers.r.length: found 2, expected 1 registers for u16"),
        (register(kind="string", value="a"), {}, "registers.r.length: found none, expected one for string"),
        (
            register(value=1, table="input"),
            {},
            "registers.r.table: found input, expected holding or coil",
        ),
        (register(value=1, address=65536), {}, "registers.r.address: found address 65536 in base zero"),
        (
            register(value=1, address=30001, table="holding"),
            {"address_base": "modicon"},
            "registers.r.address: found the Modicon address 30001, whose table is input, expected holding",
        ),
        (
            register(value=1, readback_address=30001, readback_table="holding"),
            {"address_base": "zero", "limits": {"max_read": 0}},
            "limits.max_read: found 0, expected 1 to 125",
        ),
        (register(kind="bits", mask=5, value=1), {}, "registers.r.mask: found 0x5, expected adjacent bits"),
        (register(mask=1, value=1, write_only=True), {}, "registers.r.mask: found 0x1, expected none where it is only"),
        (register(volatile=True, write_only=True, value=1), {}, "registers.r.volatile: found true, expected something"),
        (register(kind="u32", value=1, write_fc="6"), {}, "registers.r.write_fc: found 6, expected one that writes 2"),
        (register(value=1, write_fc="15"), {}, "registers.r.write_fc: found 15, expected 6 or 16 in the table holding"),
        (register(value=1, tolerance=-1), {}, "registers.r.tolerance: found -1.0, expected 0 or more"),
        (
            register(kind="u32", value=1),
            {"limits": {"max_write": 1}},
            "registers.r.length: found 2, expected at most 1",
        ),
        (register(value=1), {"deadline_s": 0}, "deadline_s: found 0.0, expected more than 0 s"),
        (register(value=1), {"max_failures": "5 %"}, "max_failures: found 5 %, expected a number or a percentage"),
        (register(value=1), {"registers": []}, "registers: found none, expected at least one"),
        (register(kind="bits", length=5, value=1), {}, "registers.r.length: found 5, expected 1 to 4 for bits"),
        (register(kind="f32", scale=1e-313, value=1), {}, "registers.r.scale: found 1e-313, expected 1e-12 to 1e+12"),
        (register("a/b", value=1), {}, "registers.0.name: found 'a/b', expected a name without a slash"),
        (register(value=1), {"devices": [{"name": "d", "bus": "b", "host": "h"}]}, "devices.d.host: found neither or"),
        (register(value=1), {"devices": [{"name": "d", "bus": "b", "port": 5}]}, "devices.d.port: found 5, expected"),
        (
            register(value=1),
            {"devices": [{"name": "d", "host": "h", "framer": "rtu_over_tcp", "unit_id": 0}]},
            "devices.d.unit_id: found 0, expected 1 to 247",
        ),
        (
            register(value=1),
            {"devices": [{"name": "d", "host": "h"}, {"name": "e", "host": "h"}]},
            "devices.e.unit_id: found 1, expected another than d has there",
        ),
        (
            register("amps", value=1),
            {"devices": [{"name": "d", "host": "h", "values": {"amsp": 2}}]},
            "devices.d.values.amsp: found amsp, expected a register (did you mean amps?)",
        ),
        (
            register(value=1, max=10),
            {"devices": [{"name": "d", "host": "h", "values": {"r": 20}}]},
            "devices.d.values.r: found 20, expected at most 10",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(declared: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError) as problem:
        declare(arguments(declared, **more))
    assert any(line.startswith(said) for line in problem.value.problems), problem.value.problems


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(DeclarationError) as problem:
        declare(arguments(register("a", value=1, mask=5), register("b", kind="string"), limits={"per_bus": 0}))
    assert [line.partition(":")[0] for line in problem.value.problems] == [
        "registers.a.mask",
        "registers.b.length",
        "limits.per_bus",
    ]


def test_registers_that_overlap() -> None:
    with pytest.raises(
        DeclarationError, match=r"registers\.b\.address: found 101, within a, expected registers that no"
    ):
        declare(arguments(register("a", kind="u32", value=1), register("b", 101, value=1)))


@pytest.mark.parametrize("name", ["current_limit", "state", "failsafe_power", "a name with blanks"])
async def test_names_are_a_persons_own(name: str) -> None:
    bus = Memory()
    bus.put(100, 0)
    result = await one(bus, register(name, value=1))
    assert (result.settings[0].name, result.status) == (name, Status.CHANGED)


# A depot's own devices


@pytest.fixture(scope="module")
def demo() -> depots.Depot:  # type: ignore[name-defined]
    return depots.load(DEMO)


def of_demo(address: int, *, bus: str = "front-1", unit_id: int = 255, **more: Any) -> dict[str, Any]:
    return arguments(register(address=address, value=1, **more), units=0) | {
        "devices": [{"name": "raw", "bus": bus, "unit_id": unit_id}]
    }


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (of_demo(5004), "control owns current_limit of a KEBA"),
        (of_demo(5013, kind="u32"), "control owns enabled"),
        (of_demo(201, bus="fast", unit_id=1), "control owns power_limit"),  # the second word of the second connector
        (of_demo(5016), "device_settings writes failsafe_current, in the order"),
        (of_demo(40242, bus="icu", unit_id=1), "device_settings and der_settings write a SunSpec device's models"),
        (of_demo(261, bus="yard", unit_id=3), "control owns current_limit of a Heidelberg"),
    ],
)
def test_what_a_depot_answers_for_is_not_declared(demo: Any, given: dict[str, Any], why: str) -> None:
    with pytest.raises(DeclarationError, match=f"devices.raw, register r: found holding .* expected none: {why}"):
        declare(given, demo)


def test_what_a_depot_leaves_may_be_declared(demo: Any) -> None:
    (target,) = declare(of_demo(6000), demo).targets
    assert target.bus == demo.buses["front-1"]
    declare(of_demo(5004, unit_id=254), demo)
    declare(of_demo(5004, volatile=True), demo)
    declare(of_demo(5004), demo, writes=False)


def test_an_endpoint_of_the_depot_is_its_bus(demo: Any) -> None:
    given = of_demo(6000) | {"devices": [{"name": "raw", "host": "10.213.9.31", "unit_id": 255}]}
    assert declare(given, demo).targets[0].bus_name == "front-1"
    with pytest.raises(DeclarationError, match="control owns current_limit"):
        declare(of_demo(5004) | {"devices": given["devices"]}, demo)
    with pytest.raises(DeclarationError, match=r"devices.raw.bus: found frond-1, expected a bus of demo"):
        declare(of_demo(6000, bus="frond-1"), demo)


def test_a_bus_is_asked_by_its_own_gateway(demo: Any) -> None:
    two = replace(demo, gateways={**demo.gateways, "gateway-2": demo.gateways["gateway-1"]})
    declare(of_demo(6000) | {"gateway": "gateway-1"}, two)
    with pytest.raises(DeclarationError, match=r"bus: found front-1, a bus of gateway-1, expected one of gateway-2"):
        declare(of_demo(6000) | {"gateway": "gateway-2"}, two)
    with pytest.raises(DeclarationError, match=r"gateway: found none, expected this gateway's name, one of gateway-1"):
        declare(of_demo(6000), two)


async def test_without_a_depot_a_bus_by_name_is_unknown() -> None:
    (result,) = await converge(declare(of_demo(6000)), Access(), check=True)
    assert result.status is Status.UNKNOWN
    assert "front-1" in result.detail


# Many devices


async def test_how_many_at_once() -> None:
    buses = {f"h{at}:502": Memory(takes_s=0.002, default=lambda *_: 0) for at in range(6)}
    devices = [{"name": f"d{at}", "host": f"h{at % 6}", "unit_id": at + 1} for at in range(24)]

    async def most(per_bus: int, total: int) -> tuple[int, int]:
        everywhere = Memory(takes_s=0.002, default=lambda *_: 0)
        limits = {**QUICK, "per_bus": per_bus, "global": total}
        declared = declare(arguments(register(value=1), limits=limits) | {"devices": devices})
        for bus in buses.values():
            bus.most_at_once = 0
        assert all(one.status is Status.CHANGED for one in await converge(declared, Access(buses), check=True))
        await converge(declared, Access(dict.fromkeys(buses, everywhere)), check=True)
        return max(bus.most_at_once for bus in buses.values()), everywhere.most_at_once

    assert await most(1, 200) == (1, 6)
    assert await most(2, 200) == (2, 12)
    assert (await most(2, 3))[1] == 3


async def test_one_failing_device_does_not_stop_the_others() -> None:
    bus = Memory(default=lambda *_: 0, fault=lambda request: Fault(silent) if request.unit_id == 2 else None)
    results = await applied(declare(arguments(register(value=1), units=4)), bus)
    assert [one.status.value for one in results] == ["changed", "unreachable", "changed", "changed"]


@pytest.mark.parametrize(("most", "begun"), [("1", 2), ("30%", 4), ("0", 1), (None, 1)])
async def test_no_further_device_is_begun_when_too_many_fail(most: str | None, begun: int) -> None:
    bus = Memory(fault=lambda _request: Fault(Unreachable))
    given = arguments(register(value=1), units=10, max_failures=most)
    assert all(one.status is Status.UNREACHABLE for one in await applied(declare(given), bus))
    bus.requests.clear()
    results = await applied(declare({**given, "on_error": "fail"}), bus)
    assert [one.status for one in results] == [Status.UNREACHABLE] * begun + [Status.UNKNOWN] * (10 - begun)
    assert all("not begun" in one.detail for one in results[begun:])
    assert {request.unit_id for request in bus.requests} == set(range(1, begun + 1))


async def test_nothing_is_begun_after_the_deadline() -> None:
    bus = Memory(default=lambda *_: 0, takes_s=0.03)
    limits = {**QUICK, "verify_s": 0.5}
    results = await applied(declare(arguments(register(value=1), units=6, limits=limits, deadline_s=0.1)), bus)
    found = [one.status for one in results]
    assert found[0] is Status.CHANGED
    assert found[-1] is Status.UNKNOWN
    assert "the deadline of 0.1 s has passed" in results[-1].detail
    assert len(bus.writes) == found.count(Status.CHANGED), "none was written that is not told"


async def test_a_write_waits_until_whoever_charges_has_followed_an_agent_that_has_just_begun() -> None:
    """Reads, limits, 12 s for vehicles, and as long again: an agent refuses what it cannot let leave by then."""
    bus = Memory()
    bus.put(100, 0)
    (result,) = await applied(declare(arguments(register(value=1))), bus)
    assert result.status is Status.CHANGED
    assert min(bus.writes_wait_s) >= 2 * FOLLOW_S
    bus.writes_wait_s.clear()
    (result,) = await applied(declare(arguments(register(value=2), deadline_s=5.0)), bus)
    assert result.status is Status.CHANGED
    assert max(bus.writes_wait_s) <= 5.0, "never longer than what all of them have"


# Reading


async def test_gather_reads_and_judges() -> None:
    bus = Memory()
    bus.put(40000, 0x5375, 0x6E53, *range(8))
    given = {
        "address_base": "one",
        "devices": [{"name": "icu", "host": "gw.example"}],
        "registers": [register("mark", 40001, "string", length=10, expect="SunS")],
    }
    (result,) = await gather(declare(given, writes=False), Access({GW: bus}))
    assert result.status is Status.OK
    assert result.settings[0].registers_before == Registers(Table.HOLDING, 40000, bus.words(40000, 10))
    assert bus.requests == [Request(1, Table.HOLDING, 40000, 10)]
    (result,) = await gather(declare({**given, "address_base": "zero"}, writes=False), Access({GW: bus}))
    assert result.status is Status.REFUSED
    bus.put(40000, 0x5376)
    (result,) = await gather(declare(given, writes=False), Access({GW: bus}))
    assert (result.status, result.detail) == (
        Status.VERIFY_FAILED,
        "mark: found 5376 6e53 0000 0001 …, expected SunS",
    )


async def test_gather_tells_what_the_device_has_not() -> None:
    bus = Memory()
    bus.put(100, 5)
    given = arguments(register("a", scale=0.1, unit="A"), register("b", 101))
    (result,) = await gather(declare(given, writes=False), Access({GW: bus}))
    assert [(one.name, one.before, one.outcome) for one in result.settings] == [
        ("a", 0.5, Outcome.OK),
        ("b", None, Outcome.REFUSED),
    ]


# At random


def word(unit_id: int, table: Table, address: int) -> int:
    """Return what a register holds that nobody wrote."""
    return (address * 40503 + unit_id * 977) % 65521 if table in {Table.HOLDING, Table.INPUT} else address & 1


RANGES = {"u16": (0, 65535), "i16": (-32768, 32767), "u32": (0, 2**32 - 1), "i32": (-(2**31), 2**31 - 1)}
SIZES = {"u16": 1, "i16": 1, "u32": 2, "i32": 2, "f32": 2, "u64": 4, "f64": 4, "string": 3, "bits": 1}


@st.composite
def declarations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw registers that lie beside each other, with small gaps or none."""
    found, address = [], draw(st.integers(0, 50))
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(sorted(SIZES)))
        given = register(f"r{number}", address, kind)
        value: Value
        if kind == "string":
            given["length"], value = 3, draw(st.sampled_from(["a", "abcdef"]))
        elif kind == "bits":
            given["mask"] = draw(st.sampled_from([0x000F, 0x0FF0, 0x0001, 0x8000]))
            value = draw(st.booleans()) if given["mask"] in {1, 0x8000} else draw(st.integers(0, 15))
        elif kind in RANGES:
            given["scale"] = draw(st.sampled_from([1, 0.1, 0.001, 10]))
            low, high = RANGES[kind]
            value = draw(st.integers(low, high)) * given["scale"] * 0.999
        else:
            value = draw(st.integers(0, 2**24)) / 8 if kind[0] == "f" else draw(st.integers(0, 2**63))
        given["value"] = value
        if kind not in {"string", "bits"}:
            given["word_order"] = draw(st.sampled_from(["big", "little"]))
            how = draw(st.sampled_from(["", "", "", "volatile", "write_only", "verify", "readback"]))
            if how == "readback":
                given["readback_address"] = address + 1000
            elif how == "verify":
                given["verify"] = "none"
            elif how:
                given[how] = True
        found.append(given)
        address += SIZES[kind] + draw(st.sampled_from([0, 0, 1, 3]))
    return found


FAULTS = [
    None,
    Fault(silent),
    Fault(silent, done=True),
    Fault(hung_up, done=True),
    Fault(Unreachable),
    Fault(refusing(ILLEGAL_ADDRESS)),
    Fault(refusing(DEVICE_FAILURE)),
]


def asked_for(declared: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return what may be written, by the address where a write begins."""
    return {one["address"]: one for one in declared if not one.get("volatile")}


def within_the_mask(given: dict[str, Any], before: tuple[int, ...], words: tuple[int, ...]) -> bool:
    mask = given.get("mask")
    return mask is None or (words[0] ^ before[0]) & ~mask == 0


@settings(max_examples=150)
@given(
    declared=declarations(),
    faults=st.lists(st.sampled_from(FAULTS), max_size=30),
    gap=st.sampled_from([0, 1, 4]),
    units=st.integers(1, 3),
    obeys=st.booleans(),
    check=st.booleans(),
    blind=st.booleans(),
)
def test_nothing_is_written_that_nobody_asked_for(
    *,
    declared: list[dict[str, Any]],
    faults: list[Fault | None],
    gap: int,
    units: int,
    obeys: bool,
    check: bool,
    blind: bool,
) -> None:
    """Whatever is declared, held and goes wrong: see each request of the bus for what it must not be."""
    wanted, script = asked_for(declared), iter(faults)
    addresses = {one["name"]: one["address"] for one in declared}
    done: dict[tuple[int, int], int] = {}

    def watch(request: Request) -> None:
        if not request.words:
            assert request.count <= 125
            return
        assert not check
        given = wanted[request.address]
        assert request.table is Table.HOLDING
        assert len(request.words) == SIZES[given["type"]], "a value goes whole"
        before = bus.words(request.address, request.count, request.unit_id)
        assert within_the_mask(given, before, request.words)
        done[request.unit_id, request.address] = done.get((request.unit_id, request.address), 0) + 1

    bus = Memory(
        default=word,
        fault=lambda _request: next(script, None),
        before=watch,
        obeys=obeys,
        mirrors={one["address"] + at: one["address"] + 1000 + at for one in declared for at in range(4)},
    )
    limits = {"max_gap": gap, "verify_s": 0.001, "timeout_s": 0.01}
    declaration = declare(arguments(*declared, units=units, limits=limits, blind=blind))
    clock = Quick()
    results = asyncio.run(converge(declaration, Access({GW: bus}), check=check, clock=clock))
    assert max(done.values(), default=1) == 1, "no write is sent twice"
    for result in results:
        assert result.changed <= (result.status is not Status.OK)
        unit_id = int(result.name.removeprefix("dev-"))
        for one in result.settings:
            sent = (unit_id, addresses[one.name]) in done
            if one.outcome is Outcome.CHANGED:
                assert sent
                assert one.before != one.after
            if one.outcome in {Outcome.OK, Outcome.WOULD_CHANGE}:
                assert not sent


@settings(max_examples=60)
@given(declared=declarations(), gap=st.sampled_from([0, 4]))
def test_a_prediction_comes_true_and_a_second_run_changes_nothing(declared: list[dict[str, Any]], gap: int) -> None:
    bus = Memory(
        default=word, mirrors={one["address"] + at: one["address"] + 1000 + at for one in declared for at in range(4)}
    )
    declaration = declare(arguments(*declared, limits={**QUICK, "max_gap": gap}))

    def shown(result: DeviceResult) -> list[tuple[Any, ...]]:
        # The words in which several fields lie are predicted for each field alone.
        return [(one.name, one.before, one.after, one.registers_before) for one in result.settings]

    (predicted,) = asyncio.run(applied(declaration, bus, check=True))
    assert not bus.writes
    (done,) = asyncio.run(applied(declaration, bus))
    assert shown(predicted) == shown(done)
    assert predicted.changed == done.changed
    written = len(bus.writes)
    (again,) = asyncio.run(applied(declaration, bus))
    assert not again.changed
    assert len(bus.writes) == written


whole = st.integers(-2, 70_000) | st.sampled_from([0, 1, 40_001, 400_001, 465_537])
number = st.integers(-3, 70_000) | st.floats() | st.sampled_from([0, 1, 0.1, 0.001, 1e300])
anything = number | st.text(max_size=4) | st.booleans() | st.none() | st.lists(st.integers(), max_size=1)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "table": st.sampled_from([*(table.value for table in Table), None]),
    "length": st.integers(-1, 200),
    "word_order": st.sampled_from(["big", "little"]),
    "byte_order": st.sampled_from(["big", "little"]),
    "scale": number,
    "offset": number,
    "mask": st.integers(-1, 0x1FFFF) | st.sampled_from([1, 0xF0]),
    "value": anything,
    "min": number,
    "max": number,
    "tolerance": number,
    "verify": st.sampled_from(["readback", "none"]),
    "readback_address": whole,
    "readback_table": st.sampled_from(["holding", "input"]),
    "readback_type": st.sampled_from(["u16", "i32", "f32"]),
    "readback_scale": number,
    "volatile": st.booleans(),
    "write_only": st.booleans(),
    "write_fc": st.sampled_from(["auto", "5", "6", "15", "16"]),
}


@st.composite
def odd_registers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw registers that would do, but for up to two fields each that are anything."""
    found = []
    for at in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["u16", "i32", "u64", "f32", "f64", "string", "bits"]))
        given_ = register(
            f"r{at}",
            draw(st.just(40_100 + 10 * at) | st.just(40_100 + 10 * at) | whole),
            kind,
            value="a" if kind == "string" else 1,
        )
        if kind in {"string", "bits"}:
            given_["length"] = 2
        for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2)):
            given_[name] = draw(FIELDS[name])
        if draw(st.integers(0, 20)) == 0:
            given_["name"] = draw(st.sampled_from(["", "a/b", "r0"]))
        found.append(given_)
    return found


def seldom(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.just({}) | st.just({}) | st.just({}) | st.fixed_dictionaries({}, optional=fields)


@settings(max_examples=400)
@given(
    base=st.sampled_from(["zero", "one", "modicon"]),
    registers=odd_registers(),
    limits=seldom(max_read=whole, max_write=whole, max_gap=whole, per_bus=whole, verify_s=number),
    device=seldom(unit_id=whole, port=whole, framer=st.sampled_from(["tcp", "rtu_over_tcp"])),
    writes=st.booleans(),
)
def test_any_declaration_is_carried_out_or_named_as_wrong(
    *,
    base: str,
    registers: list[dict[str, Any]],
    limits: dict[str, Any],
    device: dict[str, Any],
    writes: bool,
) -> None:
    """Of the types that the modules' argument specs let through: nothing else is raised, and nothing else is sent."""
    given_ = {
        "address_base": base,
        "devices": [{"name": "d", "host": "h", **device}],
        "registers": registers,
        "limits": limits,
    }
    try:
        declaration = declare(given_, writes=writes)
    except DeclarationError as problem:
        lines = problem.problems
    else:
        lines = ()
    if lines:
        assert all(": found " in line for line in lines)
        return
    bus = Memory(default=word)
    access = Access({declaration.targets[0].bus_name: bus})
    work = converge(declaration, access, check=False, clock=Quick()) if writes else gather(declaration, access)
    (result,) = asyncio.run(work)
    assert result.status in set(Status)
    points = declaration.registers.profile.points.values()
    ours = {(point.table, point.address + at) for point in points for at in range(point.length)}
    for request in bus.writes:
        assert writes
        assert {(request.table, request.address + at) for at in range(request.count)} <= ours
