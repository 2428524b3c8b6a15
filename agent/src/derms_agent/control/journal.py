# SPDX-License-Identifier: Apache-2.0
"""The writes that were issued after a ledger was stored, so that it need not be stored whole before each of them. Pure.

What a ledger on disk must have is each write that may have left. A record holds the writes of one moment; a ledger that
was stored before, with these claims added to it, counts at least what the one in memory did:

- claims that have ended since are open in it still, or end later: more is counted, until the next proof;
- what time alone has opened since is opened again by `advanced`, from older times, so no later;
- what a reading or a verdict opened since (a value that somebody else wrote, more drawn than told) is missing, as it is
  from any ledger that is not stored with each reading; the first reading that a successor takes opens it again.

Records of writes that the stored ledger has already, by its `next_write`, are passed over, so that it does not matter
whether a journal was emptied after the ledger was stored, nor when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from derms_agent.control.guard import Write
from derms_agent.control.ledger import Amount, Cause, span_of


def record(writes: Iterable[Write], now_s: float) -> dict[str, Any]:
    """Return writes that were issued together at a time, as plain JSON."""
    return {"since_s": now_s, "writes": [(one.id, one.evse, *one.amount) for one in writes]}


def replayed(stored: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a stored ledger, as `ledger.to_json` made it, with the writes issued since. An EVSE that it lacks is new.

    Raises ValueError, TypeError or KeyError for records that cannot be read.
    """
    entries = dict(stored["entries"])
    next_write = int(stored["next_write"])
    for one in records:
        since_s = float(one["since_s"])
        for number, evse, active_a, reactive_a in one["writes"]:
            if number < next_write:
                continue
            next_write = number + 1
            if evse in entries:
                entries[evse] = _issued(entries[evse], number, Amount(float(active_a), float(reactive_a)), since_s)
    return {**stored, "entries": entries, "next_write": next_write}


def _issued(entry: Mapping[str, Any], number: int, amount: Amount, since_s: float) -> dict[str, Any]:
    """Return an entry as `ledger.issued` leaves it, both as JSON."""
    claim = {
        "span": list(span_of(amount)),
        "cause": Cause.SETPOINT.value,
        "since_s": since_s,
        "write": number,
        "executed_by_s": None,
        "ended_s": None,
        "acknowledged": False,
    }
    unproven_s = since_s if entry["unproven_s"] is None else entry["unproven_s"]
    return {**entry, "claims": [*entry["claims"], claim], "unproven_s": unproven_s}
