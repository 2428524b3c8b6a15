# SPDX-License-Identifier: GPL-3.0-or-later
"""How long Ansible takes to read an estate of depots: as depot files, and as the same in plain YAML."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from derms_agent.depot import load
from derms_agent.depot.plain import buses_of, circuits_of, devices_of

from tests.bench.figures import Figure, median_and_spread

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
DEPOTS = 200
LINES = 25
# As many as can be read in time, so that no warning is printed.
UNITS_PER_LINE = 8
DEVICES = LINES * UNITS_PER_LINE
RUNS = 3
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def depot(number: int, *, written_out: bool) -> dict[str, Any]:
    """Return a depot of 25 serial lines with eight chargers each: in ranges, or device by device."""
    phases = ["L1", "L2", "L3"]
    shared: dict[str, Any] = {
        "profile": "heidelberg_energy_control",
        "circuit": "main",
        "settings": {"failsafe_current": 6, "failsafe_timeout": 30},
        "evses": {"rating_a": 16, "phases": phases},
    }
    bus = {"gateway": f"gateway-{number:03d}", "transport": "rtu_over_tcp", "baud_rate": 115200}
    lines = range(1, LINES + 1)
    buses: dict[str, Any] = {}
    devices: dict[str, Any] = {}
    if written_out:
        buses = {f"line-{line:02d}": {**bus, "host": f"10.1.{number}.{line}"} for line in lines}
        for line in lines:
            for unit in range(1, UNITS_PER_LINE + 1):
                name = f"charger-{(line - 1) * UNITS_PER_LINE + unit:03d}"
                devices[name] = {"bus": f"line-{line:02d}", "unit_id": unit, **shared}
    else:
        host = f"10.1.{number}.[1:{LINES}]"
        buses[f"line-[01:{LINES}]"] = {**bus, "host": host, "device_defaults": shared}
        for line in lines:
            span = f"[{(line - 1) * UNITS_PER_LINE + 1:03d}:{line * UNITS_PER_LINE:03d}]"
            devices[f"charger-{span}"] = {"bus": f"line-{line:02d}", "unit_id": f"1..{UNITS_PER_LINE}"}
    return {
        "plugin": "derms.edge.depot",
        "depot": f"depot-{number:03d}",
        "region": f"region-{number % 10}",
        "utility": f"utility-{number % 4}",
        "site": {"limit_kva": 2500},
        "gateways": {f"gateway-{number:03d}": {"address": f"10.0.{number}.10"}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 3500, "rating_kva": 2500, "base_load_a": 100}},
        "buses": buses,
        "devices": devices,
    }


def write_depots(directory: Path, *, written_out: bool) -> Path:
    """Write the estate as depot files."""
    directory.mkdir()
    for number in range(1, DEPOTS + 1):
        write(directory / f"depot-{number:03d}.yml", depot(number, written_out=written_out))
    return directory


def write_plain(directory: Path, depots: Path) -> Path:
    """Write what the depot files yield as an inventory in Ansible's own YAML."""
    directory.mkdir()
    for path in sorted(depots.iterdir()):
        declared = load(path)
        hosts = {
            name: {
                "ansible_host": gateway.address,
                "derms_depot": declared.name,
                "derms_buses": buses_of(declared, name),
                "derms_devices": devices_of(declared, name),
            }
            for name, gateway in declared.gateways.items()
        }
        group = f"depot_{declared.name.replace('-', '_')}"
        inventory = {
            "derms_gateways": {"children": {group: {"hosts": hosts, "vars": {"derms_circuits": circuits_of(declared)}}}}
        }
        write(directory / path.name, inventory)
    return directory


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML without anchors, as a person would."""
    dumper = type("Dumper", (DUMPER,), {"ignore_aliases": lambda _self, _value: True})
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file, Dumper=dumper, sort_keys=False, default_flow_style=None, width=120)


def graph_s(inventory: Path) -> float:
    """Return the wall time of `ansible-inventory --graph`, which must name every gateway.

    :raises SystemExit: it failed, or left a depot out
    """
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    start = time.monotonic()
    done = subprocess.run(
        [str(BIN / "ansible-inventory"), "-i", str(inventory), "--graph", "derms_gateways"],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    wall_s = time.monotonic() - start
    if done.returncode or done.stdout.count("--gateway-") != DEPOTS:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        sys.exit("the inventory that was to be measured is not whole")
    return wall_s


def inventory_ranges() -> list[Figure]:
    """Measure depot files that use ranges."""
    with tempfile.TemporaryDirectory() as directory:
        depots = write_depots(Path(directory) / "ranges", written_out=False)
        value, spread = median_and_spread([graph_s(depots) for _ in range(RUNS)])
    return [Figure("agent.bus.inventory_ranges", value, "s", None, None, "≤ 10 s", value <= 10, spread)]


def inventory_written_out() -> list[Figure]:
    """Measure depot files with every device written out, against what they yield in plain YAML."""
    with tempfile.TemporaryDirectory() as directory:
        depots = write_depots(Path(directory) / "depots", written_out=True)
        plain = write_plain(Path(directory) / "plain", depots)
        value, spread = median_and_spread([graph_s(depots) for _ in range(RUNS)])
        reference_s = graph_s(plain)
    ratio = value / reference_s
    name = "agent.bus.inventory_written_out"
    return [Figure(name, value, "s", reference_s, ratio, "≤ 0.5 ×", ratio <= 0.5, spread)]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("agent.bus.inventory_ranges",): inventory_ranges,
    ("agent.bus.inventory_written_out",): inventory_written_out,
}
