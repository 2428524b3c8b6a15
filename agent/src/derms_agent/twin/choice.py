# SPDX-License-Identifier: Apache-2.0
"""Which depot a command of the twin is about."""

from __future__ import annotations

from pathlib import Path

from derms_agent import depot as depot_file
from derms_agent.model import Depot


class CannotStart(Exception):
    """The twin cannot run; the text says why and what was expected."""


def find_depot(path: Path, name: str | None = None) -> Depot:
    """Return the depot in a file, or in an inventory directory's one depot file, or the one of them named.

    Raises `CannotStart`, `derms_agent.depot.NoDepotFile`, `derms_agent.depot.DepotError`.
    """
    found = {depot.name: depot for depot in map(depot_file.load, depot_file.files(path))}
    if name is None and len(found) > 1:
        raise CannotStart(f"{path}: found the depots {', '.join(found)}; expected --depot with one of them")
    if name is not None and name not in found:
        raise CannotStart(f"{path}: found the depots {', '.join(found)}; expected {name} among them")
    return found[name] if name is not None else next(iter(found.values()))
