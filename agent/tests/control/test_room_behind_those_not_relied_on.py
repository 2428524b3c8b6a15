# SPDX-License-Identifier: Apache-2.0
"""What the allocator plans with: the bounds, less what those may take that cannot be relied on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from derms_agent.control import limits
from derms_agent.control.cycle import Allocated, Bounds, Cycle, EvseImage, Inputs, State
from derms_agent.control.ledger import Acknowledged, Armed, Event, Refreshed, Span, Station, started
from derms_agent.control.limits import Place
from derms_agent.control.network import Network
from derms_agent.control.worst_case import BaseLoad, Circuits
from derms_agent.model import Circuit, Connection, Evse, Limit, LimitQuantity, Phase, Rank

if TYPE_CHECKING:
    from derms_agent.control.cycle import Outcome

THREE = tuple(Phase)
VOLTS = 400 / math.sqrt(3)
RATED_A = 32.0
CIRCUITS = {
    "main": Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(200.0,) * 3),
    "trafo": Circuit(
        name="trafo", parent="main", connection=Connection.DELTA_WYE, voltage_v=400.0, rating_a=(150.0,) * 3
    ),
    "row": Circuit(name="row", parent="trafo", connection=Connection.WYE, voltage_v=400.0, rating_a=(100.0,) * 3),
}


@dataclass(frozen=True)
class Share:
    current_a: float
    why: str = "as asked"


def station(name: str, phases: tuple[Phase, ...]) -> Station:
    return Station(
        name=name,
        circuit="row",
        phases=phases,
        rating_a=RATED_A,
        after_boot=Span(high=RATED_A),
        fallback=Span(),
        watchdog_s=None,
    )


def last_bounds(phases: tuple[Phase, ...], *, silent: bool) -> tuple[Bounds, Outcome]:
    """Return what the allocator was given, and the outcome, once one of two EVSEs was silent for 20 s, or was not."""
    stations = [station("one", THREE), station("other", phases)]
    seen: list[Bounds] = []

    def noting(names: Sequence[str], bounds: Bounds, _now_s: float) -> Mapping[str, Allocated]:
        seen.append(bounds)
        return {name: Share(6.0) for name in names}

    cycle = Cycle(circuits=Circuits(CIRCUITS, stations), combine=limits.combine, allocate=noting)
    state, events = State(started(stations, 0.0)), [Armed(one.name, None, one.fallback, 0.0) for one in stations]
    found: list[Event] = list(events)
    rated = [
        Limit(
            target=name,
            quantity=LimitQuantity.CURRENT,
            low=-circuit.rating_a[0],
            high=circuit.rating_a[0],
            source=name,
            rank=Rank.PROTECTION,
            phases=THREE,
        )
        for name, circuit in CIRCUITS.items()
    ]
    site = Limit(
        target="site", quantity=LimitQuantity.ACTIVE_POWER, low=-1e5, high=1e5, source="site", rank=Rank.PROTECTION
    )
    for second in range(80):
        now_s = float(second)
        answering = [one for one in stations if not (silent and one.name == "other" and second >= 60)]
        image = {
            one.name: EvseImage(
                sent_s=now_s,
                answered_s=now_s,
                current_a=tuple(6.0 * (second >= 10) if phase in one.phases else 0.0 for phase in THREE),  # type: ignore[arg-type]
                limit_a=6.0,
            )
            for one in answering
        }
        fed = [Refreshed(one.name, now_s) for one in answering]
        outcome = cycle.run(
            state,
            Inputs(
                now_s=now_s,
                image=image,
                limits=(*rated, site),
                events=(*found, *fed),
                base=dict.fromkeys(CIRCUITS, BaseLoad()),
            ),
        )
        state = outcome.state
        found = [Acknowledged(write.evse, write.id, now_s + 0.1) for write in outcome.writes]
    return seen[-1], outcome


@pytest.mark.parametrize("phases", [THREE, (Phase.L2,)])
def test_the_allocator_is_not_given_what_a_silent_evse_may_take_on_each_line_up_to_the_root(
    phases: tuple[Phase, ...],
) -> None:
    bounds, outcome = last_bounds(phases, silent=True)
    assert outcome.doubted == {"other"}
    evse = Evse(name="other", device="other", connector=1, circuit="row", phases=phases, rating_a=RATED_A)
    for name, lines in Network(CIRCUITS, [evse]).loads_of({"other": RATED_A}).items():
        for phase, current_a in zip(THREE, lines, strict=True):
            place: Place = name, LimitQuantity.CURRENT, phase
            left_a = bounds[place].high
            # Never too little is taken off; on its own circuit no more than that.
            assert left_a <= CIRCUITS[name].rating_a[0] - current_a + 1e-9
            if name == "row":
                assert left_a == pytest.approx(100.0 - current_a)
    watts = RATED_A * VOLTS * len(phases)
    assert bounds["site", LimitQuantity.ACTIVE_POWER, None].high == pytest.approx(1e5 - watts)


def test_of_those_that_follow_nothing_is_taken_off() -> None:
    bounds, outcome = last_bounds(THREE, silent=False)
    assert not outcome.doubted
    assert bounds["row", LimitQuantity.CURRENT, Phase.L1].high == 100.0
    assert bounds["site", LimitQuantity.ACTIVE_POWER, None].high == 1e5


def test_two_that_are_silent_behind_a_transformer_may_meet_in_one_line() -> None:
    """One on L1 and one on L2 of the wye side: a line of the delta side carries the difference of both."""
    wired = {"a": (Phase.L1,), "b": (Phase.L2,)}
    evses = [
        Evse(name=name, device=name, connector=1, circuit="row", phases=phases, rating_a=RATED_A)
        for name, phases in wired.items()
    ]
    both = Network(CIRCUITS, evses).loads_of(dict.fromkeys(wired, RATED_A))["trafo"]
    assert max(both) == pytest.approx(RATED_A)
    line: Place = "main", LimitQuantity.CURRENT, Phase.L1
    taken = [200.0 - last_bounds(phases, silent=True)[0][line].high for phases in wired.values()]
    assert sum(taken) >= max(both)
