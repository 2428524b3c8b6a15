# SPDX-License-Identifier: GPL-3.0-or-later
"""A measured figure, the table of them, and the file that a CI can compare."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured value.

    `reference` was measured beside it in the same run and `ratio` is value / reference; both are None for a figure that
    stands alone. `goal` is in words; `met` says whether the value reached it. `spread` is the range of the runs.
    """

    name: str
    value: float
    unit: str
    reference: float | None
    ratio: float | None
    goal: str
    met: bool
    spread: str = ""


def median_and_spread(runs: Sequence[float]) -> tuple[float, str]:
    """Return the median of repeated runs, and their range in words."""
    return statistics.median(runs), f"{min(runs):.1f} to {max(runs):.1f} in {len(runs)}"


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as the list of objects that docs/contributor.md describes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n", encoding="utf-8")


def print_table(figures: Sequence[Figure]) -> None:
    """Print the figures for a person."""
    table = Table("name", "value", "runs", "reference", "ratio", "goal", "met")
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:.1f} {figure.unit}",
            figure.spread,
            "" if figure.reference is None else f"{figure.reference:.1f} {figure.unit}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.goal,
            "yes" if figure.met else "NO",
        )
    Console(width=140).print(table)
