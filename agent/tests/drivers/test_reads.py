# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent import profiles
from derms_agent.drivers.reads import Block, Span, plan_reads
from derms_agent.drivers.writes import Forbidden, plan_write
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Wire

WIDTHS = st.sampled_from([1, 2, 4, 8, 16])


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """Spans that lie apart, in any order, over two tables."""
    found = []
    for table in (Table.HOLDING, Table.INPUT):
        address = draw(st.integers(0, 40000))
        for number in range(draw(st.integers(0, 25))):
            address += draw(st.sampled_from([0, 0, 0, 1, 2, 3, 10, 200]))
            length = draw(WIDTHS)
            found.append(Span(f"{table.value} {number}", table, address, length))
            address += length
    return draw(st.permutations(found))


def registers(block: Block | Span) -> set[tuple[Table, int]]:
    length = block.count if isinstance(block, Block) else block.length
    return {(block.table, block.address + at) for at in range(length)}


@given(spans(), st.integers(16, 125), st.integers(0, 12))
def test_every_register_asked_for_is_read_once_and_gaps_only_as_declared(
    asked: list[Span], max_read: int, max_gap: int
) -> None:
    blocks = plan_reads(asked, Wire(max_read=max_read, max_gap=max_gap))
    read = [register for block in blocks for register in registers(block)]
    assert len(read) == len(set(read)), "a register is read twice"
    wanted = {register for span in asked for register in registers(span)}
    assert wanted <= set(read)
    for block in blocks:
        assert block.count <= max_read
        # Nothing at the ends that nobody asked for, and within no longer gap than was declared.
        run = 0
        inside = [register in wanted for register in sorted(registers(block), key=lambda register: register[1])]
        assert inside[0]
        assert inside[-1]
        for known in inside:
            run = 0 if known else run + 1
            assert run <= max_gap
    whole = [span for block in blocks for span in block.spans]
    assert sorted(whole, key=repr) == sorted(asked, key=repr)
    assert all(registers(span) <= registers(block) for block in blocks for span in block.spans)


@given(spans(), st.randoms())
def test_the_plan_depends_on_what_is_asked_and_not_on_its_order(asked: list[Span], random: object) -> None:
    shuffled = list(asked)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_reads(asked, Wire()) == plan_reads(shuffled, Wire())


@given(spans())
def test_words_come_back_under_the_names_that_they_were_asked_for(asked: list[Span]) -> None:
    for block in plan_reads(asked, Wire(max_gap=5)):
        # Each register holds its own address.
        for name, words in block.split([address for _, address in sorted(registers(block))]).items():
            span = next(one for one in block.spans if one.name == name)
            assert words == tuple(range(span.address, span.end))


def test_adjoining_spans_join_and_a_gap_parts_them_unless_it_is_declared() -> None:
    asked = [Span("a", Table.HOLDING, 0, 2), Span("b", Table.HOLDING, 2, 1), Span("c", Table.HOLDING, 4, 1)]
    shape = [(block.address, block.count) for block in plan_reads(asked, Wire())]
    assert shape == [(0, 3), (4, 1)]
    assert [(block.address, block.count) for block in plan_reads(asked, Wire(max_gap=1))] == [(0, 5)]


def test_bits_of_one_register_are_read_at_once() -> None:
    asked = [Span("low", Table.HOLDING, 7, 1), Span("high", Table.HOLDING, 7, 1)]
    (block,) = plan_reads(asked, Wire())
    assert block.split([0xABCD]) == {"low": (0xABCD,), "high": (0xABCD,)}


def test_a_value_is_never_split() -> None:
    asked = [Span(str(at), Table.HOLDING, at, 2) for at in range(0, 10, 2)]
    assert [block.count for block in plan_reads(asked, Wire(max_read=5))] == [4, 4, 2]
    with pytest.raises(ValueError, match="expected 1 to 5"):
        plan_reads([Span("long", Table.HOLDING, 0, 6)], Wire(max_read=5))


def test_one_register_a_value_makes_one_block_for_each() -> None:
    asked = [Span(str(at), Table.INPUT, at, 1) for at in range(3)]
    assert len(plan_reads(asked, Wire(max_read=1))) == 3


def test_a_write_is_the_value_and_nothing_else() -> None:
    profile = profiles.load("abb_terra_ac")
    write = plan_write(Span("limit", Table.HOLDING, 0x4100, 2), (0, 16000), profile)
    assert (write.table, write.address, write.words, write.function) == (Table.HOLDING, 0x4100, (0, 16000), 16)


@pytest.mark.parametrize(
    ("span", "words", "message"),
    [
        (Span("half", Table.HOLDING, 0x4100, 2), (1,), "a value is written whole"),
        (Span("lock", Table.HOLDING, 0x4103, 1), (1,), "register 16643 is never to be written"),
        (Span("wide", Table.HOLDING, 0x4102, 4), (0, 0, 0, 0), "register 16643 is never to be written"),
        (Span("state", Table.INPUT, 5, 1), (1,), "expected holding or coil"),
        (Span("many", Table.HOLDING, 0x5000, 124), (0,) * 124, "at most 123"),
    ],
)
def test_a_write_that_no_device_may_get_is_refused(span: Span, words: tuple[int, ...], message: str) -> None:
    with pytest.raises(Forbidden, match=message):
        plan_write(span, words, profiles.load("abb_terra_ac"))


def test_a_device_that_takes_one_register_a_write_gets_no_half_values() -> None:
    profile = profiles.load("keba_p30")
    assert profile.wire.write_function == 6
    assert plan_write(Span("limit", Table.HOLDING, 5004, 1), (16000,), profile).function == 6
    taken = replace(profile, wire=replace(profile.wire, max_write=2))
    with pytest.raises(Forbidden, match="takes function 6 only"):
        plan_write(Span("limit", Table.HOLDING, 5004, 2), (0, 16000), taken)
