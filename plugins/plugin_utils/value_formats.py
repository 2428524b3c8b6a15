# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a variable's value must look like beyond its type.

An argument spec has no place for it, so a variable's name says it: whatever ends in `_blocks` holds CIDR blocks,
whatever ends in `_port` a port. What a name alone cannot say is listed by the variable's full name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# A format takes a value that already has the right type, and returns what was expected instead, or "" if it is right.
Format = Callable[[Any], str]


def cidr_block(value: str) -> str:
    """Accept an IPv4 or IPv6 block whose host bits are zero."""
    text = str(value)
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            nearest = ipaddress.ip_network(text, strict=False)
        except ValueError:
            return "a block in CIDR notation, such as 192.0.2.0/24 or 2001:db8::/32"
        return f"a block without host bits: {nearest}"
    return ""


def restricted_block(value: str) -> str:
    """Accept a CIDR block that is not every address there is."""
    if expected := cidr_block(value):
        return expected
    return "" if ipaddress.ip_network(str(value)).prefixlen else "a block that does not let every address in"


def whole_number(low: int, high: int | None = None) -> Format:
    """Accept numbers from low up to and including high."""
    words = f"a number from {low} to {high}" if high is not None else f"a number of at least {low}"
    return lambda value: "" if low <= value and (high is None or value <= high) else words


def pattern(expression: str, words: str) -> Format:
    """Accept texts that match a regular expression as a whole."""
    compiled = re.compile(expression)
    return lambda value: "" if compiled.fullmatch(str(value)) else words


def url(*schemes: str) -> Format:
    """Accept a URL with a host and one of the schemes, or any scheme where none is named."""
    expected = f"a URL such as {schemes[0] if schemes else 'https'}://vtn.example:443/path"

    def check(value: str) -> str:
        try:
            parts = urlsplit(value)
            has_port = parts.port is None or parts.port > 0
        except ValueError:
            return expected
        right_scheme = parts.scheme in schemes if schemes else parts.scheme
        return "" if right_scheme and parts.hostname and has_port else expected

    return check


def not_empty(value: Sequence[Any]) -> str:
    """Accept a list that has entries."""
    return "" if value else "at least one entry"


def unique_names(value: Sequence[Any]) -> str:
    """Accept a list of mappings in which no name occurs twice."""
    names = [entry.get("name") for entry in value if isinstance(entry, Mapping)]
    repeated = sorted({str(name) for name in names if name is not None and names.count(name) > 1})
    return f"each name only once, but {', '.join(repeated)} is repeated" if repeated else ""


adapter_name = pattern(r"[a-z0-9][a-z0-9_-]*", "small letters, digits, _ and -, beginning with a letter or digit")
label = pattern(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "small letters, digits and inner hyphens, at most 63")
# What useradd takes and what cannot mean anything else in a sudoers file (no %, #, !, comma or blank).
account = pattern(r"[a-z_][a-z0-9_-]{0,31}", "an account's name: small letters, digits, _ and -, at most 32")
usb_id = pattern(r"[0-9a-f]{4}", "four small hexadecimal digits in quotes, such as '0403'")
subject_alt_name = pattern(
    r"[A-Za-z0-9*]([A-Za-z0-9.:*-]*[A-Za-z0-9])?", "a host name or an address without prefix length"
)

# (ending of the name, type of the value): format
BY_ENDING: dict[tuple[str, str], Format] = {
    ("block", "str"): cidr_block,
    ("blocks", "str"): cidr_block,
    ("port", "int"): whole_number(1, 65535),
    ("ports", "int"): whole_number(1, 65535),
    ("url", "str"): url(),
    ("percent", "int"): whole_number(0, 100),
    ("percent", "float"): whole_number(0, 100),
    ("days", "int"): whole_number(1),
}

# A variable's full name, list indices left empty: format
BY_NAME: dict[str, Format] = {
    "derms_management_blocks": not_empty,
    "derms_internal_blocks": not_empty,
    "derms_internal_blocks[]": restricted_block,
    "derms_vtn_url": url("https"),
    "derms_depot": label,
    "derms_serial": whole_number(1),
    "derms_serial_adapters": unique_names,
    "derms_serial_adapters[].name": adapter_name,
    "derms_serial_adapters[].vendor_id": usb_id,
    "derms_serial_adapters[].product_id": usb_id,
    "certificates_issued": unique_names,
    "certificates_issued[].name": label,
    "certificates_issued[].common_name": pattern(r"[^\x00-\x1f/=]{1,64}", "1 to 64 characters without / and ="),
    "certificates_issued[].subject_alt_names[]": subject_alt_name,
    "certificates_provided": unique_names,
    "certificates_provided[].name": label,
    "service_accounts_operators[]": account,
}


def format_of(variable: str, kind: str) -> Format | None:
    """Return the format of a variable, or None if its type is all there is to say.

    :param variable: its full name, such as derms_serial_adapters[3].vendor_id
    :param kind: the type that its argument spec gives it
    """
    general = re.sub(r"\[\d+\]", "[]", variable)
    if general in BY_NAME:
        return BY_NAME[general]
    ending = re.split(r"[._]", general.replace("[]", ""))[-1]
    return BY_ENDING.get((ending, kind))
