# SPDX-License-Identifier: GPL-3.0-or-later
"""A host keeps the address that it was once given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hosts.addresses import OCTETS, AddressBook, address_of, allot
from tests.hosts.errors import HostsError
from tests.hosts.settings import settings_from

SETTINGS = settings_from({})


def test_new_names_get_the_lowest_octets_in_their_order() -> None:
    assert allot({}, ["gw1", "gw2"], []) == {"gw1": 11, "gw2": 12}


def test_a_remembered_name_keeps_its_octet() -> None:
    assert allot({"gw2": 11}, ["gw1", "gw2"], []) == {"gw2": 11, "gw1": 12}


def test_the_octet_of_a_name_that_is_gone_is_not_reused_while_others_are_free() -> None:
    assert allot({"gone": 11}, ["gw1"], [])["gw1"] == 12


def test_when_all_are_given_away_a_name_that_is_gone_loses_its_octet() -> None:
    full = {f"h{octet}": octet for octet in OCTETS}
    octets = allot(full, ["gw1"], [name for name in full if name != "h42"])
    assert octets["gw1"] == 42
    assert "h42" not in octets


def test_more_hosts_than_addresses_are_refused() -> None:
    full = {f"h{octet}": octet for octet in OCTETS}
    with pytest.raises(HostsError, match="no address is left for gw1"):
        allot(full, ["gw1"], full)


@given(
    remembered=st.dictionaries(st.text("abc", min_size=1), st.sampled_from(OCTETS), max_size=20),
    names=st.lists(st.text("abcd", min_size=1), unique=True, max_size=20),
)
def test_no_two_names_share_an_octet(remembered: dict[str, int], names: list[str]) -> None:
    unshared = {name: octet for octet, name in {octet: name for name, octet in remembered.items()}.items()}
    octets = allot(unshared, names, [])
    assert set(names) <= set(octets)
    assert len(set(octets.values())) == len(octets)
    assert all(octets[name] == octet for name, octet in unshared.items())


def test_an_address_reads_the_same_in_both_families() -> None:
    address = address_of(SETTINGS, 17)
    assert (str(address.ipv4), str(address.ipv6), address.octet) == ("10.213.8.17", "fd42:213:8::17", 17)


def test_the_mac_follows_from_the_address() -> None:
    assert address_of(SETTINGS, 17).mac == "02:00:0a:d5:08:11"


def test_the_book_remembers(tmp_path: Path) -> None:
    settings = settings_from({"DERMS_HOSTS_DIR": str(tmp_path)})
    first = AddressBook(settings).allot(["gw1"], [])
    again = AddressBook(settings).allot(["gw2", "gw1"], ["gw1"])
    assert again["gw1"] == first["gw1"] == AddressBook(settings).address("gw1")


def test_the_book_says_which_host_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(HostsError, match="gw9"):
        AddressBook(settings_from({"DERMS_HOSTS_DIR": str(tmp_path)})).address("gw9")


@pytest.mark.parametrize("net", ["10.213.8.1/24", "10.213.0.0/16", "gateway"])
def test_a_network_that_is_no_slash_24_is_refused(net: str) -> None:
    with pytest.raises(HostsError, match="DERMS_HOSTS_NET"):
        settings_from({"DERMS_HOSTS_NET": net})


def test_another_network_has_its_own_ipv6_twin() -> None:
    settings = settings_from({"DERMS_HOSTS_NET": "10.99.7.0/24"})
    assert str(address_of(settings, 11).ipv6) == "fd42:99:7::11"
