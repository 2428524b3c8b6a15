# SPDX-License-Identifier: Apache-2.0
"""The client of the depot's broker: publishes what a service has to say, and takes requests.

MQTT 5 (OASIS, 2019), for a subscriber of 3.1.1 cannot tell a request that was kept by the broker from one that is sent
now (retain as published, 3.8.3.1). Each session begins anew: a request that had waited in the broker would be older
than its `valid_for` says, and what this client itself sends waits in its own outbox.
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
import ssl
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import anyio
import paho.mqtt.client as paho
from anyio import to_thread
from paho.mqtt.subscribeoptions import SubscribeOptions

from derms_agent.engine_log import tls_handshake_failure
from derms_agent.mqtt import requests, topics
from derms_agent.mqtt.anew import side_by_side
from derms_agent.mqtt.outbox import Outbox
from derms_agent.mqtt.requests import Json, Refusal, Request
from derms_agent.mqtt.store import Message
from derms_agent.mqtt.topics import Kind, Topic

LOG = logging.getLogger(__name__)

PORTS = {"mqtt": 1883, "mqtts": 8883}

IN_FLIGHT = 100
"""Messages that are under way to the broker at once (paho's own 20 makes a backlog wait for round trips)."""

KEEP_ALIVE_S = 10
"""The broker publishes the last will after one and a half times this without a word (MQTT 5.0, 3.1.2.10)."""

ANSWER_TIMEOUT_S = 10.0
"""How long the broker may take to acknowledge anything, before the connection is given up."""

FAREWELL_TIMEOUT_S = 2.0
FIRST_RETRY_S = 0.5
MOST_RETRY_S = 30.0
STEADY_AFTER_S = 10.0
"""A connection that stood for so long was a good one: the next delay is a short one again."""

REQUESTS_WAITING = 256
ANSWERS_REMEMBERED = 1000
USED = "id: found one that another request had, expected one that nobody has used, as a UUID is"

ONLINE, OFFLINE = (requests.encoded({"state": state}) for state in ("online", "offline"))
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a client certificate, its private key, and the authorities that the broker's must lead to."""

    certificate: Path
    private_key: Path
    authorities: Path
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3

    def context(self) -> ssl.SSLContext:
        """Read the files anew, for a certificate is renewed in its place. Raises OSError, ssl.SSLError included."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = self.minimum
        context.load_verify_locations(self.authorities)
        context.load_cert_chain(self.certificate, self.private_key)
        return context


def endpoint(url: str, *, with_tls: bool) -> tuple[str, int]:
    """Return host and port of a broker's URL. Raises ValueError."""
    expected = f"{'mqtts' if with_tls else 'mqtt'}://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise ValueError(f"found {url!r} ({problem}), expected {expected}") from None
    has_more = parts.path or parts.query or parts.fragment or parts.username is not None
    if not parts.hostname or has_more or parts.scheme != expected.partition(":")[0]:
        raise ValueError(f"found {url!r}, expected {expected}")
    return parts.hostname, port or PORTS[parts.scheme]


def retry_s(attempt: int, draw: float) -> float:
    """Return the delay before an attempt, counted from 0, in s: full jitter, `draw` being from 0 up to 1."""
    return min(MOST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempt, 16)) * draw


@dataclass(frozen=True)
class _Known:
    """A request that came: what it was, and what it was answered; None while it is being thought about."""

    digest: bytes
    answer: bytes | None = None


class WatchedClient(aiomqtt.Client):
    """aiomqtt's client, which has the loop watch a socket only while that is the connection's own.

    aiomqtt 2.5.1 lets the loop register a socket's number one turn after paho asked for it. A connection that breaks in
    between leaves a number that is closed, or that is another connection's by then: a charger's, say, which this client
    would be told of from then on.
    """

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        def watch() -> None:
            still = client.socket()
            if still is not None and still is sock:
                self._loop.add_writer(still.fileno(), client.loop_write)

        # paho may call from the thread that connects.
        self._loop.call_soon_threadsafe(watch)


class Publisher:
    """One service's connection to the broker. No method waits for the network, or fails because of it.

    `telemetry`, `state`, `event` and `acknowledge` raise TopicError for a class or id that no topic can be made of, and
    ValueError or TypeError for a body that is no JSON.
    """

    def __init__(
        self,
        url: str,
        tls: TlsFiles | None,
        client_id: str,
        depot: str,
        outbox: Outbox,
        *,
        takes_requests: bool = False,
    ) -> None:
        """Take the broker's URL (mqtts:// with `tls`, mqtt:// without), the service's name, and what it sends through.

        `client_id` is the common name of the service's certificate: the broker lets it say whether that service is
        there, and no other. Raises ValueError, TopicError included.
        """
        self._host, self._port = endpoint(url, with_tls=tls is not None)
        self._tls = tls
        self._client_id = client_id
        self._depot = depot
        self._outbox = outbox
        self._own_state = str(topics.service_state(depot, client_id))
        self._requests_filter = topics.requests_of(depot) if takes_requests else None
        self._states: dict[str, bytes] = {self._own_state: ONLINE}
        self._states_due: dict[str, None] = {}
        self._state_news = anyio.Event()
        # The requests that came, by topic and id; the oldest are forgotten first.
        self._known: OrderedDict[tuple[Topic, str], _Known] = OrderedDict()
        self._arrived, self._waiting = anyio.create_memory_object_stream[Request](REQUESTS_WAITING)
        self.connected = False
        """Whether the broker answers now."""

    async def telemetry(self, class_: str, id: str, body: Json) -> None:  # noqa: A002 - the topic's own word
        """Publish a reading, at most once. The body says when it was taken, for it may wait here."""
        self._outbox.put(self._message(Topic(self._depot, class_, id, Kind.TELEMETRY), body))

    async def state(self, class_: str, id: str, body: Json) -> None:  # noqa: A002
        """Publish what a thing is now. The broker keeps it for who comes later; of several, the last one counts."""
        topic = str(Topic(self._depot, class_, id, Kind.STATE))
        self._states[topic] = requests.encoded(body)
        self._states_due[topic] = None
        self._state_news.set()

    async def event(self, class_: str, id: str, body: Json) -> str:  # noqa: A002
        """Publish what happened, at least once; return when it is on disk.

        Return its `id`, the body's own or a new one: whoever gets an event twice knows it by that.
        """
        body = {"id": str(uuid.uuid4()), **body}
        await self._outbox.keep(self._message(Topic(self._depot, class_, id, Kind.EVENT), body))
        return str(body["id"])

    async def acknowledge(self, request: Request, *, accepted: bool, **more: object) -> None:
        """Answer a request, at least once: whether it is accepted, and whatever else its sender is to know."""
        answer = requests.encoded({"id": request.id, "accepted": accepted, **more})
        if (known := self._known.get((request.topic, request.id))) is not None:
            self._remember(request.topic, request.id, _Known(known.digest, answer))
        await self._send_answer(request.topic, answer)

    async def requests(self) -> AsyncIterator[Request]:
        """Yield each request once, though it may come twice. It may have expired while it waited here."""
        async for request in self._waiting:
            yield request

    async def run(self) -> None:
        """Stay connected and send what waits, until cancelled; then say that the service is gone."""
        await side_by_side(self._outbox.save_regularly, self._stay_connected)

    def _message(self, topic: Topic, body: Json) -> Message:
        return Message(topic.kind, str(topic), requests.encoded(body))

    async def _stay_connected(self) -> None:
        attempt, said = 0, ""
        while True:
            started_s = time.monotonic()
            try:
                async with self._connection() as client:
                    LOG.info("connected to the broker at %s:%d; %d wait", self._host, self._port, self._outbox.waiting)
                    said = ""
                    await self._serve(client)
            except (aiomqtt.MqttError, OSError) as problem:
                words = str(problem) or type(problem).__name__
                if words != said:
                    self._say_gone(problem, words)
                said = words
            finally:
                self.connected = False
            if time.monotonic() - started_s > STEADY_AFTER_S:
                attempt = 0
            await anyio.sleep(retry_s(attempt, random.random()))  # noqa: S311 - no secret
            attempt += 1

    def _say_gone(self, problem: Exception, words: str) -> None:
        """Say why there is no broker; aiomqtt's exceptions have the connection's own as their context."""
        if isinstance(problem, ssl.SSLError) or isinstance(problem.__context__, ssl.SSLError):
            tls_handshake_failure(f"broker {self._host}:{self._port}", words).log(LOG)
        else:
            LOG.warning("no broker at %s:%d: %s", self._host, self._port, words)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiomqtt.Client]:
        """Connect, and on leaving say farewell if there is still somebody to hear it. Raises MqttError, OSError."""
        context = await to_thread.run_sync(self._tls.context) if self._tls else None
        client = WatchedClient(
            self._host,
            self._port,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            will=aiomqtt.Will(self._own_state, OFFLINE, qos=1, retain=True),
            tls_context=context,
            timeout=ANSWER_TIMEOUT_S,
            keepalive=KEEP_ALIVE_S,
            max_inflight_messages=IN_FLIGHT,
            socket_options=[NO_DELAY],
        )
        client.pending_calls_threshold = 2 * IN_FLIGHT
        stack = AsyncExitStack()
        await stack.enter_async_context(client)
        self.connected = True
        try:
            yield client
        except anyio.get_cancelled_exc_class():
            # In place of the will, which a client that says goodbye takes back.
            with anyio.move_on_after(FAREWELL_TIMEOUT_S, shield=True), suppress(aiomqtt.MqttError):
                await client.publish(self._own_state, OFFLINE, qos=1, retain=True)
            raise
        finally:
            with anyio.move_on_after(FAREWELL_TIMEOUT_S, shield=True), suppress(aiomqtt.MqttError):
                await stack.aclose()

    async def _serve(self, client: aiomqtt.Client) -> None:
        """Send and receive until the connection breaks. Raises MqttError."""
        self._states_due = dict.fromkeys(self._states)
        await side_by_side(*(partial(part, client) for part in (self._receive, self._send_states, self._send_outbox)))

    async def _send_states(self, client: aiomqtt.Client) -> None:
        while True:
            news = self._state_news = anyio.Event()
            due, self._states_due = [*self._states_due], {}
            for first in range(0, len(due), IN_FLIGHT):
                # What breaks off here is sent again, with all other states, over the next connection.
                topics_due = due[first : first + IN_FLIGHT]
                await _all(client.publish(topic, self._states[topic], qos=1, retain=True) for topic in topics_due)
            if not due:
                await news.wait()

    async def _send_outbox(self, client: aiomqtt.Client) -> None:
        while True:
            batch = await self._outbox.take(IN_FLIGHT)
            sent = [False] * len(batch.messages)

            async def send(index: int, message: Message, sent: list[bool] = sent) -> None:
                await client.publish(message.topic, message.payload, qos=1 if message.kept else 0)
                sent[index] = True

            try:
                await _all(send(index, message) for index, message in enumerate(batch.messages))
            finally:
                with anyio.CancelScope(shield=True):
                    await self._outbox.settle(batch, sent)

    async def _receive(self, client: aiomqtt.Client) -> None:
        """Take requests; also where nobody asks for any, for this is what sees the connection break."""
        if self._requests_filter is not None:
            await client.subscribe(self._requests_filter, options=SubscribeOptions(qos=1, retainAsPublished=True))
        async for message in client.messages:
            try:
                topic = topics.parsed(str(message.topic))
            except topics.TopicError as problem:
                LOG.warning("not taken for a request: %s", problem)
                continue
            payload = message.payload if isinstance(message.payload, bytes) else b""
            await self._judge(topic, payload, retained=message.retain)

    async def _judge(self, topic: Topic, payload: bytes, *, retained: bool) -> None:
        judged = requests.judged(topic, payload, retained=retained, now_s=time.monotonic())
        digest = hashlib.sha256(payload).digest()
        known = None if judged.id is None else self._known.get((topic, judged.id))
        if known is not None and known.digest == digest:
            # Sent again, because the answer was late or got lost.
            if known.answer is not None:
                await self._send_answer(topic, known.answer)
            return
        if judged.id is not None and known is not None:
            # Somebody else may have sent that one, and what was answered to it is no answer to this.
            judged = Refusal(USED, judged.id)
        if isinstance(judged, Request):
            try:
                self._arrived.send_nowait(judged)
            except anyio.WouldBlock:
                judged = Refusal(f"busy: {REQUESTS_WAITING} requests wait already", judged.id)
            else:
                self._remember(topic, judged.id, _Known(digest))
        if isinstance(judged, Refusal):
            LOG.warning("refused a request at %s: %s", topic, judged.reason)
            if judged.id is not None:
                answer = {"id": judged.id, "accepted": False, "reason": judged.reason}
                await self._send_answer(topic, requests.encoded(answer))

    async def _send_answer(self, topic: Topic, answer: bytes) -> None:
        await self._outbox.keep(Message(Kind.ACK, str(requests.answer_topic(topic)), answer))

    def _remember(self, topic: Topic, id_: str, known: _Known) -> None:
        self._known[topic, id_] = known
        self._known.move_to_end((topic, id_))
        while len(self._known) > ANSWERS_REMEMBERED:
            self._known.popitem(last=False)


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Begin calls in their order, wait until all have ended, and raise the first exception of any."""
    problems: list[Exception] = []

    async def call(one: Awaitable[None]) -> None:
        try:
            await one
        except Exception as problem:  # noqa: BLE001 - raised below
            problems.append(problem)

    async with anyio.create_task_group() as tasks:
        for one in calls:
            tasks.start_soon(call, one)
    if problems:
        raise problems[0]
