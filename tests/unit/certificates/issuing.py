# SPDX-License-Identifier: GPL-3.0-or-later
"""Real keys and certificates for the tests of this directory."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(timezone.utc).replace(microsecond=0)
BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def protected_key_pem(self, passphrase: bytes) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def identity(
    name: str,
    issuer: Identity | None = None,
    *,
    authority: bool = False,
    names: tuple[str, ...] = (),
    usages: tuple[x509.ObjectIdentifier, ...] = BOTH,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime = NOW + timedelta(days=365),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Identity:
    """Issue a certificate: by an issuer, or by itself."""
    own_key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    signer = issuer.key if issuer else own_key
    # Python 3.13 verifies strictly, as RFC 5280 4.2.1.1 has it: a certificate names the key that signed it.
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    if authority:
        signing = x509.KeyUsage(*(usage in (5, 6) for usage in range(9)))
        builder = builder.add_extension(signing, critical=True)
    else:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(one) for one in names]), critical=False
        )
    return Identity(builder.sign(signer, hashes.SHA256()), own_key)


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
