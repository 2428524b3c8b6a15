# SPDX-License-Identifier: Apache-2.0
"""What a person is told to check where an EVSE does not follow, and for how long a relapse is held against it."""

from __future__ import annotations

import pytest

from derms_agent.control.ledger import Amount
from derms_agent.control.obedience import Allowance, Following, Obedience, Sample, advice, judge, unproven

ALLOWANCE = Allowance()
WORDS = {"pilot": "control pilot", "contactor": "its contactor", "bridge": "the bridge between", "meter": "its meter"}


def after(
    verdict: Obedience, told_a: float, drawn_a: float | None, seconds: range, *, proven: bool = True
) -> Obedience:
    """Return the verdict after some seconds of the same; a draw of None is no sample."""
    for second in seconds:
        currents = () if drawn_a is None else (drawn_a, 0.0, 0.0)
        sample = Sample(Amount(told_a), currents, None if drawn_a is None else float(second), proven)
        verdict = judge(verdict, sample, float(second), ALLOWANCE)
    return verdict


@pytest.mark.parametrize(
    ("told_a", "proven", "order"),
    [
        (6.0, True, ["pilot", "bridge", "contactor", "meter"]),
        (0.0, True, ["pilot", "contactor", "bridge", "meter"]),
        (6.0, False, ["bridge", "pilot", "contactor", "meter"]),
        (0.0, False, ["bridge", "pilot", "contactor", "meter"]),
    ],
)
def test_who_draws_too_much_is_reported_with_all_that_is_to_be_checked_the_likeliest_first(
    told_a: float, proven: bool, order: list[str]
) -> None:
    words = advice(after(unproven(0.0), told_a, 32.0, range(20), proven=proven))
    assert words.startswith(f"draws more than its limit: 32.0 A, allowed {told_a:.1f} A. Check ")
    places = [words.index(WORDS[check]) for check in order]
    assert places == sorted(places)


@pytest.mark.parametrize(("told_a", "limit_percent"), [(6.0, 10), (16.0, 27), (0.0, 100)])
def test_the_pilots_duty_cycles_are_those_of_what_is_drawn_and_of_the_limit(told_a: float, limit_percent: int) -> None:
    words = advice(after(unproven(0.0), told_a, 32.0, range(20)))
    assert f"what it draws takes 53 %, its limit {limit_percent} %; 53 % means 32 A" in words
    assert "at a true 100 % it offers nothing" in words


def test_of_whom_nothing_is_seen_the_meter_is_looked_at_before_the_bridge() -> None:
    verdict = after(after(unproven(0.0), 10.0, 10.0, range(5)), 10.0, None, range(5, 25))
    assert verdict.state is Following.UNPROVEN
    words = advice(verdict)
    assert words.startswith("nothing shows whether it follows its limit. Check ")
    assert words.index(WORDS["meter"]) < words.index(WORDS["bridge"])
    assert WORDS["pilot"] not in words


def test_each_relapse_while_it_recovers_doubles_the_time_until_it_is_trusted() -> None:
    now_s, verdict, needed_s = 20, after(unproven(0.0), 10.0, 32.0, range(20)), []
    for _ in range(3):
        assert verdict.state is Following.OVERDRAWING
        began_s = now_s
        whole = verdict
        while not whole.trusted:
            whole = after(whole, 10.0, 10.0, range(now_s, now_s + 1))
            now_s += 1
        needed_s.append(now_s - began_s)
        now_s = began_s + 10
        verdict = after(after(verdict, 10.0, 10.0, range(began_s, now_s)), 10.0, 32.0, range(now_s, now_s + 1))
        now_s += 1
    assert needed_s == [31, 61, 121]
