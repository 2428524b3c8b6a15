# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recipe for a platform is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Platform:
    """A kind of host: how its base is built, out of what."""

    name: str
    programs: Mapping[str, str]
    """Programs (or, by their full path, files) that the building needs, and the Debian packages that hold them."""
    sources: tuple[Path, ...]
    """The files that make up the recipe: a change in any of them is another base."""
    build: Callable[[Path, Path], None]
    """Fill an empty root, and a repository of everything that can be installed on it."""


def recipe_hash(sources: Iterable[Path]) -> str:
    """Return what names a recipe: equal for equal files, whatever directory they are in."""
    digest = hashlib.sha256()
    for path in sorted(sources, key=lambda path: path.name):
        digest.update(f"{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
