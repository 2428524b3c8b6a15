# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the project's tests part by part: python -m tests.run [--all] [PART …].

Two lanes run side by side: what computes, and what mostly waits for hosts. A part's output is printed when it ends
(build/test/PART.log has it meanwhile); then a table of the parts with their minutes, and the count of parts. A part
that this machine cannot run (exit status 3, with the reason as its last line) fails the run, unless ALLOW_SKIP=1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
    # No host, but it waits for much, and that lane ends sooner.
    Part("sanity", "hosts", (("tests/check_sanity",),)),
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
    """How a part went."""

    name: str
    word: str
    minutes: float


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
    status = 0
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{part.name}.log"
    # The project's own programs first: ansible-lint calls ansible-playbook, molecule calls ansible-config.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as output:
        for command in part.commands:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
            ).returncode
            if status:
                break
    outcome = Outcome(
        part.name, {0: "passed", CANNOT_RUN: "skipped"}.get(status, "failed"), (time.monotonic() - start) / 60
    )
    said = log.read_text(encoding="utf-8", errors="replace").rstrip()
    terminal.print(f"=== {part.name}: {outcome.word} after {outcome.minutes:.1f} min\n{said}\n")
    return outcome


def run_lane(parts: Sequence[Part], terminal: Terminal) -> list[Outcome]:
    """Run the parts of one lane, one after the other."""
    return [run(part, terminal) for part in parts]


def table(outcomes: Sequence[Outcome], minutes: float) -> str:
    """Return the parts with their minutes, and the closing line that a CI reads."""
    lines = [f"{outcome.name:<12}{outcome.word:<10}{outcome.minutes:5.1f} min" for outcome in outcomes]
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
    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        outcomes = [outcome for lane in pool.map(run_lane, lanes, [terminal] * len(lanes)) for outcome in lane]
    terminal.print(table(outcomes, (time.monotonic() - start) / 60))
    skip_allowed = os.environ.get("ALLOW_SKIP") == "1"
    if any(outcome.word == "skipped" for outcome in outcomes) and not skip_allowed:
        print("A part could not run on this machine (above); ALLOW_SKIP=1 accepts that.", file=sys.stderr)
        return 1
    return 1 if any(outcome.word == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
