# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo's utility issues: an authority of its own, the VTN's certificate, and the one that it gives the depot.

    python tools/utility_certificates.py inventories/demo

makes DIRECTORY/.pki/UTILITY, where that is not there or about to end: ca.crt, vtn.crt, vtn.key, ven.crt, ven.key. The
authority's own key is thrown away: nothing else is ever to be signed by it.
"""

from __future__ import annotations

import shutil
import sys
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from derms_agent.twin.choice import find_depot

VALID_DAYS = 397
# Longer than certificates_warn_days: the demo ends with nothing to report.
LEFT_DAYS = 60


def issue(
    name: str, issuer: x509.Name | None, by: ec.EllipticCurvePrivateKey, host: str = ""
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a certificate and its key: the authority's without an issuer, a server's with a host, else a client's."""
    key = ec.generate_private_key(ec.SECP256R1()) if issuer else by
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    signs = {"key_cert_sign": issuer is None, "crl_sign": issuer is None, "digital_signature": issuer is not None}
    others = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None if issuer else 0), critical=True)
        .add_extension(x509.KeyUsage(**signs, **dict.fromkeys(others, False)), critical=True)
        # Python 3.13 verifies strictly, as RFC 5280 4.2.1.1 has it: a certificate names the key that signed it.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if issuer:
        usage = ExtendedKeyUsageOID.SERVER_AUTH if host else ExtendedKeyUsageOID.CLIENT_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if host:
        made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
    return made.sign(by, hashes.SHA256()), key


def lasts(path: Path) -> bool:
    """Return whether a certificate is there and valid for a while."""
    if not path.exists():
        return False
    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return ends > datetime.now(timezone.utc) + timedelta(days=LEFT_DAYS)


def make(directory: Path, utility: str, host: str, ven_name: str) -> None:
    """Write an authority, a VTN's certificate for an address and a VEN's, where what is there does not last."""
    if lasts(directory / "ven.crt"):
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    own = ec.generate_private_key(ec.SECP256R1())
    authority, _ = issue(f"Authority of {utility}", None, own)
    for name, (certificate, key) in {
        "vtn": issue(f"VTN of {utility}", authority.subject, own, host),
        "ven": issue(ven_name, authority.subject, own),
    }.items():
        path = directory / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))


def main() -> None:
    """Make what an inventory's depot needs of its utility."""
    inventory = Path(sys.argv[1])
    depot = find_depot(inventory)
    if depot.vtn is None or depot.utility is None:
        sys.exit(f"{inventory}: found no vtn or no utility, expected both")
    host = urlsplit(depot.vtn.url).hostname or ""
    make(inventory / ".pki" / depot.utility, depot.utility, host, depot.vtn.ven_name)


if __name__ == "__main__":
    main()
