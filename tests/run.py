# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the project's tests part by part: python -m tests.run [--all] [PART …].

Prints each part's output as it comes, then a table of the parts with their minutes, then the count of parts. A part
that this machine cannot run (exit status 3, with the reason as its last line) fails the run, unless ALLOW_SKIP=1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.prefix) / "bin"
CANNOT_RUN = 3


@dataclass(frozen=True)
class Part:
    """A part of the tests: commands that run one after the other until one fails."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    always: bool = True


PARTS = (
    Part("lint", (("tests/check_lint",),)),
    Part("types", ((f"{BIN}/mypy",), (f"{BIN}/mypy", "--scripts-are-modules", "deploy"))),
    Part("unit", (("tests/check_unit",),)),
    Part("sanity", (("tests/check_sanity",),)),
    Part("molecule", (("tests/as_root", f"{BIN}/python", "-m", "tests.molecule"),)),
    Part("e2e", (("tests/as_root", f"{BIN}/pytest", "-q", "tests/e2e"),)),
    Part("vm", (("tests/as_root", f"{BIN}/python", "-m", "tests.molecule", "--vm"),), always=False),
)


@dataclass(frozen=True)
class Outcome:
    """How a part went."""

    name: str
    word: str
    minutes: float


def run(part: Part) -> Outcome:
    """Run a part's commands and say how it went."""
    print(f"\n=== {part.name}", flush=True)
    start = time.monotonic()
    status = 0
    for command in part.commands:
        # The project's own programs first: ansible-lint calls ansible-playbook, molecule calls ansible-config.
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status:
            break
    word = {0: "passed", CANNOT_RUN: "skipped"}.get(status, "failed")
    return Outcome(part.name, word, (time.monotonic() - start) / 60)


def table(outcomes: list[Outcome]) -> str:
    """Return the parts with their minutes, and the closing line that a CI reads."""
    lines = [f"{outcome.name:<12}{outcome.word:<10}{outcome.minutes:5.1f} min" for outcome in outcomes]
    lines.append(f"{'all':<22}{sum(outcome.minutes for outcome in outcomes):5.1f} min")
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
    outcomes = [run(part) for part in chosen]
    print("\n" + table(outcomes), flush=True)
    skip_allowed = os.environ.get("ALLOW_SKIP") == "1"
    if any(outcome.word == "skipped" for outcome in outcomes) and not skip_allowed:
        print("A part could not run on this machine (above); ALLOW_SKIP=1 accepts that.", file=sys.stderr)
        return 1
    return 1 if any(outcome.word == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
