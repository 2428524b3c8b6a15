# SPDX-License-Identifier: Apache-2.0
"""`derms-agent orchestrator`: the service, wired together. What it does on which signal is in docs/orchestrator.md.

SIGTERM and SIGINT end it in order: every setpoint stays in force as a lease, and the ledger is on disk for whoever
comes next. SIGHUP reads the files again; what cannot be changed while it runs, or is wrong, leaves all as it is and is
said in the log.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from derms_agent import __version__, settings
from derms_agent.control import demand, droop, limits, thermal
from derms_agent.control.cycle import Outcome, State
from derms_agent.document_store import Latest, Store, boot_id
from derms_agent.drivers.bus_lock import Locked, buses_locked
from derms_agent.drivers.errors import BusError, NotAllowed, Refused
from derms_agent.drivers.factory import open_buses, open_devices
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.modbus_device import Pace
from derms_agent.engine_log import Heartbeats, listen, log_to
from derms_agent.model import Device, OperatingState, Rank
from derms_agent.mqtt import Outbox, Publisher, TlsFiles, begun_anew
from derms_agent.notify import notify
from derms_agent.orchestrator import asks, batteries
from derms_agent.orchestrator import store as stored
from derms_agent.orchestrator.api import ask_of
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.broadcast import CLIENT_ID, MQTT, Broadcast, tls_files
from derms_agent.orchestrator.controller import Controller, Policy, Told
from derms_agent.orchestrator.engine import SHED_S, Engine, boottime_s
from derms_agent.orchestrator.led import Leds, pattern
from derms_agent.orchestrator.report import Alarms, Running, ask_json, explanation, operating, report, stamp, troubles
from derms_agent.orchestrator.site import Site, fallback_written, foreseen, site_of, tree_of
from derms_agent.orchestrator.store import ASKS, ASKS_JOURNAL, CYCLES, MEMORY, SESSIONS
from derms_agent.profiles.point import Table
from derms_agent.settings import Configuration, Mistakes
from derms_agent.socket_protocol import VERSION, ProtocolError, shown
from derms_agent.socket_server import RUNS_ALREADY, Arguments, Verbs, answers_at, serve_at

HEARTBEAT_S = 5.0
"""A device that has not answered for so long is logged with `Heartbeat Timeout`."""
ROOT = "root"
BUSES_WITHIN_S = 15.0
"""How long whoever asks devices directly may keep the buses, before control begins all the same."""
HEARD_WITHIN_S = 20.0
"""For so long the grid is not told for good what cannot be honoured, while a device was not heard yet.

It is counted from when the socket is opened: before that nobody could ask, and the buses may have been waited for.
"""
_DEMAND_S = 900.0
_COUNTED_EVERY_S = 0.1
_MOST_JOBS = 200
_MOST_REGISTERS = 125

logger = logging.getLogger("derms.orchestrator")


def policy_of(configuration: Configuration, known: Site) -> Policy:
    """Return the limits of the configuration as control takes them; of those of the whole site, this tree's share."""
    conf, site = configuration.limits, known.depot.site
    defaults = thermal.DEFAULTS
    kinds = thermal.SensorKind
    return Policy(
        limit_va=site.limit_va,
        default_limit_w=site.default_limit_w,
        soc_reserve_percent=site.soc_reserve_percent,
        demand_cap=None
        if conf.demand_cap_w is None
        else demand.Cap(
            cap_w=conf.demand_cap_w * known.share, windows=demand.Windows(conf.demand_windows), window_s=_DEMAND_S
        ),
        droop=droop.Settings(
            nominal_hz=conf.nominal_hz,
            deadband_of_hz=conf.droop_deadband_hz,
            deadband_uf_hz=conf.droop_deadband_hz,
            k_of=conf.droop_k,
            k_uf=conf.droop_k,
            response_s=conf.droop_response_s,
        )
        if conf.droop
        else None,
        nominal_hz=conf.nominal_hz,
        ramp_w_per_s=conf.ramp_w_per_s,
        enclosure_sensor=replace(
            defaults[kinds.ENCLOSURE],
            cut_off_c=conf.thermal_enclosure_cutoff_c,
            required=conf.thermal_enclosure_required,
        ),
        charger_sensor=replace(
            defaults[kinds.CHARGER], cut_off_c=conf.thermal_charger_cutoff_c, required=conf.thermal_charger_required
        ),
        battery_sensor=replace(
            defaults[kinds.BATTERY], cut_off_c=conf.thermal_battery_cutoff_c, required=conf.thermal_battery_required
        ),
    )


@dataclass(slots=True, eq=False)
class Service:
    """Everything that runs, for one configuration.

    `opened_s` is when it could first be asked, on the engine's clock. `lacks` is what it runs without, as an alarm.
    """

    configuration: Configuration
    paths: tuple[Path, Path]
    site: Site
    store: Store
    asks_store: Latest
    controller: Controller
    engine: Engine
    alarms: Alarms = field(default_factory=Alarms)
    leds: Leds | None = None
    broadcast: Broadcast | None = None
    opened_s: float = math.inf
    lacks: list[tuple[str, str, str]] = field(default_factory=list)
    _asks_kept: list[dict[str, Any]] | None = None
    _heartbeats: Heartbeats = field(default_factory=Heartbeats)
    _state: OperatingState | None = None
    _report: dict[str, Any] | None = None
    _report_cycle: int = -1
    _saving: anyio.Lock = field(default_factory=anyio.Lock)
    _saving_asks: anyio.Lock = field(default_factory=anyio.Lock)

    # Each cycle

    def told(self, outcome: Outcome) -> None:
        """Look after a cycle at what a person, a log or systemd is to be told."""
        now_s = self.engine.clock()
        found = [*troubles(self.controller, outcome, now_s), *self.lacks]
        if self.engine.unkept:
            found.append(("ledger", "unkept", f"cannot be kept, so nothing is raised: {self.engine.unkept}"))
        began, ended = self.alarms.hold(found, now_s)
        for alarm in began:
            logger.warning("%s %s", alarm.about, alarm.words)
            self._happened("alarm", about=alarm.about, words=alarm.words)
        for alarm in ended:
            logger.info("%s is well again", alarm.about)
            self._happened("alarm over", about=alarm.about)
        self._listen(now_s)
        shown = operating(self.controller, outcome, now_s)
        if shown.state is not self._state:
            logger.info("State %s: %s", shown.state.value, shown.reason)
            self._happened("state", state=shown.state.value, reason=shown.reason)
            self._state = shown.state
        if self.leds is not None:
            self.leds.show(pattern(shown.state), now_s)
        notify("WATCHDOG=1", f"STATUS={shown.state.value}: {shown.reason}")

    def _happened(self, kind: str, **what: Any) -> None:
        if self.broadcast is not None:
            self.broadcast.happened(kind, stamp(time.time()), **what)

    def _listen(self, now_s: float) -> None:
        began_s = self.engine.began_s
        last = dict.fromkeys(self.site.devices, began_s)
        for evse in self.site.evses:
            heard_s = self.controller.state.ledger.entries[evse.name].heard_s
            if evse.device in last and heard_s is not None:
                last[evse.device] = max(last[evse.device], heard_s)
        for device, answered_s in self.controller.answered_s.items():
            last[device] = max(last[device], answered_s)
        self._heartbeats, entries = listen(self._heartbeats, last, dict.fromkeys(last, HEARTBEAT_S), now_s)
        for entry in entries:
            entry.log(logger)

    def report(self) -> dict[str, Any]:
        """Return the report of the last cycle, made once for all who ask. Raises ProtocolError before the first."""
        outcome = self.controller.outcome
        if outcome is None:
            raise ProtocolError("not ready", "the first cycle is not over yet")
        if self._report is None or self._report_cycle != self.engine.cycles:
            times_ms = sorted(1000 * one for one in self.engine.cycle_times_s)
            running = Running(
                cycles=self.engine.cycles,
                median_ms=statistics.median(times_ms) if times_ms else 0.0,
                p99_ms=times_ms[math.ceil(0.99 * len(times_ms)) - 1] if times_ms else 0.0,
                last_ms=1000 * self.engine.cycle_times_s[-1] if times_ms else 0.0,
                buses={name: bus.problem for name, bus in self.engine.buses.items()},
                unix_s=time.time(),
            )
            now_s = self.engine.clock()
            self._report = report(self.controller, outcome, self.alarms, running, now_s)
            self._report_cycle = self.engine.cycles
        return self._report

    # Verbs

    def verbs(self) -> Verbs:
        """Return what may be asked over the socket."""
        return Verbs(
            looking={
                "version": self._version,
                "status": self._status,
                "explain": self._explain,
                "limit.list": self._limit_list,
                "bus.list": self._bus_list,
            },
            changing={
                "limit.put": self.limit_put,
                "limit.remove": self._limit_remove,
                "session.put": self.session_put,
                "grid.link": self._grid_link,
                "bus.transact": self._bus_transact,
            },
            users=lambda: self.configuration.agent.control_peers,
        )

    async def _version(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        return {"version": __version__, "protocol": VERSION}

    async def _status(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        return {**self.report(), "informed": self._informed(self.engine.clock())}

    async def _explain(self, found: Mapping[str, Any], _user: str) -> object:
        arguments = Arguments(found)
        name = arguments.text("evse")
        arguments.end()
        outcome = self.controller.outcome
        if outcome is None:
            raise ProtocolError("not ready", "the first cycle is not over yet")
        self._known(name)
        return explanation(self.controller, outcome, name, self.engine.clock())

    def _known(self, evse: str) -> None:
        if evse not in self.site.stations:
            raise ProtocolError("argument", f"evse: found {evse!r}, expected one of this depot's EVSEs")

    async def _limit_list(self, found: Mapping[str, Any], _user: str) -> object:
        Arguments(found).end()
        now_s = self.engine.clock()
        return [ask_json(ask, now_s) for ask in self.controller.asks.values()]

    async def limit_put(self, found: Mapping[str, Any], user: str) -> object:
        """Take in a limit that is asked for; answer what can be honoured. Raises ProtocolError."""
        targets = {limits.SITE: None, **self.site.depot.circuits, **self.site.stations}
        now_s, now_unix_s = self.engine.clock(), time.time()
        ask = asks.placed(ask_of(found, user, targets, now_unix_s), now_s, now_unix_s)
        if ask.over(now_s):
            raise ProtocolError("argument", "end: found a time that is over, expected one to come")
        self._refuse_anothers(ask, now_s)
        self.controller.put(ask)
        honour = self.controller.honour(ask, now_s)
        with self.engine.asked():  # the answer leaves, and then the decreases; whatever the disk says, they do
            await self.save_asks()
        logger.info("Limit %s of %s put by %s", ask.id, ask.source, user)
        self._happened("limit put", **ask_json(ask, now_s))
        if not honour.can and ask.rank is Rank.GRID and not self._informed(now_s):
            words = "it is stored and obeyed, and not all devices were heard since the start: ask again"
            raise ProtocolError("not ready", f"{words} ({honour.why})")
        return {
            "name": ask.id,
            "can_honour": honour.can,
            "reachable_w": round(honour.reachable_w, 1),
            "within_s": max((one.follow_s for one in self.site.stations.values()), default=0.0),
            "why": honour.why,
        }

    def _informed(self, now_s: float) -> bool:
        """Whether it is known what can be honoured: all devices were heard, or have had their time."""
        return now_s - self.opened_s >= HEARD_WITHIN_S or self.controller.informed()

    def _refuse_anothers(self, ask: Ask, now_s: float) -> None:
        """Refuse to replace what another has put; root may. Raises ProtocolError.

        All who ask over MQTT are one user: none of them replaces what may be another's, only the same again.
        """
        known = self.controller.asks.get(ask.id)
        if known is None or known.over(now_s) or ask.put_by == ROOT:
            return
        same = (known.target, known.low_w, known.high_w) == (ask.target, ask.low_w, ask.high_w)
        if ask.put_by != known.put_by or (ask.put_by == MQTT and not same):
            raise ProtocolError("argument", f"name: found {ask.id!r}, which {known.put_by} has put, expected another")

    async def _limit_remove(self, found: Mapping[str, Any], user: str) -> object:
        arguments = Arguments(found)
        ask_id = arguments.text("name")
        arguments.end()
        known = self.controller.asks.get(ask_id)
        if known is None:
            raise ProtocolError("argument", f"name: found {ask_id!r}, expected one of limit.list")
        if user not in {known.put_by, ROOT}:
            raise ProtocolError(
                "argument", f"name: found {ask_id!r}, which {known.put_by} has put, expected one of {user}'s own"
            )
        self.controller.forget(ask_id)
        self.engine.wake()
        await self.save_asks()
        logger.info("Limit %s removed by %s", ask_id, user)
        return {"name": ask_id}

    async def session_put(self, found: Mapping[str, Any], user: str) -> object:
        """Take in what is said of a session. Raises ProtocolError."""
        arguments = Arguments(found)
        evse = arguments.text("evse")
        departure_unix_s = arguments.time("departure")
        need_wh = arguments.number("energy_need_wh", 0.0, 2e6)
        vehicle = arguments.optional_text("vehicle")
        soc_percent = arguments.number("soc_percent", 0.0, 100.0)
        battery_c = arguments.number("battery_c", -60.0, 200.0)
        ambient_c = arguments.number("ambient_c", -60.0, 60.0)
        arguments.end()
        self._known(evse)
        now_s, now_unix_s = self.engine.clock(), time.time()
        if evse not in self.controller.visited():
            raise ProtocolError("no session", f"evse: found no vehicle at {evse}, expected one")
        told = Told(
            departure_at_s=None if departure_unix_s is None else now_s + departure_unix_s - now_unix_s,
            energy_need_wh=need_wh,
            vehicle=vehicle,
            soc_percent=soc_percent,
            soc_read_at_s=None if soc_percent is None else now_s,
            battery=None if battery_c is None else thermal.Temperature(battery_c, now_s),
            air=None if ambient_c is None else thermal.Temperature(ambient_c, now_s),
        )
        self.controller.tell(evse, told)
        self.engine.plan_soon()
        await self.save_sessions()
        logger.info("Session at %s told by %s", evse, user)
        return {"evse": evse}

    async def _grid_link(self, found: Mapping[str, Any], _user: str) -> object:
        arguments = Arguments(found)
        valid_for_s = arguments.number("valid_for_s", 0.0, 86400.0)
        arguments.end()
        if valid_for_s is None:
            raise ProtocolError("argument", "valid_for_s: found nothing, expected a number from 0 to 86400")
        self.controller.link_until_s = self.engine.clock() + valid_for_s
        self.controller.link_stood |= valid_for_s > 0
        if valid_for_s == 0.0:
            self.engine.wake()
        await self.save_asks()
        return {"valid_for_s": valid_for_s}

    async def _bus_list(self, found: Mapping[str, Any], _user: str) -> object:
        """Say which buses there are, and where each leads: a name may mean another endpoint in a newer depot file."""
        Arguments(found).end()
        return [
            {
                "name": name,
                "transport": bus.bus.transport.value,
                "endpoint": bus.bus.endpoint,
                "problem": bus.problem,
            }
            for name, bus in self.engine.buses.items()
        ]

    async def _bus_transact(self, found: Mapping[str, Any], user: str) -> object:
        """Carry out register jobs on one bus, after sheds, watchdogs and polls; a job that fails says how."""
        arguments = Arguments(found)
        name = arguments.text("bus")
        jobs = arguments.items("jobs")
        deadline_s = arguments.number("deadline_s", 0.1, 60.0) or 10.0
        arguments.end()
        bus = self.engine.buses.get(name)
        if bus is None:
            raise ProtocolError("argument", f"bus: found {name!r}, expected one of {', '.join(self.engine.buses)}")
        if len(jobs) > _MOST_JOBS:
            raise ProtocolError("argument", f"jobs: found {len(jobs)}, expected at most {_MOST_JOBS}")
        planned = [self._job(job) for job in jobs]
        for one in planned:
            if one.values is not None:
                await self._refuse_control_points(name, one, deadline_s)
        return [await self._carried_out(name, bus, one, deadline_s, user) for one in planned]

    async def _carried_out(self, name: str, bus: ModbusBus, one: _Job, deadline_s: float, user: str) -> object:
        at = (one.unit_id, one.table, one.address)
        priority = Priority.CONFIGURATION
        await self.engine.decreases_gone()
        try:
            if one.values is None:
                return {
                    "ok": True,
                    "values": list(await bus.read(*at, one.count, priority=priority, deadline_s=deadline_s)),
                }
            until_s = self.engine.clock() + deadline_s
            async with self._foresight(name, one, deadline_s):
                left_s = max(0.0, until_s - self.engine.clock())
                await bus.write(*at, one.values, priority=priority, deadline_s=left_s, function=one.function)
        except BusError as failure:
            code = {"exception_code": failure.exception_code} if isinstance(failure, Refused) else {}
            return {
                "ok": False,
                "kind": type(failure).__name__,
                "message": str(failure),
                "may_have_happened": failure.may_have_happened,
                **code,
            }
        logger.info("Bus %s unit %d %s %d written by %s", name, one.unit_id, one.table.value, one.address, user)
        return {"ok": True}

    @asynccontextmanager
    async def _foresight(self, bus: str, one: _Job, within_s: float) -> AsyncIterator[None]:
        """Have the ledger count what a write may bring to a device's fallback, from before it leaves until it is read.

        Where that is more than it counted, the write leaves only once no circuit could be over its limit with it; until
        then others are lowered. Raises NotAllowed where that does not come about in time; nothing was sent then.
        """
        at = self._device_at(bus, one.unit_id)
        written = {}
        if at is not None and at.evses and one.values is not None:
            written = fallback_written(at, self.site.profiles[at.name], one.table, one.address, one.values)
        if at is None or not written:
            yield
            return
        driver = self.engine.devices[at.name]
        armed = foreseen(self.site, at, driver.known_settings(), written, self.engine.clock())
        try:
            if self.controller.foresee(at.name, armed):
                await self._none_over(at.name, within_s)
            yield
        finally:
            self.controller.seen_through(at.name, self.engine.clock())
            driver.read_settings_soon()

    async def _none_over(self, device: str, within_s: float) -> None:
        counted = self.engine.cycles
        with anyio.move_on_after(within_s):
            while True:
                self.engine.work_soon()
                await anyio.sleep(_COUNTED_EVERY_S)
                outcome = self.controller.outcome
                if self.engine.cycles > counted and outcome is not None and not outcome.admission.over:
                    return
        raise NotAllowed(f"{device}: its fallback is not written: within {within_s:g} s circuits could be over with it")

    @staticmethod
    def _job(found: object) -> _Job:
        if not isinstance(found, dict):
            raise ProtocolError("argument", f"jobs: found {shown(found)}, expected an object for each")
        arguments = Arguments(found)
        tables = {table.value: table for table in Table}
        table = tables[arguments.one_of("table", tables, Table.HOLDING.value)]
        unit_id = arguments.whole("unit_id", 0, 255)
        address = arguments.whole("address", 0, 65535)
        function = arguments.number("function", 1, 127)
        if "values" not in found:
            count = arguments.whole("count", 1, _MOST_REGISTERS)
            arguments.end()
            return _Job(unit_id, table, address, count, None, None)
        values = [arguments_value(value) for value in arguments.items("values")]
        arguments.end()
        return _Job(unit_id, table, address, len(values), tuple(values), None if function is None else int(function))

    async def _refuse_control_points(self, bus: str, one: _Job, within_s: float) -> None:
        """Refuse a write to what the ledger counts on: nobody but control writes a limit.

        Where it is not known yet which registers that are, it is found out first, or the write refused.
        """
        device = self._device_at(bus, one.unit_id)
        if device is None:
            return
        try:
            with anyio.fail_after(within_s):
                points = await self.engine.devices[device.name].control_points_at(one.table, one.address, one.count)
        except (BusError, TimeoutError) as failure:
            raise ProtocolError(
                "not allowed",
                f"found a write to {device.name}, expected none until it is known where what control owns lies: "
                f"{failure or 'it does not answer'}",
            ) from failure
        if points:
            raise ProtocolError(
                "not allowed",
                f"found a write to {', '.join(points)} of {device.name}, expected none: control owns it; "
                "limit.put asks for a limit",
            )

    def _device_at(self, bus: str, unit_id: int) -> Device | None:
        found = (one for one in self.site.devices.values() if one.bus == bus and one.unit_id == unit_id)
        return next(found, None)

    # What is kept

    async def save_asks(self, *, whole: bool = False) -> None:
        """Store what was asked, as a file of its own where `whole`; it is on disk when this returns."""
        async with self._saving_asks:  # nothing else that is stored is waited for
            document = stored.asks_document(self.controller)
            await anyio.to_thread.run_sync(partial(self.asks_store.save, document, whole=whole))
            self._asks_kept = document["asks"]

    async def save_sessions(self) -> None:
        """Store the sessions and what was told of them; it is on disk when this returns."""
        async with self._saving:
            document = stored.sessions_document(self.controller, stored.Times(self.engine.clock(), time.time()))
            await anyio.to_thread.run_sync(self.store.save, SESSIONS, document)

    async def save_memory(self) -> None:
        """Store what control remembers from cycle to cycle; it is on disk when this returns."""
        async with self._saving:
            document = stored.memory_document(self.controller)
            await anyio.to_thread.run_sync(self.store.save, MEMORY, document)

    async def save_cycles(self) -> None:
        """Store what batteries have been through, where that has changed; it is on disk when this returns."""
        found = self.controller.batteries
        if not found.changed:
            return
        found.changed = False
        try:
            async with self._saving:
                await anyio.to_thread.run_sync(self.store.save, CYCLES, batteries.to_json(found.counted))
        except OSError:
            found.changed = True
            raise

    async def save_what_moves(self) -> None:
        """Store sessions, memory and cycles, and asks; where the disk does not take them, that is said."""
        with _said("Sessions cannot be kept"):
            await self.save_sessions()
            await self.save_memory()
            await self.save_cycles()
            if stored.asks_document(self.controller)["asks"] != self._asks_kept:
                await self.save_asks()  # a step of the wall's clock has moved their times

    async def keep_sessions(self) -> None:
        """Store sessions, memory and cycles now and then, for energy grows and shares move."""
        while True:
            await anyio.sleep(60)
            await self.save_what_moves()


@dataclass(frozen=True, slots=True)
class _Job:
    """One register job: a read, or a write where there are values."""

    unit_id: int
    table: Table
    address: int
    count: int
    values: tuple[int, ...] | None
    function: int | None


def arguments_value(value: object) -> int:
    """Return a register's value. Raises ProtocolError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFF:  # noqa: PLR2004
        raise ProtocolError("argument", f"values: found {shown(value)}, expected whole numbers from 0 to 65535")
    return value


def assemble(configuration: Configuration, paths: tuple[Path, Path]) -> Service:
    """Return the service of a configuration, with what its predecessor left; nothing is sent yet. Raises ValueError."""
    site = site_of(configuration.depot, configuration.agent.gateway, shed_s=SHED_S)
    store = Store(configuration.agent.state_directory)
    now_s, boot = boottime_s(), boot_id()
    ledger, ledgers_boot = stored.adopted(store, site, boot, now_s)
    controller = Controller(site=site, policy=policy_of(configuration, site), state=State(ledger), boot_id=boot)
    asks_store = Latest(store, ASKS, ASKS_JOURNAL)
    linked = configuration.agent.vtn_url is not None
    stored.recall(controller, store, asks_store, ledgers_boot, stored.Times(now_s, time.time()), linked=linked)
    buses = open_buses(site.depot, configuration.agent.gateway)
    pace = Pace(shed_s=SHED_S)
    devices = open_devices(site.depot, buses, pace=pace, clock=boottime_s, repeats_limits=False, reads_back=False)
    engine = Engine(controller=controller, devices=devices, buses=buses, store=store, boot_id=boot, began_s=now_s)
    service = Service(configuration, paths, site, store, asks_store, controller, engine, leds=Leds(configuration.agent))
    engine.told = service.told
    return service


# Running


async def run_service(service: Service) -> int:
    """Run until SIGTERM or SIGINT; return what to end with."""
    agent = service.configuration.agent
    logger.info(
        "Orchestrator %s of gateway %s, depot %s: %d EVSEs on %d buses",
        __version__,
        agent.gateway,
        service.site.depot.name,
        len(service.site.evses),
        len(service.engine.buses),
    )
    async with AsyncExitStack() as stack:
        if not await _take_buses(stack, agent.state_directory, agent.socket):
            logger.error("Refused to start: another orchestrator runs, which answers at %s", agent.socket)
            return RUNS_ALREADY
        await _run_with_buses(service)
    return 0


async def _take_buses(stack: AsyncExitStack, state_directory: Path, socket: Path) -> bool:
    """Have the buses, waiting for whoever asks devices directly; not for ever, for nobody controls them meanwhile.

    Return whether control may begin. Not beside another orchestrator: each would raise what the other has lowered.
    """
    with anyio.move_on_after(BUSES_WITHIN_S):
        while problem := _not_taken(stack, state_directory):
            if await answers_at(socket):  # where one that asks devices directly does not answer
                return False
            logger.warning("%s; waiting for it", problem)
            await anyio.sleep(1.0)
        return True
    if await answers_at(socket):
        return False
    logger.error("Another program has had the buses for %g s; control begins beside it", BUSES_WITHIN_S)
    return True


def _not_taken(stack: AsyncExitStack, state_directory: Path) -> Locked | OSError | None:
    try:
        stack.enter_context(buses_locked(state_directory))
    except (Locked, OSError) as problem:
        return problem
    return None


async def _run_with_buses(service: Service) -> None:
    agent = service.configuration.agent
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, service, tasks.cancel_scope)
        tasks.start_soon(service.engine.run)
        tasks.start_soon(service.keep_sessions)
        await service.engine.first_cycle.wait()
        # What is there now stays: a collection need not walk through it again. Others are the engine's to begin.
        gc.freeze()
        gc.disable()
        with _said("What is asked cannot be kept"):
            await service.save_asks()  # whole, so that the first one that is asked is a line as well
        tasks.start_soon(_broadcast, service)
        controls = f"STATUS=controls {len(service.site.evses)} EVSEs"
        service.opened_s = service.engine.clock()
        await serve_at(agent.socket, service.verbs(), partial(notify, "READY=1", controls))
    with _said("What was asked cannot be kept"):
        await service.save_asks(whole=True)
    await service.save_what_moves()
    logger.info("Stopped at %s: setpoints stay in force as leases", stamp(time.time()))


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say that the disk does not take something, and go on: control does without it."""
    try:
        yield
    except OSError as problem:
        logger.error("%s: %s", what, problem)


async def _broadcast(service: Service) -> None:
    """Publish over MQTT where there is a broker. Whatever goes wrong there is said, and control goes on meanwhile."""
    agent = service.configuration.agent
    if agent.mqtt is None:
        return
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        tls = tls_files(None if credentials is None else Path(credentials)) if agent.mqtt.tls else None
    except ValueError as missing:
        service.lacks.append(("MQTT", "certificate", f"is not spoken: {missing}; control goes on without telemetry"))
        return
    await begun_anew(partial(_publish, service, str(agent.mqtt), tls), logger, "control goes on without telemetry")


async def _publish(service: Service, url: str, tls: TlsFiles | None) -> None:
    depot = service.site.depot.name
    try:
        async with Outbox.open(service.configuration.agent.state_directory / "outbox.sqlite") as outbox:
            publisher = Publisher(url, tls, CLIENT_ID, depot, outbox, takes_requests=True)
            service.broadcast = Broadcast(publisher, depot, service.session_put, service.limit_put)
            await service.broadcast.run(service.report)
    finally:
        service.broadcast = None


async def _obey_signals(service: Service, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number is not signal.SIGHUP:
                notify("STOPPING=1")
                scope.cancel()
                return
            notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
            _reload(service)
            notify("READY=1")


def _reload(service: Service) -> None:
    """Take in changed limits and peers; what needs a restart is named."""
    try:
        fresh = settings.load(*service.paths)
    except Mistakes as mistakes:
        for mistake in str(mistakes).splitlines():
            logger.error("Not reloaded: %s", mistake)
        return
    before = service.configuration
    if (
        replace(fresh.depot, site=before.depot.site) != before.depot
        or replace(fresh.agent, control_peers=before.agent.control_peers) != before.agent
    ):
        logger.error("Not reloaded: found another depot file or agent.conf; that takes effect with a restart")
        return
    service.configuration = fresh
    depot, _share = tree_of(fresh.depot, fresh.agent.gateway)
    service.controller.policy = policy_of(fresh, replace(service.site, depot=depot))
    service.engine.wake()
    logger.info("Reloaded: limits.conf and CONTROL_PEERS are in force as they are now")


def run(options: argparse.Namespace) -> int:
    """Run the service; return what it ends with, which is not 0 where it refuses to start: the log says why then.

    For mistakes in its files that is 78, for which its unit does not start it again.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    paths = (options.agent_conf, options.limits_conf)
    try:
        configuration = settings.load(*paths)
        log_to(configuration.agent.engine_log)
        service = assemble(configuration, paths)
    except (Mistakes, ValueError) as problem:
        log_to(settings.engine_log_of(options.agent_conf))
        for line in str(problem).splitlines():
            logger.error("Refused to start: %s", line)
        return settings.refusal_status(problem)
    for warning in configuration.warnings:
        logger.warning("%s", warning)
    return anyio.run(run_service, service)
