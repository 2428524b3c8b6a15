# SPDX-License-Identifier: Apache-2.0
"""A service's directory of JSON documents, and journals beside them.

A file is replaced whole, and is on the disk before the call returns: whoever acknowledges something does so after that.
A file that cannot be read is put aside under another name and said to be lost; nothing is guessed from it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from derms_agent import finite_json


class Store:
    """A directory of JSON documents."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, name: str) -> tuple[Any, str | None]:
        """Return a document and None, or None and why there is none; a new store has none and no reason."""
        path = self.directory / name
        try:
            return finite_json.loads(path.read_bytes()), None
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError) as problem:
            return None, self.put_aside(name, str(problem))

    def put_aside(self, name: str, why: str) -> str:
        """Keep a document that cannot be used under another name, and return what to tell a person.

        Where the disk does not even do that, whoever reads goes on without it all the same.
        """
        path = self.directory / name
        kept = path.with_name(f"{name}.unreadable")
        try:
            path.replace(kept)
        except FileNotFoundError:
            pass
        except OSError as problem:
            return f"{path}: {why}; it stays, for it cannot be renamed: {problem}"
        return f"{path}: {why}; kept as {kept.name}"

    def keep_copy(self, name: str, document: Mapping[str, Any], why: str) -> str:
        """Keep a copy of a document that can be used but in part, and return what to tell a person.

        Where the disk does not even do that, whoever reads goes on with that part all the same.
        """
        kept = f"{name}.unreadable"
        try:
            self.save(kept, document)
        except OSError as problem:
            return f"{self.directory / name}: {why}; no copy is kept, for none can be stored: {problem}"
        return f"{self.directory / name}: {why}; a copy is kept as {kept}"

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace a document; it is on the disk when this returns. Raises OSError."""
        path = self.directory / name
        fresh = path.with_name(f".{name}.new")
        content = _encoded(document)
        with _opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            _write(descriptor, content)
            os.fsync(descriptor)
        fresh.replace(path)
        self._settle_names()

    def begin(self, name: str) -> None:
        """Empty a journal, or make a new one. Raises OSError."""
        path = self.directory / name
        new = not path.exists()
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            pass
        if new:
            self._settle_names()

    def append(self, name: str, record: Mapping[str, Any]) -> int:
        """Add a record to a journal that was begun; it is on the disk when this returns. Raises OSError.

        Return how many bytes it takes.
        """
        content = _encoded(record) + b"\n"
        with _opened(self.directory / name, os.O_WRONLY | os.O_APPEND) as descriptor:
            _write(descriptor, content)
            os.fdatasync(descriptor)
        return len(content)

    def records(self, name: str) -> list[Any]:
        """Return a journal's records; there are none where there is no journal.

        :raises OSError: it cannot be read
        :raises ValueError: a line is no JSON
        """
        return [finite_json.loads(line) for line in self.lines(name)]

    def lines(self, name: str) -> list[bytes]:
        """Return the lines of a journal, one for each record. Raises OSError.

        A last one without its end was never on the disk whole, so nothing that waited for it went on: it is none.
        """
        try:
            content = (self.directory / name).read_bytes()
        except FileNotFoundError:
            return []
        return content.split(b"\n")[:-1]

    def _settle_names(self) -> None:
        with _opened(self.directory, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)


class Latest:
    """A document that is stored often, and that somebody waits for: a line of a journal each time, now and then whole.

    To replace a file takes three times as long as to add a line to one. Whole, it has a `series` of its own, which the
    lines after it repeat: what belongs to an earlier one counts for nothing, nor does any beside a file that has none;
    where there is no file, the last line counts. So it does not matter between which two steps a process ends, nor that
    another release wrote the file meanwhile. A journal with a damaged line stays until all is stored whole: until then
    what was read beside that line is nowhere else.
    """

    def __init__(self, store: Store, name: str, journal: str, most_bytes: int = 1 << 20) -> None:
        self._store, self._name, self._journal, self._most_bytes = store, name, journal, most_bytes
        self._series: str | None = None  # None: the next is stored whole
        self._bytes = 0
        self._flaw = ""  # why the journal is to be put aside once all is stored

    def load(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the document and None, or the latest that can be read and why there may have been a later one."""
        document, problem = self._store.load(self._name)
        if document is not None and not isinstance(document, dict):
            document, problem = None, self._store.put_aside(self._name, "found no document")
        series = None if document is None else document.get("series")
        try:
            lines, self._flaw = self._store.lines(self._journal), ""
        except OSError as unreadable:
            lines, self._flaw = [], str(unreadable)
        for line in reversed(lines):
            record = _decoded(line)
            if record is None:
                self._flaw = "found a line that is no document"
            elif document is None or (series is not None and record.get("series") == series):
                document = record
                break
        if self._flaw:
            path = self._store.directory / self._journal
            said = f"{path}: {self._flaw}; it becomes {path.name}.unreadable once all is stored anew"
            problem = said if problem is None else f"{problem}; {said}"
        return document, problem

    def save(self, document: Mapping[str, Any], *, whole: bool = False) -> None:
        """Store a document, as a file of its own where `whole`; it is on the disk when this returns. Raises OSError."""
        series, self._series = self._series, None  # where this fails, half a line may be left
        if series is None or whole or self._bytes >= self._most_bytes:
            series = uuid.uuid4().hex
            self._store.save(self._name, {**document, "series": series})
            if self._flaw:
                self._store.put_aside(self._journal, self._flaw)
                self._flaw = ""
            self._store.begin(self._journal)
            self._bytes = 0
        else:
            self._bytes += self._store.append(self._journal, {**document, "series": series})
        self._series = series


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return the document that a line holds; None where it holds none."""
    try:
        found = finite_json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def boot_id() -> str:
    """Return what names this start of the host: control's clock means nothing across another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
