# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.derms.edge.plugins.plugin_utils.role_variables import (
    Problem,
    Provenance,
    Spot,
    report,
    undeclared_problems,
    value_problems,
)
from hypothesis import given
from hypothesis import strategies as st

ROLES = Path(__file__).parents[3] / "roles"
NOWHERE = Provenance(place=lambda _value: "", is_secret=lambda value: value == "s3cret")


def problems(option: dict[str, Any], value: object, name: str = "x") -> list[str]:
    return [str(one) for one in value_problems(Spot(name, "", option.get("no_log", False)), option, value, NOWHERE)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ({"type": "str"}, "a"),
        ({"type": "str"}, 1.3),
        ({"type": "str"}, None),
        ({"type": "int"}, 4),
        ({"type": "float"}, 4),
        ({"type": "bool"}, False),
        ({"type": "raw"}, [{}]),
        ({"type": "list", "elements": "int"}, [1, 2]),
        ({"type": "dict"}, {"any": "thing"}),
        ({"type": "str", "choices": ["1.2", "1.3"]}, 1.3),
    ],
)
def test_right_values(option: dict[str, Any], value: object) -> None:
    assert problems(option, value) == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ({"type": "bool"}, "false", "x: found the text 'false'; expected true or false"),
        ({"type": "int"}, "4", "x: found the text '4'; expected a whole number"),
        ({"type": "int"}, True, "x: found true; expected a whole number"),
        ({"type": "str"}, True, "x: found true; expected a text"),
        ({"type": "str"}, ["a"], "x: found a list of 1; expected a text"),
        ({"type": "list"}, "a,b", "x: found the text 'a,b'; expected a list"),
        ({"type": "list"}, {"a": 1}, "x: found a mapping with a; expected a list"),
        ({"type": "str", "default": ""}, None, "x: found nothing (null); expected a text"),
        ({"type": "list", "elements": "int"}, [1, "b"], "x[1]: found the text 'b'; expected a whole number"),
        ({"choices": ["ownca", "provided"]}, "ownka", "perhaps ownca"),
        ({"type": "list", "elements": "str", "choices": ["a"]}, ["b"], "x[0]: found the text 'b'; expected one of a"),
    ],
)
def test_wrong_values(option: dict[str, Any], value: object, words: str) -> None:
    (problem,) = problems(option, value)
    assert words in problem


SUBOPTIONS = {
    "type": "list",
    "elements": "dict",
    "options": {
        "name": {"type": "str", "required": True, "description": ["What it is called.", "Reason: none."]},
        "key": {"type": "str", "no_log": True, "choices": ["a"]},
        "file": {"type": "str"},
    },
    "mutually_exclusive": [["key", "file"]],
}


def test_every_problem_of_every_entry_is_named() -> None:
    assert problems(SUBOPTIONS, [{"nmae": "a"}, "b", {"name": ["c"], "key": "a", "file": "f"}]) == [
        "x[0].nmae: no such key; expected perhaps name",
        "x[0].name: is missing; expected a text: What it is called.",
        "x[1]: found the text 'b'; expected a mapping",
        "x[2].name: found a list of 1; expected a text",
        "x[2]: its keys do not go together; expected parameters are mutually exclusive: key|file",
    ]


def test_secrets_are_not_shown() -> None:
    assert problems(SUBOPTIONS, [{"name": "a", "key": "hunter2"}]) == [
        "x[0].key: found a text that is not shown; expected one of a"
    ]
    assert problems({"type": "int"}, "s3cret") == ["x: found the text 's3cret'; expected a whole number"]
    (shown,) = problems({"type": "list", "elements": "int"}, ["s3cret"])
    assert "s3cret" not in shown
    (shown,) = problems({"type": "list", "elements": "str", "no_log": True}, ["10.0.0.1/8"], "x_blocks")
    assert "10.0" not in shown


def test_undeclared_names() -> None:
    declared = {"derms_depot", "derms_vtn_url", "firewall_policy", "logging_bytes_max"}
    names = {
        "derms_depott": "hosts.yml:3",
        "derms_zzz": "",
        "derms_depot": "",
        "derm_depot": "",
        "firewall_polcy": "",
        "firewall_zone": "",
        "frewall_policy": "",
        "ansible_host": "",
        "somebody_elses": "",
        "logging_max_bytes_per_day": "",
    }
    found = {one.variable: one for one in undeclared_problems(names, declared, ["firewall", "logging", "preflight"])}
    assert set(found) == {"derms_depott", "derms_zzz", "derm_depot", "firewall_polcy", "frewall_policy"}
    assert found["derms_depott"] == Problem("derms_depott", "no such variable", "perhaps derms_depot", "hosts.yml:3")
    assert found["frewall_policy"].expected == "perhaps firewall_policy"


def test_the_report_names_every_problem_with_its_place() -> None:
    text = report("gw1", [Problem("a", "found x", "y", "all.yml:4:5"), Problem("b", "is missing", "z")])
    assert text == (
        "2 mistakes in the variables of gw1; nothing was changed"
        "\n- a: found x; expected y (all.yml:4:5)\n- b: is missing; expected z"
    )


leaf = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text("ab1.,", max_size=3), st.floats(0, 2))
values = st.recursive(
    leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("pqr"), inner)),
    max_leaves=6,
)
kinds = st.sampled_from(["str", "int", "float", "bool", "raw", "path"])
option_of_leaf = st.builds(lambda kind, required: {"type": kind, "required": required}, kinds, st.booleans())
options = st.recursive(
    option_of_leaf,
    lambda inner: st.one_of(
        st.builds(lambda kind: {"type": "list", "elements": kind}, kinds),
        st.builds(lambda sub: {"type": "dict", "options": sub}, st.dictionaries(st.sampled_from("pqr"), inner)),
        st.builds(
            lambda sub: {"type": "list", "elements": "dict", "options": sub},
            st.dictionaries(st.sampled_from("pqr"), inner),
        ),
    ),
    max_leaves=4,
)


@given(options, values)
def test_ansible_accepts_whatever_is_accepted_here(option: dict[str, Any], value: object) -> None:
    if not problems(option, value):
        validation = ArgumentSpecValidator({"x": option}).validate({"x": value})
        assert validation.error_messages == []


@pytest.mark.parametrize("path", sorted(ROLES.glob("*/meta/argument_specs.yml")), ids=lambda path: path.parents[1].name)
def test_every_default_passes_its_own_spec(path: Path) -> None:
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options", {})
    wrong = [
        problem
        for name, option in declared.items()
        if "default" in option and not is_template(option["default"])
        for problem in problems(option, option["default"], name)
        if "{{" not in problem
    ]
    assert wrong == []


def is_template(value: object) -> bool:
    return isinstance(value, str) and "{{" in value
