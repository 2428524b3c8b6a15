# SPDX-License-Identifier: Apache-2.0
"""A row that stays over its limit is told from one whose limit has just fallen."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control.overdue import STAYS_OVER_S, Overdue
from derms_agent.control.worst_case import Excess


def row(found: float, limit: float, circuit: str = "main") -> Excess:
    return Excess(circuit=circuit, phase=None, side="taken", found=found, limit=limit)


def played(rows: Iterable[Excess | None], circuit: str = "main") -> list[bool]:
    """One row for each second; None where it is not over."""
    overdue = Overdue()
    return [
        any(one.circuit == circuit for one in overdue.among([] if excess is None else [excess], float(second)))
        for second, excess in enumerate(rows)
    ]


def test_what_stays_over_a_limit_that_stands_is_found_when_there_was_time_to_lower_it() -> None:
    found = played([row(101.0, 100.0)] * 40)
    assert found == [False] * int(STAYS_OVER_S) + [True] * 20


def test_a_limit_that_fell_has_all_of_its_time() -> None:
    found = played([row(100.5, 100.0)] * 15 + [row(100.0, 50.0)] * 40)
    assert found.index(True) == 15 + int(STAYS_OVER_S)


def test_noise_of_a_limit_is_no_fault_and_hides_none() -> None:
    limits = [100.0 + second % 2 for second in range(60)]
    assert not any(played(row(100.5, limit) if limit < 100.5 else None for limit in limits))
    assert not any(played(row(100.9, min(limit, 100.89)) for limit in limits[:20]))
    assert played(row(101.5, limit) for limit in limits)[-1]


def test_being_within_once_begins_anew() -> None:
    assert not any(played([*[row(101.0, 100.0)] * 19, None, *[row(101.0, 100.0)] * 19]))


def test_rows_are_told_apart() -> None:
    overdue = Overdue()
    for second in range(int(STAYS_OVER_S)):
        assert overdue.among([row(2, 1)], float(second)) == ()
    assert overdue.among([row(2, 1), row(2, 1, "yard")], STAYS_OVER_S) == (row(2, 1),)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=80),
)
def test_the_window_is_all_that_counts(course: list[tuple[int, int]]) -> None:
    """By its definition, looked up in the whole course: over for all of the window, and over all limits in it."""
    rows = [row(found, limit) if found > limit else None for found, limit in course]
    for now, answer in enumerate(played(rows)):
        window = rows[max(now - int(STAYS_OVER_S), 0) : now + 1]
        current = rows[now]
        expected = (
            len(window) > STAYS_OVER_S
            and current is not None
            and all(one is not None and current.found > one.limit for one in window)
        )
        assert answer == expected
