# SPDX-License-Identifier: GPL-3.0-or-later
"""Which address a host has: allotted once, remembered by its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tests.hosts.errors import HostsError
from tests.hosts.settings import Settings

# Below are the bridge and what scenarios put beside it (time sources); above, addresses that belong to no host.
OCTETS = range(11, 240)


@dataclass(frozen=True)
class Address:
    """One host's place in the network. IPv4's last octet reads the same in IPv6."""

    ipv4: IPv4Address
    ipv6: IPv6Address

    @property
    def octet(self) -> int:
        """The last octet, which also names the host's interface on the bridge."""
        return self.ipv4.packed[-1]

    @property
    def mac(self) -> str:
        """A MAC that follows from the address: a new one on an old address costs seconds of stale ARP."""
        return "02:00:" + ":".join(f"{byte:02x}" for byte in self.ipv4.packed)


def address_of(settings: Settings, octet: int) -> Address:
    """Return the address that ends in an octet."""
    return Address(settings.network[octet], IPv6Address(f"{settings.network6.network_address}{octet}"))


def allot(remembered: Mapping[str, int], names: Sequence[str], existing: Collection[str]) -> dict[str, int]:
    """Return every name's octet: what is remembered stays; a new name gets the lowest that was never given away.

    Only when all have been given away are those of names that no longer exist given away again.
    """
    octets = dict(remembered)
    for name in names:
        if name in octets:
            continue
        free = next((octet for octet in OCTETS if octet not in octets.values()), None)
        if free is None:
            forgotten = next((old for old in octets if old not in existing and old not in names), None)
            if forgotten is None:
                raise HostsError(f"no address is left for {name}: {len(OCTETS)} hosts exist")
            free = octets.pop(forgotten)
        octets[name] = free
    return octets


class AddressBook:
    """The allotted octets, kept in a file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.directory / "addresses.json"

    def octets(self) -> dict[str, int]:
        """Return every remembered name's octet."""
        if not self._path.exists():
            return {}
        octets: dict[str, int] = json.loads(self._path.read_text(encoding="utf-8"))
        return octets

    def allot(self, names: Sequence[str], existing: Collection[str]) -> dict[str, Address]:
        """Allot and remember the names' addresses."""
        octets = allot(self.octets(), names, existing)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(octets, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fresh.replace(self._path)
        return {name: address_of(self._settings, octets[name]) for name in names}

    def address(self, name: str) -> Address:
        """Return a remembered name's address."""
        try:
            return address_of(self._settings, self.octets()[name])
        except KeyError:
            raise HostsError(f"no host named {name} was ever raised here") from None
