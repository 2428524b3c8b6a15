# SPDX-License-Identifier: Apache-2.0
"""A service's directory of JSON documents, and journals beside them.

A file is replaced whole, and is on the disk before the call returns: whoever acknowledges something does so after that.
A file that cannot be read is put aside under another name and said to be lost; nothing is guessed from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Store:
    """A directory of JSON documents."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, name: str) -> tuple[Any, str | None]:
        """Return a document and None, or None and why there is none; a new store has none and no reason."""
        path = self.directory / name
        try:
            return json.loads(path.read_text(encoding="utf-8")), None
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError) as problem:
            return None, self.put_aside(name, str(problem))

    def put_aside(self, name: str, why: str) -> str:
        """Keep a document that cannot be used under another name, and return what to tell a person."""
        path = self.directory / name
        kept = path.with_name(f"{name}.unreadable")
        if path.exists():
            path.replace(kept)
        return f"{path}: {why}; kept as {kept.name}"

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

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a record to a journal that was begun; it is on the disk when this returns. Raises OSError."""
        with _opened(self.directory / name, os.O_WRONLY | os.O_APPEND) as descriptor:
            _write(descriptor, _encoded(record) + b"\n")
            os.fdatasync(descriptor)

    def records(self, name: str) -> list[Any]:
        """Return a journal's records; there are none where there is no journal.

        A last line without its end was never on the disk whole, so nothing that waited for it went on: it is no record.

        :raises OSError: it cannot be read
        :raises ValueError: another line is no JSON
        """
        try:
            content = (self.directory / name).read_bytes()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in content.split(b"\n")[:-1]]

    def _settle_names(self) -> None:
        with _opened(self.directory, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)


class Latest:
    """A document that is stored often, and that somebody waits for: a line of a journal each time, now and then whole.

    To replace a file takes three times as long as to add a line to one. Whichever of the two has the higher number
    holds, so it does not matter between which two steps the process ends.
    """

    def __init__(self, store: Store, name: str, journal: str, most_records: int = 1000) -> None:
        self._store, self._name, self._journal, self._most_records = store, name, journal, most_records
        self._number = 0
        self._records: int | None = None  # None: the journal is a predecessor's, or its last line may be half a one

    def load(self) -> tuple[Any, str | None]:
        """Return the document and None, or what is left of it and why that may not be the latest."""
        document, problem = self._store.load(self._name)
        try:
            records = self._store.records(self._journal)
        except (OSError, ValueError) as unusable:
            records, problem = [], self._store.put_aside(self._journal, str(unusable))
        if records and _number(records[-1]) > _number(document):
            document, problem = records[-1], None
        self._number = _number(document)
        return document, problem

    def put_aside(self, why: str) -> str:
        """Keep what cannot be used under other names, and return what to tell a person."""
        self._records = None
        self._store.put_aside(self._journal, why)
        return self._store.put_aside(self._name, why)

    def save(self, document: Mapping[str, Any]) -> None:
        """Store a document; it is on the disk when this returns. Raises OSError."""
        self._number += 1
        numbered = {**document, "number": self._number}
        records, self._records = self._records, None
        if records is not None and records < self._most_records:
            self._store.append(self._journal, numbered)
        else:
            self._store.save(self._name, numbered)
            self._store.begin(self._journal)
            records = 0
        self._records = records + 1


def _number(document: Any) -> int:
    number = document.get("number") if isinstance(document, dict) else None
    return number if isinstance(number, int) else 0


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
