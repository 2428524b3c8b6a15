# SPDX-License-Identifier: Apache-2.0
"""What was read from devices, in a depot file's own form: what can be declared of it, and its YAML text. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from derms_agent.depot.assembly import refused_by
from derms_agent.depot.plain import device_document
from derms_agent.depot.problem import Vaulted
from derms_agent.depot.ranges import has_range
from derms_agent.device_state.der.held import Held
from derms_agent.drivers.register_map import stem
from derms_agent.model import Device, Meter, Value
from derms_agent.one_line import one_line
from derms_agent.profiles.point import Point
from derms_agent.profiles.profile import Profile

WIDTH = 110


@dataclass(frozen=True, slots=True)
class Declaration:
    """A device in a depot file's form, and in `remarks` what of it is not as it was read, and why."""

    name: str
    document: Mapping[str, Any]
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """Return its YAML, remarks above it."""
        return "".join(map(commented, self.remarks)) + as_yaml({self.name: self.document})


def commented(words: str) -> str:
    """Return words as comments of YAML, whatever is in them."""
    return "".join(f"# {line}\n" for line in textwrap.wrap(one_line(words), WIDTH))


class Line(dict[str, Any]):
    """What is written on one line, whatever is in it."""


class _Dumper(yaml.SafeDumper):
    """Writes collections of plain values, and lines, on one line each, and everything else in block style."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - what PyYAML calls
        """Write what occurs twice twice."""
        return True


_Dumper.add_representer(
    Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line.items(), flow_style=True)
)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Return YAML as a person would write a depot file."""
    text: str = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=WIDTH, allow_unicode=True, indent=2
    )
    return text


def section(name: str, parts: Iterable[str]) -> str:
    """Return a section of a depot file with the parts below it; `{}` where none of them declares anything."""
    texts = [textwrap.indent(part, "  ") for part in parts]
    declares = any(not line.lstrip().startswith("#") for text in texts for line in text.splitlines())
    return f"{name}:\n{''.join(texts)}" if declares else f"{''.join(texts)}{name}: {{}}\n"


def declaration(
    device: Device,
    profile: Profile,
    identity: Mapping[str, Value],
    settings: Mapping[str, Value],
    der: Held | None = None,
) -> Declaration:
    """Return a device's declaration with what was read from it in place of what was declared.

    `settings` are by the names of values: those that each connector has for itself end in its number. `der` is what a
    DER holds by the grid's code, None for anything else.
    """
    declared, remarks = _settings(device, profile, settings)
    numbers = {}
    for point in ("serial_number", "firmware"):
        numbers[point] = _identifier(identity.get(point))
        if point in identity and numbers[point] is None:
            remarks.append(f"{point}: {identity[point]}, which cannot be declared")
    read = replace(device, settings=declared, serial_number=numbers["serial_number"], firmware=numbers["firmware"])
    if der is not None:
        read = replace(read, der_settings=der.settings or None)
        remarks += der.remarks
    document = device_document(read)
    return Declaration(device.name, _compact(document), tuple(remarks))


def meter(declared: Declaration, measuring: Meter) -> Declaration:
    """Return a device's declaration as that of the meter that it is."""
    said = {"measures": measuring.measures.value, "circuit": measuring.circuit}
    return replace(declared, document={**declared.document, **said})


def _compact(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a device's form as a person would write it: what goes without saying left out."""
    written = {key: value for key, value in document.items() if key != "evses"}
    if "evses" in document:
        evses = {
            connector: Line(
                (key, _short(value))
                for key, value in evse.items()
                if key != "circuit" or value != document.get("circuit")
            )
            for connector, evse in document["evses"].items()
        }
        written["evses"] = evses["1"] if list(evses) == ["1"] else evses
    if "settings" in document:
        written["settings"] = Line((name, _short(value)) for name, value in document["settings"].items())
    if "der_settings" in document:
        functions = document["der_settings"].items()
        written["der_settings"] = {
            name: Line((key, _short(value)) for key, value in own.items()) for name, own in functions
        }
    return written


def _settings(device: Device, profile: Profile, found: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    declared: dict[str, Value] = {}
    remarks: list[str] = []
    for setting in profile.settings:
        point = profile.point(setting)
        by_connector = {name: value for name, value in found.items() if stem(name) == setting}
        values = set(by_connector.values())
        if isinstance(point, Point) and point.secret:
            if setting in device.settings:
                remarks.append(f"{setting}: declared, and secret; put it here with !vault")
        elif not values:
            if setting in device.settings and not isinstance(device.settings[setting], Vaulted):
                declared[setting] = device.settings[setting]
                remarks.append(f"{setting}: as it was declared, for the device does not show it")
        elif len(values) > 1:
            each = ", ".join(f"{name} {value}" for name, value in by_connector.items())
            remarks.append(f"{setting}: {each}; one value is declared for all connectors")
        else:
            value = values.pop()
            if expected := refused_by(point, value):
                remarks.append(f"{setting}: {value} {point.unit}".rstrip() + f", expected {expected}")
            else:
                declared[setting] = value
    return declared, remarks


def _short(value: Any) -> Any:
    """Return a whole number without its fraction, be it in a list, and anything else as it is."""
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _identifier(value: Value | None) -> str | None:
    """Return a serial number or a version as it can be declared, None where it cannot."""
    text = "" if value is None else str(value).strip()
    return text if text and text.isprintable() and not has_range(text) else None
