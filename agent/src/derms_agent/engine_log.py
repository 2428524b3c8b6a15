# SPDX-License-Identifier: Apache-2.0
"""/var/log/derms/engine.log: one line an entry, to be read with grep.

`2026-11-25T22:41:06.123Z WARNING Heartbeat Timeout charger-003: no answer for 5.2 s`: the time in UTC, the level, and
the text. Two texts are fixed, for people are told to look for them: `Heartbeat Timeout` and `TLS Handshake Failure`.
Nothing that a device or a peer sends can begin a line of its own.

The log is for people; nothing depends on it. A full disk or a missing directory stops no control, at the start neither:
it is said once on standard error, which the journal keeps, and entries are lost until the log can be written again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path

from derms_agent.one_line import one_line

MODE = 0o640


class OneLineFormatter(logging.Formatter):
    """Formats an entry as one line; of an exception it says type and text, its traceback is the journal's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry's line, without its end."""
        at = datetime.fromtimestamp(record.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        return f"{at}Z {record.levelname} {one_line(text)}"


class EngineLog(WatchedFileHandler):
    """Appends entries to the log, and follows when it is rotated, moved away or deleted.

    One that cannot be opened is tried again with each entry.
    """

    def __init__(self, path: Path) -> None:
        self._problem: str | None = None
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(OneLineFormatter())

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self.baseFilename, flags | os.O_CREAT | os.O_EXCL, MODE)
        except FileExistsError:
            descriptor = os.open(self.baseFilename, flags)
        else:
            os.fchmod(descriptor, MODE)  # whatever the umask is
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """Write an entry, or where that fails say so once; never raise what the disk raises."""
        before, self._problem = self._problem, None
        try:
            super().emit(record)
        except OSError:  # raised by opening it anew; what writing raises ends in handleError
            self.handleError(record)
        if self._problem is not None and before is None:
            sys.stderr.write(f"{self.baseFilename}: {self._problem}; entries are lost until it can be written\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (logging's own signature)
        """Remember why the log cannot be written."""
        self._problem = str(sys.exc_info()[1])


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
