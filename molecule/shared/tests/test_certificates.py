# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates and keys, judged by OpenSSL on the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Gateway

DIRECTORY = "/etc/derms/certs"
CLIENTS = ("grid-gateway", "grid-gateway-mqtt", "orchestrator", "historian")
SERVERS = ("web", "broker")
A_MONTH_S = 30 * 86400


def test_only_root_reads_keys_and_certificates(root: Any) -> None:
    lines = root.check_output(f"stat -c '%a %U:%G %n' {DIRECTORY} {DIRECTORY}/*").splitlines()
    assert lines[0] == f"700 root:root {DIRECTORY}"
    assert {line.split(" /")[0] for line in lines[1:]} == {"600 root:root"}
    names = {f"{name}.{kind}" for name in (*CLIENTS, *SERVERS) for kind in ("crt", "key", "ca.crt")}
    assert {line.rpartition("/")[2] for line in lines[1:]} == names


@pytest.mark.parametrize("name", [*CLIENTS, *SERVERS])
def test_the_key_is_the_certificates_own(root: Any, name: str) -> None:
    of_key = root.check_output("openssl pkey -pubout -in %s", f"{DIRECTORY}/{name}.key")
    of_certificate = root.check_output("openssl x509 -pubkey -noout -in %s", f"{DIRECTORY}/{name}.crt")
    assert of_key == of_certificate


@pytest.mark.parametrize("name", [*CLIENTS, *SERVERS])
def test_the_chain_verifies_for_its_purpose_and_for_a_month(root: Any, name: str) -> None:
    purpose = "sslclient" if name in CLIENTS else "sslserver"
    certificate, authority = f"{DIRECTORY}/{name}.crt", f"{DIRECTORY}/{name}.ca.crt"
    root.check_output("openssl verify -x509_strict -purpose %s -CAfile %s %s", purpose, authority, certificate)
    root.check_output("openssl x509 -noout -checkend %s -in %s", str(A_MONTH_S), certificate)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_known_by_its_address(root: Any, gateway: Gateway, name: str) -> None:
    check = "openssl x509 -noout -checkip %s -in %s"
    assert "does match" in root.check_output(check, gateway.addresses[4], f"{DIRECTORY}/{name}.crt")


def test_the_authoritys_key_never_leaves_the_control_node(root: Any) -> None:
    assert not root.check_output("find / -xdev -name 'ca.key' -not -path '/proc/*'")
