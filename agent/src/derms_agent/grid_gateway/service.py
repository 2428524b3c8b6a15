# SPDX-License-Identifier: Apache-2.0
"""`derms-agent grid-gateway`: the service, wired together. docs/openadr.md.

SIGTERM and SIGINT end it: bounds that the orchestrator has been handed stay with it, and the successor takes up from
what is on the disk. Certificates that are replaced are taken up by themselves.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc

from derms_agent import __version__, settings
from derms_agent.document_store import Store
from derms_agent.engine_log import log_to
from derms_agent.grid_gateway import messages, push
from derms_agent.grid_gateway.control_link import ControlLink
from derms_agent.grid_gateway.mirror import Mirror
from derms_agent.grid_gateway.reports import Buffer
from derms_agent.grid_gateway.signals import Rules
from derms_agent.grid_gateway.signatures import signatures_of
from derms_agent.grid_gateway.terms import REPORTS, Terms
from derms_agent.grid_gateway.transport import PATH, Connected, Endpoint, Transport, Trouble
from derms_agent.grid_gateway.ven import Identity, NotRegistered, Refused, Ven
from derms_agent.mqtt import TlsFiles
from derms_agent.notify import notify
from derms_agent.settings import AgentConf, Broker, Configuration, Mistake, Mistakes
from derms_agent.socket_protocol import VERSION, ProtocolError
from derms_agent.socket_server import RUNS_ALREADY, Arguments, Verbs, answers_at, serve_at

WATCHDOG_S = 5.0
LISTEN_AGAIN_S = 60.0
"""How long after it could not listen for what the VTN sends the gateway tries again."""
LAST_OLD_TLS = "TLSv1.2"

logger = logging.getLogger("derms.grid_gateway")


def endpoint_of(agent: AgentConf, credentials: Path | None) -> Endpoint:
    """Return how the VTN is spoken to; certificates in the directory of the unit's credentials come first.

    :raises Mistakes: agent.conf names no VTN
    """
    if agent.vtn_url is None:
        raise Mistakes([Mistake("agent.conf", None, "VTN_URL", "no such line", "the utility's OpenADR server")])
    handed = credentials is not None and (credentials / "cert").exists()
    return Endpoint(
        url=agent.vtn_url,
        certificate=credentials / "cert" if handed and credentials is not None else agent.cert_path,
        key=credentials / "key" if handed and credentials is not None else agent.key_path,
        authorities=credentials / "ca" if handed and credentials is not None else agent.ca_path,
        fingerprint=agent.vtn_fingerprint,
        tls_minimum=agent.tls_minimum,
    )


def rules_of(configuration: Configuration) -> Rules:
    """Return what the depot file makes of events; the ids come with the registration."""
    depot = configuration.depot
    vtn = depot.vtn
    rules = Rules(ven_id="", vtn_id="", site_limit_w=depot.site.limit_va)
    if vtn is None:
        return rules
    return Rules(
        ven_id="",
        vtn_id="",
        site_limit_w=depot.site.limit_va,
        levels=vtn.levels,
        price_limit=vtn.price_limit,
        market_contexts=frozenset(vtn.market_contexts),
        resources=vtn.resources,
        groups=frozenset(vtn.groups),
    )


@dataclass(slots=True, eq=False)
class Service:
    """The VEN, and who may ask it what."""

    ven: Ven
    users: frozenset[str]
    mirror: Mirror
    broker: Broker | None = None
    broker_tls: TlsFiles | None = None
    places: frozenset[str] = frozenset()

    def verbs(self) -> Verbs:
        """Return what may be asked over the socket."""
        return Verbs(
            looking={"version": self._version, "status": self._status, "event.list": self._event_list},
            changing={
                "event.sync": self._sync,
                "registration.cancel": self._cancel_registration,
                "registration.create": self._create_registration,
                "terms.put": self._put_terms,
                "opt.create": self._create_opt,
                "opt.cancel": self._cancel_opt,
            },
            users=lambda: self.users,
        )

    async def _version(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        return {"version": __version__, "protocol": VERSION}

    async def _status(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        return {**self.ven.shown(), "places": sorted(self.places)}

    async def _event_list(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        return self.ven.shown_events()

    async def _sync(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        self.ven.wake()
        return {}

    async def _cancel_registration(self, found: Mapping[str, Any], user: str) -> object:
        Arguments(found).end()
        await self._told(self.ven.cancel_registration())
        logger.info("The registration was cancelled by %s", user)
        return {}

    async def _create_registration(self, found: Mapping[str, Any], user: str) -> object:
        Arguments(found).end()
        self.ven.join()
        logger.info("The registration is wanted by %s", user)
        return {}

    async def _put_terms(self, found: Mapping[str, Any], user: str) -> object:
        arguments = Arguments(found)
        wanted = Terms(
            reports=arguments.optional_texts("reports", REPORTS),
            market_contexts=arguments.optional_texts("market_contexts"),
            resources=arguments.optional_texts_by_name("resources", self.places),
        )
        arguments.end()
        await self._told(self.ven.agree(wanted))
        logger.info("The terms of the VEN were put by %s", user)
        return {}

    async def _create_opt(self, found: Mapping[str, Any], user: str) -> object:
        arguments = Arguments(found)
        opt_id = arguments.text("name")
        opts = {"in": messages.Opt.IN, "out": messages.Opt.OUT}
        opt = opts[arguments.one_of("opt", opts, "out")]
        start_unix_s, duration_s = arguments.time("start"), arguments.number("duration_s", 1.0, 366 * 86400.0)
        market_context = arguments.optional_text("market_context")
        arguments.end()
        if start_unix_s is None or duration_s is None:
            raise ProtocolError("argument", "found no start, or no duration_s, expected both")
        opted = messages.Opted(
            id=opt_id,
            opt=opt,
            reason="x-schedule",
            available=(messages.Window(start_unix_s, duration_s),),
            market_context=market_context,
        )
        await self._told(self.ven.opt(opted))
        logger.info("Opted %s for a time by %s", opt.value, user)
        return {"name": opt_id}

    async def _cancel_opt(self, found: Mapping[str, Any], _user: str) -> object:
        arguments = Arguments(found)
        opt_id = arguments.text("name")
        arguments.end()
        await self._told(self.ven.cancel_opt(opt_id))
        return {"name": opt_id}

    @staticmethod
    async def _told(asked: Any) -> None:
        """Wait for the VTN to be told something. Raises ProtocolError where it was not."""
        try:
            await asked
        except (Trouble, NotRegistered, Refused, messages.Unsendable) as why:
            raise ProtocolError("vtn", f"{type(why).__name__}: {why}") from why


def connected(host: str, made: Connected) -> None:
    """Log a connection; one of an older TLS each time, as a warning."""
    if made.tls_version == LAST_OLD_TLS:
        logger.warning("VTN %s is spoken to over TLS 1.2, for TLS_MINIMUM admits it: ask the operator for 1.3", host)
    else:
        logger.info(
            "Connected to VTN %s over %s; its certificate ends %s", host, made.tls_version, made.certificate_ends
        )


def assemble(configuration: Configuration) -> Service:
    """Return the service of a configuration, with what its predecessor left; nothing is sent yet. Raises ValueError."""
    agent = configuration.agent
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    endpoint = endpoint_of(agent, None if credentials is None else Path(credentials))
    if configuration.depot.vtn is None or not configuration.depot.vtn.levels:
        logger.warning("The depot file says nothing of vtn.levels: events of SIMPLE are opted out of")
    named = None if configuration.depot.vtn is None else configuration.depot.vtn.ven_name
    mirror = Mirror(configuration.depot.name)

    def way() -> Transport:
        return Transport(
            endpoint,
            connected=lambda made: connected(endpoint.host, made),
            warned=lambda words: logger.warning("%s", words),
        )

    ven = Ven(
        happened=mirror.happened,
        identity=Identity(ven_name=agent.ven_name or named or configuration.depot.name, client_id=agent.client_id),
        transport=way(),
        reporting=way(),
        control=ControlLink(agent.socket),
        store=Store(agent.grid_state_directory),
        buffer=Buffer(agent.grid_state_directory / "samples.sqlite"),
        rules=rules_of(configuration),
        push_address=agent.push_url,
        signatures=signatures_of(agent.xml_signatures, endpoint),
        clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    )
    if ven.push_address is not None:
        push.server_context(endpoint)
    ven.recall()
    tls = broker_tls(agent, None if credentials is None else Path(credentials))
    depot = configuration.depot
    places = frozenset({"site", *depot.circuits, *(evse.name for evse in depot.evses())})
    return Service(ven, frozenset(agent.control_peers), mirror, agent.mqtt, tls, places)


def broker_tls(agent: AgentConf, credentials: Path | None) -> TlsFiles | None:
    """Return what the broker is spoken to with; the VTN's certificates are another authority's.

    :raises ValueError: the broker is spoken to over TLS, and systemd hands no certificate over for it
    """
    if agent.mqtt is None or not agent.mqtt.tls:
        return None
    if credentials is None or not (credentials / "mqtt-cert").exists():
        raise ValueError(
            "MQTT_URL: found no mqtt-cert, mqtt-key and mqtt-ca in the service's credentials, expected them"
        )
    return TlsFiles(credentials / "mqtt-cert", credentials / "mqtt-key", credentials / "mqtt-ca")


async def run_service(service: Service, socket: Path) -> None:
    """Run until SIGTERM or SIGINT."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, tasks.cancel_scope)
        tasks.start_soon(service.ven.run)
        tasks.start_soon(_feed_watchdog, service.ven)
        if service.broker is not None:
            outbox = service.ven.store.directory / "outbox.sqlite"
            tasks.start_soon(service.mirror.run, str(service.broker), service.broker_tls, outbox, service.ven.shown)
        if service.ven.push_address is not None:
            tasks.start_soon(_receive_pushes, service.ven, service.ven.push_address)
        await serve_at(socket, service.verbs(), partial(notify, "READY=1", "STATUS=speaks to the VTN"))
    await service.ven.aclose()
    logger.info("Stopped: what the orchestrator was handed stays in force")


async def _receive_pushes(ven: Ven, address: str) -> None:
    """Listen for what the VTN sends, on the port of the address that it was told.

    Where that cannot be done it is said once, and tried again: the VTN is asked for events meanwhile.
    """
    parts = urlsplit(address)
    port = parts.port or 443
    said = ""
    async with anyio.create_task_group() as tasks:
        receiver = push.Receiver(ven, tasks, parts.path.rstrip("/") or PATH)
        while True:
            try:
                async with push.listening(receiver, ven.transport.endpoint, None, port):
                    logger.info("The VTN may send to port %d", port)
                    await anyio.sleep_forever()
            except (OSError, ValueError) as problem:
                if str(problem) != said:
                    logger.error("The VTN cannot send to port %d, and is asked for events: %s", port, problem)
                said = str(problem)
            await anyio.sleep(LISTEN_AGAIN_S)


async def _feed_watchdog(ven: Ven) -> None:
    """Tell systemd that the service is well for as long as all its loops go on; else it starts it anew."""
    said: tuple[str, ...] = ()
    while True:
        stuck = ven.stuck
        words = ven.trouble or ven.control_trouble or f"polls every {ven.poll_s:g} s"
        if stuck:
            words = f"Stuck, to be started anew: {', '.join(stuck)}"
            if stuck != said:
                logger.error("%s", words)
        said = stuck
        notify(*(() if stuck else ("WATCHDOG=1",)), f"STATUS={words}")
        await anyio.sleep(WATCHDOG_S)


async def _obey_signals(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            notify("STOPPING=1")
            scope.cancel()
            return


def run(options: argparse.Namespace) -> int:
    """Run the service; return what it ends with, which is not 0 where it refuses to start: the log says why then.

    For mistakes in its files that is 78, for which its unit does not start it again.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        configuration = settings.load(options.agent_conf, options.limits_conf)
        log_to(configuration.agent.engine_log)
        # Before anything is touched: two would write to the same record of events.
        if anyio.run(answers_at, configuration.agent.grid_socket):
            logger.error(
                "Refused to start: another grid gateway runs, which answers at %s", configuration.agent.grid_socket
            )
            return RUNS_ALREADY
        service = assemble(configuration)
    except (Mistakes, ValueError, OSError, sqlite3.Error) as problem:
        log_to(settings.engine_log_of(options.agent_conf))
        for line in str(problem).splitlines():
            logger.error("Refused to start: %s", line)
        return settings.refusal_status(problem)
    anyio.run(run_service, service, configuration.agent.grid_socket)
    return 0
