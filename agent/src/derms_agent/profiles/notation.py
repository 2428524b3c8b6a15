# SPDX-License-Identifier: Apache-2.0
"""How people write registers down: an address in the base that they count from, and what a register should hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from derms_agent.profiles.point import REGISTERS, Table

MODICON_DIGITS = {0: Table.COIL, 1: Table.DISCRETE, 3: Table.INPUT, 4: Table.HOLDING}
"""The first digit of an address in Modicon's notation, and the table that it names."""


class AddressBase(str, Enum):
    """What a person counts addresses from."""

    ZERO = "zero"
    ONE = "one"
    MODICON = "modicon"


class AddressError(ValueError):
    """What was given is no address in its base. Its text says what would be right."""


def pdu_address(address: int, base: AddressBase, table: Table | None = None) -> tuple[Table, int]:
    """Return the table and the zero-based address that a person means; without a table, a holding register.

    In Modicon's notation the first digit of five or six names the table: 4 holding, 3 input, 1 discrete, 0 coil.
    Raises AddressError, also where that is another table than the one given.
    """
    if base is AddressBase.ZERO:
        found = address
    elif base is AddressBase.ONE:
        found = address - 1
    else:
        # 40001 to 49999 with five digits, 400001 to 465536 with six; below 10000 it is a coil.
        size = 100_000 if address >= 100_000 else 10_000  # noqa: PLR2004
        digit, number = divmod(address, size)
        named = MODICON_DIGITS.get(digit)
        if named is None:
            raise AddressError(f"found the Modicon address {address}, expected one that begins with 0, 1, 3 or 4")
        if table not in {None, named}:
            wanted = table.value if table is not None else ""
            raise AddressError(f"found the Modicon address {address}, whose table is {named.value}, expected {wanted}")
        table, found = named, number - 1
    if not 0 <= found < REGISTERS:
        raise AddressError(f"found address {address} in base {base.value}, which is register {found} of 0 to 65535")
    return table or Table.HOLDING, found


def hexadecimal(words: Sequence[int], most: int = 4) -> str:
    """Return words as people compare them with a vendor's document, the first few of them."""
    shown = " ".join(f"{word:04x}" for word in words[:most])
    return f"{shown} …" if len(words) > most else shown


def expecting(text: str | None) -> Callable[[Sequence[int]], tuple[bool, str]]:
    """Return the judge of a read that should begin with a text, or with words given as 0x53756e53; None: anything.

    The judge gives whether it does, and what was found.
    """
    wanted = text or ""
    as_words = wanted.lower().startswith("0x")

    def judge(words: Sequence[int]) -> tuple[bool, str]:
        if as_words:
            begins = "".join(f"{word:04x}" for word in words).startswith(wanted[2:].lower())
        else:
            begins = b"".join(word.to_bytes(2, "big") for word in words).decode("ascii", "replace").startswith(wanted)
        return begins, wanted if begins and wanted else hexadecimal(words)

    return judge
