# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the benchmarks: python -m tests.bench [--only PREFIX].

Prints a table and writes build/bench.json. Ends with status 1 where a goal was missed, 3 where this machine cannot
measure (the last line says what it lacks).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import (
    agent_bus,
    agent_service,
    agent_services,
    control_cycle,
    control_droop,
    control_energy,
    control_guarded,
    control_stability,
    devices,
    host,
    inventory,
    openadr,
)
from tests.bench.figures import Figure, print_table, write_json

ROOT = Path(__file__).parents[2]
# Every benchmark by the name of its figures: one function may measure several that need the same hosts.
BENCHMARKS = {
    **host.BENCHMARKS,
    **agent_bus.BENCHMARKS,
    **agent_service.BENCHMARKS,
    **agent_services.BENCHMARKS,
    **inventory.BENCHMARKS,
    **control_droop.BENCHMARKS,
    **control_energy.BENCHMARKS,
    **control_cycle.BENCHMARKS,
    **control_guarded.BENCHMARKS,
    **control_stability.BENCHMARKS,
    **devices.BENCHMARKS,
    **openadr.BENCHMARKS,
}


def main() -> int:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PREFIX", help="only figures whose name begins so, as in host.")
    only = parser.parse_args().only
    chosen = [measure for names, measure in BENCHMARKS.items() if any(name.startswith(only) for name in names)]
    if not chosen:
        names = ", ".join(name for group in BENCHMARKS for name in group)
        print(f"no figure begins with {only!r}; there are: {names}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    for measure in chosen:
        found = [figure for figure in measure() if figure.name.startswith(only)]
        figures += found
        # The table comes when all is measured; where the next one fails, this has been said.
        print(*(f"{one.name}: {one.value:.4g} {one.unit} ({one.spread})" for one in found), sep="\n", flush=True)
    print_table(figures)
    write_json(figures, ROOT / "build" / "bench.json")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
