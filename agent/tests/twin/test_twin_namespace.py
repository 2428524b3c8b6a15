# SPDX-License-Identifier: Apache-2.0
"""The twin in a network namespace of its own: it reaches, it refuses, it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from derms_agent.twin.namespace import NamespaceError, namespace, plan

if TYPE_CHECKING:
    from agent.tests.twin.conftest import MakeDepot

# A network that is nobody's (RFC 2544), and a name, for each process that runs tests.
NETWORK = f"198.18.{os.getpid() % 250}"
HOST, DEVICE = f"{NETWORK}.1", f"{NETWORK}.7"
NAME = f"derms-twin-test-{os.getpid()}"
DEPOT = f"""
plugin: derms.edge.depot
depot: field
site: {{limit_kva: 40}}
gateways: {{gateway-1: {{}}}}
circuits: {{main: {{voltage_v: 400, rating_a: 63, allocator: gateway-1}}}}
buses: {{a: {{gateway: gateway-1, transport: tcp, host: {DEVICE}}}}}
devices:
  charger-1: {{bus: a, unit_id: 1, profile: heidelberg_energy_control, circuit: main, evses: {{rating_a: 16}},
              settings: {{failsafe_current: 6, failsafe_timeout: 30}}}}
"""


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", f"{NAME}-probe"], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", f"{NAME}-probe"], check=True)
    return made.returncode == 0


as_root = pytest.mark.skipif(not can_make_namespaces(), reason="takes root and a kernel that allows network namespaces")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def left_behind() -> bool:
    return NAME in ip("netns", "list") or HOST in ip("address", "show") or f"derms-twin {NAME}" in ip("link", "show")


@contextlib.contextmanager
def running(depot: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "import sys; from derms_agent.twin.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, str(depot), "--namespace", NAME], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        yield process
    finally:
        process.kill()
        process.wait()


def read_fallback() -> str:
    with socket.create_connection((DEVICE, 502), timeout=2) as wire:
        wire.sendall(bytes.fromhex("00 01 00 00 00 06 01 03 01 06 00 01"))
        return wire.recv(64).hex(" ")


@as_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_at_its_own_address_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    depot = tmp_path / "field.yml"
    depot.write_text(DEPOT)
    with running(depot) as process:
        assert read_fallback() == "00 01 00 00 00 05 01 03 02 00 3c"
        assert left_behind()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
    assert not left_behind()


@as_root
def test_one_that_was_killed_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    depot = tmp_path / "field.yml"
    depot.write_text(DEPOT)
    with running(depot) as process:
        process.kill()
        process.wait()
    assert left_behind()
    with running(depot) as process:
        assert read_fallback() == "00 01 00 00 00 05 01 03 02 00 3c"
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert not left_behind()


@as_root
def test_it_can_be_joined_to_a_gateways_namespace(make_depot: MakeDepot) -> None:
    gateway = f"{NAME}-gw"
    bus = make_depot("keba_p30")
    depot = replace(bus, buses={"bus-1": replace(bus.buses["bus-1"], host=DEVICE)})
    ip("netns", "add", gateway)
    try:
        connect = f"import socket; socket.create_connection(({DEVICE!r}, 502), timeout=2)"
        with namespace(NAME, depot, gateway) as listen, listen(DEVICE, 502):
            assert HOST in ip("-n", gateway, "address", "show")
            assert HOST not in ip("address", "show")
            ip("netns", "exec", gateway, sys.executable, "-c", connect)
        assert HOST not in ip("-n", gateway, "address", "show")
        with pytest.raises(NamespaceError, match="found no network namespace nobody"), namespace(NAME, depot, "nobody"):
            pass
    finally:
        ip("netns", "delete", gateway)
    assert not left_behind()


@as_root
def test_a_second_one_and_a_network_in_use_are_refused(tmp_path: Path, make_depot: MakeDepot) -> None:
    depot = tmp_path / "field.yml"
    depot.write_text(DEPOT)
    bus = make_depot("keba_p30")
    same = replace(bus, buses={"bus-1": replace(bus.buses["bus-1"], host=f"{NETWORK}.9")})
    with running(depot) as process:
        with (
            pytest.raises(NamespaceError, match=f"another derms-twin runs in the namespace {NAME}"),
            namespace(NAME, same),
        ):
            pass
        with (
            pytest.raises(NamespaceError, match=re.escape(f"{NETWORK}.0/24 is in use")),
            namespace(f"{NAME}-2", same),
        ):
            pass
        assert read_fallback()
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert not left_behind()


@as_root
def test_a_namespace_that_is_somebody_elses_is_left_alone(make_depot: MakeDepot) -> None:
    depot = make_depot("keba_p30")
    ip("netns", "add", NAME)
    try:
        ip("-n", NAME, "link", "add", "theirs", "type", "veth", "peer", "name", "others")
        with pytest.raises(NamespaceError, match="is not of a twin"), namespace(NAME, depot):
            pass
        assert NAME in ip("netns", "list")
    finally:
        ip("netns", "delete", NAME)


def test_this_machines_end_is_the_lowest_free_address_of_each_network(make_depot: MakeDepot) -> None:
    depot = make_depot("keba_p30", "keba_p30", "keba_p30")
    hosts = dict(zip(depot.buses, ("10.1.2.1", "10.1.2.2", "fd00::5"), strict=True))
    buses = {name: replace(bus, host=hosts[name]) for name, bus in depot.buses.items()}
    found = plan(replace(depot, buses=buses))
    assert {str(network): str(address) for network, address in found.host.items()} == {
        "10.1.2.0/24": "10.1.2.3",
        "fd00::/64": "fd00::1",
    }
    named = {"bus-1": replace(buses["bus-1"], host="charger.example")}
    with pytest.raises(NamespaceError, match=r"bus bus-1: found the host charger\.example, expected an IP address"):
        plan(replace(depot, buses=named))
