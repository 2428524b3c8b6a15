# SPDX-License-Identifier: Apache-2.0
"""What people write down of registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.profiles.notation import AddressBase, AddressError, expecting, pdu_address
from derms_agent.profiles.point import Table


@pytest.mark.parametrize(
    ("address", "base", "table", "expected"),
    [
        (40001, AddressBase.ONE, Table.HOLDING, (Table.HOLDING, 40000)),
        (40001, AddressBase.ONE, None, (Table.HOLDING, 40000)),
        (40001, AddressBase.ZERO, Table.INPUT, (Table.INPUT, 40001)),
        (40001, AddressBase.MODICON, Table.HOLDING, (Table.HOLDING, 0)),
        (400001, AddressBase.MODICON, None, (Table.HOLDING, 0)),
        (465536, AddressBase.MODICON, None, (Table.HOLDING, 65535)),
        (30006, AddressBase.MODICON, Table.INPUT, (Table.INPUT, 5)),
        (10001, AddressBase.MODICON, None, (Table.DISCRETE, 0)),
        (1, AddressBase.MODICON, None, (Table.COIL, 0)),
    ],
)
def test_addresses_of_people(address: int, base: AddressBase, table: Table | None, expected: tuple[Table, int]) -> None:
    assert pdu_address(address, base, table) == expected


@pytest.mark.parametrize(
    ("address", "base"), [(50001, AddressBase.MODICON), (65536, AddressBase.ZERO), (40000, AddressBase.MODICON)]
)
def test_addresses_that_are_none(address: int, base: AddressBase) -> None:
    with pytest.raises(AddressError):
        pdu_address(address, base)


def test_a_modicon_address_contradicts_another_table() -> None:
    with pytest.raises(AddressError, match="address 30006, whose table is input, expected holding"):
        pdu_address(30006, AddressBase.MODICON, Table.HOLDING)


@given(st.integers(0, 65535), st.sampled_from(list(Table)))
def test_the_three_bases_name_the_same_registers(address: int, table: Table) -> None:
    digit = {Table.COIL: 0, Table.DISCRETE: 1, Table.INPUT: 3, Table.HOLDING: 4}[table]
    assert pdu_address(address, AddressBase.ZERO, table) == (table, address)
    assert pdu_address(address + 1, AddressBase.ONE, table) == (table, address)
    if digit or address < 9999:  # a coil has no leading digit, so there are no six of them
        assert pdu_address(digit * 100_000 + address + 1, AddressBase.MODICON) == (table, address)


@pytest.mark.parametrize(
    ("expected", "words", "found"),
    [
        ("SunS", (0x5375, 0x6E53, 1), (True, "SunS")),
        ("0x53756E53", (0x5375, 0x6E53), (True, "0x53756E53")),
        ("SunS", (0, 1, 2, 3, 4), (False, "0000 0001 0002 0003 …")),
        (None, (7,), (True, "0007")),
    ],
)
def test_what_is_expected_of_a_read(expected: str | None, words: tuple[int, ...], found: tuple[bool, str]) -> None:
    assert expecting(expected)(words) == found
