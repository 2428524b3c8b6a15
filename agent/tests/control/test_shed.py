# SPDX-License-Identifier: Apache-2.0
"""Decreases ahead of the cycle, and the journal of writes: both keep the ledger above the truth."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from agent.tests.control.test_guard import FATES, Worst, circuit, proven, station
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from derms_agent.control import guard, journal, ledger, shed
from derms_agent.control.cycle import Allocated, Bounds, Cycle, State
from derms_agent.control.guard import Purpose, Rules
from derms_agent.control.ledger import Amount, Distrusted, Ledger
from derms_agent.control.limits import Combining
from derms_agent.control.worst_case import Circuits
from derms_agent.model import Limit, LimitQuantity, Phase, Rank


class Hasty(Worst):
    """The same plants; decreases come between cycles too, and a restart finds a ledger that is old, and a journal."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []
        self.store(emptied=True)

    @rule(emptied=st.booleans())
    def store(self, emptied: bool) -> None:
        """Store the ledger; whether the journal is emptied after it makes no difference."""
        self.stored = json.dumps(ledger.to_json(self.book, "boot", self.clock_s))
        if emptied:
            self.records.clear()

    @rule(
        currents=st.lists(st.sampled_from([0.0, 6.0, 9.0, 16.0, 40.0]), min_size=4, max_size=4),
        fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=4),
    )
    def shed(self, currents: list[float], fates: list[str]) -> None:
        asked = {name: Amount(current_a) for name, current_a in zip(self.plants, currents, strict=True)}
        before, spans = self.book, guard.intervals(self.book, self.clock_s)
        writes, self.book = shed.lowered(before, asked, self.clock_s)
        assert guard.intervals(self.book, self.clock_s) == spans
        for write in writes:
            told = before.entries[write.evse].told_amount
            assert told is not None
            assert 0.0 <= write.amount.active_a < told.active_a
            assert write.amount.active_a == asked[write.evse].active_a
            assert self.book.entries[write.evse].told_amount == write.amount
        chosen = list(zip(writes, itertools.cycle(fates)))
        self.send(chosen)
        self.elapse()
        self.answer(chosen)
        self.the_truth_is_within_the_ledger()

    def send(self, fates: list[tuple[guard.Write, str]]) -> None:
        if fates:
            self.records.append(json.loads(json.dumps(journal.record([write for write, _ in fates], self.clock_s))))
        super().send(fates)

    @rule(reboots=st.booleans(), away_s=st.integers(0, 20))
    def restart(self, reboots: bool, away_s: int) -> None:
        stored = journal.replayed(json.loads(self.stored), self.records)
        for _ in range(away_s):
            self.elapse()
        if reboots:
            self.shift_s = self.now_s - 5.0
        boot = f"boot {self.now_s}" if reboots else "boot"
        self.book = ledger.from_json(stored, self.stations, boot, self.clock_s)
        assert self.book.next_write > max((one["writes"][-1][0] for one in self.records), default=0)
        self.store(emptied=True)
        for one in self.stations:
            self.watch(one.name)


TestHasty = Hasty.TestCase
TestHasty.settings = settings(
    max_examples=8,
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_ledger_with_its_journal_is_the_ledger_that_issued_the_writes() -> None:
    book = proven([station("one"), station("two")], {"one": 16.0, "two": 10.0})
    stored = json.loads(json.dumps(ledger.to_json(book, "boot", 0.0)))
    records = []
    for at_s, asked in ((1.0, {"one": 9.0, "two": 8.0}), (1.5, {"one": 6.0}), (2.0, {"one": 6.0})):
        writes, book = shed.lowered(book, {name: Amount(current_a) for name, current_a in asked.items()}, at_s)
        records.append(json.loads(json.dumps(journal.record(writes, at_s))))
    expected = json.loads(json.dumps(ledger.to_json(book, "boot", 0.0)))
    replayed = journal.replayed(stored, records)
    assert replayed == expected
    assert journal.replayed(replayed, records) == expected  # what is in it already is passed over
    assert journal.replayed(stored, []) == stored
    more = [*records, {"since_s": 3.0, "writes": [[9, "gone", 1.0, 0.0]]}]
    assert journal.replayed(stored, more) == {**expected, "next_write": 10}


@pytest.mark.parametrize(
    "record", [{}, {"since_s": 1.0}, {"since_s": None, "writes": []}, {"since_s": 1.0, "writes": [[1, "one"]]}, 7]
)
def test_a_journal_that_cannot_be_read_is_refused(record: Any) -> None:
    stored = ledger.to_json(proven([station("one")], {"one": 16.0}), "boot", 0.0)
    with pytest.raises((KeyError, TypeError, ValueError)):
        journal.replayed(stored, [record])


def test_a_decrease_does_not_overtake_one_that_is_lower_and_in_flight() -> None:
    book = proven([station("one")], {"one": 16.0})
    writes, book = shed.lowered(book, {"one": Amount(6.0)}, 1.0)
    assert [(write.amount.active_a, write.purpose) for write in writes] == [(6.0, Purpose.LOWER)]
    _, book = ledger.issue(book, "one", Amount(12.0), 1.5)
    assert shed.lowered(book, {"one": Amount(9.0)}, 2.0) == ((), book)
    writes, _ = shed.lowered(book, {"one": Amount(0.0)}, 2.0)
    assert [write.amount.active_a for write in writes] == [0.0]


@pytest.mark.parametrize("current_a", [16.0, 16.04, 20.0])
def test_what_is_no_decrease_waits_for_the_cycle(current_a: float) -> None:
    book = proven([station("one")], {"one": 16.0})
    assert shed.lowered(book, {"one": Amount(current_a)}, 1.0) == ((), book)
    unknown = ledger.started([station("one")], 0.0)
    assert shed.lowered(unknown, {"one": Amount(0.0)}, 1.0) == ((), unknown)


class Share:
    """An equal share of the line's limit."""

    why = ""

    def __init__(self, current_a: float) -> None:
        self.current_a = current_a


def equally(names: Sequence[str], bounds: Bounds, _now_s: float) -> Mapping[str, Allocated]:
    room_a = bounds["main", LimitQuantity.CURRENT, Phase.L1].high
    return {name: Share(room_a / len(names)) for name in names}


def shed_to(book: Ledger, high_a: float, now_s: float) -> dict[str, float]:
    stations = list(book.stations.values())
    cycle = Cycle(circuits=Circuits({"main": circuit(rating_a=99.0)}, stations), combine=Combining(), allocate=equally)
    limit = Limit(
        target="main",
        quantity=LimitQuantity.CURRENT,
        low=-high_a,
        high=high_a,
        source="grid",
        rank=Rank.GRID,
        phases=tuple(Phase),
    )
    state, writes = cycle.shed(State(book), (limit,), frozenset(), now_s)
    assert all(state.ledger.entries[write.evse].told_amount == write.amount for write in writes)
    return {write.evse: write.amount.active_a for write in writes}


def test_evses_whose_readings_are_stale_are_lowered_too_and_silent_ones_are_not_counted_on() -> None:
    stations = [station(name, silent_s=5.0, fresh_s=3.0) for name in ("one", "two")]
    book = proven(stations, {"one": 16.0, "two": 16.0})
    at_s = 4.0
    book = ledger.record(book, [ledger.Measured("one", (16.0,) * 3, at_s, at_s)])
    assert not guard.reliable(book.entries["two"], stations[1], at_s, Rules())
    assert shed.answers(book.entries["two"], stations[1], at_s, Rules())
    assert shed_to(book, 20.0, at_s) == {"one": 10.0, "two": 10.0}
    at_s = 6.0
    book = ledger.record(book, [ledger.Measured("one", (16.0,) * 3, at_s, at_s)])
    assert not shed.answers(book.entries["two"], stations[1], at_s, Rules())
    assert shed_to(book, 30.0, at_s) == {"one": 14.0}  # the other may still draw 16


def test_an_evse_that_does_not_obey_is_not_counted_on() -> None:
    stations = [station(name) for name in ("one", "two")]
    book = ledger.record(proven(stations, {"one": 16.0, "two": 16.0}), [Distrusted("two", True, 0.0)])
    assert shed_to(book, 40.0, 0.0) == {"one": 8.0}  # the other counts at its rating
