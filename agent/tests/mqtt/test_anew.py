# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import anyio
import pytest

from derms_agent.mqtt import side_by_side

pytestmark = pytest.mark.anyio


async def test_what_fails_ends_the_others_and_is_raised_itself_however_deep() -> None:
    ended = []

    async def lasts() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def fails() -> None:
        await anyio.sleep(0.01)
        raise OSError("full")

    async def deeper() -> None:
        await side_by_side(lasts, fails)

    with pytest.raises(OSError, match="full"), anyio.fail_after(5):
        await side_by_side(deeper, lasts)
    assert len(ended) == 2


async def test_whoever_is_cancelled_is_not_kept() -> None:
    with anyio.move_on_after(0.01) as scope:
        await side_by_side(anyio.sleep_forever, anyio.sleep_forever)
    assert scope.cancelled_caught
