# SPDX-License-Identifier: Apache-2.0
"""Faults planted in a copy of the control code, and of the orchestrator's, each of which the campaign has to find.

A mutant is one text of one file, replaced by another; a text that is not there exactly once is an error, so that no
mutant dies, or lives, for nothing.

Each names the seed by which it was found once. The hunt plays that one first, and then the others of the first 200; the
quick check plays that one alone, and a mutant that it does not find any more is to be hunted anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import derms_agent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted fault: `old` of `file` (in derms_agent) becomes `new`. `found_by`: the seed that showed it."""

    name: str
    file: str
    old: str
    new: str
    found_by: int | None = None


MUTANTS = (
    Mutant(
        "increase before it is measured",
        "control/ledger.py",
        "        claims.append(claim._replace(ended_s=event.answered_s) if over else claim)\n",
        "        claims.extend([] if over else [claim])\n",
        found_by=7,
    ),
    Mutant(
        "raise let through while over",
        "control/guard.py",
        "        amount, excess = self._most(asked, rows)  ",
        "        amount, excess = asked.target, None  ",
        found_by=0,
    ),
    Mutant(
        "write in flight not counted",
        "control/ledger.py",
        "claim = Claim(span=span_of(amount), cause=Cause.SETPOINT, since_s=now_s, write=write)",
        "claim = Claim(span=NOTHING, cause=Cause.SETPOINT, since_s=now_s, write=write)",
        found_by=0,
    ),
    Mutant(
        "indeterminate write forgotten",
        "control/ledger.py",
        "            return _lost(entry, station, event)",
        "            kept = Claims(claim for claim in entry.claims if claim.write != event.write)\n"
        "            return entry._replace(claims=kept)",
        found_by=31,
    ),
    Mutant(
        "watchdog ignored",
        "control/ledger.py",
        "        watchdog_s is not None\n        and (entry.refreshed_s is None",
        "        watchdog_s is not None\n        and now_s < 0\n        and (entry.refreshed_s is None",
        found_by=197,
    ),
    Mutant(
        "fallback counted only once the watchdog ran out",
        "control/ledger.py",
        "    return NOTHING if watchdog_s is None else fallback",
        "    return NOTHING",
        found_by=67,
    ),
    Mutant(
        "boot rule missing",
        "control/ledger.py",
        "        if not _open(entry, Cause.AFTER_BOOT):",
        "        if now_s < 0 and not _open(entry, Cause.AFTER_BOOT):",
        found_by=135,
    ),
    Mutant(
        "silent device counted at its setpoint",
        "control/ledger.py",
        "    silent_s = entry.silent_for_s(now_s)\n    added",
        "    silent_s = 0.0\n    added",
        found_by=6,
    ),
    Mutant(
        "ledger not adopted after a restart",
        "control/ledger.py",
        "    entry = entry._replace(claims=Claims(claims), watchdog_s=None",
        "    claims = [_timeless(NOTHING, Cause.UNKNOWN, now_s)]\n"
        "    entry = entry._replace(claims=Claims(claims), watchdog_s=None",
        found_by=22,
    ),
    Mutant(
        "write in flight forgotten by the successor",
        "control/ledger.py",
        "    for claim in entry.claims:\n        executed_by_s = now_s + station.late_s",
        "    for claim in entry.claims:\n"
        "        if claim.executed_by_s is None:\n"
        "            continue\n"
        "        executed_by_s = now_s + station.late_s",
        found_by=22,
    ),
    Mutant(
        "phase unknown loads one",
        "control/worst_case.py",
        "    loaded = phases if phases is not None else (station.phases or PHASES)",
        "    loaded = phases if phases is not None else (station.phases or PHASES[:1])",
        found_by=26,
    ),
    Mutant(
        "discharge as headroom",
        "control/worst_case.py",
        "        high[_ACTIVE], low[_ACTIVE] = box.high * known, box.low * known",
        "        high[_ACTIVE], low[_ACTIVE] = (box.high + box.low) * known, box.low * known",
        found_by=8,
    ),
    Mutant(
        "base load forgotten",
        "control/worst_case.py",
        "            known = base.get(name)\n            if known is None:\n",
        "            known = BaseLoad()\n            if known is None:\n",
        found_by=22,
    ),
    Mutant(
        "stale meter taken",
        "control/limits.py",
        "    if reading.quality is not Quality.GOOD or not 0 <= now_s - reading.read_at_s <= fresh_s:\n",
        "    if reading.quality is not Quality.GOOD:\n",
        found_by=115,
    ),
    Mutant(
        "limit's fall ignored",
        "control/limits.py",
        "    return tuple(asked(ask, Rank.GRID, base) for ask in asks)",
        "    return ()",
        found_by=5,
    ),
    Mutant(
        "decrease not sent",
        "control/guard.py",
        "            if told is None or not self._waits(told.since_s, entry):\n",
        "            if told is None:\n",
        found_by=0,
    ),
    Mutant(
        "obedience's draw not taken off",
        "control/guard.py",
        "        if not spans[line].holds(flowing, station.tolerance_a):\n",
        "        if spans[line] is None:\n",
        found_by=59,
    ),
    Mutant(
        "reserve ignored",
        "control/soc.py",
        "    above_wh = (soc - policy.reserve_percent) / _FULL_PERCENT * capacity_wh",
        "    above_wh = soc / _FULL_PERCENT * capacity_wh",
        found_by=74,
    ),
    Mutant(
        "state of charge never too old",
        "control/soc.py",
        "    return None if 0 <= age_s <= policy.fresh_s else",
        "    return None if age_s >= 0 else",
        found_by=47,
    ),
    Mutant(
        "discharge not in the ledger",
        "control/ledger.py",
        "        return Span(0.0, active) if active > 0.0 else Span(min(0.0, active))",
        "        return Span(0.0, max(0.0, active))",
        found_by=8,
    ),
    Mutant(
        "storage's temperature left out",
        "orchestrator/controller.py",
        "            self._heat[evse.name] = tuple(self._cooled(evse, now_s))\n",
        "            self._heat[evse.name] = () if evse.stationary else tuple(self._cooled(evse, now_s))\n",
        found_by=60,
    ),
    Mutant(
        "cut-off ignored",
        "control/thermal.py",
        "    left = share(sensor, learnt.estimate, reading.celsius, ambient_c)",
        "    left = 1.0",
        found_by=110,
    ),
    Mutant(
        "lost sensor ignored",
        "control/thermal.py",
        "        if sensor.required:",
        "        if sensor.required and now_s < 0:",
        found_by=100,
    ),
    Mutant(
        "stale meter counted as its last value",
        "orchestrator/controller.py",
        "self._metered(now_s), now_s, METER_FRESH_S)",
        "self._metered(now_s), now_s, math.inf)",
        found_by=115,
    ),
    Mutant(
        "value that a meter lacks taken for nothing",
        "orchestrator/image.py",
        "    known = all(currents[line] is not None for line in lines) and (all(lacking) or not any(lacking))\n",
        "    known = True\n",
        found_by=115,
    ),
    Mutant(
        "generation as headroom",
        "orchestrator/controller.py",
        "for meter in self.site.generators.get(circuit, ())]",
        "for meter in ()]",
        found_by=4,
    ),
    Mutant(
        "default limit held without the base load",
        "orchestrator/controller.py",
        "            found += limits.grid([default], root)\n",
        "            found += limits.grid([default], replace(root, low_w=0.0, high_w=0.0))\n",
        found_by=5,
    ),
    Mutant(
        "lost link never noticed",
        "orchestrator/controller.py",
        "        if self.link_until_s is None or now_s < self.link_until_s:\n",
        "        if self.link_until_s is not None:\n",
        found_by=5,
    ),
    Mutant(
        "event forgotten at a restart",
        "orchestrator/store.py",
        "        if not ask.over(at.now_s) and (linked",
        "        if ask.over(at.now_s) and (linked",
        found_by=169,
    ),
    Mutant(
        "event's times taken by the clock before the host's start",
        "orchestrator/store.py",
        "        ask = stored if same_boot else asks.placed",
        "        ask = stored if not same_boot else asks.placed",
        found_by=169,
    ),
    Mutant(
        "write without an answer taken for unsent",
        "orchestrator/controller.py",
        "            case _:\n                self._events.append(book.Lost(evse, write, at_s))\n",
        "            case _:\n                self._events.append(book.NotExecuted(evse, write, at_s))\n",
        found_by=31,
    ),
    Mutant(
        "reloaded site limit not taken",
        "orchestrator/controller.py",
        "limits.site(policy.limit_va, root,",
        "limits.site(site.depot.site.limit_va, root,",
        found_by=141,
    ),
    Mutant(
        "demand cap left out",
        "orchestrator/controller.py",
        "        if policy.demand_cap is not None:\n            found",
        "        if policy.demand_cap is not None and not policy.limit_va:\n            found",
        found_by=174,
    ),
    Mutant(
        "droop left out",
        "orchestrator/controller.py",
        "        found += self._frequency(now_s)\n",
        "        self._frequency(now_s)\n",
        found_by=154,
    ),
    Mutant(
        "charger's temperature left out",
        "orchestrator/controller.py",
        "        for heat in self._heat.values():\n            found += heat\n",
        "",
        found_by=110,
    ),
)


def planted(mutant: Mutant) -> str:
    """Return the text of a mutant's file with the fault in it. Raises ValueError where its text is not there once."""
    text = (Path(derms_agent.__file__).parent / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        found = f"found its text {text.count(mutant.old)} times in {mutant.file}"
        raise ValueError(f"mutant {mutant.name!r}: {found}, expected it once")
    return text.replace(mutant.old, mutant.new)


def plant(mutant: Mutant, target: Path) -> None:
    """Copy the package to a directory, with the fault in it. Raises ValueError as `planted` does."""
    text = planted(mutant)
    root = Path(derms_agent.__file__).parent
    shutil.copytree(root, target / root.name, ignore=shutil.ignore_patterns("__pycache__"))
    (target / root.name / mutant.file).write_text(text, encoding="utf-8")


def main(count: int, jobs: int, only: str = "", *, quick: bool = False) -> int:
    """Plant each fault, and see whether the campaign finds it; print a table. Return the exit status.

    `quick`: by the seed that found it once, alone.
    """
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    survived = 0
    sys.stdout.write(f"{'planted fault':<40} {'found':<10} {'took':>6}  by\n")
    with ThreadPoolExecutor(jobs) as pool:
        hunts = pool.map(lambda each: _hunt(each, seeds(each, count, quick=quick)), chosen)
        for mutant, (found, took_s, by) in zip(chosen, hunts, strict=True):
            survived += not found
            sys.stdout.write(f"{mutant.name:<40} {'yes' if found else 'NO':<10} {took_s:>5.0f}s  {by}\n")
            sys.stdout.flush()
    within = "by its own seed" if quick else f"within {count} episodes"
    sys.stdout.write(f"{len(chosen) - survived} of {len(chosen)} found {within}\n")
    return 1 if survived else 0


def seeds(mutant: Mutant, count: int, *, quick: bool) -> Sequence[int]:
    """Return the seeds that a mutant is hunted with, in order."""
    known = () if mutant.found_by is None else (mutant.found_by,)
    return known if quick else (*known, *(seed for seed in range(count) if seed not in known))


def _hunt(mutant: Mutant, seeds: Sequence[int]) -> tuple[bool, float, str]:
    """Return whether the campaign finds a mutant, how long it took, and by which violation."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="derms-mutant-") as directory:
        plant(mutant, Path(directory))
        command = ("-m", "derms_agent.twin.campaign", "play", "--stop", "--jobs", "1", *map(str, seeds))
        found = subprocess.run(
            (sys.executable, *command),
            cwd=directory,
            env={**os.environ, "PYTHONPATH": directory},
            capture_output=True,
            text=True,
            check=False,
        )
    by = [line.strip() for line in found.stdout.splitlines() if line.startswith("  seed ")]
    if found.returncode not in {0, 1}:
        raise RuntimeError(f"mutant {mutant.name!r} could not be run: {found.stderr[-2000:]}")
    if found.returncode == 1 and not by:
        # An exception ends Python with 1 as well, and is no finding.
        raise RuntimeError(f"mutant {mutant.name!r} broke: {found.stderr[-2000:]}")
    return found.returncode == 1, time.monotonic() - began_s, by[0][:110] if by else ""
