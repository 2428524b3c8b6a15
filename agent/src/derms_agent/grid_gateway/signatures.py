# SPDX-License-Identifier: Apache-2.0
"""XML signatures: OpenADR 2.0b's "high" security, in the shape that openleadr's VTN makes and verifies.

A signature (XML Signature 1.1, detached, inclusive canonical XML) covers the oadrSignedObject and a ReplayProtect with
a nonce and a time. signxml makes and verifies it; what is ours is whom a signature has to be from, that a message is
taken once, and that nothing is read but what was verified: the message is made of the bytes that the digest was of, so
an element that was wrapped or moved never gets through.

A message has passed `incoming.tree_of`, with its limits, before any of this looks at it.
"""

from __future__ import annotations

import base64
import heapq
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    Subject,
    VerificationError,
)
from lxml import etree
from signxml.algorithms import (
    CanonicalizationMethod,
    DigestAlgorithm,
    SignatureConstructionMethod,
    SignatureMethod,
)
from signxml.exceptions import SignXMLException
from signxml.signer import XMLSigner
from signxml.verifier import SignatureConfiguration, XMLVerifier

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.incoming import Malformed, Message, message_of, tree_of
from derms_agent.grid_gateway.messages import Unsendable
from derms_agent.grid_gateway.schema import NAMESPACES, Element, schema_problem
from derms_agent.grid_gateway.transport import LONGEST_OFF_S, Endpoint, fingerprint_fits
from derms_agent.settings import Mistake, Mistakes

MOST_OFF_S = LONGEST_OFF_S
"""How far the time in a signature may be from this clock's, either way."""
MOST_REMEMBERED = 4096
_MOST_CERTIFICATES = 8
_PROPERTIES = "http://openadr.org/oadr-2.0b/2012/07/xmldsig-properties"
_MOST_NONCE = 1024
_SIGNED_ID = "oadrSignedObject"
_PAYLOAD = f"{{{NAMESPACES['oadr']}}}oadrPayload"
_SIGNED = f"{{{NAMESPACES['oadr']}}}oadrSignedObject"
_CERTIFICATE = "ds:KeyInfo/ds:X509Data/ds:X509Certificate"
_EXPECTED = SignatureConfiguration(
    location="./",
    expect_references=2,
    signature_methods=frozenset(
        {
            SignatureMethod.RSA_SHA256,
            SignatureMethod.RSA_SHA384,
            SignatureMethod.RSA_SHA512,
            SignatureMethod.ECDSA_SHA256,
            SignatureMethod.ECDSA_SHA384,
            SignatureMethod.ECDSA_SHA512,
        }
    ),
    digest_algorithms=frozenset({DigestAlgorithm.SHA256, DigestAlgorithm.SHA384, DigestAlgorithm.SHA512}),
    # The certificate alone says which key it is: another in the signature is not looked at.
    ignore_ambiguous_key_info=True,
)


class Untrusted(Malformed):
    """A message that is not signed as it has to be; the text says why."""


# Whom it is from


def _may_sign(_policy: object, _certificate: x509.Certificate, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("its key usage admits no signing of certificates")


# That an authority is one is seen to (basicConstraints: by the library itself); a private one need not have all else
# that the web's have.
_AUTHORITIES = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
)
_VTNS = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)


def _subject(host: str) -> Subject:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _judge_certificate(endpoint: Endpoint, chain: list[x509.Certificate], now_unix_s: float) -> None:
    """See that a signature's certificate is the VTN's. Raises Untrusted."""
    if endpoint.fingerprint is not None:
        if not fingerprint_fits(endpoint.fingerprint, chain[0].public_bytes(Encoding.DER)):
            raise Untrusted("found a signature by another certificate, expected that of VTN_FINGERPRINT")
        return
    if endpoint.authorities is None:
        raise Untrusted("found a signature, and neither VTN_FINGERPRINT nor CA_PATH to judge it by")
    try:
        known = x509.load_pem_x509_certificates(endpoint.authorities.read_bytes())
        verifier = (
            PolicyBuilder()
            .store(Store(known))
            .time(datetime.fromtimestamp(now_unix_s, timezone.utc))
            .extension_policies(ca_policy=_AUTHORITIES, ee_policy=_VTNS)
            .build_server_verifier(_subject(endpoint.host))
        )
        verifier.verify(chain[0], chain[1:])
    except VerificationError as why:
        raise Untrusted(
            f"found a signature by a certificate that no authority of CA_PATH gave {endpoint.host}: {why}"
        ) from why
    except (OSError, ValueError) as why:
        raise Untrusted(f"found a signature, and no authority to judge it by: {why}") from why


# That it is taken once


@dataclass(slots=True, eq=False)
class Replays:
    """The messages that were taken within the last `MOST_OFF_S`: the time and the nonce of each, so many at the most.

    Where there are more, the oldest is let go of, and whatever is not newer than that is refused from then on.
    """

    most: int = MOST_REMEMBERED
    _taken: set[tuple[float, str]] = field(default_factory=set)
    _oldest_first: list[tuple[float, str]] = field(default_factory=list)
    _floor_unix_s: float = -math.inf

    def take(self, stamp_unix_s: float, nonce: str, now_unix_s: float) -> None:
        """Take a message in, once. Raises Untrusted."""
        off_s = stamp_unix_s - now_unix_s
        if abs(off_s) > MOST_OFF_S:
            raise Untrusted(
                f"found a signature made {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'before'} this clock's time, "
                f"expected at most {MOST_OFF_S:g}: check both clocks"
            )
        if self._floor_unix_s > now_unix_s + MOST_OFF_S:  # the clocks were put back
            self._floor_unix_s = -math.inf
        if (stamp_unix_s, nonce) in self._taken or stamp_unix_s <= self._floor_unix_s:
            raise Untrusted("found a message that was taken before, expected each to have a nonce of its own")
        while self._oldest_first and (
            self._oldest_first[0][0] < now_unix_s - MOST_OFF_S or len(self._oldest_first) >= self.most
        ):
            oldest = heapq.heappop(self._oldest_first)
            self._taken.discard(oldest)
            if oldest[0] >= now_unix_s - MOST_OFF_S:
                self._floor_unix_s = max(self._floor_unix_s, oldest[0])
        heapq.heappush(self._oldest_first, (stamp_unix_s, nonce))
        self._taken.add((stamp_unix_s, nonce))

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._taken)


# Both ways


@dataclass(frozen=True, slots=True)
class _Key:
    """What is signed with: a key, and the certificate of it with those between it and its authority."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate]

    @property
    def method(self) -> SignatureMethod:
        rsa_key = isinstance(self.key, rsa.RSAPrivateKey)
        return SignatureMethod.RSA_SHA256 if rsa_key else SignatureMethod.ECDSA_SHA256


def _key_of(endpoint: Endpoint) -> _Key:
    """Return what is signed with. Raises ValueError or OSError where there is none, or that does not sign XML."""
    if endpoint.certificate is None or endpoint.key is None:
        raise Mistakes(
            [Mistake("agent.conf", None, "XML_SIGNATURES", "no CERT_PATH and KEY_PATH to sign with", "them")]
        )
    chain = x509.load_pem_x509_certificates(endpoint.certificate.read_bytes())
    key = load_pem_private_key(endpoint.key.read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError(f"KEY_PATH: found {type(key).__name__}, expected a key of RSA or ECDSA")
    encoded = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*encoded) != chain[0].public_key().public_bytes(*encoded):
        raise ValueError("found a key that is not the certificate's")
    return _Key(key, chain)


@dataclass(slots=True, eq=False)
class Signatures:
    """Signs what goes to a VTN by this gateway's key, and verifies what comes from there.

    `required`: what is not signed is refused; otherwise a signature has to be right where there is one. Files that are
    replaced are taken up with the next message, as the transport does it.
    """

    endpoint: Endpoint
    required: bool = False
    wall: Callable[[], float] = time.time
    replays: Replays = field(default_factory=Replays)
    _key: _Key | None = None
    _stamps: tuple[object, ...] | None = None

    def check(self) -> None:
        """See that there is what is needed. Raises ValueError or OSError."""
        _key_of(self.endpoint)
        if self.endpoint.fingerprint is None and self.endpoint.authorities is None:
            raise ValueError(
                "agent.conf: XML_SIGNATURES: found no VTN_FINGERPRINT and no CA_PATH, expected one of them"
            )

    def signed(self, body: bytes) -> bytes:
        """Return a message of ours with a signature. Raises Unsendable."""
        parser = etree.XMLParser(no_network=True, resolve_entities=False, load_dtd=False)
        payload = etree.fromstring(body, parser)
        known = self._current_key()
        signer = XMLSigner(
            method=SignatureConstructionMethod.detached,
            signature_algorithm=known.method,
            c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_0,
        )
        # Canonical XML counts the namespaces in scope: those of the oadrPayload that the signature goes into.
        signer.namespaces |= payload.nsmap
        signature = signer.sign(
            payload[0],
            key=known.key,
            cert=known.chain,
            reference_uri=f"#{_SIGNED_ID}",
            signature_properties=self._replay_protect(),
        )
        payload.insert(0, signature)
        problem = schema_problem(payload)
        if problem is not None:
            raise Unsendable(f"signed: {problem}")
        signed: bytes = etree.tostring(payload, xml_declaration=True, encoding="utf-8")
        return signed

    def read(self, body: bytes) -> Message:
        """Return the message of a body that came. Raises Malformed, Untrusted for a signature."""
        payload = tree_of(body)
        if payload.find("ds:Signature", NAMESPACES) is not None:
            return message_of(self._verified(payload))
        if self.required:
            raise Untrusted("found no signature, expected the VTN's: XML_SIGNATURES=require")
        return message_of(payload)

    def _current_key(self) -> _Key:
        """Return the key, anew where the files have changed. Raises Unsendable where there never was one."""
        stamps = self.endpoint.stamps()
        if self._key is None or stamps != self._stamps:
            try:
                self._key, self._stamps = _key_of(self.endpoint), stamps
            except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as problem:
                # While files are being replaced a key may not fit its certificate: the one before goes on until then.
                if self._key is None:
                    raise Unsendable(f"cannot be signed: {problem}") from problem
        return self._key

    def _replay_protect(self) -> Element:
        protect = etree.Element(
            f"{{{_PROPERTIES}}}ReplayProtect",
            nsmap={"dsp": _PROPERTIES},
            attrib={"Id": "replay-protect", "Target": f"#{_SIGNED_ID}"},
        )
        etree.SubElement(protect, f"{{{_PROPERTIES}}}timestamp").text = iso8601.time_text(self.wall())
        etree.SubElement(protect, f"{{{_PROPERTIES}}}nonce").text = uuid.uuid4().hex
        return protect

    def _verified(self, payload: Element) -> Element:
        """Return a payload with what was signed, and nothing else. Raises Untrusted."""
        signature = payload.find("ds:Signature", NAMESPACES)
        if len(payload.findall(".//ds:Signature", NAMESPACES)) > 1 or sum(1 for _ in payload.iter(_SIGNED)) != 1:
            raise Untrusted("found more than one signature or oadrSignedObject, expected one of each")
        now_unix_s = self.wall()
        written = signature.findall(_CERTIFICATE, NAMESPACES)
        if not 1 <= len(written) <= _MOST_CERTIFICATES:
            raise Untrusted(f"found {len(written)} certificates in a signature, expected 1 to {_MOST_CERTIFICATES}")
        try:
            chain = [_certificate(one.text or "") for one in written]
            _judge_certificate(self.endpoint, chain, now_unix_s)
            found = XMLVerifier().verify(payload, x509_cert=chain[0], expect_config=_EXPECTED)
        except Untrusted:
            raise
        except (SignXMLException, ValueError, TypeError, UnsupportedAlgorithm, etree.LxmlError) as why:
            raise Untrusted(f"found a signature that is not good: {why or type(why).__name__}") from why
        results = found if isinstance(found, list) else [found]
        parts = [one.signed_xml for one in results if one.signed_xml is not None]
        messages = [one for one in parts if one.tag == _SIGNED]
        protects = [inner for one in parts for inner in one.iter(f"{{{_PROPERTIES}}}ReplayProtect")]
        if len(messages) != 1 or len(protects) != 1:
            raise Untrusted("found a signature of something else, expected one of oadrSignedObject and ReplayProtect")
        self._take_once(protects[0], now_unix_s)
        verified = etree.Element(_PAYLOAD, nsmap={"oadr": NAMESPACES["oadr"]})
        verified.append(messages[0])
        return verified

    def _take_once(self, protect: Element, now_unix_s: float) -> None:
        stamp = protect.findtext(f"{{{_PROPERTIES}}}timestamp") or ""
        nonce = protect.findtext(f"{{{_PROPERTIES}}}nonce") or ""
        try:
            stamp_unix_s = iso8601.unix_s(stamp)
        except ValueError as why:
            raise Untrusted(f"ReplayProtect: {why}") from why
        if not nonce.strip() or len(nonce) > _MOST_NONCE:
            raise Untrusted(f"ReplayProtect: found a nonce of {len(nonce)} characters, expected 1 to {_MOST_NONCE}")
        self.replays.take(stamp_unix_s, nonce, now_unix_s)


def signatures_of(xml_signatures: str, endpoint: Endpoint) -> Signatures | None:
    """Return what messages are signed and verified by; None: they are neither. Raises ValueError or OSError.

    :param xml_signatures: none, sign or require, as XML_SIGNATURES
    """
    if xml_signatures == "none":
        return None
    found = Signatures(endpoint, required=xml_signatures == "require")
    found.check()
    return found


def _certificate(text: str) -> x509.Certificate:
    """Return the certificate of an X509Certificate. Raises ValueError."""
    return x509.load_der_x509_certificate(base64.b64decode("".join(text.split()), validate=True))
