# SPDX-License-Identifier: Apache-2.0
"""Whatever a device does wrong, in whatever order: no wrong value comes back as good, and no write is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING

import anyio
import pytest

from derms_agent.drivers.errors import BusError
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import TransactionIds
from derms_agent.profiles.point import Table

if TYPE_CHECKING:
    from agent.tests.transport.conftest import Answer, Asked, Kit, Peer

pytestmark = pytest.mark.anyio

REQUESTS = 60
CALLERS = 6
FAULTS = ("silent", "late", "short", "function", "unit", "exception", "hang up", "cut", "garbage")


def replies(asked: Asked, choice: random.Random) -> dict[str, tuple[bytes, int]]:
    """Return the wrong replies that are frames all the same: PDU and unit."""
    good, unit_id = asked.good_reply(), asked.unit_id
    return {
        "good": (good, unit_id),
        "late": (good, unit_id),
        "short": (good[:-2], unit_id),
        "function": (bytes([good[0] ^ 7]) + good[1:], unit_id),
        "unit": (good, unit_id + 1),
        "exception": (bytes([good[0] | 0x80, choice.choice([1, 2, 4, 6, 11])]), unit_id),
    }


def faulty(choice: random.Random) -> Answer:
    """Return a device of which half the replies are good; a late one comes within the gateway's time-out."""

    async def answer(asked: Asked, peer: Peer) -> None:
        fault = choice.choice(FAULTS) if choice.random() < 0.5 else "good"
        frames = replies(asked, choice)
        if fault == "late":
            await asyncio.sleep(0.05)
        if fault in frames:
            pdu, unit_id = frames[fault]
            peer.reply(asked, pdu, unit_id=unit_id)
        elif fault == "garbage":
            peer.send(choice.randbytes(choice.randint(1, 40)))
        elif fault == "cut":
            peer.send(peer.frame(asked, asked.good_reply())[:-1])
        if fault in {"cut", "hang up"}:
            peer.hang_up()

    return answer


@pytest.mark.parametrize("seed", [2026])
@pytest.mark.parametrize(
    ("rtu", "policy", "max_in_flight"),
    [
        (False, TransactionIds.STRICT, 1),
        (False, TransactionIds.STRICT, 6),
        (False, TransactionIds.IGNORE, 1),
        (True, TransactionIds.STRICT, 1),
    ],
)
async def test_no_wrong_value_and_no_second_write(
    kit: Kit, rtu: bool, policy: TransactionIds, max_in_flight: int, seed: int
) -> None:
    choice = random.Random(seed)  # noqa: S311 -- nothing is kept secret by it
    good = 0
    options = {"timeout_s": 0.03, "gateway_timeout_s": 0.06, "transaction_ids": policy, "max_in_flight": max_in_flight}

    async def one(bus: ModbusBus, number: int) -> None:
        address = 100 * number
        job = {"priority": Priority.SHED, "deadline_s": 3.0}
        if number % 3:
            values = await bus.read(1 + number % 4, Table.HOLDING, address, 10, **job)  # type: ignore[arg-type]
            assert values == tuple(range(address, address + 10))
        else:
            await bus.write(1, Table.HOLDING, address, [number], **job)  # type: ignore[arg-type]
            assert sum(asked.address == address for asked in server.writes()) == 1

    async def caller(bus: ModbusBus, first: int) -> None:
        nonlocal good
        for number in range(first, REQUESTS, CALLERS):
            while not bus.connected:
                await anyio.sleep(0.005)
            with contextlib.suppress(BusError), anyio.move_on_after(choice.choice([1, 1, 1, 0.01])):
                await one(bus, number)
                good += 1

    async with kit.serving(faulty(choice), rtu=rtu) as server, kit.running(kit.bus_to(server, **options)) as bus:
        await asyncio.gather(*(caller(bus, first) for first in range(CALLERS)))
        asked = Counter(asked.address for asked in server.asked)
        assert max(asked.values()) == 1, "each was sent once at the most"
        assert server.most_open == 1
        assert len(asked) > REQUESTS / 4
        assert good > 3
