# SPDX-License-Identifier: Apache-2.0
"""Whether an EVSE follows: in time, without flapping, and with what to check."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control import obedience
from derms_agent.control.ledger import Amount
from derms_agent.control.obedience import (
    Allowance,
    Check,
    Following,
    Obedience,
    Sample,
    advice,
    duty_percent,
    judge,
    offered_a,
    unproven,
    what_to_check,
)

ALLOWANCE = Allowance()


def course(
    told: Callable[[int], float], drawn: Callable[[int], float | None], seconds: int, start: Obedience | None = None
) -> list[Obedience]:
    """Return the verdict of each second; a draw of None is no sample."""
    verdict = start or unproven(0.0)
    found = []
    for second in range(seconds):
        current = drawn(second)
        sample = Sample(
            told=Amount(told(second)),
            currents_a=() if current is None else (current, 0.0, 0.0),
            sampled_s=None if current is None else float(second),
        )
        verdict = judge(verdict, sample, float(second), ALLOWANCE)
        found.append(verdict)
    return found


def states(verdicts: list[Obedience]) -> list[Following]:
    return [verdict.state for verdict in verdicts]


@pytest.mark.parametrize(("current_a", "duty"), [(32.0, 53.3), (6.0, 10.0), (51.0, 85.0), (80.0, 96.0), (5.0, 100.0)])
def test_duty_cycles_are_those_of_the_standard(current_a: float, duty: float) -> None:
    assert duty_percent(current_a) == pytest.approx(duty, abs=0.05)
    if current_a >= 6:
        assert offered_a(duty_percent(current_a)) == pytest.approx(current_a)


@pytest.mark.parametrize(
    ("duty", "offered"), [(100.0, 0.0), (98.0, 0.0), (0.0, 0.0), (5.0, 0.0), (9.0, 6.0), (97.0, 80.0)]
)
def test_a_true_hundred_percent_offers_nothing(duty: float, offered: float) -> None:
    assert offered_a(duty) == offered


def test_a_slow_vehicle_has_twelve_seconds() -> None:
    verdicts = course(lambda s: 32.0 if s < 10 else 10.0, lambda s: 32.0 if s < 22 else 10.0, 60)
    assert set(states(verdicts)) == {Following.FOLLOWING}


def test_a_frozen_pilot_is_reported_within_fifteen_seconds() -> None:
    verdicts = course(lambda s: 32.0 if s < 10 else 10.0, lambda _s: 32.0, 60)
    assert verdicts[21].state is Following.FOLLOWING
    first = next(second for second, verdict in enumerate(verdicts) if not verdict.trusted)
    assert first - 10 <= 15
    text = advice(verdicts[-1])
    assert "draws more than its limit: 32.0 A, allowed 10.0 A" in text
    assert "53 % means 32 A" in text
    assert verdicts[-1].checks[0] is Check.PILOT


@pytest.mark.parametrize("off_s", [-0.05, -0.003, 0.0, 0.003, 0.05])
@pytest.mark.parametrize("issued_s", [10.0, 10.3, 10.899, 10.95])
def test_a_frozen_pilot_is_reported_in_time_whenever_cycles_wake(off_s: float, issued_s: float) -> None:
    """Cycles begin a little early or late, by turns and all the same, and first see a setpoint after its issue."""
    for turns in (1, -1):
        verdict = unproven(0.0)
        reported_s = None
        for second in range(40):
            now_s = second + off_s * turns**second
            told_a, since_s = (32.0, 0.0) if now_s <= issued_s else (10.0, issued_s)
            sample = Sample(Amount(told_a), (32.0, 0.0, 0.0), now_s - 0.3, told_since_s=since_s)
            verdict = judge(verdict, sample, now_s, ALLOWANCE)
            if now_s - issued_s < 11.5:
                assert verdict.state is Following.FOLLOWING
            if reported_s is None and not verdict.trusted:
                reported_s = now_s
        assert reported_s is not None
        assert 13.8 <= reported_s - issued_s <= 15.0


def test_what_is_told_again_since_the_next_never_got_there_does_not_cut_the_next_ones_time() -> None:
    verdict = unproven(0.0)
    for second in range(40):
        told_a, since_s = (10.0, 0.0) if second != 20 else (20.0, 20.0)
        drawn_a = 20.0 if 20 <= second < 31 else 10.0
        sample = Sample(Amount(told_a), (drawn_a, 0.0, 0.0), float(second), told_since_s=since_s)
        verdict = judge(verdict, sample, float(second), ALLOWANCE)
        assert verdict.state is Following.FOLLOWING


def test_a_limit_that_creeps_down_gives_no_new_time() -> None:
    verdicts = course(lambda s: max(6.0, 32.0 - s), lambda _s: 32.0, 40)
    first = next(second for second, verdict in enumerate(verdicts) if not verdict.trusted)
    assert first <= 17


def test_the_meters_tolerance_is_no_disobedience() -> None:
    assert set(states(course(lambda _s: 16.0, lambda s: 16.4 if s % 2 else 16.8, 60))) == {Following.FOLLOWING}


def test_one_odd_sample_is_no_verdict() -> None:
    verdicts = course(lambda _s: 10.0, lambda s: 20.0 if s == 30 else 9.0, 60)
    assert states(verdicts)[30] is Following.SUSPECT
    assert all(verdict.trusted for verdict in verdicts)
    assert states(verdicts)[31] is Following.FOLLOWING


def test_drawing_less_is_no_disobedience() -> None:
    assert set(states(course(lambda _s: 32.0, lambda _s: 0.0, 40))) == {Following.FOLLOWING}


def test_a_pardon_takes_time_and_each_relapse_makes_it_longer() -> None:
    def drawn(second: int) -> float:
        return 32.0 if second % 40 < 8 else 0.0

    verdicts = course(lambda _s: 10.0, drawn, 400)
    turned = [
        (second, after.state)
        for second, (before, after) in enumerate(itertools.pairwise(verdicts), 1)
        if before.trusted != after.trusted
    ]
    assert turned[0][1] is Following.OVERDRAWING
    # Pardoned once after half a minute; after the relapse a full minute would be needed.
    assert [state for _second, state in turned] == [Following.OVERDRAWING, Following.FOLLOWING, Following.OVERDRAWING]


def unreached(proven_from_s: int, follows_at_s: int, seconds: int) -> list[Obedience]:
    """Return the verdicts on one that drew the 16 A that it had confirmed, and is told 8 A at 10 s."""
    verdict, found = unproven(0.0), []
    for second in range(seconds):
        told_a = 16.0 if second < 10 else 8.0
        drawn_a = 16.0 if second < follows_at_s else 8.0
        proven = second < 10 or second >= proven_from_s
        verdict = judge(
            verdict, Sample(Amount(told_a), (drawn_a, 0.0, 0.0), float(second), proven), float(second), ALLOWANCE
        )
        found.append(verdict)
    return found


def test_one_that_was_not_reached_is_reported_and_trusted_again_as_soon_as_it_follows() -> None:
    verdicts = unreached(proven_from_s=40, follows_at_s=51, seconds=60)
    assert states(verdicts)[25:51] == [Following.OVERDRAWING] * 26
    assert verdicts[30].checks[0] is Check.BRIDGE
    assert states(verdicts)[51:] == [Following.FOLLOWING] * 9
    # Nor is it a relapse when it is really one the next time.
    assert course(lambda _: 8.0, lambda _: 16.0, 80, verdicts[-1])[-1].clear_s == ALLOWANCE.clear_s


@pytest.mark.parametrize("late_s", [0.1, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("sample_s", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("issued_s", [20.0, 20.3, 20.7, 20.95])
def test_a_slow_vehicle_that_got_its_setpoint_late_is_trusted_as_soon_as_it_follows(
    late_s: float, sample_s: float, issued_s: float
) -> None:
    verdict, found = unproven(0.0), []
    for second in range(80):
        told_a, since_s = (32.0, 0.0) if second <= issued_s else (8.0, issued_s)
        drawn_a = 32.0 if second - sample_s < issued_s + late_s + 12 else 8.0
        proven = not issued_s < second < issued_s + late_s
        sample = Sample(Amount(told_a), (drawn_a, 0.0, 0.0), second - sample_s, proven, since_s)
        verdict = judge(verdict, sample, float(second), ALLOWANCE)
        found.append(verdict)
    assert not {Following.RECOVERING} & {*states(found)}
    assert late_s > 1.0 or all(one.trusted for one in found)
    assert all(one.believed for one in found)
    assert states(found)[37:] == [Following.FOLLOWING] * 43


def test_an_excuse_ends_once_nothing_is_seen_any_more() -> None:
    verdict = unreached(proven_from_s=100, follows_at_s=100, seconds=40)[-1]
    assert verdict.believed
    assert not verdict.trusted
    for second in range(40, 60):
        verdict = judge(verdict, Sample(Amount(8.0), proven=False), float(second), ALLOWANCE)
        assert verdict.believed is (second - 39 < ALLOWANCE.deadline_s)
    assert verdict.clear_s == ALLOWANCE.clear_s


def test_one_that_does_not_follow_what_it_confirmed_has_to_recover() -> None:
    verdicts = unreached(proven_from_s=40, follows_at_s=54, seconds=90)
    assert [one.believed for one in verdicts[40:54]] == [True] * 13 + [False]
    assert states(verdicts)[54:84] == [Following.RECOVERING] * 30
    assert states(verdicts)[84:] == [Following.FOLLOWING] * 6


def test_who_has_to_recover_is_not_excused_from_that_by_being_out_of_reach() -> None:
    recovering = course(lambda _: 8.0, lambda second: 16.0 if second < 20 else 7.0, 25)[-1]
    assert recovering.state is Following.RECOVERING
    verdict = recovering
    for second in range(25, 80):
        told_a, proven = (16.0, True) if second < 27 else (8.0, False)
        drawn_a = 16.0 if second < 50 else 8.0
        verdict = judge(
            verdict, Sample(Amount(told_a), (drawn_a, 0.0, 0.0), float(second), proven), float(second), ALLOWANCE
        )
    assert verdict.state is Following.RECOVERING


def test_nothing_seen_is_reported_too() -> None:
    verdicts = course(lambda _s: 10.0, lambda s: 10.0 if s < 5 else None, 40)
    assert states(verdicts)[18] is Following.FOLLOWING
    assert states(verdicts)[19] is Following.UNPROVEN
    assert "nothing shows" in advice(verdicts[-1])


def test_what_is_lost_sight_of_stays_accused() -> None:
    verdicts = course(lambda _s: 10.0, lambda s: 32.0 if s < 10 else None, 100)
    assert states(verdicts)[-1] is Following.OVERDRAWING


def test_giving_more_than_told_is_disobedience() -> None:
    assert states(course(lambda _s: -10.0, lambda _s: -20.0, 20))[-1] is Following.OVERDRAWING
    assert states(course(lambda _s: 10.0, lambda _s: -5.0, 20))[-1] is Following.OVERDRAWING


def test_what_to_check_follows_from_what_is_seen() -> None:
    assert what_to_check(32.0, Sample(told=Amount(10.0)))[0] is Check.PILOT
    assert what_to_check(32.0, Sample(told=Amount(0.0)))[:2] == (Check.PILOT, Check.CONTACTOR)
    assert what_to_check(32.0, Sample(told=Amount(10.0), proven=False))[0] is Check.BRIDGE


@given(st.lists(st.tuples(st.floats(0, 32), st.floats(0, 40)), min_size=1, max_size=80))
def test_a_draw_within_all_limits_is_never_accused_and_trust_changes_seldom(steps: list[tuple[float, float]]) -> None:
    least = min(told for told, _drawn in steps)
    within = course(lambda s: steps[s][0], lambda s: min(steps[s][1], least), len(steps))
    assert all(verdict.trusted for verdict in within)
    any_course = course(lambda s: steps[s][0], lambda s: steps[s][1], len(steps))
    turns = sum(one.trusted != other.trusted for one, other in itertools.pairwise(any_course))
    assert turns <= 1 + len(steps) // 15


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([-16.0, 0.0, 6.0, 6.0, 16.0]),
            st.sampled_from([-17.0, -16.0, 0.0, 5.0, 6.0, 6.62, 6.63, 16.82, 16.83, None]),
            st.integers(1, 20),
            st.sampled_from([True, True, False]),
        ),
        max_size=30,
    )
)
def test_what_nearly_all_samples_show_is_judged_as_all_others_are(
    steps: list[tuple[float, float | None, int, bool]],
) -> None:
    """The short way for a sample within what was told long ago gives what the long one gives."""
    short = long = unproven(0.0)
    now_s = 0.0
    for told_a, drawn_a, seconds, proven in steps:
        for _ in range(seconds):
            now_s += 1.0
            currents = () if drawn_a is None else (drawn_a, drawn_a / 2, 0.0)
            sample = Sample(Amount(told_a), currents, None if drawn_a is None else now_s, proven)
            short = judge(short, sample, now_s, ALLOWANCE)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(obedience, "_steady", lambda *_: None)
                long = judge(long, sample, now_s, ALLOWANCE)
            assert short == long
