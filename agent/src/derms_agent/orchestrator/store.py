# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: the ledger, what was asked, and what was told of sessions; one JSON file each.

A file is replaced whole, and is on the disk before the call returns: whoever acknowledges an ask, or lets a write out,
does so after that. A file that cannot be read is put aside under another name and said to be lost; nothing is guessed
from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEDGER, ASKS, SESSIONS = "ledger.json", "asks.json", "sessions.json"


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
        content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def boot_id() -> str:
    """Return what names this start of the host: control's clock means nothing across another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
