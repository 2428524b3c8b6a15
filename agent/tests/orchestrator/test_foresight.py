# SPDX-License-Identifier: Apache-2.0
"""What somebody writes to a device's fallback is in the ledger before it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent import depot as depots
from derms_agent import profiles
from derms_agent.control import ledger as book
from derms_agent.drivers.errors import NotAllowed
from derms_agent.model import Value
from derms_agent.orchestrator.service import Service, _Job
from derms_agent.orchestrator.site import fallback_written, foreseen, site_of
from derms_agent.profiles.point import Table

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import Play

from agent.tests.orchestrator.conftest import DEMO

KEBA, WALLBOX = "charger-021", "charger-001"
HELD: Mapping[str, Value] = {"failsafe_current": 6.0, "failsafe_timeout": 30}
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def site() -> Any:
    return site_of(depots.load(DEMO), "gateway-1", shed_s=2.0)


def written(name: str, address: int, *words: int, table: Table = Table.HOLDING) -> dict[str, Value | None]:
    device = site().devices[name]
    return fallback_written(device, profiles.load(device.profile), table, address, words)


def test_what_a_write_brings_to_a_fallback_is_told_from_its_words() -> None:
    assert written(KEBA, 5016, 10_000) == {"failsafe_current": 10.0}
    assert written(KEBA, 5018, 45) == {"failsafe_timeout": 45}
    assert written(KEBA, 5020, 1) == {}
    assert written(KEBA, 5016, 10_000, table=Table.INPUT) == {}
    # Several at once, and other registers among them.
    assert written(WALLBOX, 261, 100, 80) == {"failsafe_current": 8.0}
    # A SunSpec device has its values wherever it wants.
    assert set(written("icu", 40_200, 1).values()) == {None}


def test_the_worst_of_old_and_new_is_foreseen() -> None:
    known = site()
    device = known.devices[KEBA]

    def armed(*more: tuple[str, Value | None]) -> tuple[float | None, float]:
        (one,) = foreseen(known, device, HELD, dict(more), 7.0)
        assert (one.evse, one.sent_s) == (KEBA, 7.0)
        return one.watchdog_s, one.fallback.high

    assert armed(("failsafe_current", 10.0)) == (30, 10.0)
    assert armed(("failsafe_current", 4.0)) == (30, 6.0)
    assert armed(("failsafe_timeout", 20)) == (20, 6.0)
    assert armed(("failsafe_timeout", 60)) == (30, 6.0)
    # A watchdog that may be off is not proven, so that the rating counts; so it does where nothing can be told.
    assert armed(("failsafe_timeout", 0)) == (None, 16.0)
    assert armed(("failsafe_current", None)) == (None, 16.0)


def test_a_fallback_that_rises_counts_from_the_next_cycle_on_until_it_is_read(charging: Play) -> None:
    controller, device = charging.controller, charging.site.devices[KEBA]
    assert controller.state.ledger.entries[KEBA].fallback == book.Span(high=6.0)

    def counts_more(**more: Value) -> bool:
        return controller.foresee(KEBA, foreseen(charging.site, device, HELD, more, charging.now_s))

    assert not counts_more(failsafe_current=6.0)
    assert not counts_more(failsafe_timeout=60)
    assert counts_more(failsafe_timeout=10)
    assert counts_more(failsafe_current=14.0)
    charging.step(5)
    # Read once a second, and not believed: what was asked for before the write is over shows the old.
    assert controller.state.ledger.entries[KEBA].fallback == book.Span(high=14.0)
    controller.seen_through(KEBA, charging.now_s)
    charging.step(2)
    assert controller.state.ledger.entries[KEBA].fallback == book.Span(high=6.0)


class Stub(SimpleNamespace):
    """As much of a service as foresight takes."""

    _device_at = Service._device_at
    _foresight = Service._foresight
    _none_over = Service._none_over


def service(*, over: bool, counts_more: bool = True) -> tuple[Any, list[str]]:
    seen: list[str] = []
    engine = SimpleNamespace(cycles=7, clock=lambda: 3.0)

    def work_soon() -> None:
        seen.append("cycle")
        engine.cycles += 1

    def foresee(*_: object) -> bool:
        seen.append("foreseen")
        return counts_more

    engine.work_soon = work_soon
    driver = SimpleNamespace(known_settings=lambda: dict(HELD), read_settings_soon=lambda: seen.append("read soon"))
    engine.devices = {KEBA: driver}
    controller = SimpleNamespace(
        foresee=foresee,
        seen_through=lambda *_: seen.append("seen through"),
        outcome=SimpleNamespace(admission=SimpleNamespace(over=("main",) if over else ())),
    )
    return Stub(site=site(), engine=engine, controller=controller), seen


def job(address: int, *words: int) -> _Job:
    return _Job(255, Table.HOLDING, address, len(words), words, None)


async def test_a_write_leaves_once_it_is_counted_and_no_circuit_could_be_over() -> None:
    stub, seen = service(over=False)
    async with stub._foresight("front-1", job(5016, 10_000), 1.0):
        seen.append("written")
    assert seen == ["foreseen", "cycle", "written", "seen through", "read soon"]


async def test_a_write_that_raises_nothing_leaves_at_once() -> None:
    stub, seen = service(over=True, counts_more=False)
    async with stub._foresight("front-1", job(5016, 4_000), 1.0):
        seen.append("written")
    assert seen == ["foreseen", "written", "seen through", "read soon"]
    seen.clear()
    async with stub._foresight("front-1", job(5020, 1), 1.0):
        seen.append("written")
    assert seen == ["written"]


async def test_a_fallback_is_not_raised_while_a_circuit_could_be_over_with_it() -> None:
    stub, seen = service(over=True)
    began_s = anyio.current_time()
    with pytest.raises(
        NotAllowed, match=r"charger-021: its fallback is not written: within 0.3 s circuits could be over"
    ):
        async with stub._foresight("front-1", job(5016, 10_000), 0.3):
            seen.append("written")
    assert anyio.current_time() - began_s < 2.0
    assert "written" not in seen
    assert seen[-2:] == ["seen through", "read soon"]
