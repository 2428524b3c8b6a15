# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: ledger, what was asked, sessions, what control remembers, cycles; one JSON file each.

The writes that leave between two ledgers are added to a journal, a line of JSON at a time, each on the disk before any
of its writes leaves: that takes a third of the time of a whole ledger. All asks have one as well: see `Latest`.

What a process stores, and how its successor takes that up, stands here; when, the service says.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from derms_agent.control import journal
from derms_agent.control import ledger as book
from derms_agent.document_store import Latest, Store
from derms_agent.model import OPENADR
from derms_agent.orchestrator import asks, batteries, handover
from derms_agent.orchestrator.asks import Clock
from derms_agent.orchestrator.controller import Controller
from derms_agent.orchestrator.site import Site
from derms_agent.socket_protocol import shown

LEDGER, ASKS, SESSIONS, MEMORY = "ledger.json", "asks.json", "sessions.json", "memory.json"
CYCLES = "cycles.json"
JOURNAL, ASKS_JOURNAL = "ledger.journal", "asks.journal"
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What is raised by what cannot be used of what was left: none of it keeps a service from starting."""
LINKED_WITHIN_S = 900.0
"""How long a gateway that never heard of its VTN waits for it, until it counts as one whose link is lost."""
JUST_STARTED_S = 600.0
"""A host that is up for no longer may have come up just now, with its depot's power."""

logger = logging.getLogger("derms.orchestrator")


class Times(NamedTuple):
    """One moment by control's clock and by the wall's, in s."""

    now_s: float
    unix_s: float


# What is stored


def asks_document(controller: Controller) -> dict[str, Any]:
    """Return what was asked, and until when the grid's link stands."""
    return {
        "boot_id": controller.boot_id,
        "asks": [asks.to_json(ask) for ask in controller.asks.values()],
        "link_until_s": controller.link_until_s,
        "link_stood": controller.link_stood,
    }


def sessions_document(controller: Controller, at: Times) -> dict[str, Any]:
    """Return the sessions and what was told of them."""

    def unix(at_s: float | None) -> float | None:
        return None if at_s is None else at.unix_s + at_s - at.now_s

    return {
        "sessions": {
            name: {
                "started_unix_s": unix(session.started_at_s),
                "departure_unix_s": unix(session.departure_at_s),
                "energy_need_wh": session.energy_need_wh,
                "delivered_wh": session.delivered_wh,
                "vehicle": session.vehicle,
            }
            for name, session in controller.sessions.items()
        }
    }


def memory_document(controller: Controller) -> dict[str, Any]:
    """Return what control remembers from cycle to cycle."""
    return {"boot_id": controller.boot_id, **handover.to_json(controller.memory())}


# What a successor takes up


def adopted(store: Store, site: Site, boot: str, now_s: float) -> tuple[book.Ledger, str | None]:
    """Return the ledger that a predecessor left, or a new one, and in which start of the host the former was stored.

    That is empty where the ledger is lost, and None where nobody left one.
    """
    document, problem = store.load(LEDGER)
    if problem is None and document is not None:
        try:
            ledger = book.from_json(
                journal.replayed(document, store.records(JOURNAL)), site.stations.values(), boot, now_s
            )
        except (OSError, *UNUSABLE) as unusable:
            problem = store.put_aside(LEDGER, str(unusable))
        else:
            return ledger, str(document["boot_id"])
    if problem is not None:
        store.put_aside(JOURNAL, "belongs to it")
        logger.error("The ledger is lost, so every EVSE counts at its rating until it is told anew: %s", problem)
    return book.started(site.stations.values(), now_s), None if problem is None else ""


def recall(
    controller: Controller, store: Store, asks_store: Latest, ledgers_boot: str | None, at: Times, *, linked: bool
) -> None:
    """Have a controller, which has its predecessor's ledger, take up all else that this left.

    `ledgers_boot`: as `adopted` has it; `linked`: there is a VTN.
    """
    _recall_asks(controller, store, asks_store, at, linked=linked)
    _recall_sessions(controller, store, at)
    _recall_memory(controller, store)
    _recall_cycles(controller, store)
    # Power may have been away with the host.
    rebooted = _rebooted(store, ledgers_boot, controller.boot_id, at.now_s)
    controller.energised_at_s = at.now_s if rebooted else None


def _rebooted(store: Store, ledgers_boot: str | None, boot: str, now_s: float) -> bool:
    """Whether the host restarted since a predecessor ran.

    Without its ledger, what else that left says so; where all is lost, the age of this start has to do.
    """
    if ledgers_boot:
        return ledgers_boot != boot
    documents = [store.load(name)[0] for name in (MEMORY, ASKS)]
    boots = {one["boot_id"] for one in documents if isinstance(one, dict) and "boot_id" in one}
    return boot not in boots if boots else ledgers_boot is not None and now_s < JUST_STARTED_S


def _recall_asks(controller: Controller, store: Store, asks_store: Latest, at: Times, *, linked: bool) -> None:
    """Take up what was asked, and until when the grid's link stands, where there is one still (`linked`).

    Without a VTN nobody renews the link any more, and the default limit would hold for good; so would an event of its
    without an end, for there is no grid gateway either that could take it back: its events are none. A VTN that was
    never reached has `LINKED_WITHIN_S` of each start of the host: else nothing would hold for as long as it cannot be.
    """
    if linked:
        controller.link_until_s = at.now_s + LINKED_WITHIN_S
    document, problem = asks_store.load()
    if problem is not None:
        logger.error("What was asked before may be lost: %s", problem)
    if document is None:
        return
    same_boot = document.get("boot_id") == controller.boot_id
    unusable: list[str] = []
    for stored in _usable(document.get("asks", []), unusable):
        ask = stored if same_boot else asks.placed(replace(stored, goes_by=Clock.WALL), at.now_s, at.unix_s)
        if not ask.over(at.now_s) and (linked or not ask.id.startswith(OPENADR)):
            controller.put(ask)
    if linked:
        try:
            _recall_link(controller, document, at, same_boot=same_boot)
        except UNUSABLE as why:
            unusable.append(f"until when the grid's link stands is lost: {why!r}")
    for words in unusable:
        logger.error("Of what was asked before, %s", words)
    if unusable:
        logger.error("%s", store.keep_copy(ASKS, document, "not all of it can be used"))


def _usable(stored: Any, unusable: list[str]) -> Iterator[asks.Ask]:
    """Yield the asks that can be used, and say of each other why it cannot."""
    for one in stored if isinstance(stored, list) else [stored]:
        try:
            ask = asks.from_json(one)
        except UNUSABLE as why:  # noqa: PERF203 - each by itself: one that cannot be used takes no other with it
            unusable.append(f"the ask {shown(one)} is lost: {why!r}")
        else:
            yield ask


def _recall_link(controller: Controller, document: Mapping[str, Any], at: Times, *, same_boot: bool) -> None:
    link_until_s = document.get("link_until_s")
    if link_until_s is None:
        return
    # Who stored a link without it may have had one.
    controller.link_stood = bool(document.get("link_stood", True))
    if same_boot:
        if not math.isfinite(until_s := float(link_until_s)):
            raise ValueError(f"found {link_until_s!r}, expected s")
        controller.link_until_s = until_s
    elif controller.link_stood:
        controller.link_until_s = at.now_s


def _recall_sessions(controller: Controller, store: Store, at: Times) -> None:
    def take(document: dict[str, Any]) -> None:
        for name, stored in document.get("sessions", {}).items():
            if name in controller.site.stations:
                controller.recall(name, stored, at.now_s, at.unix_s)

    _recall(store, SESSIONS, take, "What was known of sessions is lost")


def _recall_memory(controller: Controller, store: Store) -> None:
    def take(document: dict[str, Any]) -> None:
        if document["boot_id"] == controller.boot_id:
            known = {name: controller.watts_per_a(name) for name in controller.site.stations}
            controller.remember(handover.from_json(document, known))
        else:
            controller.recall_heat(handover.heat_from_json(document))

    _recall(store, MEMORY, take, "How power was shared before is lost, and is worked out anew")


def _recall_cycles(controller: Controller, store: Store) -> None:
    def take(document: dict[str, Any]) -> None:
        controller.batteries.counted = batteries.from_json(document)

    _recall(store, CYCLES, take, "The cycles that batteries have been through are lost, and are counted anew")


def _recall(store: Store, name: str, take: Callable[[dict[str, Any]], None], lost: str) -> None:
    """Take up what a predecessor left under a name, if it left anything; put aside what cannot be used, and say so."""
    document, problem = store.load(name)
    try:
        if document is not None:
            take(document)
    except UNUSABLE as unusable:
        problem = store.put_aside(name, repr(unusable))
    if problem is not None:
        logger.error("%s: %s", lost, problem)
