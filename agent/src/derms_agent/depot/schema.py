# SPDX-License-Identifier: Apache-2.0
"""A depot file's form: schema.json (JSON Schema 2020-12), and its verdicts as problems that a person can read.

Each `description` in the schema says what is expected at its place, in words: it is the one text for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from derms_agent.depot.document import Data
from derms_agent.depot.problem import Path, Problem, nearest, one_of, shown

_REF = "#/$defs/"


@cache
def schema() -> Mapping[str, Any]:
    """Return the schema."""
    loaded: Mapping[str, Any] = json.loads(files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))
    return loaded


@cache
def _validator() -> Draft202012Validator:
    # Inlined, for looking a reference up costs more than all else and is done for each device.
    return Draft202012Validator(_inlined(schema()))


def _inlined(part: Any) -> Any:
    """Return a part of the schema with what it refers to in its place; its own words go first."""
    if isinstance(part, list):
        return [_inlined(inner) for inner in part]
    if not isinstance(part, Mapping):
        return part
    own = {key: _inlined(value) for key, value in part.items() if key not in ("$ref", "$defs", "$schema")}
    if "$ref" not in part:
        return own
    return {**_inlined(schema()["$defs"][part["$ref"].removeprefix(_REF)]), **own}


def problems(data: Data) -> tuple[Problem, ...]:
    """Return all that is wrong with the form of a depot file's content."""
    found = [problem for error in _validator().iter_errors(data) for problem in _problems(error)]
    return tuple(found)


def _problems(error: ValidationError) -> Iterator[Problem]:
    path: Path = tuple(str(part) for part in error.absolute_path)
    known: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    expected = str(known.get("description", error.message))
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        properties = known["properties"]
        for key in instance:
            if key not in properties:
                words = "settings under device_defaults or profile_defaults" if key == "<<" else one_of(properties)
                yield Problem((*path, key), "an unknown key", words, nearest(key, properties), at_key=True)
    elif error.validator == "required":
        # One error for each key that is missing, which only its message names.
        missing = next(key for key in known["required"] if error.message.startswith(f"'{key}' "))
        words = f"{missing}: {known['properties'][missing].get('description', '')}"
        yield Problem(path, f"no {missing}", words, at_key=True)
    elif "propertyNames" in error.relative_schema_path:
        yield Problem((*path, str(instance)), "that name", expected, at_key=True)
    elif error.validator == "enum" and isinstance(instance, str):
        names = [str(choice) for choice in known["enum"]]
        yield Problem(path, shown(instance), expected, nearest(instance, names))
    else:
        yield Problem(path, shown(instance), expected)
