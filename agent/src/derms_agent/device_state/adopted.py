# SPDX-License-Identifier: Apache-2.0
"""A first depot file out of what a scan found. Pure.

What a device cannot show is never made up: which circuit feeds a charger, and what it may draw where it does not say.
Those are left out and named, and the file is refused as a depot file until somebody says them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from derms_agent import profiles as built_in
from derms_agent.depot import examine
from derms_agent.depot.plain import BUS_DEFAULTS, DEVICE_FIELDS, PLUGIN, devices_in
from derms_agent.depot.problem import Problem
from derms_agent.device_state.declaration import Declaration, Line, as_yaml, commented, section
from derms_agent.device_state.der.held import borne
from derms_agent.device_state.scan import Found
from derms_agent.model import Depot, DeviceKind
from derms_agent.profiles.point import Point

BEFORE_DEVICES = ("gateways", "circuits", "buses")
AFTER_DEVICES = ("vehicles",)
UNDECLARED = ("ambiguous", "unidentified")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A depot file's text, and what it lacks until it can be used."""

    text: str
    lacks: tuple[str, ...]


def entry(found: Found, depot: Depot, circuit: str | None, rating_a: float | None) -> dict[str, Any]:
    """Return what a unit makes of a depot file, as data of JSON's types.

    `declared` is its declaration by name, empty where none can be made, and `remarks` say why, and what it lacks.
    `circuit` and `rating_a` stand for what no device shows.
    """
    name, profile = _name(found), None if found.profile is None else built_in.load(found.profile)
    result: dict[str, Any] = {
        "bus": found.bus,
        "unit_id": found.unit_id,
        "name": name,
        "profile": found.profile,
        "candidates": [
            {"profile": one.profile, "score": one.score, "evidence": list(one.evidence)} for one in found.fits
        ],
        "identity": {},
        "settings": {},
        "declared": {},
        "remarks": [],
    }
    gathered = found.gathered
    if gathered is None or profile is None:
        outcome = "ambiguous" if found.fits else "unidentified"
        known = "" if found.declared is None else f" ({found.declared.name}, declared as {found.declared.profile})"
        could = "; ".join(f"{one.profile} ({one.score:g}: {', '.join(one.evidence)})" for one in found.fits)
        what = (
            f"unit {found.unit_id} of {found.bus}{known} answers, and {f'could be {could}' if could else found.shows}"
        )
        return {**result, "outcome": outcome, "remarks": [what]}
    if not gathered.answered:
        return {**result, "outcome": "silent", "remarks": [f"as it was declared: {gathered.detail}"]}
    fed_by, assumed = _circuit(found, depot, circuit)
    if gathered.der is not None:
        (der,) = borne(depot.circuits, {gathered.device.name: (fed_by, gathered.der)}).values()
        gathered = replace(gathered, der=der)
    declaration = gathered.declaration()
    result |= {"identity": dict(gathered.identity), "settings": dict(gathered.settings)}
    remarks = [*declaration.remarks, *filter(None, (gathered.detail, gathered.note))]
    if found.also:
        remarks.append(f"it answers to {', '.join(map(str, found.also))} as well")
    if found.declared is not None and found.declared.profile == found.profile:
        return {**result, "outcome": "declared", "declared": {name: dict(declaration.document)}, "remarks": remarks}
    document, lacking = _completed(found, declaration, fed_by, rating_a)
    if found.declared is not None:
        remarks.insert(0, f"declared as {found.declared.profile}, which it is not")
    if profile.kind is DeviceKind.METER:
        lacking.append(f"what it measures: meters: {{…: {{device: {name}, measures: …, circuit: …}}}}")
    return {
        **result,
        "outcome": "found",
        "declared": {name: document},
        "remarks": [f"found by what it shows: {', '.join(found.fits[0].evidence)}", *remarks, *assumed, *lacking],
    }


def _name(found: Found) -> str | None:
    if found.gathered is not None:
        return found.gathered.device.name
    return None if found.declared is None else found.declared.name


def _circuit(found: Found, depot: Depot, given: str | None) -> tuple[str | None, list[str]]:
    """Return the circuit that feeds a device, as far as it is known, and what of it nobody said."""
    known = given if found.declared is None else found.declared.circuit
    if known is None and len(depot.circuits) == 1:
        (known,) = depot.circuits
        return known, [f"circuit: {known}, for no other is declared"]
    return known, []


def _completed(
    found: Found, declaration: Declaration, circuit: str | None, rating_a: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Return a found device's declaration with its circuit and rating, and what is not known of them."""
    remarks: list[str] = []
    document = {key: value for key, value in declaration.document.items() if key not in {"circuit", "evses"}}
    evses = () if found.gathered is None else tuple(evse for evse in found.gathered.device.evses if not evse.stationary)
    charger = bool(evses)
    if circuit is not None:
        document["circuit"] = circuit
    elif charger:
        remarks.append("circuit: not known; say which one feeds it")
    rating = found.rating_a or rating_a
    if found.rating_a is not None:
        remarks.append(f"rating_a: {found.rating_a:g} A, what its hardware allows by its own account")
    if charger and rating is None:
        each_of = f"each of its {len(evses)} connectors" if len(evses) > 1 else "it"
        remarks.append(f"evses: rating_a is not shown; say what {each_of} can draw, in A per conductor")
    elif rating is not None and charger:
        each: dict[str, Any] = {"rating_a": int(rating) if float(rating).is_integer() else rating}
        document["evses"] = each if len(evses) == 1 else {str(evse.connector): each for evse in evses}
    return {key: document[key] for key in DEVICE_FIELDS if key in document}, remarks


def adopted(document: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> Adopted:
    """Return a depot file: a depot's document as it was, and for its devices what a scan made of them (`entry`)."""
    entries = list(entries)
    by_name = {one["name"]: one for one in entries if one["name"]}
    meters = {name: meter for name, meter in document.get("meters", {}).items() if meter.get("device", name) == name}
    parts: dict[str, list[str]] = {"devices": [], "meters": []}
    devices = devices_in(document)
    for name, device in devices.items():
        one = by_name.get(name)
        declared = _without_secrets(device) if one is None or name not in one["declared"] else one["declared"][name]
        remarks = ["as it was declared: its bus was not scanned"] if one is None else one["remarks"]
        if name in meters:
            declared = {**declared, **{key: meters[name][key] for key in ("measures", "circuit")}}
        parts["meters" if name in meters else "devices"].append(_part(name, declared, remarks))
    for one in entries:
        if one["name"] not in devices:
            parts["devices"] += [_part(name, declared, one["remarks"]) for name, declared in one["declared"].items()]
            if not one["declared"]:
                parts["devices"].append("".join(map(commented, one["remarks"])))
    parts["meters"] += [
        as_yaml({name: meter}) for name, meter in document.get("meters", {}).items() if name not in meters
    ]
    body = _before(document) + "".join(section(name, texts) for name, texts in parts.items() if texts)
    body += _after(document)
    lacks = (
        *_grouped(located.problem for located in examine(body, "").errors),
        *(remark for one in entries if one["outcome"] in UNDECLARED for remark in one["remarks"]),
    )
    words = (
        "Made from what answered on the depot's buses, with the settings that were found. Read it before it is used.",
        *(("It is not complete:",) if lacks else ()),
        *(f"- {problem}" for problem in lacks),
    )
    return Adopted("".join(map(commented, words)) + body, lacks)


def _grouped(problems: Iterable[Problem]) -> list[str]:
    """Return problems in words, those of one kind together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.found, problem.expected), []).append(".".join(problem.path))
    return [f"{', '.join(paths)}: found {found}; expected {expected}" for (found, expected), paths in groups.items()]


def _part(name: str, declared: Mapping[str, Any], remarks: Iterable[str]) -> str:
    return Declaration(name, declared, tuple(remarks)).text()


def _without_secrets(device: Mapping[str, Any]) -> dict[str, Any]:
    """Return a device's document without what only a vault may hold."""
    profile = built_in.load(device["profile"])
    secret = {name for name in profile.settings if isinstance(point := profile.point(name), Point) and point.secret}
    settings = {name: value for name, value in device.get("settings", {}).items() if name not in secret}
    return {key: settings if key == "settings" else value for key, value in device.items()}


def _before(document: Mapping[str, Any]) -> str:
    top = {key: document[key] for key in ("depot", "region", "utility", "site", "network") if document.get(key)}
    text = as_yaml({"plugin": PLUGIN, **top})
    for name in BEFORE_DEVICES:
        if document.get(name):
            text += section(name, (as_yaml({key: _said(name, one)}) for key, one in document[name].items()))
    return text


def _after(document: Mapping[str, Any]) -> str:
    text = ""
    for name in AFTER_DEVICES:
        if document.get(name):
            text += section(name, (as_yaml({key: Line(one)}) for key, one in document[name].items()))
    vtn = dict(document.get("vtn") or {})
    if "client_id" in vtn:
        # Ansible has opened it.
        del vtn["client_id"]
        text += commented("vtn.client_id: declared, and secret; put it here with !vault")
    return text + (as_yaml({"vtn": Line(vtn)}) if vtn else "")


def _said(name: str, one: Mapping[str, Any]) -> Line:
    defaults = BUS_DEFAULTS if name == "buses" else {}
    return Line((key, value) for key, value in one.items() if key not in defaults or value != defaults[key])
