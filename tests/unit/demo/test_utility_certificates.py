# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo's utility issues: both sides accept it over TLS 1.3, and it is made once."""

from __future__ import annotations

import shutil
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from derms_agent.twin.choice import find_depot

from tools import utility_certificates

DEMO = Path(__file__).parents[3] / "inventories" / "demo"
HOST = "10.213.8.10"


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the demo's declaration, and have its utility issue."""
    copied = tmp_path / "demo"
    shutil.copytree(DEMO, copied, ignore=shutil.ignore_patterns(".pki"))
    monkeypatch.setattr("sys.argv", ["utility_certificates.py", str(copied)])
    utility_certificates.main()
    return copied


def handshake(directory: Path, host: str) -> str | None:
    """Return the version that a VTN and a VEN agree on, neither of which takes a certificate that it should not."""
    vtn = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    vtn.load_cert_chain(directory / "vtn.crt", directory / "vtn.key")
    vtn.verify_mode = ssl.CERT_REQUIRED
    ven = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ven.load_cert_chain(directory / "ven.crt", directory / "ven.key")
    for context in (vtn, ven):
        context.load_verify_locations(directory / "ca.crt")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = vtn.wrap_bio(there, back, server_side=True)
    client = ven.wrap_bio(back, there, server_hostname=host)
    for one in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            one.do_handshake()
    assert client.getpeercert()
    assert server.getpeercert()
    return client.version()


def test_both_sides_accept_it_at_the_vtns_address_alone(inventory: Path) -> None:
    directory = inventory / ".pki" / "example-power"
    assert handshake(directory, HOST) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(directory, "10.213.8.11")


def test_it_is_where_the_declaration_says_and_the_utilitys_alone(inventory: Path) -> None:
    declared = yaml.safe_load((inventory / "group_vars/all/utility.yml").read_text(encoding="utf-8"))
    (own,) = declared["certificates_provided"]
    assert own.pop("name") == "grid-gateway"
    assert all((inventory / path).is_file() for path in own.values())
    assert (inventory / own["private_key"]).stat().st_mode & 0o777 == 0o600
    assert (inventory / ".pki" / "example-power").stat().st_mode & 0o777 == 0o700
    # tools/demo gives the VTN's namespace its address.
    depot = find_depot(inventory)
    assert depot.vtn is not None
    assert depot.vtn.url.startswith(f"https://{HOST}/")
    assert f"derms-vtn0 {HOST}\n" in (DEMO.parents[1] / "tools" / "demo").read_text(encoding="utf-8")


def test_it_is_made_once_and_again_before_it_ends(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = inventory / ".pki" / "example-power" / "ven.crt"
    made = path.read_bytes()
    utility_certificates.main()
    assert path.read_bytes() == made
    monkeypatch.setattr(utility_certificates, "LEFT_DAYS", utility_certificates.VALID_DAYS)
    utility_certificates.main()
    assert path.read_bytes() != made
