# SPDX-License-Identifier: Apache-2.0
"""Messages on disk, oldest first, in one SQLite file. Its calls block; `outbox` makes them in a thread.

What a commit survives, in WAL mode (sqlite.org, PRAGMA synchronous): a process killed at any instant, always; a power
cut, with FULL, which syncs the log to the disk, but not with NORMAL, which may lose the last commits and never more. So
a commit that holds an event is FULL. One of telemetry alone is NORMAL, for a sync each second would wear a gateway's
flash to save one reading; and so is the removal of what was sent, which at worst is sent twice, as QoS 1 allows.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from derms_agent.mqtt.topics import Kind

LOG = logging.getLogger(__name__)

ROW_BYTES = 32
"""What a row takes beside its topic and payload: its number, its kind, their lengths, its entry in the index."""

BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS message (
  -- Never used again: a row that was dropped while it was being sent must not take a later one with it.
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  topic TEXT NOT NULL,
  payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS droppable ON message (sequence) WHERE kind = 'telemetry';
"""


@dataclass(frozen=True)
class Message:
    """What is to be sent, under which topic."""

    kind: Kind
    topic: str
    payload: bytes

    @property
    def kept(self) -> bool:
        """Whether it is never dropped for want of room, and sent until the broker says that it has it."""
        return self.kind is not Kind.TELEMETRY

    @property
    def size_bytes(self) -> int:
        """What it counts for against the bound of a queue."""
        return len(self.topic) + len(self.payload) + ROW_BYTES


@dataclass(frozen=True)
class Stored:
    """A message, and its place in the queue."""

    sequence: int
    message: Message


class StoreError(Exception):
    """The queue on disk cannot be read or written now; the text says which file, and why."""


class Store:
    """The queue on disk. One process has it at a time. Every method raises StoreError."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        """Open or make the file. One that SQLite finds broken is set aside as NAME.broken, and a new one is begun."""
        self._path = path
        self._most_bytes = most_bytes
        try:
            try:
                self._connection = _opened(path)
            except sqlite3.DatabaseError as problem:
                # Its subclasses are about the disk, the rights or another process: the file may well be sound.
                if type(problem) is not sqlite3.DatabaseError:
                    raise
                aside = path.with_name(f"{path.name}.broken")
                LOG.error("%s is broken (%s): set aside as %s, what it held was not sent", path, problem, aside.name)
                _set_aside(path, aside)
                self._connection = _opened(path)
            self.count, self.size_bytes = self._measured()
        except (sqlite3.Error, OSError) as problem:
            raise StoreError(f"{path}: {problem}") from problem

    def _measured(self) -> tuple[int, int]:
        """Return how many messages there are, and their size in bytes."""
        row = self._connection.execute(
            "SELECT count(*), total(length(topic) + length(payload)) FROM message"
        ).fetchone()
        return int(row[0]), int(row[1]) + int(row[0]) * ROW_BYTES

    def append(self, messages: Sequence[Message]) -> int:
        """Write messages behind all others, all or none, and return how many pieces of telemetry had to go for them."""
        return self._write(messages, [(None, *_columns(one)) for one in messages])

    def put_back(self, messages: Sequence[Message]) -> int:
        """Write messages before all others, as `append` does."""
        first = self._first() - len(messages)
        return self._write(messages, [(first + index, *_columns(one)) for index, one in enumerate(messages)])

    def _first(self) -> int:
        try:
            row = self._connection.execute("SELECT coalesce(min(sequence), 0) FROM message").fetchone()
        except sqlite3.Error as problem:
            raise StoreError(f"{self._path}: {problem}") from problem
        return int(row[0])

    def _write(self, messages: Sequence[Message], rows: Iterable[tuple[int | None, str, str, bytes]]) -> int:
        durable = any(one.kept for one in messages)
        try:
            # Has no effect inside a transaction.
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT INTO message VALUES (?, ?, ?, ?)", rows)
                excess_bytes = self.size_bytes + sum(one.size_bytes for one in messages) - self._most_bytes
                dropped = self._drop_oldest_telemetry(excess_bytes) if excess_bytes > 0 else []
        except sqlite3.Error as problem:
            raise StoreError(f"{self._path}: {problem}") from problem
        self.count += len(messages) - len(dropped)
        self.size_bytes += sum(one.size_bytes for one in messages) - sum(dropped)
        return len(dropped)

    def _drop_oldest_telemetry(self, excess_bytes: int) -> list[int]:
        """Delete telemetry until so many bytes are free, or none is left; return the size of each piece."""
        oldest = self._connection.execute(
            "SELECT sequence, length(topic) + length(payload) FROM message WHERE kind = 'telemetry' ORDER BY sequence"
        )
        sizes: list[int] = []
        last, freed_bytes = None, 0
        for sequence, content_bytes in oldest:
            last = sequence
            sizes.append(content_bytes + ROW_BYTES)
            freed_bytes += sizes[-1]
            if freed_bytes >= excess_bytes:
                break
        oldest.close()
        if last is not None:
            self._connection.execute("DELETE FROM message WHERE kind = 'telemetry' AND sequence <= ?", (last,))
        return sizes

    def oldest(self, most: int) -> list[Stored]:
        """Return up to so many of the oldest messages, which stay."""
        try:
            rows = self._connection.execute(
                "SELECT sequence, kind, topic, payload FROM message ORDER BY sequence LIMIT ?", (most,)
            ).fetchall()
        except sqlite3.Error as problem:
            raise StoreError(f"{self._path}: {problem}") from problem
        return [Stored(sequence, Message(Kind(kind), topic, payload)) for sequence, kind, topic, payload in rows]

    def remove(self, stored: Sequence[Stored]) -> bool:
        """Delete messages that were sent, and return True. One that had to go in the meantime is no mistake."""
        try:
            self._connection.execute("PRAGMA synchronous = NORMAL")
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                gone = [
                    one
                    for one in stored
                    if self._connection.execute("DELETE FROM message WHERE sequence = ?", (one.sequence,)).rowcount
                ]
        except sqlite3.Error as problem:
            raise StoreError(f"{self._path}: {problem}") from problem
        self.count -= len(gone)
        self.size_bytes -= sum(one.message.size_bytes for one in gone)
        return True

    def close(self) -> None:
        """Close the file."""
        try:
            self._connection.close()
        except sqlite3.Error as problem:
            raise StoreError(f"{self._path}: {problem}") from problem


def _columns(message: Message) -> tuple[str, str, bytes]:
    return message.kind.value, message.topic, message.payload


def _opened(path: Path) -> sqlite3.Connection:
    """Return a sound queue's connection. Raises sqlite3.DatabaseError itself, no subclass, where the file is broken."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        # Held until it is closed: two processes that send the same queue would send everything twice.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside(path: Path, aside: Path) -> None:
    """Rename a broken file, in the place of an earlier one, and remove what belongs to it alone."""
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
