# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' network: one bridge on this machine, and for each host a network namespace with one interface on it.

Nothing is routed or translated: hosts reach one another and this machine, and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.hosts.addresses import Address
from tests.hosts.errors import HostsError, MachineLacksError
from tests.hosts.programs import run
from tests.hosts.settings import Settings

# Between the `local` table, which delivers to this machine itself, and `main`, which would route onwards.
RULE_PRIORITY = "21308"


def interface_exists(name: str) -> bool:
    """Tell whether this machine has an interface of that name."""
    return Path("/sys/class/net", name).exists()


def bridge_up(settings: Settings) -> None:
    """Make the bridge, unless it is there, and see that nothing is routed from it."""
    if not interface_exists(settings.bridge):
        add_bridge(settings)
    # A host that tries the internet is told so at once. Restarting systemd-networkd, for one, clears such rules away.
    for family in ("-4", "-6"):
        if settings.bridge not in run("ip", family, "rule", "show", "priority", RULE_PRIORITY):
            run("ip", family, "rule", "add", "priority", RULE_PRIORITY, "iif", settings.bridge, "unreachable")
    Path(f"/proc/sys/net/ipv4/conf/{settings.bridge}/forwarding").write_text("1", encoding="ascii")


def add_bridge(settings: Settings) -> None:
    """Make the bridge with its addresses."""
    gateway, gateway6 = settings.network[1], f"{settings.network6.network_address}1"
    mac = "02:00:" + ":".join(f"{byte:02x}" for byte in gateway.packed)
    taken = run("ip", "-oneline", "address", "show", "to", str(settings.network))
    if taken:
        raise HostsError(
            f"{settings.network} is already in use here ({taken.split()[1]}): set DERMS_HOSTS_NET to another /24"
        )
    run(
        "ip", "-batch", "-",
        stdin=f"""\
link add {settings.bridge} address {mac} type bridge
address add {gateway}/{settings.network.prefixlen} dev {settings.bridge}
address add {gateway6}/{settings.network6.prefixlen} dev {settings.bridge} nodad
link set {settings.bridge} up
""",
    )  # fmt: skip


def bridge_down(settings: Settings) -> None:
    """Remove the bridge and the rule that goes with it."""
    if not interface_exists(settings.bridge):
        return
    for family in ("-4", "-6"):
        if settings.bridge in run("ip", family, "rule", "show", "priority", RULE_PRIORITY):
            run("ip", family, "rule", "delete", "priority", RULE_PRIORITY, "iif", settings.bridge)
    run("ip", "link", "delete", settings.bridge)


def bridge_in_use(settings: Settings) -> bool:
    """Tell whether any host is still on the bridge."""
    ports = Path("/sys/class/net", settings.bridge, "brif")
    return ports.exists() and any(ports.iterdir())


def add_address(settings: Settings, address: str) -> None:
    """Give this machine one more address on the bridge, for a server that scenarios need beside its first one."""
    prefix = settings.network6.prefixlen if ":" in address else settings.network.prefixlen
    run(
        "ip",
        "address",
        "replace",
        f"{address}/{prefix}",
        "dev",
        settings.bridge,
        *(["nodad"] if ":" in address else []),
    )


def namespace(settings: Settings, name: str) -> str:
    """Return the name of a host's network namespace."""
    return f"{settings.bridge}.{name}"


def namespace_exists(settings: Settings, name: str) -> bool:
    """Tell whether a host's network namespace is there."""
    # A namespace is a mounted file, which Path.is_mount takes for none before Python 3.12.
    return os.path.ismount(f"/run/netns/{namespace(settings, name)}")


def connect(settings: Settings, name: str, address: Address) -> Path:
    """Make a host's network namespace, its addresses set before anything runs in it; return its path."""
    inside, outside = namespace(settings, name), f"{settings.bridge}-{address.octet}"
    run("ip", "netns", "add", inside)
    run(
        "ip",
        "link",
        "add",
        outside,
        "master",
        settings.bridge,
        "up",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        inside,
    )
    run(
        "ip", "-netns", inside, "-batch", "-",
        stdin=f"""\
link set lo up
link set eth0 address {address.mac}
address add {address.ipv4}/{settings.network.prefixlen} dev eth0
address add {address.ipv6}/{settings.network6.prefixlen} dev eth0 nodad
link set eth0 up
route add default via {settings.network[1]}
""",
    )  # fmt: skip
    return Path("/run/netns", inside)


def disconnect(settings: Settings, name: str) -> None:
    """Remove a host's network namespace, and its interface with it; what a reboot left of its name, too."""
    inside = namespace(settings, name)
    show = ("ip", "-netns", inside, "-oneline", "link", "show", "type", "veth")
    if namespace_exists(settings, name) and run(*show):
        # Both ends of the interface go at once; those of a namespace go some time after it.
        run("ip", "-netns", inside, "link", "delete", "eth0")
    if Path("/run/netns", inside).exists():
        run("ip", "netns", "delete", inside)


def require_namespaces() -> None:
    """Refuse a machine on which network namespaces cannot be made."""
    try:
        run("unshare", "--net", "true")
    except HostsError as error:
        raise MachineLacksError("network namespaces cannot be made here") from error
