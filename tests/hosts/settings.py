# SPDX-License-Identifier: GPL-3.0-or-later
"""Where test hosts live and which network is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Network, IPv6Network, NetmaskValueError
from pathlib import Path

from tests.hosts.errors import HostsError


@dataclass(frozen=True)
class Settings:
    """What an invocation is told by its environment; everything else follows from it."""

    directory: Path
    network: IPv4Network
    bridge: str

    @property
    def network6(self) -> IPv6Network:
        """The IPv6 twin of the network: 10.213.8.0/24 and fd42:213:8::/64."""
        _, second, third, _ = str(self.network.network_address).split(".")
        return IPv6Network(f"fd42:{second}:{third}::/64")

    @property
    def known_hosts(self) -> Path:
        """Every host's real key: whoever connects keeps host-key checking on."""
        return self.directory / "ssh" / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """What `ssh -F` needs to reach the hosts by their names."""
        return self.directory / "ssh" / "config"

    @property
    def private_key(self) -> Path:
        """The key that `deploy` accepts on every host."""
        return self.directory / "ssh" / "id_ed25519"


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read DERMS_HOSTS_DIR, DERMS_HOSTS_NET and DERMS_HOSTS_BRIDGE."""
    net = environment.get("DERMS_HOSTS_NET", "10.213.8.0/24")
    try:
        network = IPv4Network(net)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise HostsError(f"DERMS_HOSTS_NET: {error}") from error
    if network.prefixlen != 24:
        raise HostsError(f"DERMS_HOSTS_NET: {net} is not a /24, and a host's last octet is what names its interfaces")
    return Settings(
        directory=Path(environment.get("DERMS_HOSTS_DIR", "/var/lib/derms-hosts")),
        network=network,
        bridge=environment.get("DERMS_HOSTS_BRIDGE", "derms0"),
    )
