# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from derms_agent.mqtt.outbox import Outbox, within
from derms_agent.mqtt.store import ROW_BYTES, Message, Store, Stored, StoreError
from derms_agent.mqtt.topics import Kind

pytestmark = pytest.mark.anyio


def message(number: int, kind: Kind = Kind.TELEMETRY, payload_bytes: int = 10) -> Message:
    return Message(kind, "t", str(number).encode().ljust(payload_bytes))


def numbers(messages: Sequence[Message]) -> list[int]:
    return [int(one.payload) for one in messages]


async def sent_in_order(outbox: Outbox, most: int = 100) -> list[int]:
    found: list[int] = []
    while outbox.waiting:
        batch = await outbox.take(most)
        found += numbers(batch.messages)
        await outbox.settle(batch, [True] * len(batch.messages))
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "put_back", "remove"]), st.integers(1, 6), st.booleans()), max_size=25
    )
)
def test_a_store_is_a_bounded_list_that_only_telemetry_falls_out_of(
    tmp_path: Path, steps: list[tuple[str, int, bool]]
) -> None:
    most = 20
    size = len("t") + 10 + ROW_BYTES
    path = tmp_path / "queue"
    path.unlink(missing_ok=True)
    store = Store(path, most * size)
    model: list[Message] = []
    count = 0
    for verb, number, kept in steps:
        if verb == "remove":
            found = store.oldest(number)
            store.remove(found)
            del model[: len(found)]
        else:
            new = [message(count + each, Kind.EVENT if kept else Kind.TELEMETRY) for each in range(number)]
            count += number
            dropped = (store.append if verb == "append" else store.put_back)(new)
            model = [*model, *new] if verb == "append" else [*new, *model]
            model_left, model_dropped = within(model, most * size)
            model = [*model_left]
            assert dropped == model_dropped
        assert [one.message for one in store.oldest(1000)] == model
        assert (store.count, store.size_bytes) == (len(model), sum(one.size_bytes for one in model))
    store.close()
    again = Store(path, most * size)
    assert (again.count, again.size_bytes) == (len(model), sum(one.size_bytes for one in model))
    again.close()


async def test_messages_leave_in_the_order_they_came_whether_from_memory_or_disk(tmp_path: Path) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        outbox.put(message(0))
        outbox.put(message(1))
        await outbox.keep(message(2, Kind.EVENT))
        outbox.put(message(3))
        batch = await outbox.take(2)
        await outbox.settle(batch, [False, True])
        assert await sent_in_order(outbox) == [0, 2, 3]


async def test_what_was_not_sent_out_of_memory_comes_first_again(tmp_path: Path) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        for number in range(3):
            outbox.put(message(number))
        batch = await outbox.take(3)
        await outbox.keep(message(3, Kind.EVENT))
        await outbox.settle(batch, [True, False, False])
        assert await sent_in_order(outbox) == [1, 2, 3]


async def test_telemetry_that_is_sent_at_once_is_never_written(tmp_path: Path) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        before = (tmp_path / "queue-wal").stat().st_size
        for number in range(500):
            outbox.put(message(number))
            batch = await outbox.take(100)
            await outbox.settle(batch, [True])
        assert (tmp_path / "queue-wal").stat().st_size == before


async def test_what_was_put_away_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        outbox.put(message(0))
        await outbox.keep(message(1, Kind.EVENT))
        outbox.put(message(2))
    async with Outbox.open(tmp_path / "queue") as outbox:
        assert await sent_in_order(outbox) == [0, 1, 2]


async def test_an_event_survives_a_kill_as_soon_as_keep_has_returned(tmp_path: Path) -> None:
    program = f"""
import anyio, pathlib
from derms_agent.mqtt.outbox import Outbox
from derms_agent.mqtt.store import Message
from derms_agent.mqtt.topics import Kind
async def main():
    async with Outbox.open(pathlib.Path({str(tmp_path / "queue")!r})) as outbox:
        number = 0
        while True:
            await outbox.keep(Message(Kind.EVENT, "t", str(number).encode()))
            print(number, flush=True)
            number += 1
anyio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
    async with Outbox.open(tmp_path / "queue") as outbox:
        found = await sent_in_order(outbox)
    acknowledged = [int(line) for line in said if line.endswith("\n")]
    assert found[: len(acknowledged)] == acknowledged


async def test_a_full_disk_neither_raises_nor_loses_an_event_nor_repeats_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        await outbox.keep(message(0, Kind.EVENT))
        outbox._store._connection.execute("PRAGMA max_page_count = 1")
        await outbox.keep(message(1, Kind.EVENT, 100_000))
        assert "messages are kept in memory alone" in caplog.text
        assert await sent_in_order(outbox) == [0, 1]


async def test_what_a_failing_disk_does_not_delete_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Outbox.open(tmp_path / "queue") as outbox:
        for number in range(3):
            await outbox.keep(message(number, Kind.EVENT))

        def fails(_store: Store, _stored: Sequence[Stored]) -> bool:
            raise StoreError("read-only")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "remove", fails)
            for expected in range(3):
                batch = await outbox.take(1)
                assert numbers(batch.messages) == [expected]
                await outbox.settle(batch, [True])
            with anyio.move_on_after(0.2) as waiting:
                await outbox.take(1)
            assert waiting.cancelled_caught
        await outbox.keep(message(3, Kind.EVENT))
        assert numbers((await outbox.take(9)).messages) == [3]
        assert outbox.waiting == 1


async def test_without_room_the_oldest_telemetry_goes_and_no_event(tmp_path: Path) -> None:
    room = 50 * message(0).size_bytes
    async with Outbox.open(tmp_path / "queue", room) as outbox:
        for number in range(100):
            outbox.put(message(number, Kind.EVENT if number % 10 == 0 else Kind.TELEMETRY))
        await outbox.save()
        assert outbox.dropped == 50
        assert outbox.waiting_bytes <= room
        left = await sent_in_order(outbox)
    assert [number for number in left if number % 10 == 0] == list(range(0, 100, 10))
    assert [number for number in left if number % 10] == [number for number in range(55, 100) if number % 10][-40:]


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_broken_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    (tmp_path / "queue").write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        async with Outbox.open(tmp_path / "queue") as outbox:
            await outbox.keep(message(0, Kind.EVENT))
    assert "set aside as queue.broken" in caplog.text
    assert (tmp_path / "queue.broken").read_bytes() == damage


async def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derms_agent.mqtt.store.BUSY_TIMEOUT_S", 0.1)
    async with Outbox.open(tmp_path / "queue") as outbox:
        await outbox.keep(message(0, Kind.EVENT))
        with pytest.raises(StoreError, match=r"queue: database is locked"):
            Store(tmp_path / "queue", 1000)
    assert not (tmp_path / "queue.broken").exists()


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing/queue"):
        Store(tmp_path / "missing" / "queue", 1000)


async def test_an_event_is_synced_to_the_disk_and_telemetry_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue", 10**6)
    for kind, level in ((Kind.EVENT, 2), (Kind.TELEMETRY, 1), (Kind.ACK, 2)):
        store.append([message(0, kind)])
        assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == level
    store.close()
    assert sqlite3.connect(tmp_path / "queue").execute("PRAGMA journal_mode").fetchone()[0] == "wal"
