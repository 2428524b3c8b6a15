# SPDX-License-Identifier: Apache-2.0
"""Whether a VTN can be spoken to, stage by stage, for the module openadr_info; the service may run beside it.

What is asked is oadrQueryRegistration, which changes nothing at the VTN. It is never polled: a second poller with the
same venID would take the service's events away.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
from cryptography import x509

from derms_agent.device_state.calls import Unusable
from derms_agent.grid_gateway import messages
from derms_agent.grid_gateway.incoming import Code, CreatedPartyRegistration, Malformed, Message, Response, parse
from derms_agent.grid_gateway.signatures import Signatures, signatures_of
from derms_agent.grid_gateway.tls_trouble import STALLED, Reason
from derms_agent.grid_gateway.transport import Endpoint, Kind, Shown, Transport, Trouble, fingerprint_of

TLS, CLIENT, QUERY = "tls", "client_certificate", "registration_query"
_VERSIONS = ("1.2", "1.3")
_DAY_S = 86400.0
_OPERATOR = "ask the utility operator"
_NOT_TRIED = "an earlier stage failed"
_HTTP = {
    "401": "ask the utility operator to admit this gateway's certificate",
    "403": "ask the utility operator to admit this gateway's certificate",
    "404": "check the path of VTN_URL",
}


def reached(
    *,
    vtn_url: str,
    tls_minimum: str,
    timeout_s: float,
    certificate_path: str | None = None,
    private_key_path: str | None = None,
    ca_path: str | None = None,
    fingerprint: str | None = None,
    xml_signatures: str = "none",
) -> dict[str, Any]:
    """Return how far a VTN can be reached from the TLS handshake on, as plain JSON. Raises Unusable.

    :param timeout_s: how long the answer to the query may take
    :param xml_signatures: none, sign or require, as XML_SIGNATURES
    """
    if tls_minimum not in _VERSIONS:
        raise Unusable(f"tls_minimum: found {tls_minimum}, expected one of {', '.join(_VERSIONS)}")
    endpoint = Endpoint(
        url=vtn_url,
        certificate=_path(certificate_path),
        key=_path(private_key_path),
        authorities=_path(ca_path),
        fingerprint=fingerprint,
        tls_minimum="1.2" if tls_minimum == "1.2" else "1.3",
    )
    try:
        signatures = signatures_of(xml_signatures, endpoint)
    except (OSError, ValueError) as problem:
        raise Unusable(f"xml_signatures: {problem}") from problem
    return anyio.run(_reached, endpoint, signatures, timeout_s)


def _path(found: str | None) -> Path | None:
    return None if found is None else Path(found)


async def _reached(endpoint: Endpoint, signatures: Signatures | None, timeout_s: float) -> dict[str, Any]:
    transport = Transport(endpoint, total_s=timeout_s)
    try:
        shown, tls, refused = await _handshake(transport)
        result = {"stages": [tls], "registration": None, **_shown_json(shown)}
        if refused is not None:
            result["stages"] += [refused, _stage(QUERY, "not_tried", _NOT_TRIED)]
        elif tls["status"] == "ok":
            client, query, result["registration"] = await _query(transport, signatures)
            result["stages"] += [client, query]
        else:
            result["stages"] += [_stage(name, "not_tried", _NOT_TRIED) for name in (CLIENT, QUERY)]
        return {**result, "clock_off_s": transport.clock_off_s}
    finally:
        await transport.aclose()


def _stage(
    name: str, status: str, reason: str = "", advice: str = "", latency_s: float | None = None
) -> dict[str, Any]:
    latency_ms = None if latency_s is None else round(latency_s * 1000.0, 1)
    return {"name": name, "status": status, "reason": reason, "advice": advice, "latency_ms": latency_ms}


def _failed(name: str, trouble: Trouble, latency_s: float) -> dict[str, Any]:
    reason = trouble.reason
    if reason is None:
        code = str(trouble.args[0]).partition(" ")[0] if trouble.kind is Kind.HTTP else ""
        reason = Reason(str(trouble), _HTTP.get(code, _OPERATOR))
    return _stage(name, "failed", reason.what, reason.advice, latency_s)


async def _handshake(transport: Transport) -> tuple[Shown | None, dict[str, Any], dict[str, Any] | None]:
    """Return what the VTN shows, the stage, and that of the client's certificate where it is refused at once."""
    began_s = time.monotonic()
    try:
        shown = await transport.shake_hands()
    except Trouble as trouble:
        latency_s = time.monotonic() - began_s
        shown_anyway = None if trouble.reason is STALLED else await transport.look()
        if trouble.reason is not None and trouble.reason.of_client:
            # TLS 1.2: the VTN judges the certificate within the handshake, after its own was found good.
            return shown_anyway, _stage(TLS, "ok", latency_s=latency_s), _failed(CLIENT, trouble, latency_s)
        return shown_anyway, _failed(TLS, trouble, latency_s), None
    return shown, _stage(TLS, "ok", latency_s=time.monotonic() - began_s), None


async def _query(
    transport: Transport, signatures: Signatures | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Return the stages of the client's certificate and of the query, and what the VTN answers.

    An answer of whatever kind proves that the certificate was accepted, which with TLS 1.3 the handshake does not.
    """
    began_s = time.monotonic()
    try:
        body = messages.query_registration(str(uuid.uuid4()))
        asked = body if signatures is None else signatures.signed(body)
        read = parse if signatures is None else signatures.read
        message = _read(read, await transport.post("EiRegisterParty", asked))
    except Trouble as trouble:
        latency_s = time.monotonic() - began_s
        if trouble.reason is not None and trouble.reason.of_client:
            return _failed(CLIENT, trouble, latency_s), _stage(QUERY, "not_tried", _NOT_TRIED), None
        answered = trouble.kind in {Kind.HTTP, Kind.BODY}
        client = _accepted(transport) if answered else _stage(CLIENT, "unknown", "the VTN did not answer")
        return client, _failed(QUERY, trouble, latency_s), None
    latency_s = time.monotonic() - began_s
    wrong = _wrong(message)
    if wrong is not None:
        return _accepted(transport), _stage(QUERY, "failed", *wrong, latency_s), None
    assert isinstance(message, CreatedPartyRegistration)  # noqa: S101 - `_wrong` has seen to it
    registration = {"vtn_id": message.vtn_id, "poll_s": message.poll_s, "profiles": list(message.profiles)}
    return _accepted(transport), _stage(QUERY, "ok", latency_s=latency_s), registration


def _accepted(transport: Transport) -> dict[str, Any]:
    if transport.endpoint.certificate is None:
        return _stage(CLIENT, "not_tried", "none is named, and the VTN answers without one")
    return _stage(CLIENT, "ok")


def _read(read: Callable[[bytes], Message], answer: bytes) -> Message:
    """Return the message of an answer. Raises Trouble."""
    try:
        return read(answer)
    except Malformed as why:
        raise Trouble(Kind.BODY, str(why) if answer.strip() else "the VTN answered with nothing") from why


def _wrong(message: Message) -> tuple[str, str] | None:
    """Return what is wrong with the answer to the query, and what to do; None: nothing."""
    response = message if isinstance(message, Response) else getattr(message, "response", None)
    if isinstance(response, Response) and not response.ok:
        advice = (
            "tell the utility operator this VEN's name and certificate"
            if response.code == Code.NOT_REGISTERED
            else _OPERATOR
        )
        return f"the VTN refuses: {response.code} {response.description}".rstrip(), advice
    if not isinstance(message, CreatedPartyRegistration):
        return f"found {type(message).__name__}, expected oadrCreatedPartyRegistration", _OPERATOR
    if message.profiles and messages.PROFILE not in message.profiles:
        found = ", ".join(message.profiles)
        return (
            f"found profiles {found}, expected {messages.PROFILE}",
            f"ask the utility operator for OpenADR {messages.PROFILE}",
        )
    return None


def _shown_json(shown: Shown | None) -> dict[str, Any]:
    if shown is None:
        return {"tls_version": "", "cipher": "", "chain": []}
    now = datetime.now(timezone.utc)
    chain = [_certificate_json(der, now) for der in shown.chain]
    return {"tls_version": shown.tls_version, "cipher": shown.cipher, "chain": chain}


def _certificate_json(der: bytes, now: datetime) -> Mapping[str, Any]:
    """Return what matters of a certificate; no more than its digest for one that cryptography is too strict for."""
    try:
        found = x509.load_der_x509_certificate(der)
    except ValueError:
        nothing = dict.fromkeys(("subject", "issuer", "not_before", "not_after", "expires_in_days"))
        return {**nothing, "sha256": fingerprint_of(der)}
    return {
        "subject": found.subject.rfc4514_string(),
        "issuer": found.issuer.rfc4514_string(),
        "not_before": found.not_valid_before_utc.isoformat(),
        "not_after": found.not_valid_after_utc.isoformat(),
        "expires_in_days": round((found.not_valid_after_utc - now).total_seconds() / _DAY_S, 1),
        "sha256": fingerprint_of(der),
    }
