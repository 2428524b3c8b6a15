# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a dry run of an in-sync gateway takes, how it grows with hosts, and how fast a test host is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests.bench.figures import Figure, median_and_spread

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
RUNS = 5
RAISED_AT_ONCE = 5
FLEET = [f"bench-{number:02d}" for number in range(1, 21)]


def hosts(*verb: str) -> str:
    """Call the test-host program and return what it prints."""
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "tests.hosts", *verb], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        sys.exit(done.returncode)
    return done.stdout


def ssh_config() -> Path:
    """Return the file by which ssh finds the hosts."""
    return Path(os.environ.get("DERMS_HOSTS_DIR", "/var/lib/derms-hosts")) / "ssh" / "config"


@contextmanager
def raised(names: Sequence[str], *options: str, platform: str = "ubuntu2204") -> Iterator[Path]:
    """Raise fresh hosts and yield an inventory of them; take them down at the end."""
    hosts("setup", platform)
    try:
        for first in range(0, len(names), RAISED_AT_ONCE):
            some = names[first : first + RAISED_AT_ONCE]
            hosts("up", *some, "--platform", platform, "--fresh", *options)
        with tempfile.TemporaryDirectory() as directory:
            yield write_inventory(Path(directory), names)
    finally:
        hosts("down", *names)


def write_inventory(directory: Path, names: Sequence[str], file_name: str = "hosts.yml") -> Path:
    """Write the demo depot's inventory with other hosts, each a depot's only gateway.

    Inventories in one directory share the authority that their certificates are issued by.
    """
    demo = ROOT / "inventories" / "demo"
    addresses = {entry["name"]: entry["address"] for entry in json.loads(hosts("list", "--json"))}
    variables = yaml.safe_load((demo / "group_vars" / "all" / "main.yml").read_text(encoding="utf-8"))
    network = yaml.safe_load((demo / "depot.yml").read_text(encoding="utf-8"))["network"]
    variables.update({f"derms_{name}": blocks for name, blocks in network.items()})
    inventory = {
        "derms_gateways": {
            "hosts": {name: {"ansible_host": addresses[name], "derms_depot": name} for name in names},
            # The stand-in for RHEL has what is EPEL's in the repository that it was made with as well.
            "vars": {
                **variables,
                "derms_serial": len(names),
                "fail2ban_manage_repository": False,
                "mqtt_broker_manage_repository": False,
            },
        }
    }
    path = directory / file_name
    path.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    return path


def play(inventory: Path, *options: str, config: Path = ROOT / "ansible.cfg") -> tuple[float, str]:
    """Run site.yml; return its wall time in seconds and what it printed.

    :raises SystemExit: the run failed, so there is nothing to measure
    """
    environment = {**os.environ, "ANSIBLE_CONFIG": str(config), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    start = time.monotonic()
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", str(inventory), "site.yml", *options],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    wall_s = time.monotonic() - start
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
        sys.exit("the run that was to be measured failed")
    return wall_s, done.stdout


def dry_run(inventory: Path) -> float:
    """Return the wall time of a dry run, which must be in sync."""
    wall_s, printed = play(inventory, "--check")
    if "No Changes Required" not in printed:
        print(printed[-4000:], file=sys.stderr)
        sys.exit("the dry run that was to be measured was not in sync")
    return wall_s


def module_executions(inventory: Path) -> int:
    """Return how many modules a dry run of one host executes, each loop item counted."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "ansible.cfg"
        text = (ROOT / "ansible.cfg").read_text(encoding="utf-8")
        callbacks = f"callback_plugins = {ROOT}/tests/bench/callbacks\n"
        text = text.replace("collections_path = collections", f"collections_path = {ROOT}/collections\n{callbacks}")
        config.write_text(text.replace("derms.edge.drift", "derms.edge.drift, executions"), encoding="utf-8")
        _, printed = play(inventory, "--check", config=config)
    found = re.search(r"^module executions: (\d+)$", printed, re.MULTILINE)
    if found is None:
        sys.exit("the counting callback printed nothing")
    return int(found[1])


def one_gateway() -> list[Figure]:
    """Measure a dry run of one in-sync gateway, in turn with the same playbook under Ansible's defaults."""
    with raised(FLEET[:1], "--ntp", "--fake-sysctl") as gateway, tempfile.TemporaryDirectory() as directory:
        play(gateway)
        plain = Path(directory) / "ansible.cfg"
        plain.write_text(f"[defaults]\ncollections_path = {ROOT}/collections\n", encoding="utf-8")
        ours: list[float] = []
        defaults: list[float] = []
        for _ in range(RUNS):
            ours.append(dry_run(gateway))
            defaults.append(play(gateway, "--check", config=plain)[0])
        executions = module_executions(gateway)
    one_s, spread = median_and_spread(ours)
    defaults_s, _ = median_and_spread(defaults)
    ratio = one_s / defaults_s
    return [
        Figure("host.dry_run", one_s, "s", None, None, "≤ 25 s", one_s <= 25, spread),
        Figure("host.dry_run_vs_defaults", one_s, "s", defaults_s, ratio, "≤ 0.8 ×", ratio <= 0.8, spread),
        Figure("host.dry_run_executions", executions, "modules", None, None, "≤ 60", executions <= 60),
    ]


def fleet_of_twenty() -> list[Figure]:
    """Measure a dry run of twenty in-sync gateways, in turn with one of them."""
    with raised(FLEET, "--ntp", "--fake-sysctl") as fleet:
        play(fleet)
        one = write_inventory(fleet.parent, FLEET[:1], "one.yml")
        ones: list[float] = []
        twenties: list[float] = []
        for _ in range(3):
            ones.append(dry_run(one))
            twenties.append(dry_run(fleet))
    one_s, _ = median_and_spread(ones)
    twenty_s, spread = median_and_spread(twenties)
    growth = twenty_s / one_s
    return [Figure("host.dry_run_20_hosts", twenty_s, "s", one_s, growth, "≤ 8 ×", growth <= 8, spread)]


def verified_controls(platform: str) -> tuple[int, int]:
    """Converge a fresh host and return how many checks of docs/hardening-controls.yml hold on it, and of how many.

    They are made by molecule's own test, which has one case for each.
    """
    name = f"bench-controls-{platform}"
    with raised([name], "--ntp", "--fake-sysctl", platform=platform) as inventory:
        play(inventory)
        (entry,) = (entry for entry in json.loads(hosts("list", "--json")) if entry["name"] == name)
        ssh = ssh_config().parent
        gateway = {
            "name": name,
            "platform": platform,
            "address": entry["address"],
            "address6": entry["address6"],
            "user": "deploy",
            "private_key": str(ssh / "id_ed25519"),
            "ssh_options": f"-F {ssh_config()}",
        }
        report = inventory.parent / "controls.xml"
        subprocess.run(
            [str(BIN / "pytest"), "-q", f"--junit-xml={report}", "molecule/shared/tests/test_controls.py"],
            cwd=ROOT,
            env={**os.environ, "DERMS_GATEWAY": json.dumps(gateway)},
            check=False,
            stdout=sys.stderr,
        )
        # What pytest wrote a moment ago, not a stranger's document.
        suite = ElementTree.parse(report).find("testsuite")  # noqa: S314
    if suite is None:
        sys.exit("the test of the controls reported nothing")
    # What is left out is the other platform's.
    total = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    return total - int(suite.attrib["failures"]) - int(suite.attrib["errors"]), total


def hardening_controls() -> list[Figure]:
    """Count the checks that hold on each stand-in, of all that the controls which were taken are verified by."""
    figures: list[Figure] = []
    for platform in ("ubuntu2204", "rhel9"):
        held, total = verified_controls(platform)
        name = f"host.hardening_controls_{platform}"
        figures.append(Figure(name, held, "checks", total, held / total, "all", held == total))
    return figures


def eight_at_once() -> list[Figure]:
    """Measure creation to first SSH login of the slowest of eight hosts that are raised together."""
    names = [f"bench-{number:02d}" for number in range(1, 9)]
    hosts("setup", "ubuntu2204")
    slowest: list[float] = []
    for _ in range(3):
        try:
            printed = hosts("up", *names, "--platform", "ubuntu2204", "--fresh")
        finally:
            hosts("down", *names)
        slowest.append(max(float(seconds) for seconds in re.findall(r"login after ([0-9.]+) s", printed)))
    value, spread = median_and_spread(slowest)
    return [Figure("host.create_to_ssh_8", value, "s", None, None, "≤ 5 s", value <= 5, spread)]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("host.create_to_ssh_8",): eight_at_once,
    ("host.dry_run", "host.dry_run_vs_defaults", "host.dry_run_executions"): one_gateway,
    ("host.dry_run_20_hosts",): fleet_of_twenty,
    ("host.hardening_controls_ubuntu2204", "host.hardening_controls_rhel9"): hardening_controls,
}
