# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import paho.mqtt.client as paho
import pytest
from anyio import to_thread
from paho.mqtt.enums import CallbackAPIVersion

from derms_agent.mqtt import Kind, Outbox, Publisher, Request, TlsFiles, Topic
from derms_agent.mqtt.publisher import WatchedClient

if TYPE_CHECKING:
    from agent.tests.conftest import Broker, Peer

pytestmark = pytest.mark.anyio

WITHIN_S = 60.0
MADE_OF = "derms/v1/north/charger/c1"
OWN_STATE = "derms/v1/north/service/derms-orchestrator/state"


@asynccontextmanager
async def publishing(url: str, tls: TlsFiles, directory: Path, **options: Any) -> AsyncIterator[Publisher]:
    async with Outbox.open(directory / "queue") as outbox:
        publisher = Publisher(url, tls, "derms-orchestrator", "north", outbox, **options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publisher.run)
            yield publisher
            tasks.cancel_scope.cancel()


async def until(true: Callable[[], object], within_s: float = WITHIN_S) -> None:
    with anyio.fail_after(within_s):
        while not true():
            await anyio.sleep(0.02)


async def test_each_kind_arrives_as_it_is_meant(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    seen = peer()
    async with publishing(broker.url, tls, tmp_path) as publisher:
        await until(lambda: publisher.connected)
        await publisher.telemetry("charger", "c1", {"power_w": 7400})
        await publisher.state("charger", "c1", {"state": "charging"})
        event_id = await publisher.event("charger", "c1", {"what": "plugged"})
        await until(lambda: seen.bodies("c1/event"))
        await until(lambda: seen.bodies("c1/state"))
        await until(lambda: seen.bodies("c1/telemetry"))
        assert seen.bodies("c1/event") == [{"id": event_id, "what": "plugged"}]
        qos = {one.topic.rpartition("/")[2]: one.qos for one in seen.messages if one.topic.startswith(MADE_OF)}
        assert qos == {"telemetry": 0, "state": 1, "event": 1}
        # Whoever subscribes now gets what is kept, and nothing else.
        seen.messages.clear()
        seen.client.subscribe("derms/#", qos=1)
        await until(lambda: len(seen.messages) >= 2)
        assert {one.topic for one in seen.messages if one.retain} == {f"{MADE_OF}/state", OWN_STATE}


async def test_events_and_telemetry_of_an_outage_arrive_in_order_after_it(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    """Ten minutes of 50 readings a second and an event each second, while the broker is away."""
    async with publishing(broker.url, tls, tmp_path) as publisher:
        await until(lambda: publisher.connected)
        await to_thread.run_sync(broker.kill)
        await until(lambda: not publisher.connected)
        for second in range(600):
            for reading in range(50):
                await publisher.telemetry("charger", "c1", {"n": second * 50 + reading})
            await publisher.event("charger", "c1", {"id": str(second)})
        broker.start()
        seen = await to_thread.run_sync(peer)
        await until(lambda: len(seen.messages) >= 30_600 and not publisher._outbox.waiting, within_s=180.0)
    assert [body["n"] for body in seen.bodies("c1/telemetry")] == list(range(30_000))
    assert [body["id"] for body in seen.bodies("c1/event")] == [str(second) for second in range(600)]


async def test_every_event_arrives_though_the_broker_restarts_again_and_again(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    """The subscriber's session is kept, so that what it has not seen at a restart is the broker's to keep."""
    seen = await to_thread.run_sync(peer)
    number = 0
    async with publishing(broker.url, tls, tmp_path) as publisher:
        for _ in range(4):
            await until(lambda: publisher.connected)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, broker.stop)
                for _ in range(200):
                    await publisher.event("charger", "c1", {"id": str(number)})
                    number += 1
            broker.start()
        await until(lambda: len({body["id"] for body in seen.bodies("c1/event")}) == number)
        await until(lambda: not publisher._outbox.waiting)
    first_seen = list(dict.fromkeys(body["id"] for body in seen.bodies("c1/event")))
    assert first_seen == [str(each) for each in range(number)]


async def test_a_connection_that_broke_is_not_watched_under_a_number_that_another_has_by_then() -> None:
    """Paho asks to be told when its socket takes more; the connection breaks before the loop gets to it."""
    client = WatchedClient("localhost")
    theirs, broker_end = socket.socketpair()
    gone = paho.Client(CallbackAPIVersion.VERSION2)  # its connection broke: it has no socket
    client._on_socket_register_write(gone, None, theirs)
    number = theirs.fileno()
    theirs.close()
    charger, charger_end = socket.socketpair()
    with broker_end, charger, charger_end:
        assert charger.fileno() == number
        await anyio.sleep(0.01)
        assert not asyncio.get_running_loop().remove_writer(number)


async def test_what_the_broker_acknowledged_is_all_there_was(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    seen = await to_thread.run_sync(peer)
    async with publishing(broker.url, tls, tmp_path) as publisher:
        for number in range(300):
            await publisher.event("charger", "c1", {"id": str(number)})
        await until(lambda: len(seen.bodies("c1/event")) == 300)
        await until(lambda: publisher._outbox.waiting == 0)
        assert [body["id"] for body in seen.bodies("c1/event")] == [str(number) for number in range(300)]


async def test_the_will_is_published_when_the_process_is_killed(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    seen = await to_thread.run_sync(peer)
    program = f"""
import anyio, pathlib
from derms_agent.mqtt import Outbox, Publisher, TlsFiles
async def main():
    async with Outbox.open(pathlib.Path({str(tmp_path / "queue")!r})) as outbox:
        tls = TlsFiles(*map(pathlib.Path, {[str(tls.certificate), str(tls.private_key), str(tls.authorities)]!r}))
        await Publisher({broker.url!r}, tls, "derms-orchestrator", "north", outbox).run()
anyio.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        await until(lambda: seen.bodies("derms-orchestrator/state") == [{"state": "online"}])
    finally:
        process.kill()
        process.wait()
    await until(lambda: seen.bodies("derms-orchestrator/state") == [{"state": "online"}, {"state": "offline"}])


async def test_a_service_that_stops_says_so_itself(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    seen = await to_thread.run_sync(peer)
    async with publishing(broker.url, tls, tmp_path) as publisher:
        await until(lambda: seen.bodies("derms-orchestrator/state"))
        assert publisher.connected
    await until(lambda: seen.bodies("derms-orchestrator/state")[-1] == {"state": "offline"}, 5.0)


async def test_states_are_published_anew_to_a_broker_that_has_forgotten_them(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    async with publishing(broker.url, tls, tmp_path) as publisher:
        await publisher.state("charger", "c1", {"state": "idle"})
        await until(lambda: publisher.connected)
        await to_thread.run_sync(broker.kill)
        await until(lambda: not publisher.connected)
        await publisher.state("charger", "c1", {"state": "charging"})
        broker.start()
        seen = await to_thread.run_sync(peer)
        await until(lambda: seen.bodies("c1/state"))
        await until(lambda: seen.bodies("derms-orchestrator/state"))
        assert seen.bodies("c1/state") == [{"state": "charging"}]


async def test_a_request_is_handed_over_once_and_each_repeat_is_answered(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer]
) -> None:
    seen = await to_thread.run_sync(peer)
    taken: list[Request] = []
    async with (
        publishing(broker.url, tls, tmp_path, takes_requests=True) as publisher,
        anyio.create_task_group() as tasks,
    ):

        async def take() -> None:
            async for request in publisher.requests():
                taken.append(request)
                await publisher.acknowledge(request, accepted=True, limit_kw=50)

        tasks.start_soon(take)
        await until(lambda: seen.bodies("derms-orchestrator/state"))
        await anyio.sleep(0.3)
        for _ in range(3):
            await to_thread.run_sync(seen.publish, f"{MADE_OF}/request", {"id": "7", "valid_for": 30, "limit_kw": 50})
        await until(lambda: len(seen.bodies("c1/ack")) == 3)
        assert [(one.id, one.valid_for_s, one.body["limit_kw"]) for one in taken] == [("7", 30.0, 50)]
        assert seen.bodies("c1/ack") == [{"id": "7", "accepted": True, "limit_kw": 50}] * 3
        tasks.cancel_scope.cancel()


async def test_an_id_that_another_request_had_is_refused_and_the_first_ones_answer_stays_its_own(
    tmp_path: Path,
) -> None:
    """Nothing tells who sent a request: two senders may both count from 1."""
    topic = Topic("north", "site", "north", Kind.REQUEST)
    async with Outbox.open(tmp_path / "queue") as outbox:
        publisher = Publisher("mqtt://localhost:1", None, "derms-orchestrator", "north", outbox, takes_requests=True)

        async def answers(body: dict[str, object]) -> list[dict[str, Any]]:
            await publisher._judge(topic, json.dumps(body).encode(), retained=False)
            with suppress(anyio.WouldBlock):
                request = publisher._waiting.receive_nowait()
                await publisher.acknowledge(request, accepted=True, limit_kw=request.body["limit_kw"])
            batch = await outbox.take(10)
            await outbox.settle(batch, [True] * len(batch.messages))
            return [json.loads(one.payload) for one in batch.messages]

        first: dict[str, object] = {"id": "1", "valid_for": 30, "limit_kw": 50}
        accepted = [{"id": "1", "accepted": True, "limit_kw": 50}]
        assert await answers(first) == accepted
        (refused,) = await answers({**first, "limit_kw": 20})
        assert refused["accepted"] is False
        assert "one that another request had" in refused["reason"]
        assert await answers(first) == accepted
        # What was never taken holds no id.
        assert (await answers({**first, "id": "2", "valid_for": -1}))[0]["accepted"] is False
        assert (await answers({**first, "id": "2"}))[0]["accepted"] is True


@pytest.mark.parametrize("before", [True, False])
async def test_a_retained_request_is_refused_whether_it_waited_or_comes_now(
    broker: Broker, tls: TlsFiles, tmp_path: Path, peer: Callable[[], Peer], before: bool
) -> None:
    seen = await to_thread.run_sync(peer)

    def ask() -> None:
        seen.publish(f"{MADE_OF}/request", {"id": "7", "valid_for": 30}, retain=True)

    if before:
        await to_thread.run_sync(ask)
    async with publishing(broker.url, tls, tmp_path, takes_requests=True) as publisher:
        await until(lambda: seen.bodies("derms-orchestrator/state"))
        await anyio.sleep(0.3)
        if not before:
            await to_thread.run_sync(ask)
        await until(lambda: seen.bodies("c1/ack"))
        assert seen.bodies("c1/ack")[0]["accepted"] is False
        assert "retained" in seen.bodies("c1/ack")[0]["reason"]
        assert publisher._waiting.statistics().current_buffer_used == 0


async def test_nothing_blocks_or_raises_where_there_is_no_broker(
    tls: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with publishing("mqtts://localhost:1", tls, tmp_path) as publisher:
        with anyio.fail_after(2.0):
            await publisher.telemetry("charger", "c1", {})
            await publisher.state("charger", "c1", {})
            await publisher.event("charger", "c1", {})
        await until(lambda: "no broker at localhost:1" in caplog.text, 5.0)
        assert not publisher.connected


async def test_a_broker_that_speaks_no_tls_1_3_is_not_spoken_to(
    tls: TlsFiles, tmp_path: Path, pki: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = ("-cert", pki / "broker.crt", "-key", pki / "broker.key")
    command = ("openssl", "s_server", "-tls1_2", "-quiet", "-accept", f"127.0.0.1:{port}", *files)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        async with publishing(f"mqtts://localhost:{port}", tls, tmp_path) as publisher:
            await until(lambda: "protocol version" in caplog.text.lower(), 20.0)
            assert not publisher.connected
        server.kill()
    assert f"TLS Handshake Failure broker localhost:{port}: " in caplog.text
