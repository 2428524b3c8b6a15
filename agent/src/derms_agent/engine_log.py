# SPDX-License-Identifier: Apache-2.0
"""/var/log/derms/engine.log: one line an entry, to be read with grep.

`2026-11-25T22:41:06.123Z WARNING Heartbeat Timeout charger-003: no answer for 5.2 s`: the time in UTC, the level, and
the text. Two texts are fixed, for people are told to look for them: `Heartbeat Timeout` and `TLS Handshake Failure`.
Nothing that a device or a peer sends can begin a line of its own.

The log is for people; nothing depends on it. A full disk or a missing directory stops no control, at the start neither:
it is said once on standard error, which the journal keeps, and entries are lost until the log can be written again. Nor
does a disk that takes its time: a thread of its own writes, and entries beyond those that may wait are counted as lost.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from logging.handlers import QueueHandler
from pathlib import Path

from derms_agent.one_line import one_line

MODE = 0o640
MOST_WAITING = 1000
"""So many entries wait for the disk; a depot that is well says a few in an hour."""
WRITTEN_WITHIN_S = 1.0
"""For so long the end of a service waits for its last entries to be written."""


class OneLineFormatter(logging.Formatter):
    """Formats an entry as one line; of an exception it says type and text, its traceback is the journal's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry's line, without its end."""
        at = datetime.fromtimestamp(record.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        return f"{at}Z {record.levelname} {one_line(text)}"


class EngineLog(QueueHandler):
    """Has entries written to the log, while whoever logs goes on."""

    def __init__(self, path: Path, most_waiting: int = MOST_WAITING) -> None:
        self._entries: queue.Queue[logging.LogRecord | None] = queue.Queue(most_waiting)
        super().__init__(self._entries)
        self.setFormatter(OneLineFormatter())
        self._path = path
        self._lost = 0
        writes = partial(_write, self._entries, _LogFile(path))
        self._writer = threading.Thread(target=writes, name="engine.log", daemon=True)
        self._writer.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Have an entry, which is one line by now, written; beyond those that may wait it is lost.

        Where any was, the next ones are until half of those are written, so that they are counted in one place.
        """
        if self._entries.qsize() <= self._entries.maxsize // 2:
            self._tell_lost()
        if not self._lost and not self._entries.full():
            self._entries.put_nowait(record)
            return
        if not self._lost:
            sys.stderr.write(f"{self._path}: the disk takes its time; entries are lost until it can be written\n")
        self._lost += 1

    def _tell_lost(self) -> None:
        """Say how many entries are missing here, where any are."""
        if self._lost and not self._entries.full():
            told = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": f"{self._lost} entries are lost here"}
            self._entries.put_nowait(self.prepare(logging.makeLogRecord(told)))
            self._lost = 0

    def written(self, within_s: float) -> bool:
        """Wait until all is written, or lost, but no longer than this; return whether it is."""
        with self._entries.all_tasks_done:
            return self._entries.all_tasks_done.wait_for(lambda: not self._entries.unfinished_tasks, within_s)

    def close(self) -> None:
        """Have the last entries written, where the disk takes them in time, and the file closed."""
        self._tell_lost()
        if self.written(WRITTEN_WITHIN_S):
            self._entries.put_nowait(None)
            self._writer.join(WRITTEN_WITHIN_S)
        super().close()


def _write(entries: queue.Queue[logging.LogRecord | None], log: _LogFile) -> None:
    """Write entries until there is None instead of one."""
    while (entry := entries.get()) is not None:
        log.write(entry.getMessage())
        entries.task_done()
    log.close()
    entries.task_done()


class _LogFile:
    """Appends lines to the log, and follows when it is rotated, moved away or deleted.

    One that cannot be opened is tried again with each line. It is none of logging's handlers, for these are waited for
    at the end of the process, however long a disk takes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._failed = False

    def write(self, line: str) -> None:
        """Write a line, or where that fails say so once; never raise what the disk raises."""
        before, self._failed = self._failed, False
        try:
            if self._descriptor is None or not self._is_there(self._descriptor):
                self.close()
                self._descriptor = self._opened()
            left = f"{line}\n".encode(errors="backslashreplace")
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as problem:
            self._failed = True
            if not before:
                sys.stderr.write(f"{self._path}: {problem}; entries are lost until it can be written\n")

    def _is_there(self, descriptor: int) -> bool:
        """Whether the file that is open is the one at the path."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, MODE)
        except FileExistsError:
            return os.open(self._path, flags)
        os.fchmod(descriptor, MODE)  # whatever the umask is
        return descriptor

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def log_to(path: Path) -> None:
    """Write engine.log besides the journal; while it cannot be written the journal alone has to do."""
    if not any(isinstance(one, EngineLog) for one in logging.getLogger().handlers):
        logging.getLogger().addHandler(EngineLog(path))


# --- entries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be logged: one of logging's levels, and the text."""

    level: int
    text: str

    def log(self, logger: logging.Logger) -> None:
        """Log the entry."""
        logger.log(self.level, "%s", self.text)


def heartbeat_timeout(device: str, age_s: float) -> Entry:
    """Return the entry for a device that has not answered for `age_s`."""
    return Entry(logging.WARNING, f"Heartbeat Timeout {device}: no answer for {age_s:.1f} s")


def heartbeat_back(device: str, after_s: float) -> Entry:
    """Return the entry for a device that answers again, `after_s` after its last answer before."""
    return Entry(logging.INFO, f"Heartbeat Back {device}: answers again after {after_s:.1f} s")


def tls_handshake_failure(peer: str, reason: str) -> Entry:
    """Return the entry for a peer with which no TLS connection came about."""
    return Entry(logging.ERROR, f"TLS Handshake Failure {peer}: {reason}")


@dataclass(frozen=True, slots=True)
class Silence:
    """A device's silence that was logged: its last answer before, and the first since, by the monotonic clock in s."""

    last_s: float
    first_s: float | None = None


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """Which devices' silences were logged. A silence is logged once, and its end once.

    A device is back when it has answered for as long as its timeout without another gap, so that one that answers now
    and then is one silence and not a line every few seconds.
    """

    silences: Mapping[str, Silence] = field(default_factory=dict)


def listen(
    state: Heartbeats, last_answer_s: Mapping[str, float], timeout_s: Mapping[str, float], now_s: float
) -> tuple[Heartbeats, tuple[Entry, ...]]:
    """Return the state at `now_s`, and what is to be logged of it.

    :param last_answer_s: when each device answered last, by the monotonic clock; where it never has, when asking began.
        A device that is not in it is forgotten
    :param timeout_s: after how long without an answer each device counts as silent
    """
    silences: dict[str, Silence] = {}
    entries: list[Entry] = []
    for device, last_s in last_answer_s.items():
        known, limit_s = state.silences.get(device), timeout_s[device]
        silent = now_s - last_s > limit_s
        if known is None:
            if silent:
                silences[device] = Silence(last_s)
                entries.append(heartbeat_timeout(device, now_s - last_s))
            continue
        answered = last_s > known.last_s
        if silent:
            silences[device] = Silence(last_s)
        elif not answered or known.first_s is None:
            silences[device] = Silence(known.last_s, last_s if answered else None)
        elif last_s - known.first_s < limit_s:
            silences[device] = known
        else:
            entries.append(heartbeat_back(device, known.first_s - known.last_s))
    return Heartbeats(silences), tuple(entries)
