# SPDX-License-Identifier: Apache-2.0
"""The jobs that wait for a bus: by priority, first come first served within one but for sheds, and never too many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from derms_agent.drivers.interface import Priority

J = TypeVar("J", bound=Hashable)


class WaitingJobs(Generic[J]):
    """Jobs in the order in which they are served.

    Pure: it knows neither time nor bus. A job is in it once at the most. Among sheds, that with the least `shed_at_s`
    goes first, and of several such the one that came first.
    """

    def __init__(self, bound: int, shed_at_s: Callable[[J], float] = lambda _: 0.0) -> None:
        if bound < 1:
            raise ValueError(f"found a bound of {bound}, expected at least 1")
        self._bound = bound
        self._shed_at_s = shed_at_s
        self._by_priority: dict[Priority, OrderedDict[J, None]] = {priority: OrderedDict() for priority in Priority}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[J]:
        """Yield the jobs, first served first."""
        for jobs in self._by_priority.values():
            yield from jobs

    def push(self, job: J, priority: Priority) -> J | None:
        """Add a job, and return the one that has to give way for it, if any.

        In a full queue that is the last to come of the lowest priority below this job's; where all are at least as
        urgent, it is this job itself.
        """
        out = None
        if self._count >= self._bound:
            out = self._last_below(priority)
            if out is None:
                return job
            self.discard(out)
        self._by_priority[priority][job] = None
        self._count += 1
        return out

    def pop(self) -> J:
        """Take out the job that is served next.

        :raises IndexError: none waits
        """
        for priority, jobs in self._by_priority.items():
            if jobs:
                job = min(jobs, key=self._shed_at_s) if priority is Priority.SHED else next(iter(jobs))
                del jobs[job]
                self._count -= 1
                return job
        raise IndexError("no job waits")

    def first(self) -> Priority | None:
        """Return the priority of the job that is served next; None when none waits."""
        return next((priority for priority, jobs in self._by_priority.items() if jobs), None)

    def discard(self, job: J) -> bool:
        """Take a job out, wherever it stands; return whether it was there."""
        for jobs in self._by_priority.values():
            if job in jobs:
                del jobs[job]
                self._count -= 1
                return True
        return False

    def _last_below(self, priority: Priority) -> J | None:
        for lower in reversed(Priority):
            if lower <= priority:
                return None
            if self._by_priority[lower]:
                return next(reversed(self._by_priority[lower]))
        return None
