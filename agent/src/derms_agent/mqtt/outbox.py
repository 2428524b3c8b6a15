# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent: in memory for up to a second, then on disk.

Telemetry that the broker takes at once is never written: 200 readings a second would write a flash of 8 GB over once a
day, for nothing. An event is on disk before `keep` returns. Messages leave in the order in which
they came; one that was kept leaves the disk once the broker has it. When there is no more room, the oldest telemetry
goes, and never anything else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from derms_agent.mqtt.store import Message, Store, Stored, StoreError

LOG = logging.getLogger(__name__)

MOST_BYTES = 256 * 2**20
"""Room on disk if not told otherwise: with 200 readings of 300 bytes a second, an hour's telemetry."""

MOST_MEMORY_BYTES = 8 * 2**20
"""Room in memory, for while the disk takes nothing."""

SAVE_AFTER_S = 1.0
"""How long telemetry is in memory alone. One commit a second costs little, and a crash loses no more than this."""

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Messages that are being sent; they are still the outbox's until `settle` says what became of them."""

    messages: tuple[Message, ...]
    stored: tuple[Stored, ...] = ()
    """The same messages with their places on disk; empty if they were in memory alone."""


def within(messages: Iterable[Message], most_bytes: int) -> tuple[deque[Message], int]:
    """Return what fits into a bound once the oldest telemetry is left out, and how many pieces of it went."""
    kept = deque(messages)
    excess_bytes = sum(one.size_bytes for one in kept) - most_bytes
    left: deque[Message] = deque()
    dropped = 0
    for one in kept:
        if excess_bytes > 0 and not one.kept:
            excess_bytes -= one.size_bytes
            dropped += 1
        else:
            left.append(one)
    return left, dropped


class Outbox:
    """The queue between what publishes and the broker. For one sender: one batch is out at a time."""

    def __init__(self, store: Store) -> None:
        """Take an open store; `Outbox.open` is the way to one."""
        self._store = store
        self._memory: deque[Message] = deque()
        self._memory_bytes = 0
        self._oldest_s = 0.0
        self._sent: dict[int, Stored] = {}
        self._lock = anyio.Lock()
        self._news = anyio.Event()
        self._disk_fails = False
        self.dropped = 0
        """Pieces of telemetry that had to go for want of room, since the start."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, most_bytes: int = MOST_BYTES) -> AsyncIterator[Outbox]:
        """Open the outbox in a file, and on leaving write down what is in memory. Raises StoreError."""
        store = await to_thread.run_sync(Store, path, most_bytes)
        outbox = cls(store)
        try:
            yield outbox
        finally:
            with anyio.CancelScope(shield=True):
                await outbox.save()
                await to_thread.run_sync(store.close)

    @property
    def waiting(self) -> int:
        """How many messages have not been sent."""
        return self._store.count + len(self._memory)

    @property
    def waiting_bytes(self) -> int:
        """What they take, in bytes."""
        return self._store.size_bytes + self._memory_bytes

    def put(self, message: Message) -> None:
        """Take a message into memory. It does no I/O."""
        if not self._memory:
            self._oldest_s = time.monotonic()
        self._memory.append(message)
        self._memory_bytes += message.size_bytes
        if self._memory_bytes > MOST_MEMORY_BYTES:
            self._hold(self._memory)
        self._news.set()

    async def keep(self, message: Message) -> None:
        """Take a message, and return when it is on disk. If the disk takes nothing it is in memory, which is logged."""
        self.put(message)
        await self.save()

    async def save(self) -> None:
        """Write down what is in memory."""
        async with self._lock:
            await self._save()

    async def save_regularly(self) -> None:
        """Write down what has been in memory for a while, until cancelled."""
        while True:
            await anyio.sleep(SAVE_AFTER_S / 4)
            if self._memory and time.monotonic() - self._oldest_s >= SAVE_AFTER_S:
                await self.save()

    async def take(self, most: int) -> Batch:
        """Wait until there is anything to send, and return up to so many of the oldest messages."""
        while True:
            news = self._news = anyio.Event()
            async with self._lock:
                if batch := await self._oldest(most):
                    return batch
            await news.wait()

    async def _oldest(self, most: int) -> Batch | None:
        # What is to be kept goes over the disk, and all that came before it with it.
        if not self._store.count and any(one.kept for one in self._memory):
            await self._save()
        if self._store.count and (stored := await self._oldest_stored(most)):
            return Batch(tuple(one.message for one in stored), tuple(stored))
        if not self._memory:
            return None
        taken = [self._memory.popleft() for _ in range(min(most, len(self._memory)))]
        self._memory_bytes -= sum(one.size_bytes for one in taken)
        return Batch(tuple(taken))

    async def _oldest_stored(self, most: int) -> list[Stored]:
        await self._remove_sent()
        found = await self._on_disk(lambda: self._store.oldest(most + len(self._sent)))
        return [one for one in found or () if one.sequence not in self._sent]

    async def _remove_sent(self) -> None:
        """Delete what was sent. What a failing disk keeps is remembered, so that it is not sent over and over."""
        sent = tuple(self._sent.values())
        removed = await self._on_disk(lambda: self._store.remove(sent)) if sent else None
        if removed:
            self._sent.clear()

    async def settle(self, batch: Batch, sent: Sequence[bool]) -> None:
        """Let go what was sent of a batch, and keep the rest as the oldest of all."""
        async with self._lock:
            if batch.stored:
                self._sent.update(
                    {one.sequence: one for one, was_sent in zip(batch.stored, sent, strict=True) if was_sent}
                )
                await self._remove_sent()
                return
            left = [one for one, was_sent in zip(batch.messages, sent, strict=True) if not was_sent]
            if not left:
                return
            dropped = await self._on_disk(lambda: self._store.put_back(left))
            if dropped is None:
                self._hold([*left, *self._memory])
            else:
                self._count_dropped(dropped)

    async def _save(self) -> None:
        if not self._memory:
            return
        messages, self._memory, self._memory_bytes = list(self._memory), deque(), 0
        dropped = await self._on_disk(lambda: self._store.append(messages))
        if dropped is None:
            self._hold([*messages, *self._memory])
        else:
            self._count_dropped(dropped)

    def _hold(self, messages: Iterable[Message]) -> None:
        """Have these messages in memory, as far as there is room."""
        self._memory, dropped = within(messages, MOST_MEMORY_BYTES)
        self._memory_bytes = sum(one.size_bytes for one in self._memory)
        self._count_dropped(dropped)

    def _count_dropped(self, number: int) -> None:
        if number and not self.dropped:
            LOG.warning("no room for what waits to be sent: the oldest telemetry is dropped from now on")
        self.dropped += number

    async def _on_disk(self, do: Callable[[], T]) -> T | None:
        """Return what a call of the store does, or None if the disk fails, which is logged when it begins and ends."""
        try:
            # Cut off in between, it would not be known whether it was done.
            with anyio.CancelScope(shield=True):
                done = await to_thread.run_sync(do)
        except StoreError as problem:
            if not self._disk_fails:
                LOG.error("messages are kept in memory alone: %s", problem)
            self._disk_fails = True
            return None
        if self._disk_fails:
            LOG.warning("messages are kept on disk again")
        self._disk_fails = False
        return done
