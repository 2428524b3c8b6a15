# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the molecule scenarios, as root: python -m tests.molecule [--vm] [SCENARIO …].

DERMS_HOSTS_WAY=podman has them run in containers of the real distributions' images instead of systemd-nspawn hosts.
Installs mbpoll, which reads the devices, where it is missing. Prints each step as it ends and each scenario's minutes;
what Ansible said goes to build/molecule/SCENARIO.log, whose end is printed where a scenario fails. Exit status 1: one
failed; 3: this machine cannot run test hosts, for the reason in the last line.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / ".config" / "molecule" / "config.yml"
LOGS = ROOT / "build" / "molecule"
# The scenarios' programs are those of the environment that runs this one.
BIN = Path(sys.prefix) / "bin"
SCENARIOS = ("ubuntu2204", "rhel9")
WITH_A_KERNEL_OF_THEIR_OWN = ("vm",)
CANNOT_RUN = 3
TERMINATED = 128 + signal.SIGTERM
LINES_SHOWN = 80

# Molecule colours a failure even where it was told not to colour anything.
STEP = re.compile(
    r" > (?P<name>\w+)\] (?:\x1b\[\d+m)?(?:(?P<begins>Executing)|Executed: (?P<outcome>[^\x1b]*))(?:\x1b\[0m)?$"
)


@dataclass(frozen=True)
class Step:
    """A step that a scenario has been through."""

    name: str
    outcome: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Tell whether the step did what it is there for; molecule passes one whose playbook is missing."""
        return self.outcome.startswith("Successful")


@dataclass
class Outcome:
    """How a scenario went."""

    scenario: str
    minutes: float = 0.0
    steps: list[Step] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def ended_steps(lines: Iterable[tuple[float, str]]) -> Iterator[Step]:
    """Yield the steps in molecule's output, of which each line comes with the second in which it was written."""
    began_s: float | None = None
    for now_s, line in lines:
        match = STEP.search(line.rstrip())
        if match and match["begins"]:
            began_s = now_s
        elif match and began_s is not None:
            yield Step(match["name"], match["outcome"], now_s - began_s)
            began_s = None


def not_passed(sequence: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Return the steps of a sequence, by their order, that were not run or did not pass."""
    passed = [step.name for step in steps if step.passed]
    missing = []
    for step in (entry.split()[0] for entry in sequence):
        if step in passed:
            passed.remove(step)
        else:
            missing.append(step)
    return missing


def sequence_of(scenario: str) -> list[str]:
    """Return what a scenario consists of."""
    own = yaml.safe_load((ROOT / "molecule" / scenario / "molecule.yml").read_text(encoding="utf-8"))
    common = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    sequence: list[str] = (own.get("scenario") or common["scenario"])["test_sequence"]
    return sequence


def environment() -> dict[str, str]:
    """Return what molecule runs with: the project's own programs first, and output for a file."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NO_COLOR": "1", "PY_COLORS": "0", "MOLECULE_COMMAND_BORDERS": "0"}


def lines_of(process: subprocess.Popen[str], log: Path) -> Iterator[tuple[float, str]]:
    """Yield a process' lines with their times, and keep them in a file."""
    assert process.stdout is not None
    with log.open("w", encoding="utf-8") as kept:
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            yield time.monotonic(), line


class Runs:
    """The scenarios that are under way, each in a process group of its own."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, scenario: str) -> Outcome:
        """Run a scenario and say how it went."""
        outcome = Outcome(scenario)
        start_s = time.monotonic()
        with subprocess.Popen(
            [BIN / "molecule", "test", "--scenario-name", scenario],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            self._processes.append(process)
            for step in ended_steps(lines_of(process, LOGS / f"{scenario}.log")):
                outcome.steps.append(step)
                print(f"{scenario:<12}{step.name:<14}{step.seconds:6.1f} s  {step.outcome}", flush=True)
        outcome.minutes = (time.monotonic() - start_s) / 60
        if process.returncode != 0:
            outcome.complaints.append(f"molecule ended with status {process.returncode}")
        outcome.complaints += [f"{name} did not pass" for name in not_passed(sequence_of(scenario), outcome.steps)]
        return outcome

    def stop(self) -> None:
        """End what is under way."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def call_hosts(*arguments: str, program: str = "tests.hosts") -> int:
    """Call the test hosts' own command and return its exit status."""
    return subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, check=False).returncode


def set_up(way: str, scenarios: Sequence[str]) -> int:
    """Make ready what hosts are raised from; return an exit status."""
    if os.geteuid() != 0:
        print("cannot run here: test hosts need root", file=sys.stderr)
        return CANNOT_RUN
    if shutil.which("mbpoll") is None:
        install = ["apt-get", "install", "--yes", "--quiet", "mbpoll"]
        subprocess.run(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=True)
    if scenarios == WITH_A_KERNEL_OF_THEIR_OWN:
        return call_hosts("setup", program="tests.hosts.vm")
    if way != "podman":
        return call_hosts("setup", *scenarios)
    if shutil.which("podman") is None:
        print("cannot run here: there is no podman", file=sys.stderr)
        return CANNOT_RUN
    return 0


def take_down(way: str, scenarios: Sequence[str]) -> None:
    """Take down what a scenario that was cut short has left."""
    for scenario in scenarios:
        pidfile = LOGS / f"{scenario}-field.pid"
        end = ["start-stop-daemon", "--stop", "--oknodo", "--quiet", "--retry=10", "--remove-pidfile"]
        subprocess.run([*end, f"--pidfile={pidfile}", f"--exec={sys.executable}"], check=True)
    names = [f"molecule-{scenario}" for scenario in scenarios]
    if scenarios == WITH_A_KERNEL_OF_THEIR_OWN:
        call_hosts("down", program="tests.hosts.vm")
    elif way == "podman":
        subprocess.run(["podman", "rm", "--force", "--ignore", *names], check=True)
    else:
        call_hosts("down", *names)


def show(outcome: Outcome) -> None:
    """Print what is wrong with a scenario, and the end of what it said."""
    log = LOGS / f"{outcome.scenario}.log"
    print(f"\n--- the end of {log.relative_to(ROOT)}")
    print("\n".join(log.read_text(encoding="utf-8").splitlines()[-LINES_SHOWN:]))
    for complaint in outcome.complaints:
        print(f"{outcome.scenario}: {complaint}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.molecule", description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS, *WITH_A_KERNEL_OF_THEIR_OWN])
    parser.add_argument("--vm", action="store_true", help="the scenario in a virtual machine, with a kernel of its own")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="how many scenarios at once (2)")
    arguments = parser.parse_args(argv)
    if "vm" in arguments.scenario and len(arguments.scenario) > 1:
        parser.error("the virtual machine's scenario runs by itself")
    chosen = tuple(arguments.scenario) or (WITH_A_KERNEL_OF_THEIR_OWN if arguments.vm else SCENARIOS)
    way = os.environ.get("DERMS_HOSTS_WAY", "nspawn")

    if status := set_up(way, chosen):
        return status
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    runs = Runs()
    try:
        with ThreadPoolExecutor(max_workers=arguments.workers) as pool:
            try:
                outcomes = list(pool.map(runs.run, chosen))
            except BaseException:
                runs.stop()
                raise
    finally:
        take_down(way, chosen)
    for outcome in outcomes:
        if outcome.complaints:
            show(outcome)
    print()
    for outcome in outcomes:
        word = "failed" if outcome.complaints else "passed"
        print(f"{outcome.scenario:<12}{word:<10}{outcome.minutes:5.1f} min")
    return 1 if any(outcome.complaints for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
