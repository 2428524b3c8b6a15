# SPDX-License-Identifier: Apache-2.0
"""What a file declares for one name or range of names, with what buses and profiles add to it by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from derms_agent.depot import ranges
from derms_agent.depot.problem import Path, Problem, shown


@dataclass(frozen=True, slots=True)
class Layer:
    """A mapping of the file and the path that leads to it."""

    path: Path
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A value and the path at which it was written."""

    path: Path
    value: Any


def first(layers: Sequence[Layer], field: str) -> Found | None:
    """Return a field of the first layer that has it."""
    for layer in layers:
        if field in layer.values:
            return Found((*layer.path, field), layer.values[field])
    return None


def merged_settings(layers: Sequence[Layer]) -> dict[str, Found]:
    """Return each setting once, from the first layer that has it, in the order of the last layers first."""
    merged: dict[str, Found] = {}
    for layer in reversed(layers):
        for name, value in layer.values.get("settings", {}).items():
            merged[name] = Found((*layer.path, "settings", name), value)
    return merged


def evse_layers(layers: Sequence[Layer]) -> list[tuple[int, list[Layer]]]:
    """Return each connector's number and where its fields are to be looked for.

    The first layer that names EVSEs says which connectors there are; what it leaves out is looked for in the layers
    beneath that describe one EVSE for all.
    """
    named = [
        Layer((*layer.path, "evses"), layer.values["evses"])
        for layer in layers
        if layer.values.get("evses") is not None
    ]
    if not named:
        return []
    top, beneath = named[0], [layer for layer in named[1:] if not _by_connector(layer.values)]
    if not _by_connector(top.values):
        return [(1, [top, *beneath])]
    return [(int(key), [Layer((*top.path, key), values), *beneath]) for key, values in top.values.items()]


def _by_connector(values: Mapping[str, Any]) -> bool:
    return all(key.isdigit() for key in values)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one key of a section declares: `names` are what it stands for; `columns` are the fields that run in step."""

    section: str
    key: str
    values: Mapping[str, Any]
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]

    @property
    def path(self) -> Path:
        """The path of the whole entry."""
        return (self.section, self.key)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each name with its fields."""
        if not self.columns:
            yield from ((name, self.values) for name in self.names)
            return
        for index, name in enumerate(self.names):
            yield name, {**self.values, **{field: column[index] for field, column in self.columns.items()}}


def expanded(section: str, key: str, values: Mapping[str, Any]) -> Entry | list[Problem]:
    """Return an entry with its ranges expanded, or what is wrong with them.

    A range in a text of the entry runs in step with the range in its name, so both are as long, and so does a list of
    serial numbers; what has no range is the same for all. Ranges in nested mappings are no ranges: nothing there runs
    in step.
    """
    problems: list[Problem] = []
    path = (section, key)
    try:
        names = ranges.expand(key)
    except ranges.BadRange as bad:
        return [Problem(path, "that name", str(bad), at_key=True)]
    columns: dict[str, Sequence[Any]] = {}
    for field, value in values.items():
        try:
            column = _column(field, value)
        except ranges.BadRange as bad:
            problems.append(Problem((*path, field), shown(value), str(bad)))
            continue
        if column is None:
            continue
        if len(column) != len(names) and isinstance(value, list):
            expected = f"one for each of the {len(names)} that {key} stands for, in their order"
            problems.append(Problem((*path, field), shown(value), expected, at_key=True))
        elif len(column) != len(names):
            expected = (
                f"a range of {len(names)}, as long as that of {key}"
                if ranges.has_range(key)
                else f"no range, for {key} stands for one; or a range of {len(column)} in the name, which runs in step"
            )
            problems.append(Problem((*path, field), f"{shown(value)}, a range of {len(column)}", expected))
        columns[field] = column
    return problems or Entry(section, key, values, names, columns)


def _column(field: str, value: Any) -> Sequence[Any] | None:
    """Return what runs in step with the names, None for what is the same for all of them. Raises BadRange."""
    if field == "serial_number" and isinstance(value, list):
        return value
    if not isinstance(value, str):
        return None
    if field == "unit_id":
        return ranges.expand_units(value)
    return ranges.expand(value) if ranges.has_range(value) else None
