# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's process: its own `Controller`, with a disk that outlives it, under virtual time.

It works as the engine and the service do: it waits until it is informed; an ask lowers ahead of the next cycle; a cycle
comes once a second, and at once on a reading that calls for one; a journal is written before writes leave, the ledger
every 10 s, what was asked before it is acknowledged, the rest once a minute. What a successor takes up is read back
from what is on the disk. What stands in for the rest: `link.py` for drivers and wires; a disk that takes no time and
never fails; no plan, for no departure is known.

In every other scene the shares are wild, for whatever they are, no limit may be exceeded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from derms_agent.control import guard, journal
from derms_agent.control import ledger as book
from derms_agent.control.cycle import Allocated, Bounds, State
from derms_agent.document_store import Latest, Store
from derms_agent.model import Proof, Reading
from derms_agent.orchestrator import asks, batteries
from derms_agent.orchestrator import store as stored
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Controller, Policy
from derms_agent.orchestrator.engine import CHECKPOINT_S, HOLD_S, INFORMED_S, PERIOD_S
from derms_agent.orchestrator.site import Site
from derms_agent.orchestrator.store import ASKS, ASKS_JOURNAL, CYCLES, JOURNAL, LEDGER, MEMORY, SESSIONS, Times
from derms_agent.twin.campaign.link import Proved
from derms_agent.twin.campaign.scene import Scene
from derms_agent.twin.campaign.wishes import Wishes

KEPT_EVERY_S = 60.0
LINK_VALID_S = 30.0
"""For how long the grid gateway says at a time that its link stands."""


class Disk(Store):
    """A store in memory. It holds what would be on the disk, as text, for a successor to read."""

    def __init__(self) -> None:
        super().__init__(Path("in memory"))
        self._files: dict[str, list[bytes]] = {}

    def load(self, name: str) -> tuple[Any, str | None]:
        """Return a document, or None."""
        return (json.loads(self._files[name][0]) if name in self._files else None), None

    def put_aside(self, name: str, why: str) -> str:
        """Raise ValueError: what was stored whole can be used."""
        raise ValueError(f"found {name} unusable: {why}, expected what a predecessor stored to be taken up")

    def keep_copy(self, name: str, document: Mapping[str, Any], why: str) -> str:
        """Raise ValueError, likewise."""
        del document
        return self.put_aside(name, why)

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace a document."""
        self._files[name] = [_encoded(document)]

    def begin(self, name: str) -> None:
        """Empty a journal."""
        self._files[name] = []

    def append(self, name: str, record: Mapping[str, Any]) -> int:
        """Add a record to a journal, and return how many bytes it takes."""
        line = _encoded(record)
        self._files[name].append(line)
        return len(line)

    def lines(self, name: str) -> list[bytes]:
        """Return the lines of a journal."""
        return list(self._files.get(name, ()))


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()


class _Wild(Controller):
    """A controller that shares out whatever its EVSEs wish for."""

    wishes: Wishes

    def _allocate(self, names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocated]:
        del names, bounds
        return self.wishes.at(now_s)


@dataclass(slots=True)
class Orchestrator:
    """One process. `policy` as limits.conf has it; times are those of its own clock, and of the wall's."""

    scene: Scene
    site: Site
    policy: Policy
    disk: Disk
    boot_id: str
    began: Times
    rng: Random
    controller: Controller = field(init=False)
    changed: bool = False
    _asks: Latest = field(init=False)
    _asked: bool = False
    _due_s: float = math.inf
    _held_until_s: float = -math.inf
    _stored_s: float = -math.inf
    _kept_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Start as `service.assemble` does."""
        now_s = self.began.now_s
        ledger, ledgers_boot = stored.adopted(self.disk, self.site, self.boot_id, now_s)
        kind = _Wild if self.scene.wild else Controller
        self.controller = kind(site=self.site, policy=self.policy, state=State(ledger), boot_id=self.boot_id)
        if isinstance(self.controller, _Wild):
            storage = [evse.name for evse in self.site.evses if evse.stationary]
            self.controller.wishes = Wishes(self.rng, self.site.stations, storage)
        chance = Random(f"hold {self.scene.depot.site.limit_va}")  # noqa: S311 - the same for each process of an episode
        self.controller.params = replace(self.controller.params, hold_s=chance.choice((5.0, 30.0, 300.0)))
        self._asks = Latest(self.disk, ASKS, ASKS_JOURNAL)
        stored.recall(self.controller, self.disk, self._asks, ledgers_boot, self.began, linked=True)
        self._kept_s = now_s

    # What becomes known

    def hear(self, news: Reading | Proved, now_s: float) -> None:
        """Take in what a device shows, or what became of a write."""
        if isinstance(news, Reading):
            self.changed |= self.controller.take(news.device, news, now_s)
            return
        proof = Proof(evse=news.evse, kind=news.kind, asked=math.nan, in_force=None)
        self.controller.proved(news.evse, news.write, proof, news.at_s)

    def put(self, ask: Ask, at: Times) -> None:
        """Take in what is asked, by the wall's clock; it is on the disk when this returns."""
        self.controller.put(asks.placed(ask, *at))
        self._asked = True
        self._save_asks()

    def forget(self, ask_id: str) -> None:
        """Take an ask back."""
        if self.controller.forget(ask_id):
            self._asked = True
            self._save_asks()

    def link_stands(self, now_s: float) -> None:
        """Hear from the grid gateway that its link stands."""
        self.controller.link_until_s = now_s + LINK_VALID_S
        self.controller.link_stood = True
        self._save_asks()

    def reload(self, policy: Policy) -> None:
        """Take in changed limits."""
        self.policy = self.controller.policy = policy
        self._asked = True

    # What is done

    def run(self, at: Times) -> Sequence[guard.Write] | None:
        """Return what is to be written now, counted on the disk; None: it is not time for anything yet."""
        now_s = at.now_s
        if self._due_s == math.inf:
            if now_s < self.began.now_s + INFORMED_S and not self.controller.informed():
                return None
            self._due_s = now_s
        asked, self._asked = self._asked, False
        if asked and (writes := self.controller.shed(now_s)):
            self.changed = True
        elif asked or (now_s >= self._held_until_s and (self.changed or now_s >= self._due_s)):
            self.changed = False
            writes = self.controller.cycle(now_s, at.unix_s - now_s).writes
            self._due_s = max(self._due_s + PERIOD_S, now_s) if now_s >= self._due_s else self._due_s
        else:
            return None
        self._store(writes, now_s)
        if any(write.purpose is guard.Purpose.LOWER for write in writes):
            self._held_until_s = now_s + HOLD_S
        if now_s - self._kept_s >= KEPT_EVERY_S:
            self._kept_s = now_s
            self._keep(at)
        return writes

    def end(self, at: Times) -> None:
        """End in order: all is on the disk."""
        self._save_ledger(at.now_s)
        self._asks.save(stored.asks_document(self.controller), whole=True)
        self._keep(at)

    def spans(self, now_s: float) -> Mapping[str, tuple[book.Span, book.Span, book.Span]]:
        """Return what the ledger says each EVSE may do now, on each phase."""
        return guard.intervals(self.controller.state.ledger, now_s)

    # What is kept

    def _store(self, writes: Sequence[guard.Write], now_s: float) -> None:
        if now_s - self._stored_s >= CHECKPOINT_S:
            self._save_ledger(now_s)
        elif writes:
            self.disk.append(JOURNAL, journal.record(writes, now_s))

    def _save_ledger(self, now_s: float) -> None:
        self.disk.save(LEDGER, book.to_json(self.controller.state.ledger, self.boot_id, now_s))
        self.disk.begin(JOURNAL)
        self._stored_s = now_s

    def _save_asks(self) -> None:
        self._asks.save(stored.asks_document(self.controller))

    def _keep(self, at: Times) -> None:
        self.disk.save(SESSIONS, stored.sessions_document(self.controller, at))
        self.disk.save(MEMORY, stored.memory_document(self.controller))
        self.disk.save(CYCLES, batteries.to_json(self.controller.batteries.counted))
