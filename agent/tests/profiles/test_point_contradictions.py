# SPDX-License-Identifier: Apache-2.0
"""Every rule that Point's docstring states: what breaks it is refused, with the field that is at fault."""

from typing import Any

import pytest

from derms_agent.profiles.point import Access, Contradiction, Order, Point, PointType, Table

GOOD: dict[str, Any] = {
    "name": "p",
    "table": Table.HOLDING,
    "address": 100,
    "type": PointType.U16,
    "length": 1,
}
READ = Point(**{**GOOD, "unit": "A"})


def make(**fields: Any) -> Point:
    return Point(**{**GOOD, **fields})


BITS = {"type": PointType.BITS}
WRITE = {"access": Access.WRITE}

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "name"),
    "length of a type": ({"length": 2}, "length"),
    "length of a float": ({"type": PointType.F32}, "length"),
    "no length at all": ({"type": PointType.STRING, "length": 0}, "length"),
    "longer than one read": ({"type": PointType.STRING, "length": 126}, "length"),
    "beyond the table": ({"address": 65536}, "address"),
    "across the table's end": ({"address": 65535, "type": PointType.U32, "length": 2}, "address"),
    "negative address": ({"address": -1}, "address"),
    "negative stride": ({"stride": -1}, "stride"),
    "stride within the value": ({"type": PointType.U32, "length": 2, "stride": 1}, "stride"),
    "number in a coil": ({"table": Table.COIL}, "type"),
    "written input register": ({"table": Table.INPUT, **WRITE}, "access"),
    "written discrete input": ({"table": Table.DISCRETE, **BITS, "access": Access.READ_WRITE}, "access"),
    "words of a text turned": ({"type": PointType.STRING, "word_order": Order.LITTLE}, "word_order"),
    "scale of 0": ({"scale": 0}, "scale"),
    "scale that is no number": ({"scale": float("nan")}, "scale"),
    "offset of a float": ({"type": PointType.F32, "length": 2, "offset": 1}, "offset"),
    "scale of a text": ({"type": PointType.STRING, "scale": 0.1}, "scale"),
    "scale of states": ({"states": {1: "on"}, "scale": 0.1}, "scale"),
    "offset of states": ({"states": {1: "on"}, "offset": 1}, "offset"),
    "scale of a flag": ({**BITS, "mask": 1, "scale": 0.1}, "scale"),
    "mask of a float": ({"type": PointType.F32, "length": 2, "mask": 1}, "mask"),
    "mask of a signed": ({"type": PointType.I16, "mask": 1}, "mask"),
    "mask of a coil": ({"table": Table.COIL, **BITS, "mask": 1}, "mask"),
    "mask of nothing": ({**BITS, "mask": 0}, "mask"),
    "mask wider than the register": ({**BITS, "mask": 0x10000}, "mask"),
    "mask with a hole": ({**BITS, "mask": 0b101}, "mask"),
    "states of a float": ({"type": PointType.F32, "length": 2, "states": {1: "on"}}, "states"),
    "states of a text": ({"type": PointType.STRING, "states": {1: "on"}}, "states"),
    "no states": ({"states": {}}, "states"),
    "a state that does not fit": ({"states": {65536: "on"}}, "states"),
    "a state that the mask hides": ({**BITS, "mask": 0x30, "states": {4: "on"}}, "states"),
    "two states of one name": ({"states": {1: "on", 2: "on"}}, "states"),
    "a state without a name": ({"states": {1: ""}}, "states"),
    "a state that means absent": ({"states": {1: "on"}, "absent": 1}, "states"),
    "absent float": ({"type": PointType.F32, "length": 2, "absent": 1}, "absent"),
    "absent text": ({"type": PointType.STRING, "absent": 0}, "absent"),
    "absent that does not fit": ({"absent": -1}, "absent"),
    "minimum of what is only read": ({"minimum": 1}, "minimum"),
    "maximum of what is only read": ({"maximum": 1}, "maximum"),
    "minimum above maximum": ({**WRITE, "minimum": 3, "maximum": 2}, "minimum"),
    "maximum that does not fit": ({**WRITE, "maximum": 65536}, "maximum"),
    "minimum between two steps": ({**WRITE, "minimum": 6.05, "scale": 0.1}, "minimum"),
    "minimum of states": ({**WRITE, "states": {1: "on"}, "minimum": 1}, "minimum"),
    "or_zero without a range": ({**WRITE, "or_zero": True}, "or_zero"),
    "or_zero within the range": ({**WRITE, "or_zero": True, "minimum": 0, "maximum": 9}, "or_zero"),
    "read-only setting": ({"setting": True}, "setting"),
    "setting that is never known": ({**WRITE, "setting": True}, "setting"),
    "blind point that can be read": ({"blind": True}, "blind"),
    "blind point with a readback": ({**WRITE, "blind": True, "unit": "A", "readback": READ}, "blind"),
    "readback of a readable point": ({"unit": "A", "readback": READ}, "readback"),
    "readback in another unit": ({**WRITE, "unit": "mA", "readback": READ}, "readback.unit"),
    "readback that cannot be read": ({**WRITE, "readback": make(**WRITE)}, "readback.access"),
    "readback of another kind": ({**WRITE, "states": {1: "on"}, "readback": make()}, "readback.type"),
    "readback with other states": (
        {**WRITE, "states": {1: "on"}, "readback": make(states={1: "off"})},
        "readback.type",
    ),
    "readback for one connector": ({**WRITE, "stride": 100, "readback": make()}, "readback.stride"),
    "readback that is a setting": (
        {**WRITE, "readback": make(access=Access.READ_WRITE, setting=True)},
        "readback",
    ),
    "readback with a readback": ({**WRITE, "readback": make(**WRITE, readback=make())}, "readback.access"),
}


@pytest.mark.parametrize(("fields", "at"), CASES.values(), ids=CASES.keys())
def test_a_contradiction_is_refused_and_names_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(Contradiction) as refused:
        make(**fields)
    assert ".".join(str(step) for step in refused.value.path).startswith(at)
    assert refused.value.expected
    assert "found" in str(refused.value)


def test_what_is_good_is_taken() -> None:
    assert make(**WRITE, setting=True, blind=True).setting
    assert make(**WRITE, unit="A", setting=True, readback=READ).readback is READ
    assert make(address=65535).address == 65535
    assert make(**WRITE, minimum=0.3, maximum=6.1, scale=0.1).maximum == 6.1
    assert make(**BITS, table=Table.DISCRETE, length=2000).length == 2000
    assert make(access=Access.READ_WRITE, minimum=6, maximum=16, or_zero=True).or_zero
