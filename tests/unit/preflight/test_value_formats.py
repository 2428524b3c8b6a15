# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ansible_collections.derms.edge.plugins.plugin_utils.value_formats import cidr_block, format_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("variable", "kind", "value"),
    [
        ("derms_internal_blocks[0]", "str", "10.0.0.0/8"),
        ("derms_web_blocks[7]", "str", "2001:db8::/32"),
        ("derms_web_blocks[7]", "str", "192.0.2.7"),
        ("derms_web_blocks[0]", "str", "0.0.0.0/0"),
        ("derms_vtn_url", "str", "https://vtn.example:443/OpenADR2/Simple/2.0b"),
        ("firewall_web_port", "int", 443),
        ("x.port", "int", 1),
        ("derms_depot", "str", "nord-2"),
        ("derms_serial_adapters[1].vendor_id", "str", "0403"),
        ("certificates_issued[0].subject_alt_names[1]", "str", "2001:db8::7"),
        ("certificates_issued[0].subject_alt_names[1]", "str", "*.depot.example"),
        ("x_percent", "float", 99.5),
    ],
)
def test_right_values(variable: str, kind: str, value: Any) -> None:
    check = format_of(variable, kind)
    assert check is not None
    assert check(value) == ""


@pytest.mark.parametrize(
    ("variable", "kind", "value", "expected"),
    [
        ("derms_internal_blocks[0]", "str", "10.0.0.1/8", "10.0.0.0/8"),
        ("derms_web_blocks[0]", "str", "2001:db8::1/32", "2001:db8::/32"),
        ("derms_web_blocks[0]", "str", "banana", "CIDR"),
        ("derms_web_blocks[0]", "str", "10.0.0.0/33", "CIDR"),
        ("derms_internal_blocks[0]", "str", "0.0.0.0/0", "every address"),
        ("derms_internal_blocks[0]", "str", "::/0", "every address"),
        ("derms_internal_blocks", "list", [], "at least one"),
        ("derms_management_blocks", "list", [], "at least one"),
        ("derms_vtn_url", "str", "http://vtn.example", "https://"),
        ("derms_vtn_url", "str", "vtn.example:443", "https://"),
        ("derms_vtn_url", "str", "https://:443/", "https://"),
        ("derms_vtn_url", "str", "https://vtn.example:99999/", "https://"),
        ("firewall_web_port", "int", 0, "from 1 to 65535"),
        ("firewall_web_ports[1]", "int", 65536, "from 1 to 65535"),
        ("derms_depot", "str", "-nord", "hyphens"),
        ("derms_depot", "str", "Nord", "small letters"),
        ("derms_serial", "int", 0, "at least 1"),
        ("derms_serial_adapters[1].vendor_id", "str", "403", "quotes"),
        ("derms_serial_adapters", "list", [{"name": "a"}, {"name": "a"}], "a is repeated"),
        ("service_accounts_operators[0]", "str", "eve, ALL=(ALL)", "account"),
        ("service_accounts_operators[0]", "str", "%wheel", "account"),
        ("x_percent", "int", 101, "from 0 to 100"),
    ],
)
def test_wrong_values(variable: str, kind: str, value: Any, expected: str) -> None:
    check = format_of(variable, kind)
    assert check is not None
    assert expected in check(value)


def test_other_variables_have_no_format() -> None:
    assert format_of("logging_name", "str") is None
    assert format_of("fail2ban_port", "str") is None  # fail2ban takes ports by name


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_suggested_block_is_itself_accepted(address: Any, prefix: int) -> None:
    words = cidr_block(f"{address}/{prefix}")
    if "without host bits" in words:
        suggested = words.rsplit(" ", 1)[-1]
        assert cidr_block(suggested) == ""
        assert address in ipaddress.ip_network(suggested)
