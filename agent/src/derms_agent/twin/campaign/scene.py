# SPDX-License-Identifier: Apache-2.0
"""The depots that the campaign plays on: eight EVSEs, drawn from a seed, on circuits that could not carry them all.

Of each circuit and phase Σ max(fallback, after-boot value) + worst base load fits its rating, as the depot's own check
demands, and little more does: so what control lets through, and what a device does on its own, decide whether it holds.
In one of five nothing comes up at its rating, and cars take all that is left: there control is to die (`left_alone`).

In seven of eight the orchestrator's `Controller` plays, by a policy of its own: circuits have meters that measure all
that flows, and in half of these depots something generates. In the others an agent of the campaign's own plays
(`agent.py`), for it also relies on what the orchestrator does not, such as settings that last through a restart.
Two in five have storage, which to the orchestrator is one more EVSE, as the depot file declares it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from derms_agent import profiles as built_in
from derms_agent.control import demand, droop, thermal
from derms_agent.model import (
    Bus,
    Circuit,
    Connection,
    Depot,
    Device,
    DeviceKind,
    Evse,
    Gateway,
    Measures,
    Meter,
    PerPhase,
    Phase,
    Site,
    Transport,
    Value,
)
from derms_agent.orchestrator.controller import Policy
from derms_agent.profiles.profile import AfterBoot, Profile, Refresh
from derms_agent.twin.physics import VehicleType

EVSES = 8
VOLTAGE_V = 400.0
STORAGE = "icu"
GENERATOR, ROOF = "pv", "roof"
GENERATED_A = 25.0
"""The most that the generator gives, in A per conductor."""
NOMINAL_HZ = 50.0
DEMAND_S = 120.0
"""An interval of the demand cap: an episode is to have several."""
CUT_OFF_C = thermal.DEFAULTS[thermal.SensorKind.ENCLOSURE].cut_off_c
"""What no device with a sensor may be hotter at and still carry power."""
METER = "meter-{}"
PHASES = tuple(Phase)
_SQRT3 = math.sqrt(3)
_PROMPT_LAG_S = 0.3
_SLOW_LAGS_S = (1.0, 6.0)
_STORAGE_A = 20.0
_STORAGE_WH = 100_000.0

_SETTINGS: Mapping[str, tuple[Mapping[str, Value], ...]] = {
    "keba_p30": tuple(
        {"failsafe_current": amperes, "failsafe_timeout": seconds, "failsafe_persist": "kept"}
        for amperes, seconds in ((0, 10), (6, 20), (8, 30))
    ),
    "heidelberg_energy_control": tuple(
        {"failsafe_current": amperes, "failsafe_timeout": seconds, "standby": "prevented"}
        for amperes, seconds in ((0, 15), (6, 15), (8, 30))
    ),
    "mennekes_compact": ({"failsafe_current": 1}, {"failsafe_current": 6}),
    "alfen_ng9": ({},),
    "phoenix_charx": (
        {"failsafe_timeout": 65535, "failsafe_current": 6},
        {"failsafe_timeout": 20, "failsafe_current": 6},
    ),
}
_NO_WATCHDOG = 65535


@dataclass(frozen=True, slots=True)
class Scene:
    """A depot and what there is to know beside it.

    `storage`: there is a storage inverter; where the orchestrator plays it is one of the EVSEs, at which no car is.

    `profiles` stand for the built-in ones of their names; `hidden` are EVSEs whose conductors the agent is not told;
    `slow`: some cars take up to 6 s to follow a pilot. `policy`: what the orchestrator goes by; None where the
    campaign's own agent plays. `wild`: shares are what they are, and not what they should be. `left_alone`: control
    is to die while there is no more room than fallbacks need.
    """

    depot: Depot
    profiles: Mapping[str, Profile]
    hidden: frozenset[str]
    slow: bool
    vehicles: Mapping[str, VehicleType]
    storage: bool
    ambient_c: float
    policy: Policy | None = None
    wild: bool = False
    left_alone: bool = False

    def profile(self, device: str) -> Profile:
        """Return the profile of a device."""
        return self.profiles[self.depot.devices[device].profile]


def draw(rng: Random) -> Scene:
    """Return the scene that comes next from a generator of chance."""
    profiles = _profiles(rng)
    circuits = _layout(rng)
    leaves = [name for name in circuits if not any(other.parent == name for other in circuits.values())]
    buses: dict[str, Bus] = {}
    devices: dict[str, Device] = {}
    hidden: set[str] = set()
    names = [name for name in profiles if profiles[name].kind is DeviceKind.CHARGER]
    own_line = rng.random() < 0.3  # noqa: PLR2004 - two wallboxes that share a line
    for number in range(1, EVSES + 1):
        name, bus = f"evse-{number}", "line" if own_line and number <= 2 else f"bus-{number}"  # noqa: PLR2004
        profile = rng.choice(names)
        if bus not in buses:
            buses[bus] = Bus(name=bus, gateway="gateway-1", transport=Transport.TCP, host=f"203.0.113.{number}")
        phases = _wired(rng)
        evse = Evse(
            name=name,
            device=name,
            connector=1,
            circuit=rng.choice(leaves),
            phases=phases,
            rating_a=float(rng.choice((16, 16, 32))) if not profile.startswith("heidelberg") else 16.0,
        )
        settings = rng.choice(_SETTINGS[profile])
        if len(phases) == 1 and rng.random() < 0.5:  # noqa: PLR2004 - half of them
            hidden.add(name)
        devices[name] = Device(
            name=name,
            kind=DeviceKind.CHARGER,
            bus=bus,
            unit_id=number,
            profile=profile,
            settings=settings,
            evses=(evse,),
        )
    meters: dict[str, Meter] = {}
    for number, name in enumerate(circuits, start=1):
        device = METER.format(name)
        buses[device] = Bus(name=device, gateway="gateway-1", transport=Transport.TCP, host=f"198.51.100.{number}")
        devices[device] = Device(
            name=device, kind=DeviceKind.METER, bus=device, unit_id=1, profile="sunspec_meter", circuit=name
        )
        meters[device] = Meter(name=device, device=device, measures=Measures.LOAD, circuit=name)
    storage = rng.random() < 0.4  # noqa: PLR2004 - some have storage
    if storage:
        buses[STORAGE] = Bus(name=STORAGE, gateway="gateway-1", transport=Transport.TCP, host="192.0.2.1")
        devices[STORAGE] = Device(
            name=STORAGE,
            kind=DeviceKind.INVERTER,
            bus=STORAGE,
            unit_id=1,
            profile="sunspec_der",
            settings={"failsafe_power": 0, "failsafe_timeout": 20},
            circuit=rng.choice(leaves),
        )
    circuits = _rated(rng, circuits, devices, profiles, hidden)
    root = next(circuit for circuit in circuits.values() if circuit.parent is None)
    limit_va = _SQRT3 * VOLTAGE_V * min(root.rating_a) * rng.uniform(0.85, 1.3)
    slow = rng.random() < 0.5  # noqa: PLR2004 - half of them
    depot = Depot(
        name="campaign",
        region=None,
        utility=None,
        site=Site(limit_va=limit_va),
        gateways={"gateway-1": Gateway(name="gateway-1")},
        buses=buses,
        devices=devices,
        circuits=circuits,
        meters=meters,
    )
    vehicles = {evse.name: _vehicle(rng, slow=slow) for evse in depot.evses()}
    ambient_c = rng.choice((20.0, 20.0, 38.0))
    scene = Scene(depot, profiles, frozenset(hidden), slow, vehicles, storage, ambient_c)
    alone = Random(f"left alone {limit_va}")  # noqa: S311
    if alone.random() < 0.2:  # noqa: PLR2004 - some of the depots, by a chance of its own
        scene = _left_alone(scene, alone)
    if Random(f"actor {limit_va}").random() < 0.125:  # noqa: PLR2004, S311 - one of eight
        return scene
    return _orchestrated(scene, Random(f"orchestrated {limit_va}"))  # noqa: S311


def _left_alone(scene: Scene, rng: Random) -> Scene:
    """Return the scene with circuits that hold little more than fallbacks, and cars that take whatever is left."""
    depot = scene.depot
    profiles = dict(scene.profiles)
    for name, profile in profiles.items():
        fallback = profile.fallback
        if profile.kind is DeviceKind.CHARGER and fallback is not None and fallback.after_boot is AfterBoot.RATING:
            after = AfterBoot.OFF if name == "phoenix_charx" else AfterBoot.FALLBACK
            profiles[name] = replace(profile, fallback=replace(fallback, after_boot=after))
    circuits = _rated(rng, depot.circuits, depot.devices, profiles, set(scene.hidden), most_spare=1.05)
    root = next(circuit for circuit in circuits.values() if circuit.parent is None)
    limit_va = _SQRT3 * VOLTAGE_V * min(root.rating_a) * 1.3
    depot = replace(depot, circuits=circuits, site=replace(depot.site, limit_va=limit_va))
    vehicles = dict(scene.vehicles)
    for evse in depot.evses():
        phases = len(evse.phases)
        power_w = evse.rating_a * phases * VOLTAGE_V / _SQRT3
        vehicles[evse.name] = replace(vehicles[evse.name], phases=phases, power_w=power_w)
    return replace(scene, depot=depot, profiles=profiles, vehicles=vehicles, left_alone=True)


def _orchestrated(scene: Scene, rng: Random) -> Scene:
    """Return the scene as the orchestrator plays it. By a chance of its own, so that the rest stays as it is."""
    depot = scene.depot
    circuits, devices, buses = dict(depot.circuits), dict(depot.devices), dict(depot.buses)
    meters = {name: replace(meter, measures=Measures.CIRCUIT) for name, meter in depot.meters.items()}
    if rng.random() < 0.5:  # noqa: PLR2004 - half of the depots
        root = next(circuit for circuit in circuits.values() if circuit.parent is None)
        at = rng.choice((root.name, ROOF))
        if at == ROOF:
            rating_a = float(math.ceil(GENERATED_A * 1.1))
            circuits[ROOF] = Circuit(
                name=ROOF,
                parent=root.name,
                connection=Connection.WYE,
                voltage_v=VOLTAGE_V,
                rating_a=(rating_a, rating_a, rating_a),
            )
        buses[GENERATOR] = Bus(name=GENERATOR, gateway="gateway-1", transport=Transport.TCP, host="192.0.2.2")
        devices[GENERATOR] = Device(
            name=GENERATOR, kind=DeviceKind.INVERTER, bus=GENERATOR, unit_id=1, profile="sunspec_der", circuit=at
        )
        meters[GENERATOR] = Meter(name=GENERATOR, device=GENERATOR, measures=Measures.GENERATOR, circuit=at)
    limit_va = depot.site.limit_va
    # The twin's chargers heat as an enclosure does.
    sensor = replace(thermal.DEFAULTS[thermal.SensorKind.ENCLOSURE], name="charger", kind=thermal.SensorKind.CHARGER)
    policy = Policy(
        limit_va=limit_va,
        default_limit_w=limit_va * rng.uniform(0.2, 0.6) if rng.random() < 0.5 else None,  # noqa: PLR2004
        demand_cap=_demand_cap(rng, limit_va) if rng.random() < 0.4 else None,  # noqa: PLR2004 - two in five
        droop=droop.Settings(nominal_hz=NOMINAL_HZ) if rng.random() < 0.4 else None,  # noqa: PLR2004
        # Where it is required, whoever shows none gets nothing: that is not to be so everywhere.
        charger_sensor=replace(sensor, required=rng.random() < 0.2),  # noqa: PLR2004
        spread_s=20.0,
    )
    if scene.storage:
        devices[STORAGE] = _controlled(devices[STORAGE], scene.profile(STORAGE))
    depot = replace(depot, circuits=circuits, devices=devices, buses=buses, meters=meters)
    wild = rng.random() < 0.5 and not scene.left_alone  # noqa: PLR2004 - every other scene
    return replace(scene, depot=depot, hidden=frozenset(), policy=policy, wild=wild)


def _controlled(device: Device, profile: Profile) -> Device:
    """Return the storage inverter as a depot file declares storage that control may use."""
    evse = Evse(
        name=device.name,
        device=device.name,
        connector=1,
        circuit=str(device.circuit),
        phases=PHASES,
        rating_a=_STORAGE_A,
        power_factor=profile.power_factor,
        give_back_a=_STORAGE_A,
        capacity_wh=_STORAGE_WH,
    )
    return replace(device, evses=(evse,), settings={**device.settings, "failsafe_enabled": "enabled"})


def _demand_cap(rng: Random, limit_va: float) -> demand.Cap:
    """Return a cap that is well below the site's limit in two of five depots, and not far below in the others."""
    share = rng.uniform(0.4, 0.9)
    cap_w = limit_va * (share if share > 0.6 else share / 2)  # noqa: PLR2004
    return demand.Cap(cap_w=cap_w, windows=rng.choice(tuple(demand.Windows)), window_s=DEMAND_S)


def declared(scene: Scene) -> Depot:
    """Return the depot as a depot file could declare it: a watchdog that is off is one that nobody declared."""
    devices = {
        name: replace(device, settings={key: value for key, value in device.settings.items() if value != _NO_WATCHDOG})
        for name, device in scene.depot.devices.items()
    }
    return replace(scene.depot, devices=devices)


def storage_a() -> float:
    """Return what the storage may take or give, in A per conductor."""
    return _STORAGE_A


def _profiles(rng: Random) -> dict[str, Profile]:
    """Return the profiles as built in; what comes up at its rating does so at its fallback, or off, in some scenes."""
    found: dict[str, Profile] = {}
    for name in (*_SETTINGS, "sunspec_meter", "sunspec_der"):
        profile = _LOADED.get(name)
        if profile is None:
            profile = _LOADED[name] = built_in.load(name)
        fallback = profile.fallback
        if profile.kind is DeviceKind.CHARGER and fallback is not None and fallback.after_boot is AfterBoot.RATING:
            others = (AfterBoot.OFF,) if name == "phoenix_charx" else (AfterBoot.FALLBACK, AfterBoot.OFF)
            profile = replace(profile, fallback=replace(fallback, after_boot=rng.choice((AfterBoot.RATING, *others))))
        found[name] = profile
    return found


_LOADED: dict[str, Profile] = {}


def _layout(rng: Random) -> dict[str, Circuit]:
    """Return circuits whose ratings are still to be found."""

    def circuit(name: str, parent: str | None, connection: Connection) -> Circuit:
        return Circuit(
            name=name,
            parent=parent,
            connection=connection,
            voltage_v=VOLTAGE_V,
            rating_a=(0.0, 0.0, 0.0),
            base_load_a=_base(rng),
            allocator="gateway-1" if parent is None else None,
        )

    kind = rng.choice(("one", "feeders", "transformer"))
    main = circuit("main", None, Connection.WYE)
    if kind == "one":
        return {"main": main}
    if kind == "feeders":
        return {"main": main} | {name: circuit(name, "main", Connection.WYE) for name in ("feeder-a", "feeder-b")}
    return {"main": main, "yard": circuit("yard", "main", Connection.DELTA_WYE)}


def _base(rng: Random) -> PerPhase:
    worst = rng.uniform(10, 40)
    return (worst, worst * rng.uniform(0.7, 1), worst * rng.uniform(0.7, 1))


def _wired(rng: Random) -> tuple[Phase, ...]:
    turn = rng.randrange(3)
    rotated = PHASES[turn:] + PHASES[:turn]
    return rotated if rng.random() < 0.75 else rotated[:1]  # noqa: PLR2004 - most of them


def _vehicle(rng: Random, *, slow: bool) -> VehicleType:
    phases = rng.choice((1, 3, 3, 3))
    power_w = 230.0 * phases * rng.choice((10.0, 16.0, 16.0, 32.0))
    lag_s = rng.uniform(*_SLOW_LAGS_S) if slow else _PROMPT_LAG_S
    return VehicleType(name="car", capacity_wh=60_000, power_w=power_w, phases=phases, lag_s=lag_s)


def unattended_a(evse: Evse, device: Device, profile: Profile) -> float:
    """Return what an EVSE may draw on its own, in A per conductor."""
    volts = VOLTAGE_V if len(evse.phases) > 1 else VOLTAGE_V / _SQRT3
    return min(
        profile.unattended_a(known_settings(device, profile), evse.rating_a, volts, len(evse.phases)), evse.rating_a
    )


def after_boot_a(evse: Evse, device: Device, profile: Profile) -> float:
    """Return what an EVSE may draw after its start, in A per conductor."""
    fallback = profile.fallback
    if fallback is None or fallback.after_boot in (AfterBoot.RATING, AfterBoot.HELD):
        return evse.rating_a
    return 0.0 if fallback.after_boot is AfterBoot.OFF else unattended_a(evse, device, profile)


def known_settings(device: Device, profile: Profile) -> dict[str, Value]:
    """Return a device's settings: those declared, and what an Alfen of this depot was given by its installer."""
    known = dict(device.settings)
    if profile.name == "alfen_ng9":
        known["failsafe_current"] = 6
    return known


def has_watchdog(device: Device, profile: Profile) -> bool:
    """Whether a device falls back by itself."""
    fallback = profile.fallback
    declared = known_settings(device, profile)
    return (
        fallback is not None
        and fallback.refreshed_by is not Refresh.NONE
        and declared.get("failsafe_timeout") != _NO_WATCHDOG
    )


def fallbacks(scene: Scene) -> dict[str, tuple[float, float]]:
    """Return after how many s each EVSE falls back that has a watchdog, and to what, in A per conductor."""
    found = {}
    for evse in scene.depot.evses():
        device, profile = scene.depot.devices[evse.device], scene.profile(evse.device)
        watchdog_s = profile.watchdog_s(known_settings(device, profile))
        if has_watchdog(device, profile) and profile.fallback is not None and watchdog_s is not None:
            alone = replace(profile, fallback=replace(profile.fallback, after_boot=AfterBoot.OFF))
            found[evse.name] = (watchdog_s, unattended_a(evse, device, alone))
    return found


def _rated(
    rng: Random,
    circuits: Mapping[str, Circuit],
    devices: Mapping[str, Device],
    profiles: Mapping[str, Profile],
    hidden: set[str],
    *,
    most_spare: float = 1.25,
) -> dict[str, Circuit]:
    """Return the circuits with ratings that hold what may flow unattended, and not much more."""
    own: dict[str, list[float]] = {name: list(circuit.base_load_a) for name, circuit in circuits.items()}
    storage = devices.get(STORAGE)
    if storage is not None and storage.circuit is not None:
        own[storage.circuit] = [amperes + _STORAGE_A for amperes in own[storage.circuit]]
    for device in devices.values():
        for evse in device.evses:
            profile = profiles[device.profile]
            amperes = unattended_a(evse, device, profile)
            if not has_watchdog(device, profile):
                amperes = evse.rating_a
            for phase in PHASES if evse.name in hidden else evse.phases:
                own[evse.circuit][PHASES.index(phase)] += amperes
    found: dict[str, Circuit] = {}
    for name in reversed(list(circuits)):
        circuit = circuits[name]
        needed = list(own[name])
        if circuit.connection is Connection.DELTA_WYE:
            # Any two windings may meet in a line; in phase they would add up to this.
            needed = [2 * max(needed) / _SQRT3] * 3
        spare = rng.uniform(1.02, most_spare)
        rating = float(math.ceil(max(needed) * spare))
        found[name] = replace(circuit, rating_a=(rating, rating, rating))
        if circuit.parent is not None:
            above = own[circuit.parent]
            own[circuit.parent] = [one + two for one, two in zip(above, needed, strict=True)]
    return {name: found[name] for name in circuits}
