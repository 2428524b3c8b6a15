# SPDX-License-Identifier: Apache-2.0
"""The queue of a bus, by its properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus.waiting import WaitingJobs

priorities = st.sampled_from(Priority)
steps = st.lists(st.one_of(priorities, st.just("pop"), st.integers(0, 200)), max_size=200)
"""A job of a priority comes, one is served, or the n-th that ever came is taken out."""


class Reference:
    """The same by brute force: a list of (priority, number), searched anew each time."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.jobs: list[tuple[Priority, int]] = []

    def push(self, priority: Priority, number: int) -> int | None:
        self.jobs.append((priority, number))
        if len(self.jobs) <= self.bound:
            return None
        out = max(self.jobs)  # the last of the lowest priority
        self.jobs.remove(out)
        return out[1]

    def pop(self) -> int:
        first = min(self.jobs)
        self.jobs.remove(first)
        return first[1]


@given(bound=st.integers(1, 8), steps=steps)
def test_against_brute_force(bound: int, steps: list[Priority | str | int]) -> None:
    """Nothing is lost or served twice, the order is right, the bound holds, the least urgent gives way."""
    jobs: WaitingJobs[int] = WaitingJobs(bound)
    reference = Reference(bound)
    came: list[int] = []
    gone: list[int] = []
    for step in steps:
        if isinstance(step, Priority):
            came.append(len(came))
            out = jobs.push(came[-1], step)
            assert out == reference.push(step, came[-1])
            gone += [] if out is None else [out]
        elif step == "pop":
            assert (jobs.first() is None) == (not reference.jobs)
            if reference.jobs:
                assert jobs.first() == min(reference.jobs)[0]
                gone.append(jobs.pop())
                assert gone[-1] == reference.pop()
        else:
            number = int(step)
            there = any(job == number for _, job in reference.jobs)
            assert jobs.discard(number) == there
            reference.jobs = [job for job in reference.jobs if job[1] != number]
            gone += [number] if there else []
        assert len(jobs) == len(reference.jobs) <= bound
        assert list(jobs) == [number for _, number in sorted(reference.jobs)]
    assert sorted(gone + list(jobs)) == came


@given(st.lists(priorities, min_size=1, max_size=30))
def test_no_job_waits_behind_a_less_urgent_or_a_later_one(arrivals: list[Priority]) -> None:
    jobs: WaitingJobs[tuple[Priority, int]] = WaitingJobs(len(arrivals))
    for number, priority in enumerate(arrivals):
        jobs.push((priority, number), priority)
    served = [jobs.pop() for _ in arrivals]
    assert served == sorted(served)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_of_sheds_the_unit_that_was_sent_one_longest_ago_goes_first(units: list[int]) -> None:
    sent_at = dict.fromkeys(range(4), -1)
    jobs: WaitingJobs[tuple[int, int]] = WaitingJobs(len(units), lambda job: sent_at[job[0]])
    for number, unit in enumerate(units):
        jobs.push((unit, number), Priority.SHED)
    left = [(unit, number) for number, unit in enumerate(units)]
    for turn in range(len(units)):
        unit, number = jobs.pop()
        assert sent_at[unit] == min(sent_at[one] for one, _ in left)
        assert number == min(came for one, came in left if sent_at[one] == sent_at[unit])
        left.remove((unit, number))
        sent_at[unit] = turn
