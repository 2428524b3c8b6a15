# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock stands still while anybody works, and moves on at once where everybody waits.

Drivers, and whatever else is written for asyncio or anyio, run in it as they are, as fast as the processor goes and the
same each time. It waits for nothing outside of itself: neither sockets nor threads have a place in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


LONGEST_S = 1e9


class Standstill(RuntimeError):
    """All wait, and none of them for a time that comes: nothing would ever happen again."""


class _Selector(selectors.DefaultSelector):
    """What tells a loop that the time it wanted to wait for is over."""

    moved_to_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            if timeout is None or self.moved_to_s > LONGEST_S:
                raise Standstill("found everybody waiting and no time to wait for")
            self.moved_to_s += max(timeout, 0.0)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.moved_to_s


def run(main: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run an async function under virtual time, which begins at 0, and return its result. Raises `Standstill`."""
    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": _Loop})
