# SPDX-License-Identifier: Apache-2.0
"""What several packages of tests share: how long an example may take, and a real Mosquitto.

That is on loopback with TLS and client certificates; its subscribers are not the agent's own code.
"""

from __future__ import annotations

import getpass
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import is_hypothesis_test, settings
from paho.mqtt.enums import CallbackAPIVersion

from derms_agent.mqtt import TlsFiles

# A processor that is busy with other parts of the tests breaks no property. Examples are the same in every run, so that
# a change is judged by what it changes; `make explore` draws new ones.
settings.register_profile("derms", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("derms")

FEW_EXAMPLES = 5
WAITS_LONGEST = "test_service.py"
"""The tests of the service as a program wait, one after the other, for what takes its time in a depot."""

CONFIGURATION = """\
user {user}
listener {port} 127.0.0.1
cafile {pki}/ca.crt
certfile {pki}/broker.crt
keyfile {pki}/broker.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
allow_anonymous false
max_queued_messages 200000
max_inflight_messages 1000
queue_qos0_messages true
set_tcp_nodelay true
persistence true
persistence_location {state}/
"""
STARTS_WITHIN_S = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Have an option for a further Python: there a property asks whether its code runs, for its logic was tried."""
    parser.addoption("--few-examples", action="store_true", help=f"at most {FEW_EXAMPLES} examples of a property")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what waits longest, so that all else runs beside it."""
    items.sort(key=lambda item: item.path.name != WAITS_LONGEST)
    if config.getoption("few_examples"):
        for item in items:
            limit_examples(item)


def limit_examples(item: pytest.Item) -> None:
    """Let a property test draw few examples, whatever it says itself; Hypothesis has no public way to."""
    if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
        test = getattr(item.obj, "__func__", item.obj)
        own = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
        test._hypothesis_internal_use_settings = settings(own, max_examples=min(own.max_examples, FEW_EXAMPLES))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority, and certificates of it for the broker, a service and somebody else."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine (Debian: openssl)")
    directory = tmp_path_factory.mktemp("pki")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req", "-x509", *key, "-subj", "/CN=authority", "-keyout", f"{directory}/ca.key", "-out", f"{directory}/ca.crt"
    )
    for name, more in (("broker", "subjectAltName=DNS:localhost"), ("derms-orchestrator", ""), ("fms", "")):
        extensions = directory / f"{name}.ext"
        extensions.write_text(f"{more}\n", encoding="ascii")
        openssl(
            "req", *key, "-subj", f"/CN={name}", "-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.csr"
        )
        openssl(
            *("x509", "-req", "-in", f"{directory}/{name}.csr", "-CA", f"{directory}/ca.crt"),
            *("-CAkey", f"{directory}/ca.key", "-CAcreateserial", "-extfile", str(extensions)),
            *("-out", f"{directory}/{name}.crt"),
        )  # fmt: skip
    return directory


@dataclass
class Broker:
    """A Mosquitto that can be killed and started again on the same port."""

    program: str
    directory: Path
    pki: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}"

    def start(self) -> None:
        configuration = self.directory / "mosquitto.conf"
        configuration.write_text(
            CONFIGURATION.format(port=self.port, pki=self.pki, state=self.directory, user=getpass.getuser()),
            encoding="ascii",
        )
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, "-c", configuration], stdout=log, stderr=log)
        ends_s = time.monotonic() + STARTS_WITHIN_S
        while not self.answers():
            assert time.monotonic() < ends_s, (self.directory / "log").read_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def save(self) -> None:
        """Have it write down who has subscribed to what, so that it knows them after a kill."""
        assert self.process is not None
        written = self.directory / "mosquitto.db"
        written.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        ends_s = time.monotonic() + STARTS_WITHIN_S
        while not written.exists():
            assert time.monotonic() < ends_s, (self.directory / "log").read_text()
            time.sleep(0.02)


@pytest.fixture
def broker(tmp_path: Path, pki: Path) -> Iterator[Broker]:
    """Run a broker."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not on this machine (Debian: mosquitto)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Broker(program, tmp_path, pki, port)
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.kill()


@pytest.fixture
def tls(pki: Path) -> TlsFiles:
    return TlsFiles(pki / "derms-orchestrator.crt", pki / "derms-orchestrator.key", pki / "ca.crt")


@dataclass
class Peer:
    """Somebody else on the broker: remembers what comes, and publishes."""

    client: paho.Client
    messages: list[paho.MQTTMessage] = field(default_factory=list)

    def bodies(self, ending: str) -> list[dict[str, Any]]:
        return [json.loads(one.payload) for one in [*self.messages] if one.topic.endswith(ending)]

    def publish(self, topic: str, body: object, *, retain: bool = False) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body)
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5.0)


@pytest.fixture
def peer(broker: Broker, pki: Path) -> Iterator[Callable[[], Peer]]:
    """Return what connects a peer that has subscribed to all there is, and connects again by itself."""
    clients = []

    def connected() -> Peer:
        client = paho.Client(CallbackAPIVersion.VERSION2, "fms", clean_session=False)
        client.tls_set(str(pki / "ca.crt"), str(pki / "fms.crt"), str(pki / "fms.key"))
        client.reconnect_delay_set(1, 1)
        made = Peer(client)
        subscribed = threading.Event()

        def subscribe(*_: object) -> None:
            client.subscribe("derms/#", qos=1)

        client.on_connect = subscribe
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda _client, _userdata, message: made.messages.append(message)
        client.connect("localhost", broker.port)
        client.loop_start()
        assert subscribed.wait(5.0)
        clients.append(client)
        return made

    yield connected
    for client in clients:
        client.disconnect()
        client.loop_stop()
