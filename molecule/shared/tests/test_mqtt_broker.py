# SPDX-License-Identifier: GPL-3.0-or-later
"""The MQTT broker as its clients meet it, over the network and on the gateway, each with its own certificate."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from conftest import Gateway
from paho.mqtt.enums import CallbackAPIVersion

PORT = 8883
DEPOT = "derms/v1/molecule"
# This machine's address in derms_internal_blocks.
INTERNAL = "10.213.8.2"
ANSWER_S = 5.0
SILENCE_S = 1.0


@pytest.fixture(scope="module", autouse=True)
def without_the_agent(root: Any) -> Iterator[None]:
    """Stop what publishes by itself: these tests tell who may say what by all that is said."""
    root.check_output("systemctl stop derms-orchestrator derms-grid-gateway")
    yield
    root.check_output("systemctl start derms-orchestrator derms-grid-gateway")


@pytest.fixture(scope="module")
def pki(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what the depot's authority has issued, and add a client that another authority vouches for."""
    issued = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "pki"
    directory = tmp_path_factory.mktemp("pki")
    shutil.copy(issued / "ca.crt", directory)
    for file in (issued / gateway.name).iterdir():
        shutil.copy(file, directory)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", directory / "stranger.key")
    certificate = ("-x509", "-subj", "/CN=derms-orchestrator", "-out", directory / "stranger.crt")
    subprocess.run(["openssl", "req", *key, *certificate], check=True, capture_output=True)
    return directory


def context(pki: Path, name: str | None) -> ssl.SSLContext:
    """Return what a client of that certificate, or of none, goes by."""
    made = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    if name is not None:
        made.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    return made


class Client:
    """A client on the network."""

    def __init__(self, gateway: Gateway, tls: ssl.SSLContext, name: str = "", *, keeps_session: bool = False) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, name or None, clean_session=not keeps_session)
        self.client.tls_set_context(tls)
        self.client.max_inflight_messages_set(1000)
        self.topics: list[str] = []
        self.payloads: list[bytes] = []
        self.connected, self.subscribed = threading.Event(), threading.Event()
        self.client.on_connect = lambda *_: self.connected.set()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._take
        self.client.connect(gateway.addresses[4], PORT, bind_address=INTERNAL)
        self.client.loop_start()
        assert self.connected.wait(ANSWER_S)

    def _take(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        if message.retain:  # said by the agent before these tests, and kept for whoever subscribes
            return
        self.topics.append(message.topic)
        self.payloads.append(bytes(message.payload))

    def subscribe(self, topic: str) -> None:
        self.subscribed.clear()
        self.client.subscribe(topic, qos=1)
        assert self.subscribed.wait(ANSWER_S)

    def publish(self, topic: str, payload: str = "{}") -> None:
        self.client.publish(topic, payload, qos=1).wait_for_publish(ANSWER_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def connect(gateway: Gateway, pki: Path) -> Iterator[Callable[..., Client]]:
    """Return what connects a client by the name of its certificate."""
    clients: list[Client] = []

    def connected(certificate: str, **options: Any) -> Client:
        clients.append(Client(gateway, context(pki, certificate), **options))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


PUBLISHES = {
    "orchestrator": {"charger/c1/telemetry", "charger/c1/state", "charger/c1/event", "charger/c1/ack"}
    | {"service/derms-orchestrator/state"},
    "grid-gateway": {"grid-gateway/ven/event", "service/derms-grid-gateway/state"},
    "historian": {"service/derms-historian/state"},
    "web": {"service/derms-web/state"},
    "fms": {"charger/c1/request", "service/fms/state"},
}
TOPICS = sorted(set().union(*PUBLISHES.values()))
READS = {
    "orchestrator": {"charger/c1/request"},
    "grid-gateway": set(),
    "historian": {*TOPICS},
    "web": {*TOPICS},
    "fms": {"charger/c1/ack"},
}


def of_depot(topics: list[str]) -> set[str]:
    return {topic.removeprefix(f"{DEPOT}/") for topic in topics}


@pytest.mark.parametrize("name", PUBLISHES)
def test_each_client_publishes_its_own_topics_and_no_other(connect: Callable[..., Client], name: str) -> None:
    witness, speaker = connect("historian"), connect(name)
    witness.subscribe("derms/#")
    for topic in TOPICS:
        speaker.publish(f"{DEPOT}/{topic}")
    speaker.publish("derms/v1/another-depot/charger/c1/state")
    time.sleep(SILENCE_S)
    assert of_depot(witness.topics) == PUBLISHES[name]
    witness.close()


@pytest.mark.parametrize("name", READS)
def test_each_client_reads_its_own_topics_and_no_other(connect: Callable[..., Client], name: str) -> None:
    reader, speakers = connect(name), [connect(each) for each in PUBLISHES]
    reader.subscribe("#")
    for speaker in speakers:
        for topic in TOPICS:
            speaker.publish(f"{DEPOT}/{topic}")
    time.sleep(SILENCE_S)
    assert of_depot(reader.topics) == READS[name]
    for client in (reader, *speakers):
        client.close()


@pytest.mark.parametrize("name", [None, "stranger"])
def test_without_a_certificate_of_the_depots_authority_nobody_gets_in(
    gateway: Gateway, pki: Path, name: str | None
) -> None:
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        Client(gateway, context(pki, name))


def test_tls_1_2_is_refused(gateway: Gateway, pki: Path) -> None:
    older = context(pki, "orchestrator")
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        Client(gateway, older)


def test_a_stalled_reader_loses_nothing(connect: Callable[..., Client]) -> None:
    """A reader takes nothing for 3 s of 15,000 messages of QoS 1 at 3,000 a second."""
    total, rate_hz, stall_s = 15_000, 3000, 3.0
    reader, speaker = connect("historian"), connect("orchestrator")
    reader.subscribe(f"{DEPOT}/meter/busy/event")
    stalled = threading.Event()
    take = reader.client.on_message

    def stall_first(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if not stalled.is_set():
            stalled.set()
            time.sleep(stall_s)
        assert take is not None
        take(client, userdata, message)

    reader.client.on_message = stall_first
    started_s = time.monotonic()
    for number in range(total):
        speaker.client.publish(f"{DEPOT}/meter/busy/event", f"{number:0200d}", qos=1)
        if number % 100 == 99:
            time.sleep(max(0.0, started_s + number / rate_hz - time.monotonic()))
    ends_s = time.monotonic() + 60.0
    while len(reader.payloads) < total and time.monotonic() < ends_s:
        time.sleep(0.1)
    assert stalled.is_set()
    assert [int(payload) for payload in reader.payloads] == list(range(total))
    reader.close()


def test_a_reader_that_was_away_gets_what_it_missed_after_a_restart_too(
    connect: Callable[..., Client], root: Any
) -> None:
    # A session that begins anew ends one that an earlier run has left.
    connect("historian", name="away").close()
    reader = connect("historian", keeps_session=True, name="away")
    reader.subscribe(f"{DEPOT}/meter/quiet/event")
    reader.close()
    speaker = connect("orchestrator")
    for number in range(200):
        speaker.publish(f"{DEPOT}/meter/quiet/event", str(number))
    speaker.close()
    root.check_output("systemctl restart mosquitto")
    back = connect("historian", keeps_session=True, name="away")
    ends_s = time.monotonic() + ANSWER_S
    while len(back.payloads) < 200 and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert [int(payload) for payload in back.payloads] == list(range(200))
    back.close()


def test_the_brokers_key_is_its_users_alone(root: Any) -> None:
    # Owned by the user, or root's with an entry for the user, by the release of systemd.
    held = root.check_output("stat -c '%a %U' /run/credentials/mosquitto.service/broker.key")
    assert held in ("400 mosquitto", "440 root")
    pid = root.check_output("systemctl show --property=MainPID --value mosquitto")
    assert root.check_output("ps -o user= -p %s", pid) == "mosquitto"
    assert not root.check_output("grep -rl 'PRIVATE KEY' /etc/mosquitto || true")


def test_it_logs_where_the_services_do(root: Any) -> None:
    assert "running" in root.check_output("journalctl --namespace=derms --unit=mosquitto --no-pager --output=cat")


def test_it_is_confined_and_listens_on_its_port_alone(root: Any) -> None:
    exposure = root.check_output("systemd-analyze security --no-pager mosquitto | tail -n 1")
    assert float(exposure.split(":")[1].split()[0]) <= 2.0
    sockets = root.check_output("ss --listening --tcp --numeric --processes --no-header | grep mosquitto")
    assert {line.split()[3].rpartition(":")[2] for line in sockets.splitlines()} == {str(PORT)}


def test_it_runs_at_boot(root: Any) -> None:
    assert root.service("mosquitto").is_enabled
    assert root.service("mosquitto").is_running
