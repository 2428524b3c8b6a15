# SPDX-License-Identifier: Apache-2.0
"""What answers on a depot's buses: each kind of device is found for what it is, and nothing is guessed or written."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import yaml
from agent.tests.device_state.test_gather import DECLARED, PROFILES, every_kind
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.depot import examine
from derms_agent.depot.plain import depot_document
from derms_agent.depot.ranges import BadRange
from derms_agent.device_state.access import Access
from derms_agent.device_state.adopted import Adopted, adopted, entry
from derms_agent.device_state.calls import Unusable
from derms_agent.device_state.fit import Fit, Shown, best, judged
from derms_agent.device_state.gather import Gathered
from derms_agent.device_state.looking import scan as run_scan
from derms_agent.device_state.results import Status
from derms_agent.device_state.run import depot_of
from derms_agent.device_state.scan import Found, Scanned, SparingBus, scan, units_to_try, without_repeats
from derms_agent.drivers.errors import BusError, NoAnswer, NotAllowed, Refused, Unreachable
from derms_agent.drivers.interface import Priority
from derms_agent.model import Bus, Depot, Device, DeviceKind, Transport
from derms_agent.profiles.point import Table
from derms_agent.twin import Fault, FaultKind

if TYPE_CHECKING:
    from agent.tests.device_state.conftest import Field, Played


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the least pause: simulated devices need none."""
    monkeypatch.setattr("derms_agent.device_state.scan.PAUSE_S", 0)


async def scanned(
    field: Field, depot: Depot, *unit_ids: str, circuit: str | None = None, rating_a: float | None = None
) -> tuple[dict[str, Scanned], dict[str, dict[str, Any]], Adopted]:
    """Scan a depot's buses: what became of each bus, the entry of each unit by bus and unit id, and the file."""
    async with replace(field, depot=depot).opened() as access:
        own = [bus for bus in depot.buses.values() if bus.gateway == "gateway-1"]
        found = await scan(depot, access, {bus.name: units_to_try(bus, unit_ids) for bus in own})
    entries = {
        f"{unit.bus}:{unit.unit_id}": entry(unit, depot, circuit, rating_a) for bus in found for unit in bus.units
    }
    return {bus.bus: bus for bus in found}, entries, adopted(depot_document(depot), entries.values())


def emptied(depot: Depot) -> Depot:
    return replace(depot, devices={}, meters={})


@pytest.mark.anyio
async def test_each_kind_of_device_is_found_for_what_it_is(played: Played) -> None:
    async with played(**every_kind()) as field:
        buses, entries, made = await scanned(field, emptied(field.depot), "1", rating_a=16)
        assert {bus.status for bus in buses.values()} == {Status.OK}
        assert {(one["outcome"], one["unit_id"]) for one in entries.values()} == {("found", 1)}
        assert [one["profile"] for one in entries.values()] == list(PROFILES)
        assert made.lacks == ()
        again = examine(made.text, "adopted").depot
        assert again is not None
        for device in field.depot.devices.values():
            found = again.devices[f"{device.bus}-1"]
            assert (found.profile, found.circuit, found.kind) == (device.profile, "main", device.kind)
            assert [(one.connector, one.rating_a) for one in found.evses] == [
                (one.connector, 16) for one in device.evses
            ]
            shown = {
                name: value for name, value in DECLARED.get(device.profile, {}).items() if name != "failsafe_persist"
            }
            assert shown.items() <= found.settings.items()
            assert (found.der_settings is not None) == (device.profile == "sunspec_der")
        (der,) = (one for one in again.devices.values() if one.profile == "sunspec_der")
        assert der.der_settings is not None
        assert der.der_settings["volt_var"]["points"] == [[92, 44], [98, 0], [102, 0], [108, -44]]
        assert "limits" not in der.der_settings
        assert "# der_settings: limits: found " in made.text
        assert field.writes() == []


@pytest.mark.anyio
async def test_what_no_device_shows_is_left_out_and_named(played: Played) -> None:
    parts = every_kind()
    parts["circuits"]["yard"] = {"parent": "main", "voltage_v": 400, "rating_a": 100}
    async with played(**parts) as field:
        _, entries, made = await scanned(field, emptied(field.depot), "1")
        keba = next(one for one in entries.values() if one["profile"] == "keba_p30")
        (declared,) = keba["declared"].values()
        assert "circuit" not in declared
        assert declared["evses"] == {"rating_a": 16}
        assert "circuit: not known; say which one feeds it" in keba["remarks"]
        assert "rating_a: 16 A, what its hardware allows by its own account" in keba["remarks"]
        dc = next(one for one in entries.values() if one["profile"] == "alpitronic_hyc")
        assert (
            "evses: rating_a is not shown; say what each of its 2 connectors can draw, in A per conductor"
            in dc["remarks"]
        )
        assert any(
            "found no circuit; expected circuit: the circuit that feeds the charger" in one for one in made.lacks
        )
        assert examine(made.text, "adopted").depot is None
        assert made.text.count("# - ") == len(made.lacks)


@pytest.mark.anyio
async def test_a_depot_that_is_declared_is_read_by_its_declaration(played: Played) -> None:
    async with played() as field:
        field.holds("yard-2", failsafe_current=8)
        field.twin.fault("yard-3", Fault(kind=FaultKind.SILENT))
        without = replace(
            field.depot,
            devices={name: device for name, device in field.depot.devices.items() if name != "yard-4"}
            | {"front-2": replace(field.depot.devices["front-2"], profile="heidelberg_energy_control")},
        )
        _, entries, made = await scanned(field, without, "4", "255")
        assert {at: one["outcome"] for at, one in entries.items()} == {
            "line:1": "declared", "line:2": "declared", "line:3": "silent", "line:4": "found",
            "front-1:255": "declared", "front-2:255": "found",
        }  # fmt: skip
        again = examine(made.text, "adopted").depot
        assert (made.lacks, again is not None) == ((), True)
        assert again is not None
        assert again.devices["yard-2"].settings["failsafe_current"] == 8
        assert again.devices["yard-3"] == field.depot.devices["yard-3"]
        assert again.devices["line-4"].profile == "heidelberg_energy_control"
        assert again.devices["front-2"].profile == "keba_p30"
        # Of another gateway, whose buses were not scanned.
        assert again.devices["back"] == field.depot.devices["back"]
        assert "# as it was declared: unit 3," in made.text
        assert "# declared as heidelberg_energy_control, which it is not" in made.text
        assert field.writes() == []


@pytest.mark.anyio
async def test_a_bus_that_cannot_be_reached_leaves_the_others(played: Played) -> None:
    async with played() as field:
        gone = replace(field.depot.buses["front-1"], port=1)
        depot = emptied(replace(field.depot, buses={**field.depot.buses, "front-1": gone}))
        buses, entries, _ = await scanned(field, depot, "255")
        assert buses["front-1"].status is Status.UNREACHABLE
        assert "cannot connect" in buses["front-1"].detail
        assert list(entries) == ["front-2:255"]
        # 255 can be no unit of a serial line.
        assert buses["line"] == Scanned("line", Status.OK, "none of the units that were named answers")


# Devices that nobody has a profile for


Answer = Callable[[Table, int, int], Sequence[int]]


@dataclass
class Strange:
    """A bus with one unit, 1, that answers as a test says."""

    answer: Answer
    asked: list[tuple[int, Table, int, int, Priority]] = field(default_factory=list)

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, **_: float
    ) -> tuple[int, ...]:
        await anyio.lowlevel.checkpoint()
        self.asked.append((unit_id, table, address, count, priority))
        if unit_id != 1:
            raise NoAnswer("no reply")
        return tuple(self.answer(table, address, count))

    async def write(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a scan wrote")


DEPOT = depot_of(
    {
        "plugin": "derms.edge.depot",
        "depot": "d",
        "site": {"limit_kva": 60},
        "gateways": {"gateway-1": {}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 100}},
        "buses": {"line": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.1", "baud_rate": 19200}},
    }
)


async def judge(answer: Answer) -> tuple[Strange, dict[str, Any] | None]:
    """Scan units 1 and 2 of a bus where only the first is."""
    bus = Strange(answer)
    (found,) = await scan(DEPOT, Access({"line": bus}), {"line": [1, 2]})
    assert {one[-1] for one in bus.asked} == {Priority.CONFIGURATION}
    assert sum(one[0] == 2 for one in bus.asked) == 2
    entries = [entry(unit, DEPOT, None, 16) for unit in found.units]
    return bus, entries[0] if entries else None


def refusing(code: int) -> Answer:
    def answer(*_: Any) -> Sequence[int]:
        raise Refused(f"exception {code}", code)

    return answer


@pytest.mark.anyio
async def test_zeros_wherever_it_is_asked_fit_no_profile() -> None:
    _, one = await judge(lambda _table, _address, count: [0] * count)
    assert one is not None
    assert (one["outcome"], one["declared"]) == ("unidentified", {})
    made = adopted(depot_document(DEPOT), [one])
    words = "unit 1 of line answers, and what it shows fits no profile"
    assert (made.lacks, yaml.safe_load(made.text)["devices"]) == ((words,), {})
    assert f"  # {words}\n" in made.text


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(5))
async def test_noise_fits_no_profile(seed: int) -> None:
    noise = random.Random(seed)  # noqa: S311 - the same in every run
    _, one = await judge(lambda _table, _address, count: [noise.randrange(65536) for _ in range(count)])
    assert one is not None
    assert one["outcome"] == "unidentified"


@pytest.mark.anyio
async def test_a_device_that_refuses_everything_is_there_and_is_nothing_known() -> None:
    _, one = await judge(refusing(2))
    assert one is not None
    assert one["outcome"] == "unidentified"


@pytest.mark.anyio
@pytest.mark.parametrize("code", [10, 11])
async def test_what_a_modbus_gateway_says_of_an_absent_unit_is_no_unit(code: int) -> None:
    bus, one = await judge(refusing(code))
    assert one is None
    assert sum(asked[0] == 1 for asked in bus.asked) == 1


SUNSPEC_INVERTER = {40000: (0x5375, 0x6E53, 1, 1, 0, 103, 2, 0, 0, 0xFFFF, 0)}


def from_image(image: Mapping[int, Sequence[int]]) -> Answer:
    words = {first + offset: word for first, block in image.items() for offset, word in enumerate(block)}

    def answer(table: Table, address: int, count: int) -> Sequence[int]:
        if table is not Table.HOLDING or not all(at in words for at in range(address, address + count)):
            raise Refused("exception 2", 2)
        return [words[at] for at in range(address, address + count)]

    return answer


@pytest.mark.anyio
async def test_sunspec_models_that_no_profile_has_are_named() -> None:
    _, one = await judge(from_image(SUNSPEC_INVERTER))
    assert one is not None
    assert one["remarks"] == ["unit 1 of line answers, and SunSpec models 1, 103"]


def image_of(*names: str) -> Answer:
    """Return a device that has the points of profiles, each register 1 but for texts, states and voltages."""
    cells: dict[tuple[Table, int], int] = {}
    for name in names:
        for point in PROFILES[name].points.values():
            shown = point if point.readable else point.readback
            if shown is None:
                continue
            value: Any = 231 if shown.unit == "V" else "A" if shown.type.value == "string" else 10
            words = (
                shown.encode(next(iter(shown.states.values())) if shown.states else value)
                if shown.mask is None
                else None
            )
            for offset in range(shown.length):
                cells[shown.table, shown.address_of(1) + offset] = words[offset] if words else 0

    def answer(table: Table, address: int, count: int) -> Sequence[int]:
        if any((table, at) not in cells for at in range(address, address + count)):
            raise Refused("exception 2", 2)
        return [cells[table, at] for at in range(address, address + count)]

    return answer


@pytest.mark.anyio
async def test_what_could_be_two_kinds_is_left_to_a_person() -> None:
    _, one = await judge(image_of("heidelberg_energy_control", "keba_p30"))
    assert one is not None
    assert one["outcome"] == "ambiguous"
    assert {each["profile"] for each in one["candidates"]} == {"heidelberg_energy_control", "keba_p30"}
    assert (one["declared"], adopted(depot_document(DEPOT), [one]).lacks) == ({}, tuple(one["remarks"]))
    _, alone = await judge(image_of("keba_p30"))
    assert alone is not None
    assert (alone["outcome"], alone["profile"]) == ("found", "keba_p30")


@pytest.mark.anyio
async def test_a_bus_is_asked_for_no_more_than_half_of_the_time_and_never_written() -> None:
    @dataclass
    class Slow(Strange):
        busy_s: float = 0.0

        async def read(self, *_: Any, **__: Any) -> tuple[int, ...]:
            await anyio.sleep(0.03)
            self.busy_s += 0.03
            raise Refused("exception 2", 2)

    slow = Slow(lambda *_: ())
    bus, began_s = SparingBus(slow), anyio.current_time()
    for _ in range(4):
        with pytest.raises(BusError):
            await bus.read(1, Table.HOLDING, 0, 1, priority=Priority.SHED, deadline_s=1)
    assert anyio.current_time() - began_s >= 2 * slow.busy_s
    assert bus.sent
    with pytest.raises(NotAllowed, match="a scan writes nothing"):
        await bus.write(1, Table.HOLDING, 0, [1], priority=Priority.SHED, deadline_s=1)


@pytest.mark.anyio
async def test_a_bus_that_was_never_sent_anything_on_is_given_up() -> None:
    def unreachable(*_: Any) -> Sequence[int]:
        raise Unreachable("cannot connect")

    bus = Strange(unreachable)
    (found,) = await scan(DEPOT, Access({"line": bus}), {"line": range(1, 200)})
    assert (found.status, found.detail, len(bus.asked)) == (Status.UNREACHABLE, "cannot connect", 1)


@pytest.mark.anyio
async def test_a_bus_that_may_not_be_asked_and_one_that_time_runs_out_for_are_unknown() -> None:
    (found,) = await scan(DEPOT, Access(unknown={"line": "the agent does not have it"}), {"line": [1]})
    assert (found.status, found.detail) == (Status.UNKNOWN, "the agent does not have it")
    (found,) = await scan(DEPOT, Access({"line": Strange(refusing(2))}), {"line": [1]}, deadline_s=0)
    assert (found.status, found.detail) == (Status.UNKNOWN, "not come to units from 1 on before the deadline")


# What is pure


def test_which_units_are_tried() -> None:
    line = Bus(name="a", gateway="g", transport=Transport.RTU_OVER_TCP, host="h", baud_rate=19200)
    end = Bus(name="b", gateway="g", transport=Transport.TCP, host="h")
    assert units_to_try(line) == tuple(range(1, 33))
    assert units_to_try(end) == (1, 2, 255)
    assert units_to_try(end, ["0", "7..9", "8", "255"]) == (0, 7, 8, 9, 255)
    assert units_to_try(line, ["0", "7..9", "8", "255"]) == (7, 8, 9)
    for wrong in ("9..7", "1-3", "256", "x"):
        with pytest.raises(BadRange):
            units_to_try(end, [wrong])
    with pytest.raises(Unusable, match=r"unit_ids: expected a range such as 1\.\.12"):
        run_scan(depot_document(DEPOT), "gateway-1", unit_ids=["1-3"], deadline_s=1)
    with pytest.raises(Unusable, match="circuit: found yard, expected one of main"):
        run_scan(depot_document(DEPOT), "gateway-1", circuit="yard", deadline_s=1)


def answering(unit_id: int, serial_number: int | None, declared: bool = False) -> Found:
    device = Device(name=f"a-{unit_id}", kind=DeviceKind.CHARGER, bus="a", unit_id=unit_id, profile="keba_p30")
    shown = {} if serial_number is None else {"serial_number": serial_number}
    return Found(
        bus="a",
        unit_id=unit_id,
        declared=device if declared else None,
        profile="keba_p30",
        gathered=Gathered(device=device, status=Status.OK, identity=shown, state={"state": "ready"}),
    )


def test_a_device_that_answers_to_any_unit_id_is_one() -> None:
    kept = without_repeats([answering(1, 17), answering(2, 18), answering(255, 17, declared=True), answering(7, None)])
    assert [(one.unit_id, one.also) for one in kept] == [(2, ()), (7, ()), (255, (1,))]
    assert len(without_repeats([answering(1, None), answering(2, None)])) == 2


fits = st.builds(
    Fit,
    profile=st.sampled_from(list(PROFILES)),
    score=st.floats(-1, 1).map(lambda score: round(score, 3)),
    shown=st.integers(0, 9),
    evidence=st.just(()),
)


@given(st.lists(fits, unique_by=lambda one: one.profile))
def test_only_what_is_well_ahead_is_taken(found: list[Fit]) -> None:
    taken, possible = best(found)
    if taken is None:
        assert not possible or len([one for one in found if possible[0].score - one.score < 0.1]) > 1
        return
    assert taken.fits
    assert all(taken.score - one.score >= 0.1 for one in found if one is not taken)
    assert possible[0] is taken


@pytest.mark.parametrize(
    ("profile", "point", "value", "words", "shown"),
    [
        ("keba_p30", "voltage_l1", 231, (0, 231), Shown.VALUE),
        ("keba_p30", "voltage_l1", 9000, (0, 9000), Shown.NONSENSE),
        ("keba_p30", "voltage_l1", 0, (0, 0), Shown.NOTHING),
        ("keba_p30", "state", "charging", (0, 3), Shown.VALUE),
        ("keba_p30", "state", "unknown 77", (0, 77), Shown.NONSENSE),
        ("alfen_ng9", "state", "B2", (0x4232, 0, 0, 0, 0), Shown.VALUE),
        ("alfen_ng9", "state", "\ufffd", (0xFF00, 0, 0, 0, 0), Shown.NONSENSE),
        ("alfen_ng9", "frequency", 1e-38, (0, 0x4248), Shown.NONSENSE),
        ("alfen_ng9", "availability", None, (0xFFFF,), Shown.NOTHING),
    ],
)
def test_what_a_point_shows(profile: str, point: str, value: Any, words: tuple[int, ...], shown: Shown) -> None:
    assert judged(PROFILES[profile].points[point], value, words) is shown


def test_secrets_are_not_written_into_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    keba = PROFILES["keba_p30"]
    timeout = replace(keba.points["failsafe_timeout"], secret=True)
    monkeypatch.setattr(
        "derms_agent.profiles.load", lambda _name: replace(keba, points={**keba.points, "failsafe_timeout": timeout})
    )
    document = {
        **depot_document(DEPOT),
        "devices": {"a": {"bus": "line", "unit_id": 1, "profile": "keba_p30", "circuit": "main",
                          "evses": {"rating_a": 16}, "settings": {"failsafe_timeout": 4711}}},
        "vtn": {"url": "https://vtn.example", "ven_name": "d", "client_id": "hush"},
    }  # fmt: skip
    text = adopted(document, []).text
    assert "hush" not in text
    assert "4711" not in text
    assert "vtn.client_id: declared, and secret; put it here with !vault" in text
