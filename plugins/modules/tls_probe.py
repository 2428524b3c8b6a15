#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: tls_probe
short_description: Tries a TLS handshake with a server, and names what does not fit
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Connects from the host that it runs on and completes a TLS handshake; sends nothing else.
  - Where the handshake fails, finds out why by asking again with less demanded, and names both sides, such as the
    server's newest TLS version beside the one that is demanded, or the certificate's dates beside this host's clock.
  - Changes nothing, and never fails by itself; RV(problem) and RV(reachable) are for the caller to judge.
options:
  host:
    description: The server's name or address, which its certificate must be for.
    type: str
    required: true
  port:
    description: The server's port.
    type: int
    default: 443
  ca_path:
    description:
      - File of the authorities that the server's certificate must lead to; without it, those that the system trusts.
      - A file that is not there yet leaves the certificate unverified, and a note says so.
    type: path
  certificate_path:
    description: File of the client certificate, if one is to be shown.
    type: path
  private_key_path:
    description: File of the client certificate's private key.
    type: path
  tls_minimum:
    description: The oldest TLS version that is accepted.
    type: str
    choices: ['1.2', '1.3']
    default: '1.3'
  timeout_s:
    description: How long each step may take, in seconds.
    type: int
    default: 5
attributes:
  check_mode:
    description: Changes nothing, in check mode or not.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Try the handshake with the VTN
  derms.edge.tls_probe:
    host: vtn.example
    ca_path: /etc/derms/certs/grid-gateway.ca.crt
    certificate_path: /etc/derms/certs/grid-gateway.crt
    private_key_path: /etc/derms/certs/grid-gateway.key
  register: probe
  failed_when: probe.reachable and probe.problem | length > 0
"""

RETURN = r"""
reachable:
  description: Whether the server accepted a connection.
  returned: always
  type: bool
verified:
  description: Whether the handshake succeeded with everything that was demanded.
  returned: always
  type: bool
problem:
  description: What does not fit, in words; empty where everything does.
  returned: always
  type: str
  sample: "TLS Handshake Failure: vtn.example:443 offers at most TLS 1.2, this gateway demands at least TLS 1.3"
tls_version:
  description: The TLS version that was agreed on; empty where none was.
  returned: always
  type: str
  sample: TLSv1.3
cipher:
  description: The cipher suite that was agreed on.
  returned: always
  type: str
  sample: TLS_AES_256_GCM_SHA384
peer:
  description: The server's certificate; empty where none was seen.
  returned: always
  type: dict
  contains:
    common_name:
      description: Its subject's common name.
      type: str
    not_before:
      description: From when it is valid.
      type: str
    not_after:
      description: Until when it is valid.
      type: str
openssl_version:
  description: The OpenSSL of this host's Python.
  returned: always
  type: str
  sample: OpenSSL 3.0.15 3 Sep 2024
notes:
  description: What could not be checked, and why.
  returned: always
  type: list
  elements: str
"""

import socket
import ssl
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADLINE = "TLS Handshake Failure"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# OpenSSL's verification results (X509_V_ERR_…).
NOT_YET_VALID = 9
EXPIRED = 10
UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
OTHER_NAME = {62, 64}

# Alerts by which a server refuses the client's certificate, as OpenSSL names them.
CLIENT_REFUSED = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "asks for a client certificate, and none is shown",
    "TLSV1_ALERT_UNKNOWN_CA": "does not know the authority of the client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "does not accept the client certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "does not accept the client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "says that the client certificate has expired: compare both clocks",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "says that the client certificate is revoked",
    "TLSV1_ALERT_ACCESS_DENIED": "denies access to the client certificate",
}
VERSION_REFUSED = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION"}

# Tags of ASN.1 in DER, as far as a certificate's dates and subject need them.
SEQUENCE = 0x30
SET = 0x31
OBJECT_ID = 0x06
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
EXPLICIT_0 = 0xA0
COMMON_NAME = bytes((0x55, 0x04, 0x03))  # 2.5.4.3
LONG_LENGTH = 0x80


@dataclass(frozen=True)
class Peer:
    """What matters of a server's certificate."""

    common_name: str
    not_before: datetime
    not_after: datetime


@dataclass
class Answer:
    """What one attempt at a handshake brought."""

    reachable: bool = False
    version: str = ""
    cipher: str = ""
    certificate: bytes = b""
    error: OSError | None = None  # every ssl.SSLError is one


@dataclass
class Probe:
    """What was found out in the end."""

    reachable: bool = False
    verified: bool = False
    problem: str = ""
    tls_version: str = ""
    cipher: str = ""
    peer: Peer | None = None
    notes: list[str] = field(default_factory=list)


def elements(der: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and content of each element that follows another in DER."""
    found = []
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length >= LONG_LENGTH:
            octets = length - LONG_LENGTH
            length = int.from_bytes(der[position : position + octets], "big")
            position += octets
        found.append((tag, der[position : position + length]))
        position += length
    return found


def moment(tag: int, content: bytes) -> datetime:
    """Return a certificate's time."""
    text = content.decode("ascii")
    if tag == UTC_TIME:  # two digits of the year: 50 and above are in the 20th century
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def peer_of(certificate: bytes) -> Peer:
    """Return what matters of a DER certificate, which Python only decodes once it is verified."""
    ((_tag, body),) = elements(certificate)
    fields = [one for one in elements(elements(body)[0][1]) if one[0] != EXPLICIT_0]
    # serial number, signature algorithm, issuer, validity, subject, …
    (before_tag, before), (after_tag, after) = elements(fields[3][1])
    names = [
        value.decode("utf-8", "replace")
        for _set, group in elements(fields[4][1])
        for _sequence, pair in elements(group)
        for (_oid, oid), (_kind, value) in [elements(pair)]
        if oid == COMMON_NAME
    ]
    return Peer(", ".join(names), moment(before_tag, before), moment(after_tag, after))


def shown(when: datetime) -> str:
    """Return a time as a person reads it."""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def verification_problem(error: ssl.SSLCertVerificationError, peer: Peer | None, host: str, now: datetime) -> str:
    """Return in words why a server's certificate was not accepted."""
    clock = f"this gateway's clock says {shown(now)}: check timedatectl"
    if error.verify_code == NOT_YET_VALID:
        since = f" (valid from {shown(peer.not_before)})" if peer and peer.not_before > now else ""
        return f"certificate not yet valid{since}; {clock}"
    if error.verify_code == EXPIRED:
        until = f" on {shown(peer.not_after)}" if peer and peer.not_after < now else " or that of an authority above it"
        return f"certificate expired{until}; {clock}"
    if error.verify_code in UNKNOWN_AUTHORITY:
        return "its certificate was issued by an authority that this gateway does not know"
    if error.verify_code in OTHER_NAME:
        name = f" ({peer.common_name})" if peer and peer.common_name else ""
        return f"its certificate{name} is not for {host}"
    return f"its certificate is not accepted: {error.verify_message}"


def dotted(version: str) -> str:
    """Return TLSv1.2 as TLS 1.2."""
    return version.replace("TLSv", "TLS ")


class Server:
    """A server to shake hands with."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.host = host
        self.port = port
        self.timeout_s = timeout_s
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def shake_hands(self, context: ssl.SSLContext) -> Answer:
        """Try a handshake."""
        answer = Answer()
        try:
            with socket.create_connection((self.host, self.port), self.timeout_s) as plain:
                answer.reachable = True
                begin = time.monotonic()
                with context.wrap_socket(plain, server_hostname=self.host) as secured:
                    answer.version = secured.version() or ""
                    answer.cipher = (secured.cipher() or ("",))[0]
                    answer.certificate = secured.getpeercert(binary_form=True) or b""
                    # With TLS 1.3 a server judges the client's certificate after the handshake has ended on this side.
                    secured.settimeout(min(self.timeout_s, 0.1 + 2 * (time.monotonic() - begin)))
                    self._await_refusal(secured)
        except OSError as error:
            answer.error = error
        return answer

    def _await_refusal(self, secured: ssl.SSLSocket) -> None:
        try:
            secured.recv(1)
        except socket.timeout:  # silence is consent
            return


def lenient_context(client: tuple[str, str] | None = None) -> ssl.SSLContext:
    """Return a context that accepts whatever a server shows, to look at it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    if client:
        context.load_cert_chain(*client)
    return context


def demanding_context(ca_path: str | None, client: tuple[str, str] | None, tls_minimum: str) -> ssl.SSLContext:
    """Return a context that demands what the services will demand."""
    context = ssl.create_default_context(cafile=ca_path)
    context.minimum_version = VERSIONS[tls_minimum]
    if client:
        context.load_cert_chain(*client)
    return context


def explain(
    server: Server, answer: Answer, client: tuple[str, str] | None, demanded: str, now: datetime
) -> tuple[str, Peer | None]:
    """Return why a handshake failed, asking the server again with nothing demanded."""
    seen = server.shake_hands(lenient_context(client))
    peer = peer_of(seen.certificate) if seen.certificate else None
    error = answer.error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{server.name}: {verification_problem(error, peer, server.host, now)}", peer
    reason = str(getattr(error, "reason", "") or "")
    if reason in CLIENT_REFUSED:
        return f"{server.name} {CLIENT_REFUSED[reason]}", peer
    offered = seen.version
    if offered and offered < f"TLSv{demanded}":
        return f"{server.name} offers at most {dotted(offered)}, this gateway demands at least TLS {demanded}", peer
    if reason in VERSION_REFUSED:
        return f"{server.name} and {ssl.OPENSSL_VERSION} of this gateway have no TLS version in common", peer
    if isinstance(error, socket.timeout):
        return f"{server.name} accepts connections but does not answer within {server.timeout_s:g} s", peer
    words = reason.replace("_", " ").lower() or str(error)
    return f"{server.name} ends the handshake: {words} ({ssl.OPENSSL_VERSION} on this gateway)", peer


def probe(
    server: Server, ca_path: str | None, client: tuple[str, str] | None, tls_minimum: str, now: datetime
) -> Probe:
    """Try the handshake that the services will make, and name what does not fit."""
    result = Probe()
    unread = [path for path in (ca_path, *(client or ())) if path and not Path(path).exists()]
    if unread:
        result.notes.append(f"{server.name} was only looked at: {', '.join(unread)} is not there yet")
        context = lenient_context()
        context.minimum_version = VERSIONS[tls_minimum]
    else:
        try:
            context = demanding_context(ca_path, client, tls_minimum)
        except (OSError, ValueError) as error:
            result.problem = f"{HEADLINE}: {ca_path} or the client certificate cannot be used: {error}"
            return result
    answer = server.shake_hands(context)
    result.reachable = answer.reachable
    result.tls_version, result.cipher = answer.version, answer.cipher
    result.peer = peer_of(answer.certificate) if answer.certificate else None
    if not answer.reachable:
        result.notes.append(f"{server.name} cannot be reached ({answer.error}); its TLS was not checked")
    elif answer.error is not None:
        words, peer = explain(server, answer, None if unread else client, tls_minimum, now)
        result.problem = f"{HEADLINE}: {words}"
        result.peer = result.peer or peer
    else:
        result.verified = not unread
    return result


def main() -> None:
    """Probe and report."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 443},
            "ca_path": {"type": "path"},
            "certificate_path": {"type": "path"},
            "private_key_path": {"type": "path"},
            "tls_minimum": {"type": "str", "choices": list(VERSIONS), "default": "1.3"},
            "timeout_s": {"type": "int", "default": 5},
        },
        required_together=[["certificate_path", "private_key_path"]],
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    client = (given["certificate_path"], given["private_key_path"]) if given["certificate_path"] else None
    server = Server(given["host"], given["port"], given["timeout_s"])
    result = probe(server, given["ca_path"], client, given["tls_minimum"], datetime.now(timezone.utc))
    peer = result.peer
    module.exit_json(
        changed=False,
        reachable=result.reachable,
        verified=result.verified,
        problem=result.problem,
        tls_version=result.tls_version,
        cipher=result.cipher,
        peer={
            "common_name": peer.common_name,
            "not_before": peer.not_before.isoformat(),
            "not_after": peer.not_after.isoformat(),
        }
        if peer
        else {},
        openssl_version=ssl.OPENSSL_VERSION,
        notes=result.notes,
        msg=result.problem,
    )


if __name__ == "__main__":
    main()
