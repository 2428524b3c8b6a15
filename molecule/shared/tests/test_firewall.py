# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall as it is felt from outside: from an address of each block, and from one that is in none."""

from __future__ import annotations

import itertools
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import Gateway

# The last octet of this machine's addresses, as molecule/inventory has them in its blocks.
MANAGEMENT, INTERNAL, WEB, DER, OUTSIDER = 1, 2, 3, 4, 9
SOURCES = (MANAGEMENT, INTERNAL, WEB, DER, OUTSIDER)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
TCP, UDP, ECHO = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
# A packet that is let in is answered at once, if only by a refusal; one that is dropped never is.
SILENCE_S = 3.0
ECHO_REQUESTS = {
    4: (socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0"),
    6: (socket.IPPROTO_ICMPV6, b"\x80\0\0\0\0\0\0\0"),
}


@dataclass(frozen=True)
class Attempt:
    """Somebody's try to reach the gateway, or what is behind it."""

    family: int
    source: int
    kind: socket.SocketKind
    port: int
    behind: bool = False

    def answered(self, gateway: Gateway) -> bool:
        """Tell whether anything comes back, be it a refusal."""
        target = device_address(gateway, self.family) if self.behind else gateway.addresses[self.family]
        protocol, request = ECHO_REQUESTS[self.family] if self.kind is ECHO else (0, b"?")
        with socket.socket(FAMILIES[self.family], self.kind, protocol) as client:
            client.settimeout(SILENCE_S)
            client.bind((f"10.213.8.{self.source}" if self.family == 4 else f"fd42:213:8::{self.source}", 0))
            try:
                client.connect((target, self.port))
                if self.kind is not TCP:
                    client.send(request)
                    client.recv(128)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
        return True


ATTEMPTS = [
    *(Attempt(*each) for each in itertools.product(FAMILIES, SOURCES, [TCP], (22, 443, 502, 8080, 8883, 9999))),
    *(Attempt(*each) for each in itertools.product(FAMILIES, SOURCES, [UDP], (502,))),
    *(Attempt(*each) for each in itertools.product(FAMILIES, (OUTSIDER,), [ECHO], (0,))),
    *(Attempt(*each) for each in itertools.product(FAMILIES, SOURCES, [TCP], (80, 502), [True])),
]


def device_address(gateway: Gateway, family: int) -> str:
    """Return an address behind the gateway, of a network that no other gateway here has."""
    octet = gateway.addresses[4].rpartition(".")[2]
    return f"198.18.{octet}.2" if family == 4 else f"fd42:213:80:{octet}::2"


def routing(on: int) -> str:
    """Return the settings that make the gateway a router. For IPv4 by interface: the key for all changes others too."""
    keys = ("net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.field0.forwarding", "net.ipv6.conf.all.forwarding")
    return " ".join(f"{key}={on}" for key in keys)


@pytest.fixture(scope="module")
def device(gateway: Gateway, root: Any) -> Iterator[None]:
    """Put a field device behind the gateway, make that a router, and route there."""
    beside = {family: device_address(gateway, family)[:-1] + "1" for family in FAMILIES}
    root.check_output(
        "ip netns add device && ip link add field0 up type veth peer name eth0 netns device"
        f" && ip address add {beside[4]}/24 dev field0 && ip address add {beside[6]}/64 dev field0 nodad"
        " && ip -n device link set lo up && ip -n device link set eth0 up"
        f" && ip -n device address add {device_address(gateway, 4)}/24 dev eth0"
        f" && ip -n device address add {device_address(gateway, 6)}/64 dev eth0 nodad"
        f" && ip -n device route add default via {beside[4]} && ip -n device route add default via {beside[6]}"
        f" && sysctl {routing(1)}"
    )
    for family, via in gateway.addresses.items():
        subprocess.run(["ip", "route", "replace", device_address(gateway, family), "via", via], check=True)
    yield
    for family in FAMILIES:
        subprocess.run(["ip", "route", "delete", device_address(gateway, family)], check=True)
    root.check_output(f"sysctl {routing(0)} && ip link delete field0 && ip netns delete device")


@pytest.fixture(scope="module")
def answered(gateway: Gateway, device: None) -> set[Attempt]:  # noqa: ARG001 # is there while it is tried
    """Try everything at once, for nearly all of it is waiting, and return what was answered."""
    with ThreadPoolExecutor(max_workers=len(ATTEMPTS)) as pool:
        results = pool.map(lambda attempt: attempt.answered(gateway), ATTEMPTS)
        return {attempt for attempt, result in zip(ATTEMPTS, results, strict=True) if result}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_reaches_its_own_port_and_no_other(answered: set[Attempt], family: int) -> None:
    own_ports = {(MANAGEMENT, 22), (INTERNAL, 502), (INTERNAL, 8883), (WEB, 443), (DER, 8080)}
    assert {
        (attempt.source, attempt.port)
        for attempt in answered
        if (attempt.family, attempt.kind, attempt.behind) == (family, TCP, False)
    } == own_ports


@pytest.mark.parametrize("family", FAMILIES)
def test_modbus_over_udp_is_for_the_internal_block_alone(answered: set[Attempt], family: int) -> None:
    assert {attempt.source for attempt in answered if (attempt.family, attempt.kind) == (family, UDP)} == {INTERNAL}


@pytest.mark.parametrize("family", FAMILIES)
def test_modbus_is_forwarded_for_the_internal_block_alone_and_nothing_else_is(
    answered: set[Attempt], family: int
) -> None:
    forwarded = {(attempt.source, attempt.port) for attempt in answered if attempt.behind and attempt.family == family}
    assert forwarded == {(INTERNAL, 502)}


@pytest.mark.parametrize("family", FAMILIES)
def test_monitoring_is_answered(answered: set[Attempt], family: int) -> None:
    assert Attempt(family, OUTSIDER, ECHO, 0) in answered


@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_each_chain_is_jumped_to_once(root: Any, program: str) -> None:
    hooks = root.check_output(f"{program} -S INPUT; {program} -t mangle -S FORWARD").splitlines()
    assert hooks.count("-A INPUT -j DERMS-INPUT") == 1
    assert hooks.count("-A FORWARD -j DERMS-FORWARD") == 1


def test_the_chains_are_loaded_at_boot_before_the_network(root: Any) -> None:
    assert root.service("derms-firewall").is_enabled
    assert "network-pre.target" in root.check_output("systemctl show --property=Before --value derms-firewall").split()
