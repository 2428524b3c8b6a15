# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from derms_agent.depot.document import Data, parse
from derms_agent.depot.problem import Path, Problem, Vaulted


def place(text: str, path: Path, *, at_key: bool = False) -> tuple[int, int]:
    located = parse(text, "f").locate(Problem(path, "x", "y", at_key=at_key))
    return located.line, located.column


TEXT = """\
a: 1
b:
  c: {d: [5, 6], e: }
  f:
    g: 2
"""


@pytest.mark.parametrize(
    ("path", "at_key", "expected"),
    [
        ((), False, (1, 1)),
        (("a",), False, (1, 4)),
        (("a",), True, (1, 1)),
        (("b", "c"), False, (3, 6)),
        (("b", "c", "d", "1"), False, (3, 14)),
        (("b", "c", "e"), False, (3, 18)),
        (("b", "f"), False, (4, 3)),
        (("b", "f", "missing"), False, (4, 3)),
        (("b", "f", "g"), False, (5, 8)),
    ],
)
def test_places(path: Path, *, at_key: bool, expected: tuple[int, int]) -> None:
    assert place(TEXT, path, at_key=at_key) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("-3", -3),
        ("1.5", 1.5),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1..12", "1..12"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'12'", "12"),
    ],
)
def test_scalars_mean_what_a_person_reads(text: str, expected: Data) -> None:
    data = parse(f"a: {text}\n", "f").data
    assert data == {"a": expected}
    assert isinstance(data, dict)
    assert type(data["a"]) is type(expected)


def test_keys_are_texts_as_they_are_written() -> None:
    assert parse("1: a\non: b\n", "f").data == {"1": "a", "on": "b"}


def problems(text: str) -> list[str]:
    return [str(problem) for problem in parse(text, "f").problems]


def test_a_key_that_is_repeated_is_named_with_both_places() -> None:
    assert problems("a:\n  b: 1\n  c: 2\n  b: 3\n") == [
        "f:4:3: a.b: found the key a second time (first on line 2); expected it once"
    ]


def test_what_is_no_yaml_is_named_with_its_place() -> None:
    assert problems("a: [1, 2\nb: 3\n") == [
        "f:2:2: the file: found no YAML: while parsing a flow sequence did not find expected ',' or ']'; expected YAML"
    ]
    assert problems("a: \x01\n")[0].startswith("f:1:1: the file: found no YAML: ")


def test_tags_but_for_vault_are_refused() -> None:
    assert problems("a: !unsafe x\n") == ["f:1:4: a: found the tag !unsafe; expected none, or !vault on a secret"]
    assert problems("a: !x {}\n") == ["f:1:4: a: found the tag !x; expected none here"]
    data = parse("a: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162\n", "f").data
    assert isinstance(data, dict)
    assert data["a"] == "$ANSIBLE_VAULT;1.1;AES256\n6162\n"
    assert isinstance(data["a"], Vaulted)


def test_anchors_repeat_a_value_and_may_not_hold_themselves() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}
    assert problems("a: &x {b: *x}\n") == [
        "f:1:4: a.b: found an anchor that holds itself; expected a value that ends somewhere"
    ]
