# SPDX-License-Identifier: Apache-2.0
"""Which decreases may leave ahead of the cycle, when a limit has just come. Pure.

A cycle takes in every reading, judges obedience, and works out each row's worst case. A decrease needs none of that:

1. With [0, v] for a v below the w that an EVSE was told, the ledger gets a claim within [0, w], which is open. The hull
   of its claims stays what it is, so no row's upper bound grows, and the EVSE is told less than before: both of the
   guard's rules (`guard.py`) hold for each such write, whatever else the ledger says, however old the readings are.
2. While other writes are in flight, in whatever order they arrive, the device must not be left with more than it would
   have had without this one: v lies within each of them, or nothing is written.
3. Like the guard's, these writes are counted in the ledger that is returned, which is stored before they leave.

So it does not matter for safety what the shares are made from: the last cycle's view, up to a second old, will do.
EVSEs whose readings are stale are lowered as well, as long as they are not silent: they take their share as if they had
just been measured. The cycle that follows counts them for what they may draw, and takes that off the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from derms_agent.control.guard import Purpose, Rules, Write, reliable
from derms_agent.control.ledger import Amount, Entry, Ledger, Station, issued, span_of


def answers(entry: Entry, station: Station, now_s: float, rules: Rules) -> bool:
    """Whether an EVSE can be counted on to take what it is told, be its last reading stale."""
    return reliable(entry, station, now_s, rules) or reliable(entry._replace(measured_s=now_s), station, now_s, rules)


def lowered(ledger: Ledger, wanted: Mapping[str, Amount], now_s: float) -> tuple[tuple[Write, ...], Ledger]:
    """Return the writes for those EVSEs that may draw and are to draw less, and the ledger with them.

    What gives power back, or was told nothing that is known, is the cycle's affair.
    """
    writes: list[Write] = []
    entries = dict(ledger.entries)
    number = ledger.next_write
    for name, amount in wanted.items():
        entry = entries[name]
        told = entry.told_amount
        if told is None or told.active_a <= 0.0 or amount.active_a >= told.active_a:
            continue
        less = Amount(max(amount.active_a, 0.0), told.reactive_a)
        if less.is_near(told) or not _within_all_in_flight(entry, less):
            continue
        writes.append(Write(number, name, less, Purpose.LOWER))
        entries[name] = issued(entry, number, less, now_s)
        number += 1
    if not writes:
        return (), ledger
    return tuple(writes), dataclasses.replace(ledger, entries=entries, next_write=number)


def _within_all_in_flight(entry: Entry, amount: Amount) -> bool:
    span = span_of(amount)
    return all(
        claim.span.holds(span) for claim in entry.claims if claim.write is not None and claim.executed_by_s is None
    )
