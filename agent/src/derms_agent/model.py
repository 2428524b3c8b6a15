# SPDX-License-Identifier: Apache-2.0
"""What all parts share: the things that a depot consists of, and what is read from them and asked of them.

Plain data without I/O. Units are W, var, VA, A, V, Wh and s; consumption is positive, generation and discharge are
negative; whoever talks to a device converts. Wall-clock time appears only where people or the grid speak it: durations
and ages come from a monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, TypeAlias

Value: TypeAlias = "int | float | str | bool"
"""What a point holds in engineering units; a `str` for strings and for named states."""

PerPhase: TypeAlias = "tuple[float, float, float]"
"""One number for each of L1, L2 and L3."""


def per_phase(values: Iterable[float]) -> PerPhase:
    """Return three values, of L1, L2 and L3. Raises ValueError for another number of them."""
    one, two, three = values
    return (one, two, three)


class Phase(str, Enum):
    """A line conductor of the depot, as its supply names it."""

    L1 = "L1"
    L2 = "L2"
    L3 = "L3"

    __hash__ = str.__hash__  # by value, and not worked out anew each time: places are looked up by the thousand


class Transport(str, Enum):
    """How Modbus frames reach a bus's units."""

    TCP = "tcp"
    RTU_OVER_TCP = "rtu_over_tcp"
    SERIAL = "serial"


class TransactionIds(str, Enum):
    """Which transaction ids of a Modbus/TCP reply are taken for the request's own.

    `STRICT`: the same. `ZERO`: the same or 0, for gateways that blank it. `IGNORE`: any, for gateways that count their
    own; safe only with one request in flight and a reconnect after each time-out, which the transport then enforces.
    """

    STRICT = "strict"
    ZERO = "zero"
    IGNORE = "ignore"


class Parity(str, Enum):
    """The check bit of a character on a serial adapter. Modbus asks for even unless told otherwise (V1.02, 2.5.1)."""

    EVEN = "even"
    ODD = "odd"
    NONE = "none"


class DeviceKind(str, Enum):
    """What a device is for."""

    CHARGER = "charger"
    INVERTER = "inverter"
    STORAGE = "storage"
    METER = "meter"


class Connection(str, Enum):
    """How a circuit's load adds up to the currents of its conductors."""

    SINGLE_PHASE = "single_phase"
    WYE = "wye"
    DELTA = "delta"
    DELTA_WYE = "delta_wye"


class Measures(str, Enum):
    """What a meter's reading stands for."""

    CIRCUIT = "circuit"
    LOAD = "load"
    GENERATOR = "generator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A Linux host of the depot. `address` is where SSH finds it; None leaves that to the inventory's own variables."""

    name: str
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bus:
    """One way to devices: a Modbus/TCP endpoint, a Modbus gateway with a serial line behind it, or a serial adapter.

    `host` and `port` for the network transports, `path` and `parity` for a serial adapter. `baud_rate` is that of the
    serial line, also behind a Modbus gateway; None for Modbus/TCP devices. `timeout_s` bounds one transaction;
    `gateway_timeout_s` is how long the Modbus gateway itself waits for a unit, so how late a reply may still arrive.
    """

    name: str
    gateway: str
    transport: Transport
    host: str | None = None
    port: int = 502
    path: str | None = None
    baud_rate: int | None = None
    parity: Parity = Parity.EVEN
    timeout_s: float = 1.0
    gateway_timeout_s: float = 1.0
    connect_timeout_s: float = 3.0
    delay_after_connect_s: float = 0.0
    delay_between_s: float = 0.0
    max_in_flight: int = 1
    transaction_ids: TransactionIds = TransactionIds.STRICT

    @property
    def endpoint(self) -> str:
        """Where it leads: a serial adapter's path, or host:port."""
        return str(self.path) if self.transport is Transport.SERIAL else f"{self.host}:{self.port}"


def apparent_a(active_a: float, power_factor: float, rating_a: float) -> float:
    """Return the most that flows in a conductor with an active current, in A: never more than what draws it is rated.

    :param active_a: 0 or more; a device that may take more active current than its rating draws that
    :param power_factor: the least that it may have, above 0 and at most 1
    """
    return max(active_a, min(active_a / power_factor, rating_a))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evse:
    """What one vehicle plugs into, and what gets setpoints; to control, stationary storage is one with its own battery.

    `connector` counts from 1 within its device. `phases` are the supply's conductors that the connector's own L1, L2
    and L3 are wired to, in that order: ("L2", "L3", "L1") is a rotated three-phase charger, ("L2",) a single-phase one.
    `rating_a` and `cable_a` are per conductor; for a DC charger on its AC side. `power_factor` is the least with which
    it draws what it is told in W; one that is told A draws no more than these, whatever its power factor. `give_back_a`
    is the most that it gives back, in A per conductor. `capacity_wh` is that of stationary storage; None: vehicles plug
    in here.
    """

    name: str
    device: str
    connector: int
    circuit: str
    phases: tuple[Phase, ...]
    rating_a: float
    cable_a: float | None = None
    power_factor: float = 1.0
    give_back_a: float = 0.0
    capacity_wh: float | None = None

    @property
    def limit_a(self) -> float:
        """The most that this EVSE may ever be asked for, in A per conductor."""
        return self.rating_a if self.cable_a is None else min(self.rating_a, self.cable_a)

    @property
    def lowest_a(self) -> float:
        """The least that this EVSE may ever be asked for, in A per conductor: 0, or below what it may give back."""
        return -min(self.give_back_a, self.limit_a)

    @property
    def stationary(self) -> bool:
        """Whether it is stationary storage, which is always there, and no vehicle's place."""
        return self.capacity_wh is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What is talked to: one unit on a bus. `settings` are what it must hold, by the profile's names, in its units.

    `serial_number` is that of the very device that is meant, `firmware` what it should run, with * and ? for what may
    differ; None where any will do. `der_settings` is what it must hold by the grid's code, as
    `derms_agent.grid_code.parse` takes it; None where nothing is declared.
    """

    name: str
    kind: DeviceKind
    bus: str
    unit_id: int
    profile: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    evses: tuple[Evse, ...] = ()
    circuit: str | None = None
    serial_number: str | None = None
    firmware: str | None = None
    der_settings: Mapping[str, Any] | None = None


SAME_VOLTAGE = 0.05
"""Voltages within 5 % of each other (230 V to neutral under 400 V between lines) have no transformer between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A conductor set with a rating; circuits form a tree.

    `rating_a` is per phase; `rating_kva` bounds the sum. `base_load_a` is the worst that everything which is no EVSE
    may draw on it, its children's own left out. `voltage_v` is between lines for three phases, to neutral for one.
    `allocator` names the gateway that shares the whole tree out; it is set on the root.
    """

    name: str
    parent: str | None
    connection: Connection
    voltage_v: float
    rating_a: PerPhase
    rating_kva: float | None = None
    base_load_a: PerPhase = (0.0, 0.0, 0.0)
    allocator: str | None = None

    @property
    def line_voltage_v(self) -> float:
        """The nominal voltage between lines, in V; of a single phase, what belongs to its voltage to neutral."""
        return self.voltage_v * (math.sqrt(3) if self.connection is Connection.SINGLE_PHASE else 1.0)

    @property
    def neutral_voltage_v(self) -> float:
        """The nominal voltage to neutral, in V; where it has none, that between lines over the root of 3."""
        return self.voltage_v / (1.0 if self.connection is Connection.SINGLE_PHASE else math.sqrt(3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A device whose reading stands for a circuit, a load on it, or a generator on it."""

    name: str
    device: str
    measures: Measures
    circuit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """A vehicle that is known to come: its battery's capacity, what it takes and what it gives back at the most."""

    name: str
    capacity_wh: float
    power_w: float
    phases: int = 3
    give_back_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GridLevel:
    """What a level of an OpenADR SIMPLE signal means: so many W at the most, or so much of the baseline.

    One of them is not None.
    """

    limit_w: float | None = None
    baseline_percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceLimit:
    """At the most `limit_w` while energy costs more than `above_per_kwh` in that currency (ISO 4217)."""

    currency: str
    above_per_kwh: float
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtn:
    """The utility's OpenADR server, this depot's identity towards it, and what the depot makes of events.

    `levels`: what SIMPLE 1 to 3 mean; one that lacks is opted out of. `price_limit`: None where prices bound nothing.
    `market_contexts`: those that it takes part in;
    empty: any. `resources`: what each resourceID of the utility's is here: site, a circuit, an EVSE. `groups`: those
    that it belongs to.
    """

    url: str
    ven_name: str
    client_id: str | None = None
    tls_minimum: str = "1.3"
    xml_signatures: str = "none"
    levels: Mapping[int, GridLevel] = field(default_factory=dict)
    price_limit: PriceLimit | None = None
    market_contexts: tuple[str, ...] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The depot's limits. `default_limit_w` holds when the grid's link is lost and its last event is over."""

    limit_va: float
    default_limit_w: float | None = None
    soc_reserve_percent: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Depot:
    """One depot as its file declares it: ranges expanded, defaults merged, every name resolved."""

    name: str
    region: str | None
    utility: str | None
    site: Site
    gateways: Mapping[str, Gateway]
    buses: Mapping[str, Bus]
    devices: Mapping[str, Device]
    circuits: Mapping[str, Circuit]
    meters: Mapping[str, Meter] = field(default_factory=dict)
    vehicles: Mapping[str, Vehicle] = field(default_factory=dict)
    vtn: Vtn | None = None
    network: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def evses(self) -> tuple[Evse, ...]:
        """Return every EVSE, and what of stationary storage control may use, in the order of the file."""
        return tuple(evse for device in self.devices.values() for evse in device.evses)

    def places(self) -> tuple[Evse, ...]:
        """Return every EVSE that vehicles plug into, in the order of the file."""
        return tuple(evse for evse in self.evses() if not evse.stationary)

    def share_of(self, root: str) -> float:
        """Return which part of the site's limits a tree of circuits has: what its root's rating is of all roots'."""
        roots = {circuit.name: circuit for circuit in self.circuits.values() if circuit.parent is None}
        return _rating_va(roots[root]) / math.fsum(map(_rating_va, roots.values()))


def _rating_va(circuit: Circuit) -> float:
    by_lines_va = sum(circuit.rating_a) * circuit.neutral_voltage_v
    return by_lines_va if circuit.rating_kva is None else min(by_lines_va, circuit.rating_kva * 1000)


class Quality(str, Enum):
    """How much a reading is worth. Stale is not a value: each consumer says what stands in for it."""

    GOOD = "good"
    STALE = "stale"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Reading:
    """The last answer of one device: its points' values and when they were read, by the driver's clock in s.

    A point that the device does not implement is absent from `values`. The polled values were sampled between
    `asked_at_s`, when the first of their requests was made, and `answered_at_s`, when the last was answered;
    `read_at_s` is when the first was. `settings_asked_at_s`: the same beginning for the settings among them, None where
    none were read. `fed_at_s`: the watchdog was surely fed by a heartbeat, not before then; None where it was not.
    """

    device: str
    values: Mapping[str, Value]
    read_at_s: float
    quality: Quality = Quality.GOOD
    problem: str | None = None
    asked_at_s: float = -math.inf
    answered_at_s: float = -math.inf
    settings_asked_at_s: float | None = None
    fed_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setpoint:
    """What an EVSE is asked to do: active and reactive power at the most, and for how long that may stand unrenewed.

    Negative active power is what it is to give back, at the most as well.
    """

    evse: str
    p_w: float
    q_var: float = 0.0
    valid_for_s: float = 10.0


class ProofKind(str, Enum):
    """What shows that a setpoint reached its device.

    `INDETERMINATE`: the old value or the new one may be in force. `UNSENT`: nothing left this host, so the old one is.
    """

    ACKNOWLEDGED = "acknowledged"
    READ_BACK = "read_back"
    REFUSED = "refused"
    INDETERMINATE = "indeterminate"
    UNSENT = "unsent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What became of a setpoint. `in_force` is the value that the device now holds, as far as is known, in its unit."""

    evse: str
    kind: ProofKind
    asked: float
    in_force: float | None
    detail: str = ""


class LimitQuantity(str, Enum):
    """What a limit bounds: W, var, VA, or A on each of the named phases."""

    ACTIVE_POWER = "active_power"
    REACTIVE_POWER = "reactive_power"
    APPARENT_POWER = "apparent_power"
    CURRENT = "current"

    __hash__ = str.__hash__  # as for `Phase`


OPENADR = "openadr-"
"""How the names of what a VTN's events ask for begin: they are the grid gateway's, which alone takes them back."""


class Rank(IntEnum):
    """Whose limit stands where limits leave nothing in common: the lower number."""

    PROTECTION = 0
    THERMAL_AND_SOC = 1
    DROOP = 2
    GRID = 3
    OPERATOR = 4
    PRICE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on what flows, with whose it is.

    `target` names a circuit, a device, an EVSE or a vehicle; "site" is the root circuit. `low` and `high` are in the
    quantity's unit, consumption positive; a `low` below zero admits generation and discharge down to it. `phases` is
    empty where all together are meant. `start_s` and `end_s` are monotonic times; None is always.
    """

    target: str
    quantity: LimitQuantity
    low: float
    high: float
    source: str
    rank: Rank
    phases: tuple[Phase, ...] = ()
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A vehicle at an EVSE. Times are monotonic s; None is unknown. Energy in Wh, power in W, SoC in percent.

    `soc_read_at_s` is when `soc_percent` was read. `discharge_w` is what the vehicle may give back at the most.
    """

    evse: str
    started_at_s: float
    vehicle: str | None = None
    departure_at_s: float | None = None
    energy_need_wh: float | None = None
    delivered_wh: float = 0.0
    power_w: float | None = None
    discharge_w: float = 0.0
    soc_percent: float | None = None
    soc_read_at_s: float | None = None


class OperatingState(str, Enum):
    """What the depot is doing, in one word: the page, the LED and the log all say the same."""

    NORMAL = "normal"
    LIMITED = "limited"
    SHEDDING = "shedding"
    RESOURCE_CONSTRAINTS = "resource_constraints"
    NO_GRID_SYNC = "no_grid_sync"
    FAULT = "fault"
    FALLBACK = "fallback"
