# SPDX-License-Identifier: Apache-2.0
"""JSON from files and other processes: whatever is wrong with it is a ValueError, and its numbers are finite."""

from __future__ import annotations

import json
import math
from typing import Any


def loads(content: str | bytes) -> Any:
    """Return what JSON says. Raises ValueError for what is none, is nested too deeply, or has a number beyond a float.

    The standard library takes NaN, Infinity and 1e999, which RFC 8259, section 6, has not, and a range check need not
    notice any of them.
    """
    try:
        return json.loads(content, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as problem:
        raise ValueError("found JSON that is nested too deeply") from problem


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found the number {text[:20]}, expected a finite one")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)
