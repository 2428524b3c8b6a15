# SPDX-License-Identifier: Apache-2.0
"""How the parts of a connection run beside one another, and how what ends them is said and mended.

A task group raises a group of exceptions, which an `except` for one of them does not match; `except*` came with
Python 3.11. So parts hand their own exception on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

AGAIN_S = 60.0
"""How long what has failed is left alone: a disk that is full stays so for a while."""
STEADY_AFTER_S = 60.0
"""What has gone on for so long went well: a failure after that is another one."""


async def side_by_side(*parts: Callable[[], Awaitable[None]]) -> None:
    """Run parts until the first one fails, end the others, and raise what it failed with, and no group."""
    failed: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def until_failed(part: Callable[[], Awaitable[None]]) -> None:
            try:
                await part()
            except Exception as problem:  # noqa: BLE001 - raised below
                failed.append(problem)
                tasks.cancel_scope.cancel()

        for part in parts:
            tasks.start_soon(until_failed, part)
    if failed:
        raise failed[0]


async def begun_anew(work: Callable[[], Awaitable[None]], logger: logging.Logger, meanwhile: str) -> None:
    """Do what is to go on until it is cancelled, anew after a pause whenever it fails.

    Whatever it fails with is said, with its traceback in the journal; what it failed with the last time is not said
    again.
    """
    said = ""
    while True:
        began_s = time.monotonic()
        try:
            await work()
        except Exception as problem:
            words = f"{type(problem).__name__}: {problem}"
            if words != said or time.monotonic() - began_s > STEADY_AFTER_S:
                logger.exception("MQTT failed; %s, and it begins anew every %g s", meanwhile, AGAIN_S)
            said = words
        await anyio.sleep(AGAIN_S)


@contextmanager
def unsendable_said(logger: logging.Logger) -> Iterator[None]:
    """Say of a body that it is longer than the broker takes, or no JSON, and go on without it."""
    try:
        yield
    except (ValueError, TypeError) as problem:
        logger.warning("MQTT: not published: %s", problem)
