# SPDX-License-Identifier: Apache-2.0
"""What happens in an episode, and when: drawn from a seed, plain data.

Cars come and go, the base load steps, the site's limit moves; and one to four times something breaks. Where the
orchestrator plays, there is also what only it has to do with, in half of the episodes followed by its process's death.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from derms_agent.control.limits import SITE
from derms_agent.model import DeviceKind, PerPhase
from derms_agent.orchestrator.controller import Policy
from derms_agent.twin.campaign.link import Odds
from derms_agent.twin.campaign.scene import (
    GENERATED_A,
    GENERATOR,
    NOMINAL_HZ,
    STORAGE,
    VOLTAGE_V,
    Scene,
    fallbacks,
    storage_a,
)
from derms_agent.twin.faults import Fault, FaultKind

SHORTEST_S, LONGEST_S = 300.0, 600.0
_SETTLED_S = 60.0
_ON_WIRES = ("silent", "silents", "slow", "exception", "disconnect", "lossy")
_IN_DEVICES = ("reboot", "frozen", "sensor", "meter")
_FAILURES = (*_ON_WIRES, *_IN_DEVICES, "kill", "kill", "boot", "blackout")


@dataclass(frozen=True, slots=True)
class Break:
    """A device fails."""

    device: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Lossy:
    """Requests and answers are lost for a while."""

    odds: Odds


@dataclass(frozen=True, slots=True)
class Kill:
    """The agent is killed, and started again `after_s` later.

    `raising`: not at once, but when its next raises have left and none is answered. `boot`: with another boot id, for
    the gateway itself was off. `clock_s` is added to its clock then.
    """

    after_s: float
    raising: bool = False
    boot: bool = False
    clock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Blackout:
    """No power on the site for `dark_s`: chargers come up first, the gateway `gateway_s` after them."""

    dark_s: float
    gateway_s: float


@dataclass(frozen=True, slots=True)
class LimitSite:
    """The grid asks for no more than `watts` from the site, base load included; infinity: it asks for nothing."""

    watts: float


@dataclass(frozen=True, slots=True)
class StepBase:
    """The base load of a circuit becomes this."""

    circuit: str
    amperes: PerPhase


@dataclass(frozen=True, slots=True)
class Plug:
    """A car comes. `soc` is a fraction."""

    evse: str
    soc: float


@dataclass(frozen=True, slots=True)
class Leave:
    """A car leaves."""

    evse: str


@dataclass(frozen=True, slots=True)
class Lack:
    """A meter answers without some of its values; with none of them named, it has all again."""

    meter: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generate:
    """The generator gives so much, in W."""

    watts: float


@dataclass(frozen=True, slots=True)
class Announce:
    """The grid announces an event: no more than `watts` from the target, beginning `ahead_s` from now, for `for_s`.

    Below zero, that is to be given back.
    """

    event: str
    watts: float
    ahead_s: float
    for_s: float
    target: str = SITE


@dataclass(frozen=True, slots=True)
class Cancel:
    """The grid takes an event back."""

    event: str


@dataclass(frozen=True, slots=True)
class GridLink:
    """The grid's link stands, or does not."""

    stands: bool


@dataclass(frozen=True, slots=True)
class Swing:
    """The grid's frequency goes to so many Hz within 2 s, and back after `for_s`."""

    hertz: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Reload:
    """Another SITE_LIMIT_KVA is in limits.conf, in VA, and it is read again."""

    limit_va: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The orchestrator is told to end, stores all it has to, and starts again `after_s` later."""

    after_s: float


Happening: TypeAlias = (
    "Break | Lossy | Kill | Blackout | LimitSite | StepBase | Plug | Leave"
    " | Lack | Generate | Announce | Cancel | GridLink | Swing | Reload | Stop"
)


@dataclass(frozen=True, slots=True)
class Course:
    """What happens, in the order of time, and how long the episode is."""

    length_s: float
    happenings: tuple[tuple[float, Happening], ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What broke, for the tables."""
        return tuple(dict.fromkeys(kind_of(what) for _at_s, what in self.happenings))


_KINDS: Mapping[type, str] = {
    Lossy: "indeterminate writes",
    Blackout: "blackout",
    LimitSite: "limit moved",
    StepBase: "base load stepped",
    Plug: "cars",
    Leave: "cars",
    Lack: "meter lacks values",
    Generate: "generation moved",
    Announce: "event announced",
    Cancel: "event cancelled",
    GridLink: "grid link lost",
    Swing: "frequency excursion",
    Reload: "limits.conf reloaded",
    Stop: "agent stopped and started",
}


def kind_of(what: Happening) -> str:
    """Return the name under which a happening is counted."""
    match what:
        case Break(device, fault):
            return "stale meter" if device.startswith("meter") else fault.kind.value.replace("_", " ")
        case Kill(boot=True):
            return "gateway restarted, clock stepped"
        case Kill(raising=True):
            return "agent killed with raises on the wire"
        case Kill():
            return "agent killed"
        case Announce(watts=watts) if watts < 0:
            return "asked to give back"
        case _:
            return _KINDS[type(what)]


def draw(rng: Random, scene: Scene) -> Course:
    """Return the course that comes next from a generator of chance."""
    length_s = SHORTEST_S + (LONGEST_S - SHORTEST_S) * rng.random() ** 3  # most are short, for more of them
    happenings = [*_cars(rng, scene, length_s), *_loads(rng, scene, length_s)]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        happenings.extend(_failure(rng, scene, rng.uniform(_SETTLED_S, length_s - _SETTLED_S)))
    if scene.policy is not None:
        happenings.extend(_of_the_orchestrator(rng, scene, scene.policy, length_s))
        if scene.storage:
            happenings.extend(_given(Random(f"given {scene.depot.site.limit_va}"), length_s))  # noqa: S311
    else:
        happenings.extend(_unheard(Random(f"unanswered {scene.depot.site.limit_va}"), length_s))  # noqa: S311
    if scene.left_alone:
        alone = list(_left_alone(Random(f"alone {scene.depot.site.limit_va}"), scene, length_s))  # noqa: S311
        since_s = min(at_s for at_s, _what in alone)
        moves = (Plug, Leave, StepBase)
        happenings = [entry for entry in happenings if entry[0] < since_s or not isinstance(entry[1], moves)]
        happenings.extend(alone)
    return Course(length_s, tuple(sorted(happenings, key=lambda entry: entry[0])))


def _cars(rng: Random, scene: Scene, length_s: float) -> Iterator[tuple[float, Happening]]:
    for evse in scene.vehicles:
        if rng.random() < 0.9:  # noqa: PLR2004 - most EVSEs are taken
            at_s = 0.0 if rng.random() < 0.7 else rng.uniform(0, length_s)  # noqa: PLR2004
            yield at_s, Plug(evse, rng.uniform(0.1, 0.7))
            if rng.random() < 0.2:  # noqa: PLR2004 - some leave
                yield rng.uniform(at_s, length_s), Leave(evse)


def _loads(rng: Random, scene: Scene, length_s: float) -> Iterator[tuple[float, Happening]]:
    for name, circuit in scene.depot.circuits.items():
        yield 0.0, StepBase(name, _base(rng, circuit.base_load_a))
        for _ in range(rng.randrange(4)):
            yield rng.uniform(0, length_s), StepBase(name, _base(rng, circuit.base_load_a))
    if rng.random() < 0.5:  # noqa: PLR2004 - half of the episodes
        at_s = rng.uniform(_SETTLED_S, length_s)
        yield at_s, LimitSite(scene.depot.site.limit_va * rng.uniform(0.3, 0.9))
        if rng.random() < 0.5:  # noqa: PLR2004
            yield rng.uniform(at_s, length_s), LimitSite(math.inf)


def _base(rng: Random, worst: PerPhase) -> PerPhase:
    share = rng.choice((0.0, 0.3, 0.6, 1.0, rng.random()))
    return (worst[0] * share, worst[1] * share * rng.uniform(0.5, 1), worst[2] * share * rng.uniform(0.5, 1))


def _failure(rng: Random, scene: Scene, at_s: float) -> Iterator[tuple[float, Happening]]:  # noqa: C901, PLR0912 - one branch for each kind
    chargers = [name for name, device in scene.depot.devices.items() if device.kind is DeviceKind.CHARGER]
    meters = [name for name, device in scene.depot.devices.items() if device.kind is DeviceKind.METER]
    device = rng.choice([*chargers, STORAGE] if scene.storage else chargers)
    for_s = rng.choice((rng.uniform(2, 20), rng.uniform(10, 120)))
    match rng.choice(_FAILURES):
        case "silent":
            yield at_s, Break(device, Fault(kind=FaultKind.SILENT, for_s=for_s))
        case "silents":
            for each in rng.sample(chargers, rng.randint(2, len(chargers))):
                yield at_s, Break(each, Fault(kind=FaultKind.SILENT, for_s=for_s))
        case "slow":
            yield at_s, Break(device, Fault(kind=FaultKind.SLOW, ms=rng.choice((300, 700, 2000)), for_s=for_s))
        case "exception":
            yield at_s, Break(device, Fault(kind=FaultKind.EXCEPTION, for_s=for_s))
        case "disconnect":
            yield at_s, Break(device, Fault(kind=FaultKind.DISCONNECT, for_s=for_s))
        case "reboot":
            yield at_s, Break(device, Fault(kind=FaultKind.REBOOT, for_s=rng.uniform(6, 30)))
        case "frozen":
            yield at_s, Break(rng.choice(chargers), Fault(kind=FaultKind.FROZEN_DUTY, for_s=for_s))
        case "sensor":
            yield at_s, Break(device, Fault(kind=FaultKind.SENSOR_LOST, for_s=for_s))
        case "meter":
            meter = rng.choice(meters)
            yield at_s, Break(meter, Fault(kind=FaultKind.SILENT, for_s=for_s))
            circuit = scene.depot.circuits[str(scene.depot.devices[meter].circuit)]
            if rng.random() < 0.7:  # noqa: PLR2004 - mostly, what it would show changes
                yield at_s - rng.uniform(1, 30), StepBase(circuit.name, (0.0, 0.0, 0.0))
                yield at_s + rng.uniform(0, for_s), StepBase(circuit.name, circuit.base_load_a)
        case "lossy":
            odds = Odds(rng.choice((0.0, 0.1, 0.3)), rng.choice((0.1, 0.3, 0.5)), rng.choice((0.0, 0.1, 0.2)))
            yield at_s, Lossy(odds)
            yield at_s + for_s, Lossy(Odds())
        case "kill":
            # By a chance of its own, so that a course without such deaths stays as it is.
            raising = Random(f"raising {at_s}").random() < 0.5  # noqa: PLR2004, S311
            yield at_s, Kill(rng.choice((rng.uniform(1, 10), rng.uniform(5, 90))), raising)
        case "boot":
            yield at_s, Kill(rng.uniform(20, 90), boot=True, clock_s=rng.choice((-1e6, -50.0, 50.0, 1e6)))
        case _:
            yield at_s, Blackout(rng.uniform(6, 40), rng.uniform(10, 60))


def _of_the_orchestrator(  # noqa: C901, PLR0912 - one branch for each kind
    rng: Random, scene: Scene, policy: Policy, length_s: float
) -> Iterator[tuple[float, Happening]]:
    """Yield what only the orchestrator has to do with: at least one thing, and after one of them, maybe, its death."""
    most_w = scene.depot.site.limit_va
    if GENERATOR in scene.depot.devices:
        yield 0.0, Generate(_generated_w(rng))
        for _ in range(rng.randrange(3)):
            yield rng.uniform(_SETTLED_S, length_s), Generate(_generated_w(rng))
    for number in range(rng.choice((1, 2, 2, 3))):
        at_s = rng.uniform(_SETTLED_S, length_s - _SETTLED_S)
        for_s = rng.choice((rng.uniform(2, 20), rng.uniform(10, 120)))
        match rng.choice(_of_policy(scene, policy)):
            case "lack" | "mute" as how:
                # Meanwhile all is given away that the base load leaves, and then that comes back.
                meter = rng.choice(sorted(name for name in scene.depot.meters if name != GENERATOR))
                circuit = scene.depot.circuits[scene.depot.meters[meter].circuit]
                yield at_s - 40, StepBase(circuit.name, (0.0, 0.0, 0.0))
                yield at_s + rng.uniform(0, 15), StepBase(circuit.name, circuit.base_load_a)
                if how == "lack":
                    yield at_s, Lack(meter, rng.choice(_LACKING))
                    yield at_s + 30 + for_s, Lack(meter)
                else:
                    yield at_s, Break(meter, Fault(kind=FaultKind.SILENT, for_s=30 + for_s))
            case "generation":
                yield at_s - 50, Generate(GENERATED_A * _W_PER_A)
                yield at_s, Generate(0.0)
            case "generator":
                kind = rng.choice((FaultKind.SILENT, FaultKind.REBOOT))
                yield at_s - 50, Generate(GENERATED_A * _W_PER_A)
                yield at_s, Break(GENERATOR, Fault(kind=kind, for_s=for_s))
                yield at_s + rng.uniform(0, for_s), Generate(0.0)
            case "event":
                ahead_s = rng.choice((0.0, rng.uniform(5, 60)))
                event = f"event-{number}"
                yield at_s, Announce(event, most_w * rng.uniform(0.2, 0.7), ahead_s, 20 + for_s)
                if rng.random() < 0.3:  # noqa: PLR2004 - some are taken back
                    yield at_s + rng.uniform(0, ahead_s + 20 + for_s), Cancel(event)
            case "link":
                yield at_s, GridLink(stands=False)
                yield at_s + 40 + for_s, GridLink(stands=True)
            case "sensor":
                yield at_s, Break(rng.choice(_warm(scene)), Fault(kind=FaultKind.SENSOR_LOST, for_s=60 + for_s))
            case "swing":
                yield at_s, Swing(NOMINAL_HZ - rng.uniform(0.3, 2.4), 45 + for_s)
            case _:
                yield at_s, Reload(most_w * rng.uniform(0.4, 0.9))
                if rng.random() < 0.5:  # noqa: PLR2004
                    yield at_s + for_s, Reload(most_w)
        if number == 0 and rng.random() < 0.5:  # noqa: PLR2004 - half of the episodes
            after_s = rng.choice((rng.uniform(1, 10), rng.uniform(5, 60)))
            ends = rng.choice((Stop(after_s), Kill(after_s), Kill(after_s, boot=True, clock_s=rng.choice((-1e6, 1e6)))))
            yield at_s + rng.uniform(0, 30), ends


def _unheard(rng: Random, length_s: float) -> Iterator[tuple[float, Happening]]:
    """Have a process die with raises on the wire, in one of four episodes, and its successor hear little at first.

    By a chance of its own, so that the other courses stay as they are. The orchestrator waits until it is informed.
    """
    if rng.random() < 0.25:  # noqa: PLR2004
        at_s = rng.uniform(_SETTLED_S, length_s - _SETTLED_S)
        yield at_s, Kill(rng.uniform(0.5, 3), raising=True)
        yield at_s, Lossy(Odds(answer=rng.uniform(0.5, 0.9)))
        yield at_s + rng.uniform(10, 60), Lossy(Odds())


def _given(rng: Random, length_s: float) -> Iterator[tuple[float, Happening]]:
    """Have the storage, or the whole site, asked to give back; in some episodes its charge is lost amid that."""
    for number in range(rng.choice((1, 2, 3))):
        at_s, for_s = rng.uniform(_SETTLED_S / 2, length_s - _SETTLED_S), rng.uniform(20, 200)
        watts = -storage_a() * _W_PER_A * rng.choice((1.2, rng.random()))
        target = STORAGE if rng.random() < 0.75 else SITE  # noqa: PLR2004 - most of them
        yield at_s, Announce(f"give-{number}", watts, 0.0, for_s, target)
        if rng.random() < 0.25:  # noqa: PLR2004 - some
            lost_s = at_s + rng.uniform(0, for_s)
            yield lost_s, Break(STORAGE, Fault(kind=FaultKind.SENSOR_LOST, for_s=rng.uniform(60, 150)))


def _left_alone(rng: Random, scene: Scene, length_s: float) -> Iterator[tuple[float, Happening]]:
    """Have control die while some EVSEs are idle, and cars come at these just then.

    They rise to their fallbacks by themselves, the quickest ones while others still hold what they were told, which is
    all that the base load leaves: that is at its worst from then on.
    """
    at_s = rng.uniform(_FILLED_S, length_s - _ALONE_S)
    risers = sorted((watchdog_s, evse) for evse, (watchdog_s, amperes) in fallbacks(scene).items() if amperes > 1)
    idle = {evse for _watchdog_s, evse in risers[: rng.randint(2, 4)]}
    for circuit in scene.depot.circuits.values():
        yield at_s - _FILLED_S, StepBase(circuit.name, circuit.base_load_a)
    for evse in scene.vehicles:
        yield at_s - rng.uniform(105, _FILLED_S), Leave(evse)
        came_s = at_s + rng.uniform(0.2, 5) if evse in idle else at_s - rng.uniform(80, 100)
        yield came_s, Plug(evse, rng.uniform(0.1, 0.7))
    yield at_s, Kill(rng.uniform(_ALONE_S - 10, _ALONE_S))


_FILLED_S, _ALONE_S = 120.0, 75.0
_W_PER_A = math.sqrt(3) * VOLTAGE_V
_LACKING = (("current_l1",), ("current_l2", "current_l3"), ("active_power_l2",), ("energy",), ("frequency",))


def _of_policy(scene: Scene, policy: Policy) -> list[str]:
    """Return what may happen where that is the policy; what it is about comes the more often."""
    found = ["lack", "mute", "event", "event", "reload"]
    if GENERATOR in scene.depot.devices:
        found += ["generation", "generation", "generator"]
    if policy.default_limit_w is not None:
        found += ["link", "link"]
    if policy.charger_sensor.required and _warm(scene):
        found += ["sensor", "sensor"]
    if policy.droop is not None:
        found += ["swing", "swing"]
    return found


def _warm(scene: Scene) -> list[str]:
    """Return the chargers that show a temperature."""
    return [name for name in scene.depot.devices if scene.profile(name).temperatures]


def _generated_w(rng: Random) -> float:
    return GENERATED_A * _W_PER_A * rng.choice((0.0, 0.5, 1.0, rng.random()))
