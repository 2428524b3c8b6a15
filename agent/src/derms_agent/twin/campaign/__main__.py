# SPDX-License-Identifier: Apache-2.0
"""The campaign's commands.

python -m derms_agent.twin.campaign test [--count 300]      the seeds that once failed, then as many episodes
python -m derms_agent.twin.campaign run --count 100000      the long one; goes on where it was stopped
python -m derms_agent.twin.campaign play SEED …             these
python -m derms_agent.twin.campaign show SEED               one episode, line by line
python -m derms_agent.twin.campaign mutants                 plants faults in the control code; each has to be found

Exit status 0: no violation (mutants: none survived), 1: some, 2: it could not be run.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import derms_agent
from derms_agent.twin.campaign import mutants
from derms_agent.twin.campaign.episode import Outcome, run

SEEDS = Path(__file__).with_name("seeds.txt")
_CHUNK = 1
_SHOWN = 20


@dataclass(slots=True)
class Tally:
    """What the episodes so far have shown."""

    episodes: int = 0
    simulated_s: float = 0.0
    energy_wh: float = 0.0
    writes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)
    over_s: tuple[float, int] = (0.0, -1)
    over_share: tuple[float, int] = (0.0, -1)
    trip: tuple[float, int] = (0.0, -1)

    def add(self, outcome: Outcome) -> None:
        """Count an episode in."""
        self.episodes += 1
        self.simulated_s += outcome.length_s
        self.energy_wh += outcome.energy_wh
        self.writes += outcome.writes
        self.kinds.update(outcome.kinds)
        self.rules.update({violation.rule for violation in outcome.violations})
        if outcome.violations:
            first = min(outcome.violations, key=lambda violation: violation.at_s)
            self.failed.append((outcome.seed, f"{first.rule} at {first.at_s} s: {first.detail}"))
        worst = outcome.worst
        self.over_s = max(self.over_s, (worst.over_s, outcome.seed))
        self.over_share = max(self.over_share, (worst.over_share, outcome.seed))
        self.trip = max(self.trip, (worst.trip, outcome.seed))

    def lines(self) -> Iterator[str]:
        """Yield what there is to tell."""
        hours = self.simulated_s / 3600
        kwh = self.energy_wh / 1000
        yield f"{self.episodes} episodes, {hours:.1f} simulated hours, {self.writes} writes, {kwh:.0f} kWh charged"
        yield "what happened          episodes"
        for kind, count in self.kinds.most_common():
            yield f"  {kind:<32} {count:>7}"
        yield "worst that was seen                       seed"
        yield f"  over a limit for {self.over_s[0]:>8.1f} s            {self.over_s[1]:>8}"
        yield f"  over a limit by  {100 * self.over_share[0]:>8.1f} %            {self.over_share[1]:>8}"
        yield f"  trip curve used  {100 * self.trip[0]:>8.2f} %            {self.trip[1]:>8}"
        yield f"episodes with a violation: {len(self.failed)}"
        for rule, count in self.rules.most_common():
            yield f"  {rule:<32} {count:>7}"
        for seed, what in self.failed[:_SHOWN]:
            yield f"  seed {seed}: {what}"
        if len(self.failed) > _SHOWN:
            yield f"  and seeds {', '.join(str(seed) for seed, _what in self.failed[_SHOWN:])}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Tally:
        """Return what `to_json` gave."""
        pairs = {name: tuple(stored[name]) for name in ("over_s", "over_share", "trip")}
        failed = [(seed, what) for seed, what in stored["failed"]]
        counters = {name: Counter(stored[name]) for name in ("kinds", "rules")}
        return cls(**{**stored, **pairs, **counters, "failed": failed})


def _collect_seldom() -> None:
    """Have cyclic garbage looked for less often: a cycle of control makes many objects and few circles of them."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def regression_seeds(path: Path = SEEDS) -> tuple[int, ...]:
    """Return the seeds that once failed: one a line, what follows # is for people."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return tuple(int(text) for line in lines if (text := line.partition("#")[0].strip()))


def play(seeds: Iterable[int], jobs: int) -> Iterator[list[Outcome]]:
    """Play episodes on several processors; yield them in chunks, in order."""
    source = iter(seeds)
    chunks = iter(lambda: list(itertools.islice(source, _CHUNK)), [])
    if jobs == 1:
        for chunk in chunks:
            yield _play(chunk)
        return
    pool = ProcessPoolExecutor(jobs, initializer=_collect_seldom)
    try:
        waiting: list[Future[list[Outcome]]] = []
        for chunk in chunks:
            waiting.append(pool.submit(_play, chunk))
            while len(waiting) > 2 * jobs:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    finally:
        # Who is told to stop does not begin what still waits, and leaves no process behind.
        pool.shutdown(cancel_futures=True)


def _play(seeds: Sequence[int]) -> list[Outcome]:
    return [run(seed) for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m derms_agent.twin.campaign", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    jobs = os.cpu_count() or 1
    for name, count in (("test", 300), ("run", 1000)):
        command = commands.add_parser(name)
        command.add_argument("--count", type=int, default=count, help="how many episodes")
        command.add_argument("--first", type=int, default=0, help="the first one's seed")
        command.add_argument("--jobs", type=int, default=jobs, help="on how many processors")
        command.add_argument("--stop", action="store_true", help="stop at the first violation")
        if name == "run":
            command.add_argument(
                "--state", type=Path, default=Path("build/campaign.json"), help="where it goes on from"
            )
    played = commands.add_parser("play")
    played.add_argument("seeds", type=int, nargs="*")
    played.add_argument("--jobs", type=int, default=jobs)
    played.add_argument("--stop", action="store_true")
    shown = commands.add_parser("show")
    shown.add_argument("seed", type=int)
    planted = commands.add_parser("mutants")
    planted.add_argument("--count", type=int, default=200, help="within how many episodes each has to be found")
    planted.add_argument("--jobs", type=int, default=jobs)
    planted.add_argument("--only", default="", help="those whose name contains this")
    planted.add_argument("--quick", action="store_true", help="each by the seed that found it once, alone")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    match chosen.command:
        case "show":
            return _show(chosen.seed)
        case "mutants":
            return mutants.main(chosen.count, chosen.jobs, chosen.only, quick=chosen.quick)
        case "play":
            return _play_all(chosen.seeds, chosen.jobs, stop=chosen.stop)
        case "test":
            old = regression_seeds()
            known = set(old)
            new = (seed for seed in range(chosen.first, chosen.first + chosen.count) if seed not in known)
            return _play_all([*old, *new], chosen.jobs, stop=chosen.stop)
        case _:
            return _run(chosen)


def _stop(number: int, _frame: object) -> NoReturn:
    """End as an interrupt does: with what is open closed."""
    sys.exit(128 + number)


def _show(seed: int) -> int:
    trace: list[str] = []
    outcome = run(seed, trace)
    _say(*trace, f"{', '.join(outcome.kinds)}; {outcome.worst}")
    for violation in outcome.violations:
        _say(f"violation, {violation.rule}, at {violation.at_s} s: {violation.detail}")
    return 1 if outcome.violations else 0


def _play_all(seeds: Iterable[int], jobs: int, *, stop: bool) -> int:
    began_s = time.monotonic()
    tally = Tally()
    for outcomes in play(seeds, jobs):
        for outcome in outcomes:
            tally.add(outcome)
        if stop and tally.failed:
            break
    _say(*tally.lines(), f"{time.monotonic() - began_s:.0f} s")
    return 1 if tally.failed else 0


def _run(chosen: argparse.Namespace) -> int:
    """Play many episodes; what was seen so far is on disk after each chunk, for this very code."""
    code = _fingerprint()
    tally, done = Tally(), 0
    if chosen.state.exists():
        stored = json.loads(chosen.state.read_text(encoding="utf-8"))
        if (stored["code"], stored["first"]) == (code, chosen.first):
            tally, done = Tally.from_json(stored["tally"]), stored["done"]
            _say(f"going on after {done} episodes")
        else:
            _say("the code or the first seed is another than that of the state file: starting anew")
    chosen.state.parent.mkdir(parents=True, exist_ok=True)
    known = set(regression_seeds())
    said_s = time.monotonic()
    for outcomes in play(range(chosen.first + done, chosen.first + chosen.count), chosen.jobs):
        for outcome in outcomes:
            tally.add(outcome)
        done += len(outcomes)
        for seed, what in tally.failed:
            if seed not in known:
                known.add(seed)
                with SEEDS.open("a", encoding="utf-8") as file:
                    file.write(f"{seed}  # {what.partition(';')[0]}\n")
        state = {"code": code, "first": chosen.first, "done": done, "tally": tally.to_json()}
        fresh = chosen.state.with_suffix(".new")
        fresh.write_text(json.dumps(state), encoding="utf-8")
        fresh.replace(chosen.state)
        if time.monotonic() - said_s > 60:  # noqa: PLR2004 - once a minute
            said_s = time.monotonic()
            _say(f"{done} of {chosen.count}, {len(tally.failed)} with a violation")
        if chosen.stop and tally.failed:
            break
    _say(*tally.lines())
    return 1 if tally.failed else 0


def _fingerprint() -> str:
    """Return what tells this code from other code: an episode is the same only for the same."""
    digest = hashlib.sha256()
    root = Path(derms_agent.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yml")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
