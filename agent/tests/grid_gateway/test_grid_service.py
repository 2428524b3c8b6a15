# SPDX-License-Identifier: Apache-2.0
"""The gateway as a program, between openleadr's VTN and the real orchestrator, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent.tests.grid_gateway.conftest import LabVtn

from derms_agent.orchestrator.service import HEARD_WITHIN_S
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError

AGENT = (sys.executable, "-c", "import sys; from derms_agent.cli import main; sys.exit(main())")
START_S = 60.0
# The one charger answers nothing, so it counts at its rating of 11 kW: less than that cannot be honoured.
DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {limit_kva: 60, default_limit_kw: 30}
gateways: {gateway-1: {address: 127.0.0.1}}
circuits: {main: {voltage_v: 400, rating_a: 100, base_load_a: 1, allocator: gateway-1}}
buses: {bus: {gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: 1}}
devices:
  charger:
    bus: bus
    unit_id: 1
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 15, standby: prevented}
    evses: {rating_a: 16}
vtn:
  url: "https://localhost"
  ven_name: small depot
  levels: {moderate: {limit_kw: 50}, special: {limit_kw: 0}}
  price_limit: {currency: EUR, above_per_kwh: 0.3, limit_kw: 5}
"""


def within(seconds: float, what: Callable[[], Any]) -> None:
    until_s = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until_s, f"not within {seconds} s"
        time.sleep(0.1)


@dataclass
class Gateway:
    """Both services of one gateway, as processes."""

    directory: Path
    vtn: LabVtn
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.directory / "depot.yml").write_text(DEPOT, encoding="utf-8")
        (self.directory / "limits.conf").write_text("", encoding="utf-8")
        pki = self.vtn.authority.directory
        lines = {
            "GATEWAY": "gateway-1", "DEPOT": self.directory / "depot.yml", "VTN_URL": f"https://localhost:{self.vtn.port}",
            "CERT_PATH": pki / "ven.crt", "KEY_PATH": pki / "ven.key", "CA_PATH": pki / "ca.crt",
            "CONTROL_PEERS": "root",
            "ENGINE_LOG": self.directory / "engine.log", "SOCKET": self.directory / "o.sock",
            "STATE_DIRECTORY": self.directory / "orchestrator", "GRID_STATE_DIRECTORY": self.directory / "gateway",
            "GRID_SOCKET": self.directory / "g.sock",
        }  # fmt: skip
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (self.directory / "agent.conf").write_text(text, encoding="utf-8")
        for name in ("orchestrator", "gateway"):
            (self.directory / name).mkdir()

    def start(self, service: str) -> None:
        told = ("--agent-conf", self.directory / "agent.conf", "--limits-conf", self.directory / "limits.conf")
        with (self.directory / f"{service}.err").open("ab") as errors:
            self.processes[service] = subprocess.Popen(
                [*AGENT, service, *told], stderr=errors, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            )

    def end(self, service: str, number: int = signal.SIGKILL) -> None:
        process = self.processes.pop(service)
        process.send_signal(number)
        process.wait(20)

    def ask(self, socket: str, verb: str, **more: Any) -> Any:
        with Client(self.directory / socket) as client:
            return client.ask(verb, **more)

    def answers(self, socket: str) -> Any:
        try:
            return self.ask(socket, "status")
        except (NoService, ProtocolError):
            return None

    def asks(self) -> list[float]:
        return [one["high_w"] for one in self.ask("o.sock", "limit.list")]

    def at_default(self) -> bool:
        """Whether the default limit of 30 kW is what holds for lack of the grid's link."""
        site = self.ask("o.sock", "status")["site"]
        at_default: bool = site["limit_by"] == "default limit: the grid's link is lost"
        return at_default and round(site["evse_limit_w"] + site["base_w"]) == 30_000

    def log(self) -> str:
        return (self.directory / "engine.log").read_text(encoding="utf-8")


@pytest.fixture
def gateway(vtn: LabVtn, tmp_path: Path) -> Iterator[Gateway]:
    if os.getuid() != 0:
        pytest.skip("the orchestrator takes bounds from named users only: run as root")
    made = Gateway(tmp_path, vtn)
    yield made
    for service in tuple(made.processes):
        made.end(service)


def test_an_event_reaches_the_orchestrator_and_survives_both(gateway: Gateway) -> None:
    gateway.start("orchestrator")
    gateway.start("grid-gateway")
    within(START_S, lambda: gateway.answers("o.sock"))
    within(START_S, lambda: (gateway.answers("g.sock") or {}).get("registered"))
    ven_id = gateway.ask("g.sock", "status")["ven_id"]
    told = {"ven_id": ven_id, "start": time.time(), "length_s": 600}
    gateway.vtn.do("add", values=[1], event_id="mild", **told)
    within(10, lambda: gateway.asks() == [50_000.0])
    gateway.vtn.do("add", values=[3], event_id="deep", priority=1, **told)
    within(
        10,
        lambda: (
            {one["event_id"]: one["opt"] for one in gateway.vtn.seen("opts")} == {"mild": "optIn", "deep": "optOut"}
        ),
    )
    # It is obeyed until it is known that its chargers, which never answer here, were given time enough to be heard.
    within(HEARD_WITHIN_S + 10, lambda: gateway.asks() == [50_000.0])

    # Killed both, the VTN as well: what was agreed stands, from the disk.
    for service in ("grid-gateway", "orchestrator"):
        gateway.end(service)
    gateway.vtn.kill()
    gateway.start("orchestrator")
    gateway.start("grid-gateway")
    within(START_S, lambda: gateway.answers("o.sock") and gateway.asks() == [50_000.0])
    within(START_S, lambda: gateway.answers("g.sock"))
    shown = gateway.ask("g.sock", "status")
    assert {one["event"]: one["opt"] for one in shown["events"]} == {"mild": "optIn", "deep": "optOut"}

    # The VTN comes back with none of its memory.
    within(20, lambda: "Heartbeat Timeout VTN localhost" in gateway.log())
    gateway.vtn.start()
    within(20, lambda: len(gateway.vtn.seen("registrations")) == 1)
    within(10, lambda: gateway.ask("g.sock", "status")["trouble"] is None)
    # It lists another event and no longer that one, which ends it; a link that stands is none to fall back from.
    ven_id = gateway.ask("g.sock", "status")["ven_id"]
    gateway.vtn.do("add", ven_id=ven_id, values=[1], start=time.time() + 3600, length_s=600, event_id="next")
    within(10, lambda: [one["in_force"] for one in gateway.ask("o.sock", "limit.list")] == [False])
    within(10, lambda: not gateway.at_default())

    # The VEN leaves, as it was asked to: nobody renews the link, and the default limit holds until it is back.
    gateway.ask("g.sock", "registration.cancel")
    within(10, lambda: "cancelled by root" in gateway.log())
    within(20, gateway.at_default)
    gateway.ask("g.sock", "registration.create")
    within(20, lambda: not gateway.at_default())

    # So it does when the VTN is gone: not before the link is lost, and without anybody doing anything.
    assert gateway.ask("g.sock", "status")["registered"]
    gateway.vtn.kill()
    within(20, gateway.at_default)
    assert gateway.ask("g.sock", "status")["link_lost"]
    with pytest.raises(ProtocolError, match="found verb"):
        gateway.ask("g.sock", "event.lists")
    (gateway.directory / "g.sock").unlink()
    within(10, lambda: gateway.answers("g.sock"))
    gateway.end("grid-gateway", signal.SIGTERM)
    assert "Stopped" in gateway.log()


def test_a_price_becomes_a_limit_in_force_of_rank_price(gateway: Gateway) -> None:
    gateway.start("orchestrator")
    gateway.start("grid-gateway")
    within(START_S, lambda: gateway.answers("o.sock"))
    within(START_S, lambda: (gateway.answers("g.sock") or {}).get("registered"))
    ven_id = gateway.ask("g.sock", "status")["ven_id"]
    gateway.vtn.do(
        "add", ven_id=ven_id, name="ELECTRICITY_PRICE", kind="price", currency="EUR", values=[0.35, 0.2],
        start=time.time(), length_s=600, event_id="evening",
    )  # fmt: skip
    within(10, gateway.asks)
    (limit,) = gateway.ask("o.sock", "limit.list")
    assert (limit["high_w"], limit["target"], limit["rank"], limit["in_force"]) == (5000.0, "site", "price", True)
    assert limit["source"] == "price of OpenADR event evening"
    # With the next cycle, which the answer does not wait for.
    within(
        10,
        lambda: (
            ("price", "price of OpenADR event evening")
            in [(one["rank"], one["source"]) for one in gateway.ask("o.sock", "explain", evse="charger")["limits"]]
        ),
    )
    # The charger, which answers nothing, counts at 11 kW: that is more, and no reason to opt out of a price.
    within(10, lambda: [one["opt"] for one in gateway.vtn.seen("opts")] == ["optIn"])


def test_it_refuses_to_start_without_a_vtn(gateway: Gateway) -> None:
    path = gateway.directory / "agent.conf"
    path.write_text(
        "".join(line for line in path.open(encoding="utf-8") if not line.startswith("VTN_URL")), encoding="utf-8"
    )
    gateway.start("grid-gateway")

    assert gateway.processes["grid-gateway"].wait(30) == os.EX_CONFIG
    assert "VTN_URL" in gateway.log()
