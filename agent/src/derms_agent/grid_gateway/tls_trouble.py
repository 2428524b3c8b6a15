# SPDX-License-Identifier: Apache-2.0
"""Why no TLS connection to the VTN came about, in words, and what to do. Pure.

TLS 1.3 lets a client finish its handshake before the server has judged the client's certificate. A refusal then comes
with the first read: as an alert from OpenSSL, as a bare reset from asyncio. Whoever calls this tells which it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAMED = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")
_MOST_LINKS = 20


@dataclass(frozen=True, slots=True)
class Reason:
    """What is wrong, and what to do about it.

    `of_time`: a clock that is off would look the same. `of_client`: it is about this gateway's certificate.
    """

    what: str
    advice: str
    of_time: bool = False
    of_client: bool = False

    def __str__(self) -> str:
        """Return both as a sentence."""
        return f"{self.what}; {self.advice}"


_CA = "put the authority that issued it into CA_PATH"
_CLIENT = "ask the utility operator to admit it, or put the right ones at CERT_PATH and KEY_PATH"
UNKNOWN_CA = Reason("unknown CA: the VTN's certificate is from an authority that CA_PATH does not hold", _CA)
EXPIRED = Reason("expired: the VTN's certificate is no longer valid", "ask the utility operator to renew it", True)
NOT_YET = Reason(
    "not yet valid: the VTN's certificate begins in the future", "ask the utility operator for a valid one", True
)
OTHER_HOST = Reason("the VTN's certificate is for another host", "check the host in VTN_URL")
UNSOUND = Reason("the VTN's certificate cannot be verified", "check CA_PATH, and ask the utility operator")
FINGERPRINT = Reason(
    "the VTN's certificate does not have VTN_FINGERPRINT", "ask the utility operator for the fingerprint in use"
)
NO_CLIENT_CERTIFICATE = Reason(
    "no client certificate: the VTN asks for one",
    "put the one that the utility issued at CERT_PATH and KEY_PATH",
    of_client=True,
)
CLIENT_UNKNOWN_CA = Reason(
    "unknown CA: the VTN does not know the authority of this gateway's certificate", _CLIENT, of_client=True
)
CLIENT_EXPIRED = Reason(
    "expired: the VTN finds this gateway's certificate no longer valid",
    "renew it: playbook rotate_certificates",
    of_time=True,
    of_client=True,
)
CLIENT_REVOKED = Reason("this gateway's certificate was revoked", "ask the utility for another", of_client=True)
CLIENT_REFUSED = Reason("the VTN refuses this gateway's certificate", _CLIENT, of_client=True)
CLOSED = Reason(
    "no client certificate, or one that the VTN refuses: it closes the connection after the handshake, each time",
    _CLIENT,
    of_client=True,
)
PROTOCOL_VERSION = Reason(
    "protocol version: the VTN does not speak TLS in the version that TLS_MINIMUM asks for",
    "ask the utility operator for TLS 1.3, or set TLS_MINIMUM=1.2",
)
NOT_TLS = Reason("the VTN's port does not speak TLS", "check the port in VTN_URL")
NO_CIPHER = Reason(
    "handshake failure: no cipher that both know, or no client certificate", "check CERT_PATH, and ask the operator"
)
SYNCHRONISE = "make time synchronisation work: chronyc tracking"
STALLED = Reason("the VTN takes the connection and does not answer the handshake", "ask the utility operator")
BROKEN_OFF = Reason("the VTN ends the connection in the midst of the handshake", "ask the utility operator")
OTHER = Reason("the handshake failed", "ask the utility operator")


def unusable(problem: str) -> Reason:
    """Return the reason of files of this gateway that no connection can be made with."""
    return Reason(f"this gateway's certificates cannot be used: {problem}", "check CERT_PATH, KEY_PATH and CA_PATH")


_VERIFY = {9: NOT_YET, 10: EXPIRED, 2: UNKNOWN_CA, 18: UNKNOWN_CA, 19: UNKNOWN_CA, 20: UNKNOWN_CA, 21: UNKNOWN_CA,
           62: OTHER_HOST, 64: OTHER_HOST}  # fmt: skip
"""X509_V_ERR_* of OpenSSL's x509_vfy.h."""
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": NO_CLIENT_CERTIFICATE,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": NO_CLIENT_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": CLIENT_UNKNOWN_CA,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": CLIENT_EXPIRED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": CLIENT_REVOKED,
    "SSLV3_ALERT_BAD_CERTIFICATE": CLIENT_REFUSED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": CLIENT_REFUSED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": CLIENT_REFUSED,
    "TLSV1_ALERT_ACCESS_DENIED": CLIENT_REFUSED,
    "TLSV1_ALERT_DECRYPT_ERROR": CLIENT_REFUSED,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": NO_CIPHER,
    "TLSV1_ALERT_PROTOCOL_VERSION": PROTOCOL_VERSION,
    "UNSUPPORTED_PROTOCOL": PROTOCOL_VERSION,
    "NO_PROTOCOLS_AVAILABLE": PROTOCOL_VERSION,
    "WRONG_SSL_VERSION": PROTOCOL_VERSION,
    "WRONG_VERSION_NUMBER": NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": NOT_TLS,
    "HTTP_REQUEST": NOT_TLS,
}
_ENDS = {"UNEXPECTED_EOF_WHILE_READING", "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"}
"""The peer ended the connection, and did not say why."""


def reason_of(error: BaseException) -> Reason | None:
    """Return what an error says about TLS, wherever in its chain; None where it says nothing."""
    for link in _chain(error):
        # aiohttp's own errors are of these classes as well, without what the classes hold.
        code = getattr(link, "verify_code", None)
        if code is not None:
            return _VERIFY.get(code, UNSOUND)
        if getattr(link, "reason", None) in _ALERTS:
            return _ALERTS[getattr(link, "reason", "")]
    for link in _chain(error):
        named = _NAMED.search(str(link))
        if named is not None and named[1] not in _ENDS:
            return _ALERTS.get(named[1], Reason(f"{OTHER.what} ({named[1]})", OTHER.advice))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it comes from."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting and len(seen) < _MOST_LINKS:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and link not in seen:
            seen.append(link)
            yield link
            inner = (
                getattr(link, name, None) for name in ("os_error", "certificate_error", "__cause__", "__context__")
            )
            waiting.extend(inner)


def off_by(clock_off_s: float) -> Reason:
    """Return the reason of a clock that is off by so much, ahead where above 0."""
    return Reason(f"{clock_off(clock_off_s)}, so a certificate seems out of its time", SYNCHRONISE)


def clock_off(clock_off_s: float) -> str:
    """Return in words by how much this clock is off, ahead where above 0."""
    side = "ahead of" if clock_off_s > 0 else "behind"
    return f"this gateway's clock is {abs(clock_off_s):.0f} s {side} the VTN's"
