# SPDX-License-Identifier: Apache-2.0
"""A network namespace of the twin's own, in which every bus has the address that the depot file gives it.

A veth pair joins it to this machine, or to another namespace that stands for a gateway, which gets one address in each
of the devices' networks. The process itself stays where it is: only its sockets are opened inside. What a killed twin
left behind is known by the alias on the link, and removed by the next one of that name; a name in the abstract socket
space, which dies with its process, tells the two apart. Linux only, as root, with `ip` of iproute2.
"""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from derms_agent.model import Depot, Transport
from derms_agent.twin import server

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_IP_TIMEOUT_S = 10.0
_PREFIX = {4: 24, 6: 64}
_LONGEST_NAME = 64


class NamespaceError(Exception):
    """The namespace cannot be made here; the text says why and what helps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The devices' addresses and this machine's own, network by network."""

    devices: dict[Network, tuple[Address, ...]]
    host: dict[Network, Address]


def plan(depot: Depot) -> Plan:
    """Return the addresses for a depot: networks of /24 (IPv6: /64), this machine's end the lowest one free in each.

    Raises `NamespaceError`.
    """
    devices: dict[Network, list[Address]] = {}
    for name, bus in depot.buses.items():
        if bus.host is None or bus.transport is Transport.SERIAL:
            continue
        try:
            address = ipaddress.ip_address(bus.host)
        except ValueError:
            raise NamespaceError(f"bus {name}: found the host {bus.host}, expected an IP address") from None
        network = ipaddress.ip_network((address, _PREFIX[address.version]), strict=False)
        here = devices.setdefault(network, [])
        if address not in here:
            here.append(address)
    if not devices:
        raise NamespaceError("the depot has no bus on a network")
    host = {}
    for network, taken in devices.items():
        free = next((address for address in network.hosts() if address not in taken), None)
        if free is None:
            raise NamespaceError(f"{network}: the devices take every address, expected one free for this machine")
        host[network] = free
    return Plan({network: tuple(taken) for network, taken in devices.items()}, host)


@contextmanager
def namespace(name: str, depot: Depot, gateway: str | None = None) -> Iterator[server.Listen]:
    """Make a namespace with a depot's addresses, yield what listens in it, and take all of it away again.

    :param gateway: the network namespace that it is joined to; None: this machine itself
    :raises NamespaceError: it cannot be made
    """
    if not name or len(name) > _LONGEST_NAME or not name.replace("-", "").replace("_", "").isalnum():
        raise NamespaceError(f"found the name {name!r}, expected letters, digits, - and _")
    if os.geteuid() != 0:
        raise NamespaceError("a namespace takes root; run this with sudo, or without --namespace")
    wanted = plan(depot)
    if gateway is not None and not (_NAMED / gateway).exists():
        raise NamespaceError(f"found no network namespace {gateway}, expected that of a gateway")
    at = () if gateway is None else ("-n", gateway)
    with _only_one(name):
        link = _link(name)
        _remove_remains(name, link, at)
        _refuse_networks_in_use(wanted, at)
        try:
            _make(name, link, wanted, at, gateway)
            yield lambda host, port: _listen_inside(name, host, port)
        finally:
            _remove(name, link, at if gateway is None or (_NAMED / gateway).exists() else None)


@contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Hold the name: the kernel frees it when this process ends, however it does."""
    with socket.socket(socket.AF_UNIX) as held:
        try:
            held.bind(f"\0derms-twin/{name}")
        except OSError:
            raise NamespaceError(f"another derms-twin runs in the namespace {name}") from None
        yield


def _link(name: str) -> str:
    """Return the name of this machine's end of the pair; interface names have 15 characters at the most."""
    return "twin-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _alias(name: str) -> str:
    return f"derms-twin {name}"


def _ip(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["ip", *arguments],
            capture_output=True,
            text=True,
            timeout=_IP_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise NamespaceError("no program ip; install iproute2") from None
    if done.returncode != 0:
        raise NamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _json(*arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(_ip("-json", *arguments) or "[]")
    return rows


def _remove_remains(name: str, link: str, at: tuple[str, ...]) -> None:
    """Remove what a killed twin left; refuse a namespace or a link of that name that somebody else made."""
    ours = [row for row in _json(*at, "-details", "link", "show") if row.get("ifname") == link]
    if ours and ours[0].get("ifalias") != _alias(name):
        raise NamespaceError(f"the link {link} exists and is not of a twin; remove it, or take another name")
    if (_NAMED / name).exists() and not ours and not _is_bare(name):
        raise NamespaceError(f"the namespace {name} exists and is not of a twin; remove it, or take another name")
    _remove(name, link, at)


def _is_bare(name: str) -> bool:
    """Whether a namespace holds nothing but its loopback: a twin was killed between its first steps."""
    return [row.get("ifname") for row in _json("-n", name, "link", "show")] == ["lo"]


def _remove(name: str, link: str, at: tuple[str, ...] | None) -> None:
    """Remove both ends; `at` is where the other end is, None where that has gone, and its end with it."""
    if at is not None and any(row.get("ifname") == link for row in _json(*at, "link", "show")):
        _ip(*at, "link", "delete", link)
    if (_NAMED / name).exists():
        _ip("netns", "delete", name)


def _refuse_networks_in_use(wanted: Plan, at: tuple[str, ...]) -> None:
    for network in wanted.devices:
        for row in _json(*at, f"-{network.version}", "route", "show", "table", "all"):
            where = str(row.get("dst", "default"))
            if where == "default" or row.get("type") in ("multicast", "anycast", "broadcast"):
                continue
            if network.overlaps(ipaddress.ip_network(where, strict=False)):
                via = row.get("dev", "?")
                who = at[1] if at else "this machine"
                raise NamespaceError(
                    f"{who} already reaches {where} by {via}: the devices' network {network} is in use"
                )


def _make(name: str, link: str, wanted: Plan, at: tuple[str, ...], gateway: str | None) -> None:
    inner = "devices"
    _ip("netns", "add", name)
    _ip("link", "add", link, "type", "veth", "peer", "name", inner, "netns", name)
    if gateway is not None:
        _ip("link", "set", link, "netns", gateway)
    _ip(*at, "link", "set", link, "alias", _alias(name))
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "set", inner, "up")
    for network, addresses in wanted.devices.items():
        without_check = ("nodad",) if network.version == 6 else ()  # noqa: PLR2004 - IPv6
        for address in addresses:
            _ip("-n", name, "address", "add", f"{address}/{network.prefixlen}", "dev", inner, *without_check)
        _ip(*at, "address", "add", f"{wanted.host[network]}/{network.prefixlen}", "dev", link, *without_check)
    _ip(*at, "link", "set", link, "up")


def _listen_inside(name: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens in the namespace: a socket stays in the one that its thread was in."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    inside = os.open(_NAMED / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(inside)
        try:
            return server.listen(host, port)
        finally:
            _enter(own)
    finally:
        os.close(inside)
        os.close(own)


def _enter(descriptor: int) -> None:
    """Move this thread into a network namespace; `os.setns` came with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NamespaceError(f"setns: {os.strerror(number)}")
