# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.depot.ranges import MOST_ENTRIES, BadRange, expand, expand_units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("charger", ("charger",)),
        ("charger-[001:003]", ("charger-001", "charger-002", "charger-003")),
        ("charger-[9:11]", ("charger-9", "charger-10", "charger-11")),
        ("10.213.9.[11:12]", ("10.213.9.11", "10.213.9.12")),
        ("row-[1:5:2]-a", ("row-1-a", "row-3-a", "row-5-a")),
        ("x[0:1]", ("x0", "x1")),
        ("[7:7]", ("7",)),
    ],
)
def test_texts(text: str, expected: tuple[str, ...]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a[3:1]",
        "a[01:2]",
        "a[001:12]",
        "a[1-3]",
        "a[a:c]",
        "a[1:2]b[1:2]",
        "a[1:2",
        "a]1[",
        "a[]",
        "a[1:9:0]",
        "a[[1:2]]",
    ],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(BadRange, match=r"range"):
        expand(text)


def test_a_slip_of_the_finger_makes_no_million_devices() -> None:
    assert len(expand(f"a[1:{MOST_ENTRIES}]")) == MOST_ENTRIES
    with pytest.raises(BadRange, match="at most 10000"):
        expand("a[1:1000000000000]")


def test_units() -> None:
    assert expand_units(5) == (5,)
    assert expand_units("3..5") == (3, 4, 5)
    for text in ("5..3", "1...3", "a..b", "1-3", "..3"):
        with pytest.raises(BadRange):
            expand_units(text)


@given(
    first=st.integers(0, 500),
    count=st.integers(1, 300),
    step=st.integers(1, 7),
    width=st.integers(0, 5),
    around=st.tuples(st.text("abc-._", max_size=5), st.text("abc-._", max_size=5)),
)
def test_each_number_of_a_range_comes_once_and_in_order(
    first: int, count: int, step: int, width: int, around: tuple[str, str]
) -> None:
    before, after = around
    last = first + (count - 1) * step
    padding = max(width, len(str(last))) if width > len(str(first)) else 0
    low, high = (f"{first:0{padding}d}", f"{last:0{padding}d}") if padding else (str(first), str(last))
    if low.startswith("0") and len(low) > 1:
        high = high.zfill(len(low))
    texts = expand(f"{before}[{low}:{high}:{step}]{after}")
    numbers = [text[len(before) : len(text) - len(after)] for text in texts]
    assert [int(number) for number in numbers] == list(range(first, last + 1, step))
    assert len(set(texts)) == count
    if padding:
        assert {len(number) for number in numbers} == {padding}
