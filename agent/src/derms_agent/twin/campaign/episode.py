# SPDX-License-Identifier: Apache-2.0
"""One episode: a depot, a course and a process that controls, all from one seed, and what the judge says of it.

The process is the orchestrator's, or where the scene has no policy for that, the campaign's own agent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from derms_agent.control import ledger as book
from derms_agent.control.guard import Purpose, Write
from derms_agent.control.limits import SITE
from derms_agent.model import ProofKind, Rank, Reading
from derms_agent.orchestrator.asks import Ask, placed
from derms_agent.orchestrator.controller import Policy
from derms_agent.orchestrator.engine import LEASE_S, SHED_S
from derms_agent.orchestrator.site import site_of
from derms_agent.orchestrator.store import Times
from derms_agent.profiles.point import Table
from derms_agent.twin.actions import SetBaseLoad, SetFrequency
from derms_agent.twin.campaign import agent as own
from derms_agent.twin.campaign import course as script
from derms_agent.twin.campaign import scene as stage
from derms_agent.twin.campaign.course import (
    Announce,
    Blackout,
    Break,
    Cancel,
    Course,
    Generate,
    GridLink,
    Happening,
    Kill,
    Lack,
    Leave,
    LimitSite,
    Lossy,
    Plug,
    Reload,
    StepBase,
    Stop,
    Swing,
)
from derms_agent.twin.campaign.judge import STEP_S, Judge, Violation, Worst
from derms_agent.twin.campaign.link import Link, News, Odds, Proved, Sample
from derms_agent.twin.campaign.orchestrator import LINK_VALID_S, Disk, Orchestrator
from derms_agent.twin.campaign.scene import GENERATOR, NOMINAL_HZ, STORAGE, Scene, declared
from derms_agent.twin.faults import Fault, FaultKind
from derms_agent.twin.rehearsal import Rehearsal
from derms_agent.twin.scenario import Arrivals, Scenario

_STEPPED_A = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an episode."""

    seed: int
    kinds: tuple[str, ...]
    length_s: float
    violations: tuple[Violation, ...]
    worst: Worst
    energy_wh: float
    writes: int


def run(seed: int, trace: list[str] | None = None) -> Outcome:
    """Play the episode of a seed. `trace` takes a line for whatever happens and whatever is written."""
    rng = Random(f"derms campaign {seed}")  # noqa: S311 - chance that can be repeated is the point
    scene = stage.draw(rng)
    course = script.draw(rng, scene)
    if scene.policy is None:
        return _OwnEpisode(seed, scene, course, rng, trace).run()
    return _OrchestratorEpisode(seed, scene, course, rng, trace, scene.policy).run()


class _Episode:
    """What both kinds have in common: the twin, the course, the link and the process's deaths."""

    def __init__(self, seed: int, scene: Scene, course: Course, rng: Random, trace: list[str] | None) -> None:
        self.seed, self.scene, self.course, self.rng = seed, scene, course, rng
        self.trace = trace
        self.twin = Rehearsal(
            self.scene.depot,
            seed,
            scenario=Scenario(arrivals=Arrivals.NONE),
            profiles=self.scene.profiles,
            step_s=STEP_S,
            ambient_c=self.scene.ambient_c,
        )
        self.judge = Judge(self.twin, self.scene)
        self.odds = Odds()
        self.offset_s = 0.0
        self.boot = 1
        self.lacking: dict[str, tuple[str, ...]] = {}
        self.link: Link | None = None
        self.closed: list[Link] = []
        self.pending = list(self.course.happenings)
        self.restarts: list[float] = []
        self.raising = False
        self.dies_raising: Kill | None = None
        self.writes = 0
        self.wrote = False

    def run(self) -> Outcome:
        self._warm_up()
        self._happen()
        self._start()
        steps = round(self.course.length_s / STEP_S)
        due = self.rng.randrange(10)
        for step in range(steps):
            self._happen()
            self.twin.advance(STEP_S)
            if self.restarts and self.restarts[0] <= self.twin.now_s:
                self.restarts.pop(0)
                self._start()
            for link in self.closed:
                if link.step():  # what was on the wire when its process died
                    self.judge.reached(link.taken, {})
            if self.link is not None:
                stirred = self.link.step() or self.wrote
                self.wrote = False
                self._hear(self.link)
                if stirred:
                    self.judge.reached(self.link.taken, self.link.losses)
                if self.raising and self.dies_raising is not None:
                    self._kill(self.dies_raising)
                else:
                    self._work(self.link, due=step % 10 == due)
            self.judge.look()
        energy_wh = sum(self.twin.outlet(evse.name).energy_wh for evse in self.scene.depot.places())
        return Outcome(
            self.seed,
            self.course.kinds,
            self.course.length_s,
            tuple(self.judge.violations),
            self.judge.worst,
            energy_wh,
            self.writes,
        )

    def _warm_up(self) -> None:
        """Let enclosures be warm, and storage have little left, from what was before."""
        for inverter in self.twin.inverters.values():
            inverter.state = inverter.state._replace(soc=self.rng.choice((0.5, self.rng.uniform(0.199, 0.215))))
        if self.scene.ambient_c > _HOT_C:
            for charger in self.twin.chargers.values():
                warm_c = self.rng.uniform(35.0, 44.5)
                charger.states = {at: state._replace(temperature_c=warm_c) for at, state in charger.states.items()}
            if self.scene.storage:
                storage, warm = self.twin.inverters[STORAGE], Random(f"warm {self.seed}")  # noqa: S311
                storage.state = storage.state._replace(temperature_c=warm.uniform(35.0, 44.5))

    # Control

    @property
    def now_s(self) -> float:
        """The process's clock."""
        return self.twin.now_s + self.offset_s

    def _start(self) -> None:
        """Start the process."""
        self.link = Link(self.twin, self.scene, self.rng, self.odds, self.offset_s, self.lacking)
        self._begin()
        self.judge.started()
        self._say("control starts")

    def _begin(self) -> None:
        raise NotImplementedError

    def _hear(self, link: Link) -> None:
        """Take news in."""
        raise NotImplementedError

    def _work(self, link: Link, *, due: bool) -> None:
        """Do what it is time for; `due`: once a second."""
        raise NotImplementedError

    def _end(self) -> None:
        """Forget the process."""
        raise NotImplementedError

    def _sent(self, link: Link, writes: Sequence[Write]) -> None:
        """Let writes leave."""
        for write in writes:
            self._say(f"write {write.id} {write.evse} {write.amount.active_a:.1f} A, {write.purpose.value}")
            link.write(write.id, write.evse, write.amount, self.twin.now_s)
        self.writes += len(writes)
        self.wrote = bool(writes)
        self.raising = any(write.purpose is Purpose.RAISE for write in writes)

    # What happens

    def _happen(self) -> None:
        while self.pending and self.pending[0][0] <= self.twin.now_s:
            self._do(self.pending.pop(0)[1])

    def _do(self, what: Happening) -> None:  # noqa: C901 - one branch for each
        self._say(str(what))
        match what:
            case Break(device, fault):
                self.twin.fault(device, fault)
            case Lossy(odds):
                self.odds = odds
                if self.link is not None:
                    self.link.odds = odds
            case Kill(raising=True):
                self.raising, self.dies_raising = False, what
            case Kill():
                self._kill(what)
            case Blackout(dark_s, gateway_s):
                for device in self.scene.depot.devices:
                    if device not in self.twin.meters:
                        self.twin.fault(device, Fault(kind=FaultKind.REBOOT, for_s=dark_s))
                self._kill(Kill(dark_s + gateway_s, boot=True, clock_s=-1e5))
            case StepBase(circuit, amperes):
                self.judge.base_stepped(circuit, amperes)
                self.twin.do(SetBaseLoad(circuit, amperes))
            case Plug(evse, soc):
                self.judge.plugged(evse)
                self.twin.plug_in(evse, self.scene.vehicles[evse], soc)
            case Leave(evse):
                self.twin.unplug(evse)

    def _kill(self, how: Kill) -> None:
        if self.link is not None:
            self.link.close()
            self.closed.append(self.link)
        self.link = None
        self._end()
        self.raising, self.dies_raising = False, None
        self.judge.died()
        self._say("control dies")
        if how.boot:
            self.boot += 1
            self.offset_s += how.clock_s
        self.restarts = [self.twin.now_s + how.after_s]

    def _say(self, line: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.twin.now_s:7.1f}  {line}")


class _OwnEpisode(_Episode):
    """One that the campaign's own agent plays."""

    def __init__(self, seed: int, scene: Scene, course: Course, rng: Random, trace: list[str] | None) -> None:
        super().__init__(seed, scene, course, rng, trace)
        self.disk = own.Disk()
        self.asked = own.Asked()
        self.sampled: dict[str, tuple[float, tuple[float, float, float]]] = {}
        self.heard: list[News] = []
        self.agent: own.Agent | None = None
        self.urgent = self.stepped = False

    def _begin(self) -> None:
        self.agent = own.Agent(self.scene, self.disk, f"boot-{self.boot}", self.now_s, self.rng)
        self.heard.clear()
        self.sampled.clear()

    def _end(self) -> None:
        self.agent = None

    def _do(self, what: Happening) -> None:
        super()._do(what)
        if isinstance(what, LimitSite):
            self.judge.limit_moved(what.watts)
            self.asked = own.Asked(what.watts)
            self.urgent = True  # a cycle at once on an event

    def _hear(self, link: Link) -> None:
        """Take news in; some are such that control works at once."""
        self.stepped = False
        for item in link.news():
            self.heard.append(item)
            if isinstance(item, Sample):
                known = self.sampled.get(item.circuit)
                sent_s = item.sent_s - self.offset_s
                if known is None or max(map(abs, map(float.__sub__, item.currents_a, known[1]))) > _STEPPED_A:
                    self.stepped = True
                self.sampled[item.circuit] = (sent_s, item.currents_a)
                self.judge.sampled(item.circuit, sent_s)
            elif isinstance(item, book.Lost | book.NotExecuted):
                self._say(f"{type(item).__name__} {item.evse} {item.write}")

    def _work(self, link: Link, *, due: bool) -> None:
        if self.agent is None or not (due or self.urgent or self.stepped):
            return
        plugged = [evse.name for evse in self.scene.depot.evses() if self.twin.outlet(evse.name).vehicle is not None]
        writes = self.agent.run(self.heard, self.now_s, self.asked, plugged)
        self.heard = []
        self.urgent = False
        self.judge.accounts(self.agent.spans(self.now_s))
        if writes:
            self.judge.wrote(writes, self._known_base())
        self._sent(link, writes)
        link.renew(self.twin.now_s + LEASE_S)

    def _known_base(self) -> dict[str, tuple[float, float, float]]:
        """Return each circuit's base load as far as it can be known: measured a moment ago, or its declared worst."""
        now_s = self.twin.now_s
        found = {}
        for name, circuit in self.scene.depot.circuits.items():
            sample = self.sampled.get(name)
            fresh = sample is not None and now_s - sample[0] <= _FRESH_S
            found[name] = sample[1] if sample is not None and fresh else circuit.base_load_a
        return found


class _OrchestratorEpisode(_Episode):
    """One that the orchestrator plays, with the grid gateway beside it.

    `asked`: what the grid asks for, by name; `unsaid`: of those what nobody took yet. `link_until_s`: until then the
    grid's link stands, as far as the orchestrator was told, by the twin's clock.
    """

    def __init__(  # noqa: PLR0917 - those of an episode, and its policy
        self, seed: int, scene: Scene, course: Course, rng: Random, trace: list[str] | None, policy: Policy
    ) -> None:
        super().__init__(seed, scene, course, rng, trace)
        self.policy = policy
        self.disk = Disk()
        self.site = site_of(declared(scene), "gateway-1", shed_s=SHED_S, own_profiles=scene.profiles)
        self.meters = {meter.device: circuit for circuit, meter in self.site.meters.items()}
        self.process: Orchestrator | None = None
        self.asked: dict[str, Ask] = {}
        self.unsaid: dict[str, None] = {}
        self.link_stands, self.link_until_s, self.link_due_s = True, math.inf, 0.0

    @property
    def times(self) -> Times:
        """Now, by the process's clock and by the wall's."""
        return Times(self.now_s, UNIX_S + self.twin.now_s)

    def _begin(self) -> None:
        boot = f"boot-{self.boot}"
        self.process = Orchestrator(self.scene, self.site, self.policy, self.disk, boot, self.times, self.rng)
        self.link_due_s = self.twin.now_s

    def _end(self) -> None:
        self.process = None

    def _do(self, what: Happening) -> None:  # noqa: C901 - one branch for each
        super()._do(what)
        match what:
            case LimitSite(watts):
                self._ask("limit", None if watts == math.inf else watts)
            case Announce(event, watts, ahead_s, for_s, target):
                begin_s = self.times.unix_s + ahead_s
                self._ask(event, watts, begin_s, begin_s + for_s, target)
            case Cancel(event):
                self._ask(event, None)
            case GridLink(stands):
                self.link_stands, self.link_due_s = stands, self.twin.now_s
            case Reload(limit_va):
                self.policy = replace(self.policy, limit_va=limit_va)
                self.judge.site_moved(limit_va)
                if self.process is not None:
                    self.process.reload(self.policy)
            case Stop(after_s) if self.process is not None:
                self.process.end(self.times)
                self._kill(Kill(after_s))
            case Lack(meter, values):
                self.lacking[meter] = values
            case Generate(watts):
                self._generate(watts)
            case Swing(hertz, for_s):
                self.twin.do(SetFrequency(((2.0, hertz), (for_s, hertz), (for_s + 2.0, NOMINAL_HZ))))
            case _:
                pass

    def _generate(self, watts: float) -> None:
        """Have the inverter itself give so much: nobody of ours tells it."""
        inverter = self.twin.inverters[GENERATOR]
        raw = round(watts)
        for path, words in (("WSet", (raw >> 16, raw & 0xFFFF)), ("WSetEna", (1,))):
            inverter.write(Table.HOLDING, inverter.image.address(704, path), words, _WRITES, self.twin.now_s)

    # What the grid asks for

    def _ask(
        self,
        name: str,
        watts: float | None,
        start: float | None = None,
        end: float | None = None,
        target: str = SITE,
    ) -> None:
        """Have the grid ask for something, or with None not any more."""
        if watts is None:
            self.asked.pop(name, None)
        else:
            self.asked[name] = Ask(
                id=name,
                source=name,
                rank=Rank.GRID,
                target=target,
                high_w=watts,
                start_unix_s=start,
                end_unix_s=end,
            )
        self.unsaid[name] = None

    def _say_asks(self, process: Orchestrator) -> None:
        """Hand over what the grid gateway has to say."""
        for name in self.unsaid:
            ask = self.asked.get(name)
            if ask is None:
                process.forget(name)
            elif not placed(ask, *self.times).over(self.now_s):
                process.put(ask, self.times)
        self.unsaid.clear()
        if self.link_stands and self.twin.now_s >= self.link_due_s:
            self.link_due_s = self.twin.now_s + _LINK_EVERY_S
            self.link_until_s = self.twin.now_s + LINK_VALID_S
            process.link_stands(self.now_s)

    def _asked_w(self) -> float:
        """Return what the grid asks the site for at this moment, in W."""
        now_s = self.times.unix_s
        in_force = [
            ask
            for ask in self.asked.values()
            if (ask.start_unix_s or 0.0) <= now_s < (math.inf if ask.end_unix_s is None else ask.end_unix_s)
        ]
        default_w = self.policy.default_limit_w
        if not in_force and default_w is not None and not self.link_stands and self.twin.now_s >= self.link_until_s:
            return default_w
        return min((ask.high_w for ask in in_force if ask.target == SITE), default=math.inf)

    # Control

    def _hear(self, link: Link) -> None:
        if self.process is None:
            return
        for item in link.news():
            if isinstance(item, Reading):
                self._show(item)
                self.process.hear(item, self.now_s)
            elif isinstance(item, Proved):
                if item.kind is not ProofKind.ACKNOWLEDGED:
                    self._say(f"{item.kind.value} {item.evse} {item.write}")
                self.process.hear(item, self.now_s)

    def _show(self, reading: Reading) -> None:
        """Let the judge know what a meter shows."""
        circuit = self.meters.get(reading.device)
        if circuit is not None:
            sent_s = reading.asked_at_s - self.offset_s
            if reading.values.keys() >= _NEEDED:
                self.judge.sampled(circuit, sent_s)
            if circuit == self.site.root.name and "frequency" in reading.values:
                self.judge.showed_hertz(sent_s)

    def _work(self, link: Link, *, due: bool) -> None:
        del due  # it knows itself
        asked_w = self._asked_w()
        if asked_w != self.judge.limit_w:
            self.judge.limit_moved(asked_w)
        if self.process is None:
            return
        self._say_asks(self.process)
        writes = self.process.run(self.times)
        if writes is None:
            return
        self.judge.accounts(self.process.spans(self.now_s))
        if writes:
            self.judge.wrote(writes)
        self._sent(link, writes)
        link.renew(self.twin.now_s + LEASE_S)


UNIX_S = 1_764_000_000.0
"""The wall's time when an episode begins: when an interval of the demand cap does."""
_LINK_EVERY_S = 10.0
_WRITES = 16
_NEEDED = frozenset(f"{what}_{line}" for what in ("current", "active_power") for line in ("l1", "l2", "l3"))
_FRESH_S = 2.6
_HOT_C = 30.0
