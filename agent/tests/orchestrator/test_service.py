# SPDX-License-Identifier: Apache-2.0
"""The orchestrator as a program: against the twin's devices, over real sockets, killed and started again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from derms_agent import depot as depots
from derms_agent.depot import examine
from derms_agent.depot.plain import depot_document
from derms_agent.device_state import looking, run
from derms_agent.device_state.registers import converged
from derms_agent.document_store import Latest, Store
from derms_agent.drivers.bus_lock import Locked, buses_locked
from derms_agent.orchestrator.broadcast import CLIENT_ID, TELEMETRY_S
from derms_agent.orchestrator.report import stamp
from derms_agent.orchestrator.store import ASKS, ASKS_JOURNAL, JOURNAL, LEDGER
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError
from derms_agent.twin import Rehearsal

if TYPE_CHECKING:
    from agent.tests.conftest import Broker, Peer

KILLS = int(os.environ.get("DERMS_KILLS", "4"))
KILLED_WITHIN_S = 0.02
"""Of a limit's being put: about as long as it takes to be stored and answered."""
SLACK_W = 300.0
FOLLOW_S = 20.0
START_S = 120.0
"""For how long a start is waited for: three seconds of processor time, of which a busy machine gives little."""
CHARGERS = 4
SITE_KVA = 28
SITE_W = 1000 * SITE_KVA
SHED_W = 0.2 * SITE_W
"""So little that each charger comes down: one of them gets the rest, the others nothing."""
FAILSAFE_AT = 262
LIMIT_AT = 261
"""Where a charger takes its limit, in 0.1 A."""
DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {{limit_kva: {site_kva}, default_limit_kw: 12}}
gateways:
  gateway-1: {{address: 127.0.0.1}}
circuits:
  main: {{voltage_v: 400, rating_a: 100, base_load_a: 10, allocator: gateway-1}}
buses:
{buses}
devices:
  charger-[1:4]:
    bus: "bus-[1:4]"
    unit_id: 1
    profile: heidelberg_energy_control
    circuit: main
    settings: {{failsafe_current: 6, failsafe_timeout: 15, standby: prevented}}
    evses: {{rating_a: 16}}
  icu: {{bus: icu, unit_id: 1, profile: sunspec_der, circuit: main}}
meters:
  grid: {{bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}}
"""
AGENT = (sys.executable, "-c", "import sys; from derms_agent.cli import main; sys.exit(main())")
TWIN = (sys.executable, "-c", "import sys; from derms_agent.twin.cli import main; sys.exit(main())")
SINGLE_THREADED = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def within(seconds: float, what: Callable[[], bool], every_s: float = 0.2) -> None:
    until_s = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until_s, f"not within {seconds} s"
        time.sleep(every_s)


@dataclass
class Field:
    """The devices, as they physically are."""

    depot: Path
    control: Path

    def send(self, command: dict[str, Any]) -> Any:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(5)
            wire.connect(str(self.control))
            wire.sendall(json.dumps(command).encode() + b"\n")
            received = b""
            while not received.endswith(b"\n"):
                chunk = wire.recv(65536)
                assert chunk, "the twin hung up"
                received += chunk
        return json.loads(received)

    def evses(self) -> dict[str, Any]:
        found: dict[str, Any] = self.send({"status": True})["evses"]
        return found

    def drawn_w(self) -> float:
        return float(sum(one["current_a"] * 3 * 230.94 for one in self.evses().values()))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    directory = tmp_path_factory.mktemp("field")
    ports = free_ports(CHARGERS + 2)
    names = [*(f"bus-{number}" for number in range(1, CHARGERS + 1)), "icu", "meter"]
    buses = "\n".join(
        f"  {name}: {{gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: {port}}}"
        for name, port in zip(names, ports, strict=True)
    )
    depot = directory / "depot.yml"
    depot.write_text(DEPOT.format(site_kva=SITE_KVA, buses=buses), encoding="utf-8")
    scenario = directory / "scenario.yml"
    scenario.write_text("arrivals: none\nbase_load_share: 0.0\n", encoding="utf-8")
    control, log = directory / "twin.sock", directory / "twin.log"
    command = [*TWIN, str(depot), "--control", str(control), "--scenario", str(scenario)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        within(20, lambda: "\nready" in log.read_text(encoding="utf-8") or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield Field(depot, control)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)


@pytest.fixture
def charging(played: Field) -> Iterator[Field]:
    """Plug a vehicle in at each charger; nothing else is wrong."""
    played.send({"clear": "all"})
    for number in range(1, CHARGERS + 1):
        vehicle = {"soc_percent": 20, "capacity_kwh": 75, "power_kw": 11, "phases": 3, "lag_s": 1}
        played.send({"plug_in": f"charger-{number}", **vehicle})
    yield played
    for number in range(1, CHARGERS + 1):
        played.send({"unplug": f"charger-{number}"})
    played.send({"clear": "all"})


@dataclass
class Orchestrator:
    """The service with its files in one directory."""

    directory: Path
    depot: Path
    process: subprocess.Popen[str] | None = None
    notified: list[str] = field(default_factory=list)
    credentials: Path | None = None

    def __post_init__(self) -> None:
        self.configure()
        (self.directory / "limits.conf").write_text(f"SITE_LIMIT_KVA={SITE_KVA}\n", encoding="utf-8")

    def configure(self, **more: str) -> None:
        lines = {
            "GATEWAY": "gateway-1",
            "DEPOT": self.depot,
            "ENGINE_LOG": self.directory / "engine.log",
            "STATE_DIRECTORY": self.directory,
            "SOCKET": self.socket,
            "CONTROL_PEERS": "root",
            **more,
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (self.directory / "agent.conf").write_text(text, encoding="utf-8")

    @property
    def socket(self) -> Path:
        return self.directory / "o.sock"

    def command(self) -> list[str]:
        files = (str(self.directory / "agent.conf"), "--limits-conf", str(self.directory / "limits.conf"))
        return [*AGENT, "orchestrator", "--agent-conf", *files]

    def start(self) -> None:
        address = self.directory / "notify.sock"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(address))
            told.settimeout(START_S)
            environment = {**SINGLE_THREADED, "NOTIFY_SOCKET": str(address)}
            if self.credentials is not None:
                environment["CREDENTIALS_DIRECTORY"] = str(self.credentials)
            with (self.directory / "stderr").open("a", encoding="utf-8") as output:
                self.process = subprocess.Popen(self.command(), env=environment, stderr=output, text=True)
            while not any("READY=1" in one for one in self.notified):
                self.notified.append(told.recv(4096).decode())
        # A cycle has fed it, and nothing else does.
        assert any("WATCHDOG=1" in one for one in self.notified)
        self.notified.clear()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout=15)
        self.process = None
        return status

    def ask(self, verb: str, **arguments: Any) -> Any:
        with Client(self.socket) as client:
            return client.ask(verb, **arguments)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")
        return found

    def setpoints_a(self) -> dict[str, float]:
        return {one["name"]: one["setpoint_a"] for one in self.status()["evses"]}

    def settle(self, field: Field) -> None:
        """Wait until vehicles charge at what the site allows, whatever they drew before anybody controlled them."""

        def settled() -> bool:
            site = self.status()["site"]
            return bool(site["evse_power_w"] > 0.8 * SITE_W and site["counted_w"] <= SITE_W + 1)

        within(60, settled)
        assert field.drawn_w() <= SITE_W + SLACK_W

    def log(self) -> str:
        return (self.directory / "engine.log").read_text(encoding="utf-8")


@pytest.fixture
def orchestrator(tmp_path: Path, charging: Field) -> Iterator[Orchestrator]:
    one = Orchestrator(tmp_path, charging.depot)
    yield one
    if one.process is not None:
        one.process.kill()
        one.process.wait()


def test_vehicles_charge_under_the_limit_and_come_down_when_asked(orchestrator: Orchestrator, charging: Field) -> None:
    orchestrator.start()
    orchestrator.settle(charging)
    assert charging.drawn_w() <= SITE_W + SLACK_W
    report = orchestrator.status()
    assert report["ready"] is True
    assert all(one["vehicle"] and one["why"] for one in report["evses"])

    half = {"name": "half", "high_w": SITE_W / 2, "rank": "grid", "baseline_w": SITE_W}
    assert orchestrator.ask("limit.put", **half, duration_s=600)["can_honour"] is True
    (listed,) = orchestrator.ask("limit.list")
    assert {name: listed[name] for name in half} == half
    stored, _ = Latest(Store(orchestrator.directory), ASKS, ASKS_JOURNAL).load()
    assert stored is not None
    assert [one["id"] for one in stored["asks"]] == ["half"]
    within(FOLLOW_S, lambda: charging.drawn_w() <= SITE_W / 2 + SLACK_W)
    assert orchestrator.status()["state"] == "shedding"
    explained = orchestrator.ask("explain", evse="charger-1")
    assert any(limit["rank"] == "grid" for limit in explained["limits"])

    assert orchestrator.ask("limit.remove", name="half") == {"name": "half"}
    within(60, lambda: charging.drawn_w() > 0.8 * SITE_W)
    assert charging.drawn_w() <= SITE_W + SLACK_W


def lowered_in_s(orchestrator: Orchestrator, charging: Field, meanwhile: Callable[[], None]) -> float:
    """Put a limit while something else happens; return after how long every charger was written a lower one, in s."""
    before_a = orchestrator.setpoints_a()
    since = charging.send({"writes": 0})["next"]

    def lowered() -> bool:
        told = {
            one["bus"]: one["words"][0] / 10
            for one in charging.send({"writes": since})["writes"]
            if one["address"] == LIMIT_AT
        }
        return all(told.get(f"bus-{name[-1]}", amperes) < amperes - 0.5 for name, amperes in before_a.items())

    with ThreadPoolExecutor(1) as pool:
        began_s = time.monotonic()
        answer = pool.submit(orchestrator.ask, "limit.put", name="shed", high_w=SHED_W, rank="grid")
        meanwhile()
        within(10, lowered, every_s=0.01)
        lowered_s = time.monotonic() - began_s
        assert answer.result(10)["can_honour"] is True
    within(FOLLOW_S, lambda: charging.drawn_w() <= SHED_W + SLACK_W)
    return lowered_s


def queued_on_disk(orchestrator: Orchestrator) -> int:
    """Return how many messages wait for the broker; in a copy of the file, which its owner has locked."""
    copy = orchestrator.directory / "copy"
    copy.mkdir(exist_ok=True)
    for path in orchestrator.directory.glob("outbox.sqlite*"):
        shutil.copy(path, copy)
    with closing(sqlite3.connect(copy / "outbox.sqlite")) as outbox:
        found: int = outbox.execute("SELECT count(*) FROM message").fetchone()[0]
    return found


def test_a_broker_killed_in_the_middle_of_a_shed_neither_delays_it_nor_loses_what_was_to_be_told(
    orchestrator: Orchestrator, charging: Field, broker: Broker, peer: Callable[[], Peer], pki: Path
) -> None:
    """The subscriber's session outlives the kill, so that what it misses was never sent."""
    orchestrator.credentials = orchestrator.directory / "credentials"
    orchestrator.credentials.mkdir()
    for name, file in (("cert", f"{CLIENT_ID}.crt"), ("key", f"{CLIENT_ID}.key"), ("ca", "ca.crt")):
        (orchestrator.credentials / name).symlink_to(pki / file)
    orchestrator.configure(MQTT_URL=broker.url)
    seen = peer()
    broker.save()
    orchestrator.start()
    orchestrator.settle(charging)

    def told_at(topic: str) -> list[str]:
        return [body["at"] for body in seen.bodies(f"{topic}/telemetry")]

    def sheds() -> list[float]:
        bodies = seen.bodies("small/event")
        return [body["high_w"] for body in bodies if body["kind"] == "limit put"]

    undisturbed_s = lowered_in_s(orchestrator, charging, lambda: None)
    within(10, lambda: sheds() == [SHED_W])
    orchestrator.ask("limit.remove", name="shed")
    orchestrator.settle(charging)
    # Right after a round of telemetry: nothing but the shed is on its way to the broker when it is killed.
    rounds = len(told_at("evse/charger-4"))
    within(10, lambda: len(told_at("evse/charger-4")) > rounds, every_s=0.02)

    disturbed_s = lowered_in_s(orchestrator, charging, broker.kill)
    assert disturbed_s <= undisturbed_s + 0.5
    within(30, lambda: queued_on_disk(orchestrator) > 2 * (CHARGERS + 1), every_s=0.5)
    back_at = stamp(time.time())
    broker.start()

    topics = ["site/small", *(f"evse/charger-{number}" for number in range(1, CHARGERS + 1))]
    within(60, lambda: all(told_at(topic)[-1] > back_at for topic in topics) and len(sheds()) == 2)
    for topic in topics:
        at_s = [datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() for at in told_at(topic)]
        between_s = [later - earlier for earlier, later in pairwise(at_s)]
        assert all(0 < one < 1.5 * TELEMETRY_S for one in between_s), (topic, between_s)


def test_it_ends_in_order_and_its_successor_drops_no_setpoint(orchestrator: Orchestrator, charging: Field) -> None:
    orchestrator.start()
    orchestrator.settle(charging)
    orchestrator.ask("limit.put", name="kept", high_w=SITE_W, rank="operator")
    orchestrator.ask("session.put", evse="charger-2", energy_need_wh=20_000.0)
    time.sleep(5)
    before, since = charging.send({"status": True}), charging.send({"writes": 0})["next"]
    ended_unix_s = time.time()
    assert orchestrator.end() == 0
    assert (orchestrator.directory / LEDGER).stat().st_mtime >= ended_unix_s - 0.01
    assert (orchestrator.directory / JOURNAL).read_bytes() == b""
    orchestrator.start()
    assert [one["name"] for one in orchestrator.ask("limit.list")] == ["kept"]
    time.sleep(5)
    after = charging.send({"status": True})
    for name, was in before["evses"].items():
        told = [
            one["words"][0] / 10
            for one in charging.send({"writes": since})["writes"]
            if one["address"] == LIMIT_AT and one["bus"] == f"bus-{name[-1]}"
        ]
        assert min([after["evses"][name]["limit_a"], *told]) >= was["limit_a"] - 0.05, (name, was, told)
    had_wh, has_wh = (sum(one["energy_wh"] for one in at["evses"].values()) for at in (before, after))
    undisturbed_w = sum(one["power_w"] for one in before["evses"].values())
    assert (has_wh - had_wh) * 3600 >= 0.995 * undisturbed_w * (after["at_s"] - before["at_s"])
    assert next(one for one in orchestrator.status()["evses"] if one["name"] == "charger-2")["need_wh"] == 20_000.0


def put_and_killed(orchestrator: Orchestrator, put_w: float, killed_after_s: float) -> bool:
    """Put a limit and kill the service shortly after it was sent; return whether it was acknowledged."""
    sent = threading.Event()

    def put() -> bool:
        with Client(orchestrator.socket) as client:
            sent.set()
            try:
                client.ask("limit.put", name="moving", high_w=put_w)
            except NoService:
                return False
        return True

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(put)
        assert sent.wait(10)
        time.sleep(killed_after_s)
        orchestrator.end(signal.SIGKILL)
        return answer.result(10)


def test_killed_at_any_instant_the_site_stays_within_its_limit(orchestrator: Orchestrator, charging: Field) -> None:
    chance = random.Random(20261125)  # noqa: S311 - the same course each time
    orchestrator.start()
    orchestrator.settle(charging)
    before_w: set[float | None] = {None}
    for number in range(KILLS):
        put_w = round(SITE_W * chance.uniform(0.5, 1.0), 1)
        if number % 2:
            acknowledged = put_and_killed(orchestrator, put_w, chance.uniform(0.0, KILLED_WITHIN_S))
        else:
            orchestrator.ask("limit.put", name="moving", high_w=put_w)
            acknowledged = True
            time.sleep(chance.uniform(0.0, 1.5))
            orchestrator.end(signal.SIGKILL)
        until_s = time.monotonic() + chance.uniform(0.0, 3.0)
        while time.monotonic() < until_s:
            assert charging.drawn_w() <= SITE_W + SLACK_W, f"after kill {number}"
            time.sleep(0.1)
        orchestrator.start()
        asked_w = next((one["high_w"] for one in orchestrator.ask("limit.list") if one["name"] == "moving"), None)
        # What was acknowledged is kept; what was not may be, and may not.
        assert asked_w in ({put_w} if acknowledged else {put_w} | before_w), f"after kill {number}"
        before_w = {asked_w}
        most_w = SITE_W if asked_w is None else asked_w
        within(FOLLOW_S, lambda most_w=most_w: charging.drawn_w() <= most_w + SLACK_W)  # type: ignore[misc]
    assert charging.drawn_w() <= SITE_W + SLACK_W


def test_who_does_not_answer_is_logged_counted_and_found_again(orchestrator: Orchestrator, charging: Field) -> None:
    orchestrator.start()
    orchestrator.settle(charging)
    charging.send({"fault": "silent", "on": "charger-3"})
    within(15, lambda: "Heartbeat Timeout charger-3: no answer for" in orchestrator.log())
    found = next(one for one in orchestrator.status()["evses"] if one["name"] == "charger-3")
    assert found["counted_a"] == 16.0
    assert any(alarm["about"] == "charger-3" for alarm in orchestrator.status()["alarms"])
    # It falls back to 6 A by itself, and the others have left it the room of its rating.
    within(40, lambda: charging.evses()["charger-3"]["current_a"] <= 6.5)
    assert charging.drawn_w() <= SITE_W + SLACK_W
    charging.send({"clear": "charger-3"})
    within(60, lambda: "Heartbeat Back charger-3" in orchestrator.log())


def _expect_what_an_inverter_is_told_to_be_controls(orchestrator: Orchestrator, played: Field) -> None:
    depot = examine(played.depot.read_text(encoding="utf-8"), "depot.yml").depot
    assert depot is not None
    image = Rehearsal(depot).inverters["icu"].image

    def written(point: str, *values: int) -> Any:
        job = {"unit_id": 1, "address": image.address(704, point), "values": list(values)}
        return orchestrator.ask("bus.transact", bus="icu", jobs=[job])

    for point, name, values in (
        ("WMaxLimPctEna", "generation_limit_enabled", (1,)),
        ("WMaxLimPct", "generation_limit", (500,)),
        ("WSetEna", "power_setpoint_enabled", (1,)),
        ("WSetMod", "power_setpoint_mode", (1,)),
        ("WSet", "power_setpoint", (0, 1000)),
        ("WMaxLimPctEna", "generation_limit_enabled, generation_limit", (0, 500)),
    ):
        with pytest.raises(ProtocolError, match=rf"a write to {name} of icu, expected none: control owns it"):
            written(point, *values)
    assert written("WSetRvrtTms", 0, 60) == [{"ok": True}]


def test_only_named_users_change_anything_and_nobody_writes_a_limit(orchestrator: Orchestrator, played: Field) -> None:
    orchestrator.configure(CONTROL_PEERS="somebody")
    orchestrator.start()
    assert orchestrator.status()["ready"]
    with pytest.raises(ProtocolError, match=r"found user .*, expected one of somebody for limit.put"):
        orchestrator.ask("limit.put", name="x", high_w=1.0)
    assert orchestrator.end() == 0
    orchestrator.configure()
    orchestrator.start()
    read = [{"unit_id": 1, "table": "input", "address": 4, "count": 2}, {"unit_id": 1, "address": 9999, "count": 1}]
    first, second = orchestrator.ask("bus.transact", bus="bus-1", jobs=read)
    assert first["ok"]
    assert len(first["values"]) == 2
    assert not second["ok"]
    with pytest.raises(ProtocolError, match=r"current_limit of charger-1, expected none: control owns it"):
        orchestrator.ask("bus.transact", bus="bus-1", jobs=[{"unit_id": 1, "address": 260, "values": [1, 160]}])
    _expect_what_an_inverter_is_told_to_be_controls(orchestrator, played)
    with pytest.raises(ProtocolError, match=r"expected one of .* \(did you mean limit.put\?\)"):
        orchestrator.ask("limit.putt")
    with pytest.raises(ProtocolError, match=r"found high_kw, expected .* \(did you mean high_w\?\)"):
        orchestrator.ask("limit.put", name="x", high_kw=3)
    raw_registers_go_through_the_agent(orchestrator, played)
    devices_are_read_and_found_through_the_agent(orchestrator, played)


def devices_are_read_and_found_through_the_agent(orchestrator: Orchestrator, played: Field) -> None:
    """By other programs' locks they could not be asked directly: the agent has them."""
    document = depot_document(depots.load(played.depot))
    given: dict[str, Any] = {
        "deadline_s": 60.0,
        "socket": orchestrator.socket,
        "state_directory": orchestrator.directory,
    }
    held = looking.info(document, "gateway-1", **given)["devices"]
    assert [(one["name"], one["status"]) for one in held] == [(name, "ok") for name in document["devices"]]
    bare = {**document, "devices": {}, "meters": {}}
    found = looking.scan(bare, "gateway-1", unit_ids=["1"], **given)
    assert {bus["status"] for bus in found["buses"]} == {"ok"}
    assert [(one["outcome"], one["profile"]) for one in found["units"]] == [
        ("found", device["profile"]) for device in document["devices"].values()
    ]
    other = {**bare["buses"]["bus-1"], "port": bare["buses"]["bus-1"]["port"] + 1}
    away = looking.scan({**bare, "buses": {"bus-1": other}}, "gateway-1", unit_ids=["1"], **given)
    assert away["buses"][0]["status"] == "unknown"
    assert "the agent has the bus bus-1 at" in away["buses"][0]["detail"]


def raw_registers_go_through_the_agent(orchestrator: Orchestrator, played: Field) -> None:
    """Without a depot file of its own to tell it so: the agent has a bus at that endpoint, by whatever name."""
    port = int(re.findall(r"bus-1: .*port: (\d+)", played.depot.read_text(encoding="utf-8"))[0])

    def held(port: int, address: int, value: int) -> dict[str, Any]:
        (result,) = converged(
            {
                "address_base": "zero",
                "devices": [{"name": "raw", "host": "localhost", "port": port}],
                "registers": [{"name": "r", "address": address, "type": "u16", "value": value}],
            },
            check=False,
            depot_file=orchestrator.directory / "none.yml",
            socket=orchestrator.socket,
            state_directory=orchestrator.directory,
        )
        return result

    assert held(port, 259, 1)["status"] == "ok"
    limit = held(port, LIMIT_AT, 77)
    assert limit["status"] == "refused"
    assert "control owns it" in limit["detail"]
    (nobody,) = free_ports(1)
    assert held(nobody, 259, 1)["status"] == "unreachable"


def test_no_line_from_a_user_ends_control(orchestrator: Orchestrator) -> None:
    orchestrator.start()
    for line in (b'{"v":1,"id":NaN,"verb":"status"}', b"[" * 100_000, b'{"v":1,"id":1,"verb":[[]]}', b"\xff"):
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(10)
            wire.connect(str(orchestrator.socket))
            wire.sendall(line + b"\n")
            assert json.loads(wire.recv(65536))["ok"] is False
    for wrong in ({"rank": ["grid"]}, {"high_w": 10**400}, {"start": "9999-12-31T23:59:59-01:00"}):
        with pytest.raises(ProtocolError):
            orchestrator.ask("limit.put", **{"name": "x", "high_w": 1.0, **wrong})
    with pytest.raises(ProtocolError, match="expected an object for each"):
        orchestrator.ask("bus.transact", bus="bus-1", jobs=[[[[]]]])
    assert orchestrator.status()["ready"]
    assert orchestrator.end() == 0


def test_a_mistake_is_named_and_nothing_starts(orchestrator: Orchestrator) -> None:
    (orchestrator.directory / "limits.conf").write_text("SITE_LIMIT_KVA=lots\n", encoding="utf-8")
    done = subprocess.run(
        orchestrator.command(), env=SINGLE_THREADED, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == os.EX_CONFIG
    assert 'limits.conf:1: SITE_LIMIT_KVA: found "lots"' in done.stderr
    assert 'limits.conf:1: SITE_LIMIT_KVA: found "lots"' in orchestrator.log()
    assert not orchestrator.socket.exists()


def test_limits_are_read_anew_without_a_restart(orchestrator: Orchestrator, charging: Field) -> None:
    orchestrator.start()
    orchestrator.settle(charging)
    (orchestrator.directory / "limits.conf").write_text("SITE_LIMIT_KVA=14\n", encoding="utf-8")
    assert orchestrator.process is not None
    orchestrator.process.send_signal(signal.SIGHUP)
    within(FOLLOW_S, lambda: charging.drawn_w() <= 14_000 + SLACK_W)
    assert "Reloaded" in orchestrator.log()
    orchestrator.configure(CONTROL_PEERS="somebody")
    orchestrator.process.send_signal(signal.SIGHUP)
    within(5, lambda: orchestrator.log().count("Reloaded") == 2)
    with pytest.raises(ProtocolError, match=r"found user .*, expected one of somebody for limit.put"):
        orchestrator.ask("limit.put", name="x", high_w=SITE_W)
    (orchestrator.directory / "limits.conf").write_text("SITE_LIMIT_KVA=50\n", encoding="utf-8")
    orchestrator.process.send_signal(signal.SIGHUP)
    within(5, lambda: "Not reloaded" in orchestrator.log())
    assert charging.drawn_w() <= 14_000 + SLACK_W


def test_the_verbs_of_the_command_line(orchestrator: Orchestrator, charging: Field) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*AGENT, *words, "--socket", str(orchestrator.socket)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    silent = run("status")
    assert silent.returncode == 3
    assert "is derms-orchestrator.service running?" in silent.stderr
    orchestrator.start()
    orchestrator.settle(charging)
    assert json.loads(run("status", "--json").stdout)["depot"] == "small"
    put = run("limit", "put", "mine", "20", "--for", "60")
    assert put.returncode == 0
    assert "can be honoured" in put.stdout
    screen = run("status").stdout
    assert all(f"charger-{number}" in screen for number in range(1, CHARGERS + 1))
    assert "site at most 20 kW" in screen
    assert "mine" in run("limit", "list").stdout
    assert "rating of charger-1" in run("explain", "charger-1").stdout
    unknown = run("explain", "charger-9")
    assert unknown.returncode == 1
    assert "charger-9" in unknown.stderr


# --- settings converged beside it -------------------------------------------------------------------------------------


def convergence(
    orchestrator: Orchestrator, depot: dict[str, Any], *only: str, check: bool = False
) -> dict[str, dict[str, Any]]:
    """Converge settings as device_settings does; return what became of each device."""
    found = run.settings(
        depot,
        "gateway-1",
        only=only,
        check=check,
        deadline_s=60.0,
        socket=orchestrator.socket,
        state_directory=orchestrator.directory,
    )
    return {one["name"]: one for one in found}


def statuses(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["status"] for name, one in found.items()}


def told_failsafe(charging: Field, since: int) -> list[tuple[str, int]]:
    """Return who was written which failsafe current since a write, in 0.1 A."""
    writes = charging.send({"writes": since})["writes"]
    return [(one["bus"], one["words"][0]) for one in writes if one["address"] == FAILSAFE_AT]


def test_drift_is_found_and_repaired_through_its_socket_and_nobody_else_gets_the_buses(
    orchestrator: Orchestrator, charging: Field
) -> None:
    depot = yaml.safe_load(charging.depot.read_text(encoding="utf-8"))
    orchestrator.start()
    orchestrator.settle(charging)
    with pytest.raises(Locked), buses_locked(orchestrator.directory):
        pass
    by_hand = [{"unit_id": 1, "address": FAILSAFE_AT, "values": [80]}]
    assert orchestrator.ask("bus.transact", bus="bus-2", jobs=by_hand, deadline_s=30.0) == [{"ok": True}]
    as_declared = dict.fromkeys([f"charger-{number}" for number in range(1, CHARGERS + 1)], "ok")
    drifted = as_declared | {"charger-2": "changed"}
    since = charging.send({"writes": 0})["next"]
    predicted = convergence(orchestrator, depot, check=True)
    assert statuses(predicted) == drifted
    assert told_failsafe(charging, since) == []
    assert predicted["charger-2"]["before"]["failsafe_current"] == 8.0
    assert predicted["charger-2"]["after"]["failsafe_current"] == 6.0
    done = convergence(orchestrator, depot)
    assert statuses(done) == drifted
    assert done["charger-2"]["after"] == predicted["charger-2"]["after"]
    assert told_failsafe(charging, since) == [("bus-2", 60)]
    assert statuses(convergence(orchestrator, depot)) == as_declared
    assert charging.drawn_w() <= SITE_W + SLACK_W

    # A newer depot file may mean another endpoint by a name, or have a bus that the agent was not told of yet.
    depot["buses"]["bus-3"]["port"] += 1
    depot["buses"]["bus-9"] = {**depot["buses"]["bus-4"], "port": depot["buses"]["bus-3"]["port"] + 1}
    depot["devices"]["charger-9"] = {**depot["devices"]["charger-[1:4]"], "bus": "bus-9"}
    found = convergence(orchestrator, depot)
    assert statuses(found) == as_declared | {"charger-3": "unknown", "charger-9": "unknown"}
    assert "the agent has the bus bus-3 at " in found["charger-3"]["detail"]
    assert found["charger-9"]["detail"] == "the agent does not have the bus bus-9 yet"
    assert told_failsafe(charging, since) == [("bus-2", 60)]


def test_while_it_is_stopped_devices_are_asked_directly_and_its_start_waits_for_that(
    orchestrator: Orchestrator, charging: Field
) -> None:
    depot = yaml.safe_load(charging.depot.read_text(encoding="utf-8"))
    assert set(statuses(convergence(orchestrator, depot, check=True)).values()) == {"ok"}
    since = charging.send({"writes": 0})["next"]
    with ThreadPoolExecutor(1) as pool:
        with buses_locked(orchestrator.directory):
            starting = pool.submit(orchestrator.start)
            log = orchestrator.directory / "engine.log"
            within(START_S, lambda: log.exists() and "another program has the buses" in orchestrator.log())
            time.sleep(2)
            assert not starting.done()
            assert charging.send({"writes": since})["writes"] == []
        starting.result(START_S)
    within(10, lambda: orchestrator.status()["ready"])
    with pytest.raises(Locked), buses_locked(orchestrator.directory):
        pass


def test_a_second_one_refuses_to_start_and_the_first_goes_on(orchestrator: Orchestrator, charging: Field) -> None:
    """As root may start one by hand: each would raise what the other has lowered."""
    orchestrator.start()
    orchestrator.settle(charging)
    ended = subprocess.run(
        orchestrator.command(), env=SINGLE_THREADED, capture_output=True, timeout=START_S, check=False
    )
    assert ended.returncode == 1
    assert "Refused to start: another orchestrator runs" in orchestrator.log()
    assert orchestrator.status()["ready"]


def test_a_socket_that_is_removed_is_made_anew(orchestrator: Orchestrator) -> None:
    orchestrator.start()
    orchestrator.socket.unlink()

    def answers() -> bool:
        try:
            return bool(orchestrator.status()["ready"])
        except NoService:
            return False

    within(30, answers)
    assert f"{orchestrator.socket} was taken away" in orchestrator.log()
    assert orchestrator.end() == 0
    assert not orchestrator.socket.exists()
