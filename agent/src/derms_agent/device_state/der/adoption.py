# SPDX-License-Identifier: Apache-2.0
"""How an adoption went, by what a device shows of it. Pure.

The result point alone proves nothing: 0 is in progress, or idle; 1 and 2 may be left from the adoption before. What
counts is the first set: it holds what was asked, or it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from derms_agent.device_state.results import Status

IN_PROGRESS, COMPLETED, FAILED = 0, 1, 2
_SAID: dict[int | None, str] = {COMPLETED: "COMPLETED", FAILED: "FAILED"}
_NOT_ADOPTED = "its first set is not what was asked"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a device shows after a request: whether its first set is what was asked, and its result point."""

    adopted: bool
    result: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an adoption."""

    status: Status
    detail: str = ""


def judge(shown: Shown | None, before: int | None, *, doubtful: bool, last: bool) -> Verdict | None:
    """Return what became of an adoption, or None: look again.

    `shown` is None where nothing could be read; `before` is what the result point was before the request; `doubtful`:
    nobody knows whether the request arrived; `last`: there is no time left.
    """
    if shown is not None and shown.adopted:
        return Verdict(Status.CHANGED)
    if shown is not None and shown.result == FAILED != before and not doubtful:
        return Verdict(Status.VERIFY_FAILED, f"the device says FAILED; {_NOT_ADOPTED}")
    return _at_last(shown, doubtful=doubtful) if last else None


def _at_last(shown: Shown | None, *, doubtful: bool) -> Verdict:
    """Return what became of an adoption that has not shown in time."""
    if shown is None:
        return Verdict(Status.INDETERMINATE, "adoption was asked for, then the device could not be read")
    if doubtful:
        return Verdict(Status.INDETERMINATE, "nobody knows whether the request to adopt arrived; it is not sent again")
    says = _SAID.get(shown.result)
    if says is None:
        return Verdict(Status.INDETERMINATE, f"the adoption did not end in time; {_NOT_ADOPTED}")
    return Verdict(Status.VERIFY_FAILED, f"the device says {says}; {_NOT_ADOPTED}")
