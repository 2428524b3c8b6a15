# SPDX-License-Identifier: Apache-2.0
"""OpenADR's HTTP push: the VTN sends to the VEN, which listens with mutual TLS. Off unless agent.conf says where.

A message is taken as one that a poll has brought. Its answer goes back as the VTN expects it: an oadrDistributeEvent is
acknowledged with an oadrResponse, and the oadrCreatedEvent follows as a request of its own; all others are answered
where they came in. Whoever shows no certificate of the VTN's authority gets no further than the handshake; whoever
shows one that is not the VTN's, as another VEN of the utility's can, gets no message through.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import anyio
import anyio.abc
from aiohttp import web
from cryptography import x509

from derms_agent.grid_gateway import messages
from derms_agent.grid_gateway.incoming import (
    MOST_BYTES,
    CancelPartyRegistration,
    Code,
    DistributeEvent,
    Malformed,
    Message,
    RequestReregistration,
    Response,
)
from derms_agent.grid_gateway.transport import PATH, Endpoint, Trouble, fingerprint_fits
from derms_agent.grid_gateway.ven import NotRegistered, Refused, Ven

SERVICES = ("EiEvent", "EiReport", "EiRegisterParty", "EiOpt")
READ_S = 10.0
MOST_AT_WORK = 8
"""So many lists of events are taken and answered at a time; the VTN is told to come again with any more."""
ANSWERED_WITHIN_S = 20.0
"""For so long a list holds its place while the VTN takes no answer: any one request to it is over by then.

Answers wait for one another, so that without this the last would hold its place for as long as all of them take.
"""
_LIST = b"oadrDistributeEvent"

logger = logging.getLogger("derms.grid_gateway")


def server_context(endpoint: Endpoint) -> ssl.SSLContext:
    """Return what connections are taken with: the gateway's own certificate, and the VTN's is demanded.

    :raises ValueError: there is no certificate, or no authority that a VTN could be verified by
    :raises OSError: they cannot be read
    """
    if endpoint.certificate is None or endpoint.authorities is None:
        raise ValueError("push needs CERT_PATH, KEY_PATH and CA_PATH: found none, and nobody is let in unverified")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if endpoint.tls_minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(endpoint.certificate, endpoint.key)
    context.load_verify_locations(endpoint.authorities)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def renewed_context(endpoint: Endpoint) -> ssl.SSLContext:
    """Return a `server_context` that takes replaced files up with the next handshake; connections that stand go on.

    What the files held before serves until a key fits its certificate again. Raises as `server_context` does.
    """
    listener = now = server_context(endpoint)
    stamps = endpoint.stamps()

    # Called at each handshake, whether or not the client names a server.
    def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _listener: ssl.SSLContext) -> None:
        nonlocal now, stamps
        if (found := endpoint.stamps()) != stamps:
            try:
                now, stamps = server_context(endpoint), found
            except (OSError, ValueError):
                logger.warning("The certificates that were replaced do not fit one another yet")
            else:
                logger.info("The certificates were replaced: the next connections are taken with the new ones")
        connection.context = now

    listener.sni_callback = choose
    return listener


def is_for_host(certificate: bytes, host: str) -> bool:
    """Whether a certificate in DER was given for a host; a star stands for the first label of a name (RFC 6125)."""
    try:
        found = x509.load_der_x509_certificate(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    try:
        return ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        wanted = host.lower()
    written = {one.lower() for one in names.get_values_for_type(x509.DNSName)}
    return not written.isdisjoint({wanted, f"*.{wanted.partition('.')[2]}"})


class Receiver:
    """Takes what the VTN sends, for a VEN; answers that go out as requests are sent in `tasks`."""

    def __init__(self, ven: Ven, tasks: anyio.abc.TaskGroup, path: str = PATH) -> None:
        self._ven, self._tasks = ven, tasks
        self._at_work = 0
        self.application = web.Application(client_max_size=MOST_BYTES)
        self.application.add_routes([web.post(f"{path}/{service}", self._received) for service in SERVICES])

    async def _received(self, request: web.Request) -> web.StreamResponse:
        if not self._is_from_vtn(request):
            whose = "VTN_FINGERPRINT" if self._ven.transport.endpoint.fingerprint else "the host of VTN_URL"
            logger.warning("A push was refused: its certificate is not that of %s", whose)
            return web.Response(status=403, text=f"the certificate is not that of {whose}")
        try:
            with anyio.fail_after(READ_S):
                body = await request.read()
            # Before it is read: a signed message is taken once, and this one is to come again as it is.
            if self._at_work >= MOST_AT_WORK and _LIST in body:
                self._ven.wake_registered()  # what it brings comes with the next list, if not before
                return web.Response(status=503, text=f"{self._at_work} lists of events are at work: come again")
            message = self._ven.read(body)
            return await self._answered(message)
        except TimeoutError:
            return web.Response(status=408)
        except Malformed as why:
            return web.Response(status=400, text=str(why))
        except (NotRegistered, Refused) as why:
            return self._said(Code.NOT_REGISTERED, str(why))

    def _is_from_vtn(self, request: web.Request) -> bool:
        """Whether the certificate is the VTN's, and not just one of the same authority, as every VEN's may be."""
        endpoint = self._ven.transport.endpoint
        tls = None if request.transport is None else request.transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if endpoint.fingerprint is not None:
            return fingerprint_fits(endpoint.fingerprint, certificate)
        return certificate is not None and is_for_host(certificate, endpoint.host)

    async def _answered(self, message: Message) -> web.StreamResponse:
        if isinstance(message, DistributeEvent):
            if message.response is not None and not message.response.ok:
                return self._no_list(message.response)
            self._at_work += 1
            # Its own answer may take its time: the VTN hears at once that the events have arrived.
            self._tasks.start_soon(self._take_events, message)
            return self._said(Code.OK, "OK", message.request_id)
        reply = await self._ven.reply_to(message)
        if isinstance(message, CancelPartyRegistration | RequestReregistration):
            self._ven.register_anew(cancelled=isinstance(message, CancelPartyRegistration))
        if reply is None:
            return self._said(Code.NOT_ALLOWED, f"{type(message).__name__} is nothing for a VEN")
        return web.Response(body=self._ven.signed(reply[1]), content_type=messages.CONTENT_TYPE)

    def _no_list(self, found: Response) -> web.Response:
        """Refuse an error of the VTN's: what an empty list lacks would be cancelled. It is asked for its events."""
        words = f"found responseCode {found.code} ({found.description or 'no reason is given'}), expected 200"
        logger.warning("An oadrDistributeEvent that was pushed changes nothing: %s", words)
        self._ven.wake_registered()
        return self._said(Code.INVALID_DATA, words)

    async def _take_events(self, message: DistributeEvent) -> None:
        try:
            await self._ven.take_and_answer(message, ANSWERED_WITHIN_S)
        except (Trouble, NotRegistered, Refused, messages.Unsendable, OSError) as why:
            # The next session asks for all events, and answers them then.
            logger.warning("Events that were pushed are not answered yet: %s", why)
            self._ven.wake_registered()
        finally:
            self._at_work -= 1

    def _said(self, code: Code, words: str, request_id: str = "") -> web.Response:
        known = self._ven.registration
        body = messages.response(request_id, None if known is None else known.ven_id, int(code), words)
        return web.Response(body=self._ven.signed(body), content_type=messages.CONTENT_TYPE)


@asynccontextmanager
async def listening(receiver: Receiver, endpoint: Endpoint, host: str | None, port: int) -> AsyncIterator[int]:
    """Listen, and give the port. Raises OSError or ValueError."""
    runner = web.AppRunner(receiver.application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=renewed_context(endpoint)).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
