# SPDX-License-Identifier: GPL-3.0-or-later
"""Depots for test hosts: a gateway, a circuit, a charger at which a vehicle charges, and more where a test wants them.

Chargers are played by derms-twin, at this machine's address on the hosts' bridge: it outlives every host. So is any
other depot whose addresses are this machine's.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ADDRESS = "10.213.8.1"
NETWORK = ["10.213.8.0/24", "fd42:213:8::/64"]
FIRST_PORT = 15021
PORTS_APART = 10
CHARGER = "charger-1"
FULL_A = 16.0
FALLBACK_A, FALLBACK_S = 6.0, 30
CURRENT_LIMIT = 5004
_READY_WITHIN_S = 30.0


def port_of(charger: int, gateway_port: int) -> int:
    """Return the port of a gateway's charger; they count from 1."""
    return gateway_port + PORTS_APART * (charger - 1)


def depot_of(gateway: str, port: int, chargers: int = 1) -> dict[str, Any]:
    """Return the depot file of a gateway as a document; the port is its first charger's."""
    settings = {"failsafe_current": FALLBACK_A, "failsafe_timeout": FALLBACK_S, "failsafe_persist": "kept"}
    charger = {
        "unit_id": 255,
        "profile": "keba_p30",
        "circuit": "main",
        "settings": settings,
        "evses": {"rating_a": FULL_A},
    }
    line = {"gateway": gateway, "transport": "tcp", "host": ADDRESS}
    numbers = range(1, chargers + 1)
    return {
        "plugin": "derms.edge.depot",
        "depot": f"of-{gateway}",
        "region": "north",
        "site": {"limit_kva": 40, "default_limit_kw": 10},
        "network": {"management_blocks": NETWORK, "internal_blocks": NETWORK},
        "gateways": {gateway: {}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 63, "base_load_a": 10, "allocator": gateway}},
        "buses": {f"line-{number}": {**line, "port": port_of(number, port)} for number in numbers},
        "devices": {f"charger-{number}": {"bus": f"line-{number}", **charger} for number in numbers},
    }


def declare(
    inventory: Path,
    gateways: Sequence[str],
    ssh_config: Path,
    *,
    chargers: int = 1,
    first_port: int = FIRST_PORT,
    **more: Any,
) -> None:
    """Write the inventory of a depot for each gateway, with more variables for all of them."""
    variables = {
        "ansible_user": "deploy",
        "ansible_ssh_common_args": f"-F {ssh_config}",
        "time_sync_sources": [{"address": ADDRESS}],
        "fail2ban_manage_repository": False,
        "mqtt_broker_manage_repository": False,
        **more,
    }
    documents = {f"{name}.yml": depot_of(name, first_port + number, chargers) for number, name in enumerate(gateways)}
    for path, document in {**documents, "group_vars/all/main.yml": variables}.items():
        (inventory / path).parent.mkdir(parents=True, exist_ok=True)
        (inventory / path).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def within(seconds: float, what: Callable[[], bool], every_s: float = 0.5) -> None:
    """Wait until something is so. Raises TimeoutError."""
    until_s = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until_s:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every_s)


@dataclass(frozen=True)
class Field:
    """A depot's devices, as they physically are."""

    control: Path

    def send(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the twin's answer to a command."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(10)
            wire.connect(str(self.control))
            wire.sendall(json.dumps(command).encode() + b"\n")
            with wire.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        if not answer["ok"]:
            raise ValueError(f"{command}: {answer}")
        return answer


@dataclass(frozen=True)
class Charger(Field):
    """A depot's charger."""

    @property
    def drawn_a(self) -> float:
        """What the vehicle draws."""
        return float(self.send({"status": True})["evses"][CHARGER]["current_a"])

    def limits_since(self, number: int) -> tuple[list[int], int]:
        """Return the limits that it took since write `number`, in mA, and the number of the next write."""
        answer = self.send({"writes": number})
        taken = [one for one in answer["writes"] if one["executed"] and one["address"] == CURRENT_LIMIT]
        return [one["words"][0] for one in taken], answer["next"]


@contextmanager
def played(depot: Path, *options: str, scenario: str = "arrivals: none\nbase_load_share: 0.0\n") -> Iterator[Field]:
    """Play a depot file's devices, by a scenario's text; of itself no vehicle is there, and nothing else draws.

    `options` are more of derms-twin's. Without a namespace among them, the depot's addresses have to be there.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file, log, control = directory / "scenario.yml", directory / "log", directory / "control.sock"
        file.write_text(scenario, encoding="utf-8")
        command = [str(Path(sys.prefix) / "bin" / "derms-twin"), str(depot)]
        with log.open("w", encoding="utf-8") as output:
            twin = subprocess.Popen(
                [*command, "--control", str(control), "--scenario", str(file), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            within(_READY_WITHIN_S, lambda: "\nready" in log.read_text(encoding="utf-8") or twin.poll() is not None)
            if twin.poll() is not None:
                raise RuntimeError(log.read_text(encoding="utf-8"))
            yield Field(control)
        finally:
            twin.send_signal(signal.SIGTERM)
            twin.wait(timeout=10)


@contextmanager
def charging(inventory: Path, gateway: str) -> Iterator[Charger]:
    """Play a gateway's charger, a vehicle plugged in. The bridge has to be there, that is, a host up."""
    with played(inventory / f"{gateway}.yml") as field:
        charger = Charger(field.control)
        vehicle = {"soc_percent": 20, "capacity_kwh": 75, "power_kw": 11, "phases": 3}
        charger.send({"plug_in": CHARGER, **vehicle})
        yield charger
