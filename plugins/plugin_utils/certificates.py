# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a certificate, its private key and the authorities behind it are fit to be put on a gateway.

Pure functions on PEM bytes and a given time; nothing here reads a file or a clock.
"""

from __future__ import annotations

import ipaddress
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    CRYPTOGRAPHY_IMPORT_ERROR = traceback.format_exc()
else:
    CRYPTOGRAPHY_IMPORT_ERROR = ""

# More than root, two intermediates and a leaf is not seen in the field; a loop of signatures must end.
LONGEST_CHAIN = 8

USAGES = {"client": ("clientAuth",), "server": ("serverAuth",), "both": ("clientAuth", "serverAuth")}

OK = "ok"
EXPIRING = "expiring"
MISSING = "missing"
UNREADABLE = "unreadable"
MISMATCH = "mismatch"
EXPIRED = "expired"
NOT_YET_VALID = "not_yet_valid"
UNTRUSTED = "untrusted"
DIFFERENT = "different"


class CertificateFlawError(Exception):
    """Why a certificate is not fit, as one of the states above and in words."""

    def __init__(self, state: str, problem: str) -> None:
        super().__init__(problem)
        self.state = state
        self.problem = problem


@dataclass(frozen=True)
class Bundle:
    """A certificate with all that belongs to it, as PEM; None is a file that is not there."""

    name: str
    certificate: bytes | None
    private_key: bytes | None
    authority: bytes | None
    chain: bytes | None = b""


@dataclass(frozen=True)
class Finding:
    """What was found out about a bundle."""

    name: str
    state: str
    not_after: datetime | None = None
    problem: str = ""

    @property
    def sound(self) -> bool:
        """Whether the bundle may be put on a gateway."""
        return self.state in (OK, EXPIRING)


@dataclass(frozen=True)
class Request:
    """What a certificate that the depot's own authority issues is to say."""

    name: str
    common_name: str
    subject_alt_names: tuple[str, ...]
    usage: str

    def alternative_names(self) -> tuple[str, ...]:
        """Return the alternative names with their kinds, each once: DNS:gw1, IP:192.0.2.7."""
        return tuple(dict.fromkeys(with_kind(name) for name in self.subject_alt_names))


def with_kind(name: str) -> str:
    """Return an alternative name with its kind in front."""
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name.lower()}"


def day(moment: datetime) -> str:
    """Return a moment as a person reads it."""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def name_of(certificate: x509.Certificate) -> str:
    """Return the subject of a certificate, for messages."""
    return certificate.subject.rfc4514_string() or "a certificate without a subject"


def certificates_in(pem: bytes | None, what: str) -> list[x509.Certificate]:
    """Return the certificates in a PEM text, of which there must be one."""
    if pem is None:
        raise CertificateFlawError(MISSING, f"the {what} is missing")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateFlawError(UNREADABLE, f"the {what} is not a certificate in PEM form") from error


def private_key_in(pem: bytes | None, passphrase: bytes | None = None) -> PrivateKeyTypes:
    """Return the private key in a PEM text. No message quotes the text, or what an error says of it."""
    if pem is None:
        raise CertificateFlawError(MISSING, "the private key is missing")
    try:
        return load_pem_private_key(pem, passphrase)
    except TypeError as error:  # a passphrase was needed and not given, or the other way round
        problem = "is not protected, although a passphrase is given" if passphrase else "is protected by a passphrase"
        raise CertificateFlawError(UNREADABLE, f"the private key {problem}") from error
    except ValueError as error:
        problem = "cannot be opened with the passphrase" if passphrase else "is not a private key in PEM form"
        raise CertificateFlawError(UNREADABLE, f"the private key {problem}") from error


def public_bytes(key: PublicKeyTypes) -> bytes:
    """Return a public key in a form that can be compared."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def demand_match(certificate: x509.Certificate, key: PrivateKeyTypes) -> None:
    """Refuse a private key that is not the certificate's."""
    if public_bytes(certificate.public_key()) != public_bytes(key.public_key()):
        raise CertificateFlawError(
            MISMATCH, f"the private key is not that of the certificate of {name_of(certificate)}"
        )


def demand_valid(certificate: x509.Certificate, now: datetime) -> None:
    """Refuse a certificate before and after its time."""
    if now > certificate.not_valid_after_utc:
        raise CertificateFlawError(
            EXPIRED, f"{name_of(certificate)} expired on {day(certificate.not_valid_after_utc)}; it is {day(now)}"
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateFlawError(
            NOT_YET_VALID,
            f"{name_of(certificate)} is valid from {day(certificate.not_valid_before_utc)}; it is {day(now)}",
        )


def may_issue(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is an authority's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def demand_trust(
    leaf: x509.Certificate, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> None:
    """Refuse a certificate that does not lead to one of the anchors by valid signatures of valid authorities."""
    current = leaf
    for _step in range(LONGEST_CHAIN):
        if current in anchors:
            return
        issuer = next((one for one in (*anchors, *chain) if is_issued_by(current, one)), None)
        if issuer is None:
            issuer_name = current.issuer.rfc4514_string()
            raise CertificateFlawError(
                UNTRUSTED,
                f"{name_of(current)} was issued by {issuer_name}, which is neither in the chain nor in the CA",
            )
        if not may_issue(issuer):
            raise CertificateFlawError(UNTRUSTED, f"{name_of(issuer)} issued {name_of(current)} but is no authority")
        demand_valid(issuer, now)
        current = issuer
    raise CertificateFlawError(UNTRUSTED, f"the chain of {name_of(leaf)} is longer than {LONGEST_CHAIN}")


def examine(bundle: Bundle, now: datetime, warn_days: int) -> Finding:
    """Return whether a bundle is fit, and if not, why."""
    not_after = None
    try:
        leaf, *chain = certificates_in(bundle.certificate, "certificate")
        not_after = leaf.not_valid_after_utc
        demand_match(leaf, private_key_in(bundle.private_key))
        demand_valid(leaf, now)
        if bundle.chain != b"":
            chain += certificates_in(bundle.chain, "chain")
        demand_trust(leaf, chain, certificates_in(bundle.authority, "CA"), now)
    except CertificateFlawError as flaw:
        return Finding(bundle.name, flaw.state, not_after, flaw.problem)
    if not_after - now < timedelta(days=warn_days):
        return Finding(bundle.name, EXPIRING, not_after, f"{name_of(leaf)} expires on {day(not_after)}")
    return Finding(bundle.name, OK, not_after)


def examine_issued(bundle: Bundle, request: Request, now: datetime, renew_days: int) -> Finding:
    """Return whether a certificate of the depot's own authority is fit, and still says what is asked for."""
    finding = examine(bundle, now, renew_days)
    if finding.sound:
        (leaf, *_chain) = certificates_in(bundle.certificate, "certificate")
        if difference := differences(leaf, request):
            return Finding(bundle.name, DIFFERENT, finding.not_after, difference)
    return finding


def examine_authority(certificate: bytes | None, now: datetime, leaf_days: int) -> Finding:
    """Return whether the depot's own authority may go on issuing certificates that live leaf_days.

    It is expiring as soon as it would not outlive a certificate that it issues now.
    """
    not_after = None
    try:
        authority = certificates_in(certificate, "authority's certificate")[0]
        not_after = authority.not_valid_after_utc
        demand_valid(authority, now)
        if not may_issue(authority):
            raise CertificateFlawError(UNTRUSTED, f"{name_of(authority)} is no authority")
    except CertificateFlawError as flaw:
        return Finding("authority", flaw.state, not_after, flaw.problem)
    if not_after - now < timedelta(days=leaf_days):
        return Finding("authority", EXPIRING, not_after, f"{name_of(authority)} expires on {day(not_after)}")
    return Finding("authority", OK, not_after)


def authority_key_flaw(certificate: bytes | None, key: bytes | None, passphrase: bytes | None) -> str:
    """Return why the authority's private key cannot be used, or ""."""
    try:
        private_key = private_key_in(key, passphrase)
        if certificate is not None:
            demand_match(certificates_in(certificate, "authority's certificate")[0], private_key)
    except CertificateFlawError as flaw:
        return flaw.problem
    return ""


def has_usable_key(bundle: Bundle) -> bool:
    """Say whether a bundle's private key is there, readable and, if there is a certificate, its own."""
    try:
        key = private_key_in(bundle.private_key)
        if bundle.certificate is not None:
            demand_match(certificates_in(bundle.certificate, "certificate")[0], key)
    except CertificateFlawError:
        return False
    return True


def common_name_of(certificate: x509.Certificate) -> str:
    """Return a certificate's common name, or ""."""
    return next((str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def alternative_names_of(certificate: x509.Certificate) -> list[str]:
    """Return a certificate's alternative names with their kinds."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *(f"DNS:{name}" for name in extension.get_values_for_type(x509.DNSName)),
        *(f"IP:{address}" for address in extension.get_values_for_type(x509.IPAddress)),
    ]


def usages_of(certificate: x509.Certificate) -> list[str]:
    """Return what a certificate may be used for: clientAuth, serverAuth."""
    names = {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    return [names.get(usage, usage.dotted_string) for usage in extension]


def differences(certificate: x509.Certificate, request: Request) -> str:
    """Return what a certificate says differently from what was asked for, in words, or ""."""
    pairs: tuple[tuple[str, Iterable[str], Iterable[str]], ...] = (
        ("common name", [common_name_of(certificate)], [request.common_name]),
        ("alternative names", alternative_names_of(certificate), request.alternative_names()),
        ("usage", usages_of(certificate), USAGES[request.usage]),
    )
    return "; ".join(
        f"{what} {', '.join(sorted(has)) or 'none'} instead of {', '.join(sorted(should)) or 'none'}"
        for what, has, should in pairs
        if set(has) != set(should)
    )
