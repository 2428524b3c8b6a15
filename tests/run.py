# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the project's tests part by part: python -m tests.run [--all] [PART …].

Two lanes run side by side: what computes, and what mostly waits for hosts; what is left over is for the lane that ends
first. A part's output is printed when it ends (build/test/PART.log has it meanwhile); then a table of the parts with
their minutes, and the count of parts. A part
that this machine cannot run (exit status 3, with the reason as its last line) fails the run, unless ALLOW_SKIP=1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

ROOT = Path(__file__).parents[1]
BIN = Path(sys.prefix) / "bin"
LOGS = ROOT / "build" / "test"
CANNOT_RUN = 3

# In the order in which conftest.py leaves them.
LONGEST_FIRST = ("--dist", "loadfile", "--no-loadscope-reorder")
SOAK = "tests/e2e/test_dry_runs_amid_bans.py"
DAY = ("--log-cli-level=INFO", "agent/tests/orchestrator/test_memory.py")
EXPLORE = ("-q", "-m", "hypothesis", "--hypothesis-profile=explore")
FUZZ = ("-q", "--log-cli-level=WARNING", "agent/tests/grid_gateway/test_fuzz.py")
KILLED = ("-k", "killed_at_any_instant", "agent/tests/orchestrator/test_service.py")


@dataclass(frozen=True)
class Part:
    """A part of the tests: commands that run one after the other until one fails."""

    name: str
    lane: str
    commands: tuple[tuple[str, ...], ...]
    always: bool = True


PARTS = (
    Part("lint", "computing", (("tests/check_lint",),)),
    Part("types", "computing", ((f"{BIN}/mypy",), (f"{BIN}/mypy", "--scripts-are-modules", "deploy"))),
    Part("unit", "computing", (("tests/check_unit",),)),
    Part("agent", "computing", (("tests/check_agent",),)),
    Part(
        "campaign",
        "computing",
        (
            (f"{BIN}/python", "-m", "derms_agent.twin.campaign", "test", "--count", "300"),
            (f"{BIN}/python", "-m", "derms_agent.twin.campaign", "mutants", "--quick"),
        ),
    ),
    # The Pythons between the oldest and the newest.
    Part("pythons", "computing", (("tests/check_unit", "3.12"), ("tests/check_agent", "3.12")), always=False),
    Part(
        "endurance",
        "computing",
        (
            ("env", "DERMS_HOURS=24", f"{BIN}/pytest", "-q", *DAY),
            ("env", "DERMS_KILLS=200", f"{BIN}/pytest", "-q", *KILLED),
        ),
        always=False,
    ),
    Part(
        "explore",
        "computing",
        tuple((f"{BIN}/pytest", *EXPLORE, tests) for tests in ("agent/tests", "tests/unit")),
        always=False,
    ),
    Part(
        "fuzz",
        "computing",
        (("env", f"FUZZ_MINUTES={os.environ.get('FUZZ_MINUTES', '10')}", f"{BIN}/pytest", *FUZZ),),
        always=False,
    ),
    Part("molecule", "hosts", (("tests/as_root", f"{BIN}/python", "-m", "tests.molecule"),)),
    Part(
        "e2e",
        "hosts",
        (("tests/as_root", f"{BIN}/pytest", "-q", "-n", "3", *LONGEST_FIRST, "--durations=20", "tests/e2e"),),
    ),
    Part("sanity", "either", (("tests/check_sanity",),)),
    Part(
        "soak",
        "hosts",
        (("env", "DERMS_DRY_RUNS=50", "tests/as_root", f"{BIN}/pytest", "-q", "-n", "2", SOAK),),
        always=False,
    ),
    Part("vm", "hosts", (("tests/as_root", f"{BIN}/python", "-m", "tests.molecule", "--vm"),), always=False),
)


@dataclass(frozen=True)
class Outcome:
    """How a part went, and what processor time its own processes took; what hosts did for it is not in that."""

    name: str
    word: str
    minutes: float
    processor_minutes: float


class Terminal:
    """Where the lanes print, one whole text at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def print(self, text: str) -> None:
        """Print a text that no other lane's may stand in the middle of."""
        with self._lock:
            print(text, flush=True)


def run(part: Part, terminal: Terminal) -> Outcome:
    """Run a part's commands and say how it went."""
    terminal.print(f"=== {part.name}: begins")
    start = time.monotonic()
    status, processor_s = 0, 0.0
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{part.name}.log"
    # The project's own programs first: ansible-lint calls ansible-playbook, molecule calls ansible-config.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as output:
        for command in part.commands:
            status, took_s = finish(command, environment, output)
            processor_s += took_s
            if status:
                break
    word = {0: "passed", CANNOT_RUN: "skipped"}.get(status, "failed")
    outcome = Outcome(part.name, word, (time.monotonic() - start) / 60, processor_s / 60)
    said = log.read_text(encoding="utf-8", errors="replace").rstrip()
    terminal.print(f"=== {part.name}: {outcome.word} after {outcome.minutes:.1f} min\n{said}\n")
    return outcome


def finish(command: Sequence[str], environment: Mapping[str, str], output: BinaryIO) -> tuple[int, float]:
    """Run a command to its end; return its exit status, and its processor time and that of all it waited for, in s."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process:
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def run_lane(parts: Sequence[Part], left_over: SimpleQueue[Part], terminal: Terminal) -> list[Outcome]:
    """Run the parts of one lane, one after the other, and then those left over that no other lane has begun."""
    outcomes = [run(part, terminal) for part in parts]
    with suppress(Empty):
        while True:
            outcomes.append(run(left_over.get_nowait(), terminal))
    return outcomes


def table(outcomes: Sequence[Outcome], minutes: float) -> str:
    """Return the parts with their minutes, and the closing line that a CI reads."""
    lines = [
        f"{one.name:<12}{one.word:<10}{one.minutes:5.1f} min {one.processor_minutes:6.1f} min of a processor"
        for one in outcomes
    ]
    lines.append(f"{'side by side':<22}{minutes:5.1f} min")
    counts = {word: sum(outcome.word == word for outcome in outcomes) for word in ("passed", "failed", "skipped")}
    lines.append("parts: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    return "\n".join(lines)


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.run", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[[], *(part.name for part in PARTS)], help="only these parts")
    parser.add_argument("--all", action="store_true", help="also the parts that take too long for every change")
    arguments = parser.parse_args()
    chosen = [
        part for part in PARTS if part.name in arguments.part or (not arguments.part and (part.always or arguments.all))
    ]
    start = time.monotonic()
    terminal = Terminal()
    lanes = [[part for part in chosen if part.lane == lane] for lane in ("computing", "hosts")]
    left_over: SimpleQueue[Part] = SimpleQueue()
    for part in chosen:
        if part.lane == "either":
            left_over.put(part)
    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        running = [pool.submit(run_lane, lane, left_over, terminal) for lane in lanes]
        outcomes = [outcome for lane in running for outcome in lane.result()]
    terminal.print(table(outcomes, (time.monotonic() - start) / 60))
    skip_allowed = os.environ.get("ALLOW_SKIP") == "1"
    if any(outcome.word == "skipped" for outcome in outcomes) and not skip_allowed:
        print("A part could not run on this machine (above); ALLOW_SKIP=1 accepts that.", file=sys.stderr)
        return 1
    return 1 if any(outcome.word == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
