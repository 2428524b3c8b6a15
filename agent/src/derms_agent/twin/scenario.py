# SPDX-License-Identifier: Apache-2.0
"""A scenario file: what happens to the twin, and when.

arrivals: none            # or: default
base_load_share: 0.6      # of each circuit's worst base load
settings: declared        # or: factory, as an unconfigured device
events:
  - {at: 10, fault: silent, on: charger-003, for_s: 30}
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path as FilePath

from derms_agent.depot.document import Data, parse
from derms_agent.depot.problem import Located, Problem
from derms_agent.model import Depot
from derms_agent.twin.actions import Action, Reader

_LONGEST_S = 1e9
_KEYS = ("arrivals", "base_load_share", "settings", "events")


class Arrivals(str, Enum):
    """Who plugs in unasked: vehicles by the default schedule, or nobody."""

    DEFAULT = "default"
    NONE = "none"


class Settings(str, Enum):
    """What the devices hold at the start: what the depot file declares, or what they left the factory with."""

    DECLARED = "declared"
    FACTORY = "factory"


@dataclass(frozen=True, slots=True)
class Event:
    """An action and when it happens, in s from the twin's start."""

    at_s: float
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario; events in the order of their time."""

    arrivals: Arrivals = Arrivals.DEFAULT
    base_load_share: float = 0.6
    settings: Settings = Settings.DECLARED
    events: tuple[Event, ...] = ()


class ScenarioError(ValueError):
    """A scenario file that cannot be run; its text has one line for each problem, with file, line and column."""

    def __init__(self, problems: tuple[Located, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def read(text: str, file: str, depot: Depot) -> Scenario:
    """Return the scenario that a text describes for a depot. Raises `ScenarioError`."""
    document = parse(text, file)
    if document.problems:
        raise ScenarioError(document.problems)
    reader = Reader(depot)
    scenario = _scenario(reader, document.data)
    if reader.problems:
        raise ScenarioError(tuple(document.locate(problem) for problem in reader.problems))
    return scenario


def load(path: FilePath, depot: Depot) -> Scenario:
    """Return the scenario in a file. Raises `ScenarioError`, OSError."""
    return read(path.read_text(encoding="utf-8"), str(path), depot)


def _scenario(reader: Reader, data: Data) -> Scenario:
    if not isinstance(data, dict):
        reader.problems.append(Problem((), "no mapping", "some of " + ", ".join(_KEYS)))
        return Scenario()
    reader.keys((), data, _KEYS)
    share = data.get("base_load_share")
    return Scenario(
        arrivals=Arrivals(_choice(reader, data, "arrivals", Arrivals, Arrivals.DEFAULT)),
        base_load_share=0.6 if share is None else reader.number(("base_load_share",), share, 0, 1),
        settings=Settings(_choice(reader, data, "settings", Settings, Settings.DECLARED)),
        events=_events(reader, data.get("events")),
    )


def _choice(reader: Reader, data: dict[str, Data], key: str, of: type[Enum], default: Enum) -> object:
    if data.get(key) is None:
        return default
    names = tuple(str(member.value) for member in of)
    return reader.name((key,), data[key], names, "one of " + ", ".join(names)) or default


def _events(reader: Reader, value: Data) -> tuple[Event, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        reader.problems.append(Problem(("events",), "no list", "a list of {at: seconds, what}"))
        return ()
    events = []
    for index, entry in enumerate(value):
        path = ("events", str(index))
        at_s = reader.number((*path, "at"), entry.get("at") if isinstance(entry, dict) else None, 0, _LONGEST_S)
        action = reader.action(path, entry, beside=("at",))
        if action is not None:
            events.append(Event(at_s, action))
    return tuple(sorted(events, key=lambda event: event.at_s))
