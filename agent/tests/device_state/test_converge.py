# SPDX-License-Identifier: Apache-2.0
"""Settings of whole depots, against the twin over real sockets: what is found, what is written, and in which order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent.device_state.access import Access
from derms_agent.device_state.converge import NoSuchDevice, chosen, converge
from derms_agent.device_state.results import DeviceResult, Status, plain
from derms_agent.drivers.bus_lock import Locked, buses_locked
from derms_agent.twin import Fault, FaultKind

if TYPE_CHECKING:
    from agent.tests.device_state.conftest import Played

pytestmark = pytest.mark.anyio

FAILSAFE_A = 262
KEBA_TIMEOUT, KEBA_PERSIST = 5018, 5020


def statuses(found: dict[str, DeviceResult]) -> dict[str, str]:
    return {name: result.status.value for name, result in found.items()}


def changed(result: DeviceResult) -> dict[str, tuple[Any, Any]]:
    return {one.name: (one.before, one.after) for one in result.settings if one.outcome.value.endswith("change")} | {
        one.name: (one.before, one.after) for one in result.settings if one.outcome.value == "changed"
    }


async def test_what_is_as_declared_is_not_written(played: Played) -> None:
    async with played() as field:
        found = await field.run()
        assert set(statuses(found).values()) == {"ok"}
        assert list(found) == ["yard-1", "yard-2", "yard-3", "yard-4", "front-1", "front-2"]
        assert field.writes() == []
        assert plain(found["front-1"])["not_shown"] == ["failsafe_persist"]


async def test_a_dry_run_predicts_what_a_run_then_does(played: Played) -> None:
    async with played() as field:
        field.holds("yard-2", failsafe_current=10.04)
        field.holds("front-1", failsafe_timeout=45)
        predicted = await field.run(check=True)
        assert field.writes() == []
        assert statuses(predicted) == {**dict.fromkeys(predicted, "ok"), "yard-2": "changed", "front-1": "changed"}
        assert changed(predicted["yard-2"]) == {"failsafe_current": (10.0, 6.0)}
        assert changed(predicted["front-1"]) == {"failsafe_timeout": (45, 30)}
        done = await field.run()
        assert statuses(done) == statuses(predicted)
        assert {name: changed(result) for name, result in done.items()} == {
            name: changed(result) for name, result in predicted.items()
        }
        # What cannot be read goes along with what is written anyhow, and only there.
        assert sorted((write.bus, write.unit, write.address, write.words) for write in field.writes()) == [
            ("front-1", 255, KEBA_TIMEOUT, (30,)),
            ("front-1", 255, KEBA_PERSIST, (1,)),
            ("line", 2, FAILSAFE_A, (60,)),
        ]
        again = await field.run(check=True)
        assert set(statuses(again).values()) == {"ok"}


async def test_each_setting_says_what_lies_in_which_register(played: Played) -> None:
    async with played() as field:
        field.holds("yard-2", failsafe_current=10)
        (result,) = (await field.run("yard-2", check=True)).values()
        (setting,) = (one for one in plain(result)["settings"] if one["name"] == "failsafe_current")
        assert setting["unit"] == "A"
        assert setting["registers_before"] == {"table": "holding", "address": FAILSAFE_A, "words": [100]}
        assert setting["registers_wanted"] == {"table": "holding", "address": FAILSAFE_A, "words": [60]}


async def test_only_what_was_chosen_is_touched(played: Played) -> None:
    async with played() as field:
        for name in ("yard-1", "yard-2"):
            field.holds(name, failsafe_current=10)
        assert list(await field.run("yard-2", "front-*")) == ["yard-2", "front-1", "front-2"]
        assert {(write.bus, write.unit) for write in field.writes()} == {("line", 2)}
        with pytest.raises(NoSuchDevice, match=r"found yrad-\*, expected a device of depot small"):
            chosen(field.depot, "gateway-1", ["yrad-*"])


async def test_a_device_that_is_dead_leaves_the_others_to_be_done(played: Played) -> None:
    async with played() as field:
        field.holds("front-1", failsafe_timeout=45)
        field.holds("yard-4", failsafe_timeout=45)
        field.twin.fault("yard-1", Fault(kind=FaultKind.SILENT))
        found = await field.run()
        assert statuses(found) == {
            "yard-1": "unreachable",
            "yard-2": "ok",
            "yard-3": "ok",
            "yard-4": "changed",
            "front-1": "changed",
            "front-2": "ok",
        }
        assert "no reply within 1 s" in found["yard-1"].detail


async def test_all_that_lower_are_written_before_the_first_that_rises(played: Played) -> None:
    """One falls from 32 A to its rating, 16, and one rises to 32: the circuit bears one of them at 32 A, not two."""
    shared = {"unit_id": 255, "profile": "keba_p30", "circuit": "main", "evses": {"rating_a": 16}}
    devices = {
        "front-1": {"bus": "front-1", "settings": {"failsafe_current": 32, "failsafe_timeout": 30}, **shared},
        "front-2": {"bus": "front-2", "settings": {"failsafe_current": 6, "failsafe_timeout": 30}, **shared},
    }
    main = {"voltage_v": 400, "rating_a": 60, "base_load_a": 10, "allocator": "gateway-1"}
    async with played(devices=devices, circuits={"main": main}) as field:

        def both_drifted() -> None:
            field.holds("front-1", failsafe_current=6)
            field.holds("front-2", failsafe_current=32)

        both_drifted()
        assert set(statuses(await field.run()).values()) == {"changed"}
        assert [write.bus for write in field.writes()] == ["front-2", "front-1"]
        # Should the one that is to fall not fall, the other does not rise.
        both_drifted()
        field.twin.fault("front-2", Fault(kind=FaultKind.EXCEPTION, code=4))
        assert statuses(await field.run()) == {"front-1": "changed", "front-2": "refused"}
        field.twin.clear("front-2")
        # Nor where the other is not to be looked at: what it holds adds up all the same.
        both_drifted()
        beside = [field.depot.devices["front-2"]]
        found = await field.run("front-1", beside=beside)
        assert statuses(found) == {"front-1": "refused"}
        assert field.writes() == []


async def test_a_fallback_does_not_rise_beside_one_that_did_not_fall(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"unit_id": 255, "profile": "keba_p30", "circuit": "main", "evses": {"rating_a": 16}}
    devices = {
        "front-1": {"bus": "front-1", "settings": {"failsafe_current": 32, "failsafe_timeout": 30}, **shared},
        "front-2": {"bus": "front-2", "settings": {"failsafe_current": 6, "failsafe_timeout": 30}, **shared},
    }
    main = {"voltage_v": 400, "rating_a": 60, "base_load_a": 10, "allocator": "gateway-1"}
    async with played(devices=devices, circuits={"main": main}) as field:
        field.holds("front-1", failsafe_current=6)
        field.holds("front-2", failsafe_current=32)
        # It acknowledges writes and keeps what it held.
        monkeypatch.setattr(field.twin.units["front-2", 255], "write", lambda *_: None)
        found = await field.run()
        assert statuses(found) == {"front-1": "refused", "front-2": "verify_failed"}
        assert "circuit main: 74 A on L1/L2/L3, rated 60 A" in found["front-1"].detail
        assert {write.bus for write in field.writes()} == {"front-2"}


async def test_while_another_program_has_the_buses_nothing_is_asked(played: Played) -> None:
    async with played() as field:
        with buses_locked(field.directory), pytest.raises(Locked, match="another program has the buses"):
            await field.run()
        assert set(statuses(await field.run()).values()) == {"ok"}


async def test_what_is_on_no_known_bus_is_unknown(played: Played) -> None:
    async with played() as field:
        access = Access(unknown={"line": "the agent does not have the bus line yet"})
        found = await converge(field.depot, chosen(field.depot, "gateway-1", ["yard-1"]), access, check=True)
        assert (found[0].status, found[0].detail) == (Status.UNKNOWN, "the agent does not have the bus line yet")


async def test_what_the_deadline_cuts_off_is_unknown(played: Played) -> None:
    async with played() as field:
        found = await field.run(deadline_s=0.0)
        assert set(statuses(found).values()) == {"unknown"}
        assert field.writes() == []


async def test_what_cannot_be_read_is_written_alone_where_that_is_asked_for(played: Played) -> None:
    async with played() as field:
        await field.run("front-*", blind=True)
        assert sorted((write.bus, write.address) for write in field.writes()) == [
            ("front-1", KEBA_PERSIST),
            ("front-2", KEBA_PERSIST),
        ]


async def test_no_descriptor_is_left_behind(played: Played) -> None:
    async with played() as field:
        await field.run()
        await anyio.sleep(0.05)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, and needs no paths
        for _ in range(3):
            await field.run(check=True)
        await anyio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
