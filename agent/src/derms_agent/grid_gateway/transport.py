# SPDX-License-Identifier: Apache-2.0
"""Requests to the VTN, over HTTP and mutual TLS: one at a time, each with an end, each failure with a name.

aiohttp does the HTTP, for openleadr brings it along on every gateway; another client would be a second one. Nothing of
it is trusted to give up by itself: a request as a whole has an end, so that a body which drips is cut off, and a body
has a bound. Redirects, cookies, proxies and compression are not followed.

Certificates are read again when their files change; a new connection is made then, and no restart is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import anyio
import anyio.abc
import anyio.streams.tls
from aiohttp.client_proto import ResponseHandler

from derms_agent.grid_gateway import tls_trouble
from derms_agent.grid_gateway.incoming import MOST_BYTES
from derms_agent.grid_gateway.messages import CONTENT_TYPE

PATH = "/OpenADR2/Simple/2.0b"
"""Where a VTN's services are, where its URL has no path (OpenADR 2.0b, simple HTTP)."""
CONNECT_S = 5.0
TOTAL_S = 15.0
PROBE_S = 2.0
LONGEST_OFF_S = 60.0
"""How far the clock may be off before it is said to be."""
_OPENADR_FINGERPRINT = 20
_FINGERPRINT = 64
_TRIES = 2
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_HEADERS = {"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE, "Accept-Encoding": "identity"}


_ENDED = (anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError, ConnectionResetError)
"""How the end of a connection shows itself."""


class Kind(str, Enum):
    """What went wrong with a request."""

    TLS = "TLS Handshake Failure"
    UNREACHABLE = "unreachable"
    TIMEOUT = "no answer in time"
    CLOSED = "connection closed"
    HTTP = "HTTP error"
    BODY = "no valid answer"


class Trouble(Exception):
    """A request that had no usable answer. `reason`: of what is wrong with TLS."""

    def __init__(self, kind: Kind, what: str, reason: tls_trouble.Reason | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.reason = reason

    @classmethod
    def of_tls(cls, reason: tls_trouble.Reason) -> Trouble:
        """Return the trouble of a handshake."""
        return cls(Kind.TLS, str(reason), reason)

    def __str__(self) -> str:
        """Return it in words."""
        return self.args[0] if self.kind is Kind.TLS else f"{self.kind.value}: {self.args[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A VTN, and how it is spoken to. `fingerprint`: of its certificate; SHA-256, whole or as OpenADR cuts it."""

    url: str
    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    fingerprint: str | None = None
    tls_minimum: Literal["1.2", "1.3"] = "1.3"

    @property
    def host(self) -> str:
        """The host's name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, 443 where none is named."""
        return urlsplit(self.url).port or 443

    def service(self, name: str) -> str:
        """Return the URL of a service, as OadrPoll."""
        root = self.url.rstrip("/")
        return f"{root}/{name}" if urlsplit(root).path else f"{root}{PATH}/{name}"

    def files(self) -> tuple[Path, ...]:
        """Return the files that a connection is made with."""
        return tuple(path for path in (self.certificate, self.key, self.authorities) if path is not None)

    def stamps(self) -> tuple[object, ...]:
        """Return what changes when one of the files is replaced."""
        return tuple(_stamp(path) for path in self.files())


def context_of(endpoint: Endpoint) -> ssl.SSLContext:
    """Return what connections are made with. Raises OSError (ssl.SSLError is one) where the files are no good."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS[endpoint.tls_minimum]
    if endpoint.authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(endpoint.authorities)
    if endpoint.certificate is not None:
        context.load_cert_chain(endpoint.certificate, endpoint.key)
    return context


def fingerprint_of(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate in DER, as hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


def fingerprint_fits(fingerprint: str, certificate: bytes | None) -> bool:
    """Whether a certificate in DER has a fingerprint, written with colons or without, whole or its last ten bytes."""
    wanted = fingerprint.replace(":", "").replace(" ", "").lower()
    if certificate is None or len(wanted) not in {_OPENADR_FINGERPRINT, _FINGERPRINT}:
        return False
    return fingerprint_of(certificate)[-len(wanted) :] == wanted


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection that was made: the version of TLS, and until when the certificate of the VTN is valid."""

    tls_version: str
    certificate_ends: str | None


class _Connector(aiohttp.TCPConnector):
    """Shows each new connection to a judge before anything is sent over it."""

    def __init__(self, context: ssl.SSLContext, judge: Callable[[ssl.SSLObject], None]) -> None:
        super().__init__(ssl=context, limit=1, ttl_dns_cache=60)
        self._judge = judge

    async def _create_connection(self, *arguments: Any, **named: Any) -> ResponseHandler:
        made = await super()._create_connection(*arguments, **named)
        transport = made.transport
        try:
            self._judge(transport.get_extra_info("ssl_object") if transport is not None else None)  # type: ignore[arg-type]
        except Trouble:
            made.abort()
            raise
        return made


@dataclass(frozen=True, slots=True)
class Shown:
    """What a VTN shows in a handshake; `chain`: its certificates in DER, its own first."""

    tls_version: str
    cipher: str
    chain: tuple[bytes, ...]


def _tls_of(stream: anyio.abc.ByteStream) -> ssl.SSLObject:
    found: ssl.SSLObject = stream.extra(anyio.streams.tls.TLSAttribute.ssl_object)  # noqa: S610 - anyio's, no database's
    return found


def _shown(tls: ssl.SSLObject) -> Shown:
    cipher = tls.cipher()
    # Public from Python 3.13 on; before that it is there all the same, and gives objects.
    shows: Any = tls if hasattr(tls, "get_unverified_chain") else tls._sslobj  # type: ignore[attr-defined] # noqa: SLF001
    chain = [
        one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes())
        for one in shows.get_unverified_chain() or ()
    ]
    return Shown(tls.version() or "", cipher[0] if cipher else "", tuple(chain))


@dataclass(slots=True, eq=False)
class Transport:
    """The way to one VTN. `connected` is told of each connection; `warned` of what a person should know."""

    endpoint: Endpoint
    connected: Callable[[Connected], None] = lambda _made: None
    warned: Callable[[str], None] = lambda _words: None
    total_s: float = TOTAL_S
    clock_off_s: float | None = None
    _session: aiohttp.ClientSession | None = None
    _context: ssl.SSLContext | None = None
    _stamps: tuple[object, ...] | None = None
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def post(self, service: str, body: bytes) -> bytes:
        """Send a message to a service, and return the body of the answer. Raises Trouble."""
        async with self._lock:
            session = await self._current_session()
            try:
                return await self._exchange(session, service, body)
            except Trouble:
                raise
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                await self._drop()
                raise await self._named(error) from error

    async def shake_hands(self) -> Shown:
        """Connect, ask nothing, and return what the VTN shows. Raises Trouble.

        With TLS 1.3 the VTN may still refuse this gateway's certificate after that: `post` would find it out.
        """
        async with self._lock:
            await self._current_session()
            try:
                with anyio.fail_after(CONNECT_S):
                    stream = await self._connect(self._context)
            except TimeoutError as error:
                raise await self._named(aiohttp.ConnectionTimeoutError()) from error
            except (*_ENDED, OSError) as error:
                raise await self._named(error) from error
            async with stream:
                tls = _tls_of(stream)
                self._judge(tls)
                return _shown(tls)

    async def look(self) -> Shown | None:
        """Return what the VTN shows to somebody who demands nothing of it; None: no handshake. Nothing is asked."""
        try:
            context = context_of(self.endpoint)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            with anyio.fail_after(CONNECT_S):
                async with await self._connect(context) as stream:
                    return _shown(_tls_of(stream))
        except (*_ENDED, OSError, TimeoutError):
            return None

    async def aclose(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._drop()

    async def _exchange(self, session: aiohttp.ClientSession, service: str, body: bytes) -> bytes:
        sent_s, sent_unix_s = time.monotonic(), time.time()
        async with session.post(
            self.endpoint.service(service), data=body, headers=_HEADERS, allow_redirects=False
        ) as answer:
            self._compare_clocks(answer.headers.get("Date"), sent_unix_s + (time.monotonic() - sent_s) / 2)
            found = bytearray()
            async for chunk in answer.content.iter_any():
                found += chunk
                if len(found) > MOST_BYTES:
                    answer.close()
                    raise Trouble(Kind.BODY, f"found a body of over {MOST_BYTES} bytes")
            if answer.status != 200:  # noqa: PLR2004
                shown = bytes(found[:200]).decode(errors="replace")
                raise Trouble(Kind.HTTP, f"{answer.status} {answer.reason or ''}: {shown}".rstrip(": "))
            return bytes(found)

    # Connections

    async def _current_session(self) -> aiohttp.ClientSession:
        """Return the session, a new one where the files of certificates have changed. Raises Trouble."""
        stamps = self.endpoint.stamps()
        if self._session is not None and stamps == self._stamps:
            return self._session
        try:
            context = context_of(self.endpoint)
        except OSError as problem:
            # While files are being replaced a key may not fit its certificate: what is there goes on until they do.
            if self._session is None:
                raise Trouble.of_tls(tls_trouble.unusable(problem.strerror or str(problem))) from problem
            self.warned(f"The certificates were replaced and cannot be used ({problem}); those before are used on")
            return self._session
        replaced = self._stamps is not None and stamps != self._stamps
        await self._drop()
        if replaced:
            self.warned("The certificates were replaced: connecting with the new ones")
        self._context, self._stamps = context, stamps
        self._session = aiohttp.ClientSession(
            connector=_Connector(context, self._judge),
            timeout=aiohttp.ClientTimeout(total=self.total_s, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self._session

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _judge(self, tls: ssl.SSLObject | None) -> None:
        """Look at a connection before it is used. Raises Trouble."""
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        pinned = self.endpoint.fingerprint
        if pinned is not None and not fingerprint_fits(pinned, certificate):
            raise Trouble.of_tls(tls_trouble.FINGERPRINT)
        shown: Any = {} if tls is None else tls.getpeercert() or {}
        self.connected(Connected("none" if tls is None else tls.version() or "none", shown.get("notAfter")))

    def _compare_clocks(self, date: str | None, at_unix_s: float) -> None:
        if date is None:
            return
        with contextlib.suppress(ValueError, TypeError):
            self.clock_off_s = at_unix_s - parsedate_to_datetime(date).timestamp()

    # What went wrong

    async def _named(self, error: BaseException) -> Trouble:
        """Return the name of a failure, where need be after another look at the VTN, in which nothing is asked."""
        reason = tls_trouble.reason_of(error)
        if reason is not None:
            return await self._tls(reason)
        return self._plainly(error) or await self._after_another_look(error)

    def _plainly(self, error: BaseException) -> Trouble | None:
        """Return the name of a failure that can only be one thing."""
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Trouble(Kind.UNREACHABLE, f"{self.endpoint.host} has no address: check VTN_URL and the resolver")
        if isinstance(error, asyncio.TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return Trouble(Kind.TIMEOUT, f"within {self.total_s:g} s")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
            return Trouble(Kind.BODY, f"found no HTTP answer: {error}")
        return None

    async def _after_another_look(self, error: BaseException) -> Trouble:
        """Tell a VTN that is gone from one that does not answer the handshake, or ends each connection after it."""
        where = f"{self.endpoint.host}:{self.endpoint.port}"
        if not await self._accepts():
            return Trouble(Kind.UNREACHABLE, f"{where} takes no connection")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return await self._tls(tls_trouble.STALLED)
        refused = await self._refused_again()
        if refused is not None:
            return await self._tls(refused)
        return Trouble(Kind.CLOSED, f"{where} closed the connection")

    async def _tls(self, reason: tls_trouble.Reason) -> Trouble:
        if reason.of_time:
            off_s = await self._clock_off()
            if off_s is not None and abs(off_s) > LONGEST_OFF_S:
                reason = replace(tls_trouble.off_by(off_s), of_client=reason.of_client)
        return Trouble.of_tls(reason)

    async def _accepts(self) -> bool:
        """Whether the VTN's port takes connections."""
        try:
            with anyio.fail_after(PROBE_S):
                async with await anyio.connect_tcp(self.endpoint.host, self.endpoint.port):
                    return True
        except (OSError, TimeoutError):
            return False

    async def _refused_again(self) -> tls_trouble.Reason | None:
        """Return why the VTN ends a connection over which nothing was asked, each time; None where it does not."""
        reason: tls_trouble.Reason | None = None
        for _ in range(_TRIES):
            reason = await self._refused_after_handshake()
            if reason is None or reason is not tls_trouble.CLOSED:
                return reason
        return reason

    async def _refused_after_handshake(self) -> tls_trouble.Reason | None:
        try:
            with anyio.fail_after(CONNECT_S):
                stream = await self._connect(self._context)
        except _ENDED as error:
            reason = tls_trouble.reason_of(error)
            if reason is not None:
                return reason
            return tls_trouble.PROTOCOL_VERSION if await self._speaks_tls_1_2() else tls_trouble.BROKEN_OFF
        except (OSError, TimeoutError):
            return None
        async with stream:
            try:
                with anyio.move_on_after(PROBE_S):
                    await stream.receive()
            except _ENDED as error:
                return tls_trouble.reason_of(error) or tls_trouble.CLOSED
        return None

    async def _speaks_tls_1_2(self) -> bool:
        """Whether the VTN shakes hands in the version that TLS_MINIMUM excludes."""
        if self.endpoint.tls_minimum == "1.2":
            return False
        try:
            context = context_of(replace(self.endpoint, tls_minimum="1.2"))
            with anyio.fail_after(CONNECT_S):
                async with await self._connect(context):
                    return True
        except (*_ENDED, OSError, TimeoutError):
            return False

    async def _connect(self, context: ssl.SSLContext | None) -> anyio.abc.ByteStream:
        return await anyio.connect_tcp(
            self.endpoint.host, self.endpoint.port, tls=True, ssl_context=context, tls_standard_compatible=False
        )

    async def _clock_off(self) -> float | None:
        """Return how far this clock is ahead of the VTN's, in s, by the Date of an answer to a question for nothing.

        The certificate is not verified for that, since its time is in doubt: what comes is used for a hint alone.
        """
        try:
            context = context_of(self.endpoint)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with anyio.fail_after(PROBE_S + CONNECT_S):
                async with await self._connect(context) as stream:
                    await stream.send(f"HEAD / HTTP/1.1\r\nHost: {self.endpoint.host}\r\n\r\n".encode())
                    head = await stream.receive(4096)
        except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
            return self.clock_off_s
        for line in head.decode(errors="replace").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "date":
                self._compare_clocks(value.strip(), time.time())
        return self.clock_off_s


def _stamp(path: Path) -> object:
    """Return what changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def backoff_s(attempt: int, draw: float, most_s: float = 300.0, first_s: float = 1.0) -> float:
    """Return how long to wait before another attempt, 1 for the first: full jitter, so that VENs do not come at once.

    :param draw: a number from 0 to 1
    """
    return draw * min(most_s, first_s * 2.0 ** min(attempt, 30))
