# SPDX-License-Identifier: Apache-2.0
"""The events that are known, on the disk: all of them once, and in a journal what has changed since.

Events that are over are known for days. To write all of them anew whenever one comes would take a tenth of a ms for
each, before the orchestrator is even asked; what has changed takes as long however many there are.
"""

from __future__ import annotations

from derms_agent.document_store import Store
from derms_agent.grid_gateway import events
from derms_agent.grid_gateway.events import State

EVENTS, JOURNAL = "events.json", "events.journal"
MOST_RECORDS = 1000


class EventStore:
    """A service's events in its directory."""

    def __init__(self, store: Store, most_records: int = MOST_RECORDS) -> None:
        self._store, self._most_records = store, most_records
        self._stored: State | None = None
        self._records = 0

    def load(self) -> tuple[State, str | None]:
        """Return what a predecessor left, and why it cannot be used where that is so."""
        document, problem = self._store.load(EVENTS)
        if problem is None:
            try:
                whole = events.to_json(State()) if document is None else document
                return events.from_json(events.replayed(whole, self._store.records(JOURNAL))), None
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as unusable:
                problem = self._store.put_aside(EVENTS, repr(unusable))
        self._store.put_aside(JOURNAL, "belongs to it")
        return State(), problem

    def save(self, state: State) -> None:
        """Store the events; they are on the disk when this returns. Raises OSError.

        Where the last time failed they are written whole, whether or not anything has changed since.
        """
        if state == self._stored:
            return
        if self._stored is None:
            self._save_whole(state)
            return
        record = events.changed(self._stored, state)
        # Where this fails half a record may be left, after which nothing may follow: all is written anew then.
        self._stored = None
        self._store.append(JOURNAL, record)
        self._stored = state
        self._records += 1

    def shorten(self, state: State) -> None:
        """Write all events anew where the journal has grown long, or is a predecessor's. Raises OSError."""
        if self._stored is None or self._records >= self._most_records:
            self._save_whole(state)

    def _save_whole(self, state: State) -> None:
        self._stored = None
        self._store.save(EVENTS, events.to_json(state))
        # What is in the journal until now is in the document as well: to replay it once more changes nothing.
        self._store.begin(JOURNAL)
        self._stored, self._records = state, 0
