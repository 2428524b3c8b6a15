# SPDX-License-Identifier: Apache-2.0
"""IEEE 1547-2018's default settings by category, as data; `categories.yml` says which public source has each value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

NORMAL = ("a", "b")
ABNORMAL = ("i", "ii", "iii")


@dataclass(frozen=True, slots=True)
class Default:
    """One function's default settings, the clause that has them, and the `sources` in which the same was found."""

    settings: Mapping[str, object]
    clause: str
    verified_by: Sequence[str]


@cache
def _document() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("categories.yml").read_text(encoding="utf-8")
    document: Mapping[str, Any] = yaml.safe_load(text)
    return document


def sources() -> Mapping[str, str]:
    """Return the public sources that defaults were verified by: their names in `verified_by`, and where they are."""
    return dict(_document()["sources"])


def defaults(normal: str | None, abnormal: str | None) -> dict[str, Default]:
    """Return the default settings by function, of a category for normal and one for abnormal operation, or either.

    What holds for every DER comes with either. Raises KeyError for another category.
    """
    document = _document()
    parts: list[Mapping[str, Any]] = []
    if normal is not None or abnormal is not None:
        parts.append(document["every_der"])
    if normal is not None:
        parts.append(document["normal"][normal])
    if abnormal is not None:
        parts.append(document["abnormal"][abnormal])
    return {name: Default(**content) for part in parts for name, content in part.items()}
