# SPDX-License-Identifier: Apache-2.0
"""One episode: a depot, a course and an agent, all from one seed, and what the judge says of it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from derms_agent.control import ledger as book
from derms_agent.control.guard import Purpose
from derms_agent.twin.actions import SetBaseLoad
from derms_agent.twin.campaign import course as script
from derms_agent.twin.campaign import scene as stage
from derms_agent.twin.campaign.agent import Agent, Asked, Disk
from derms_agent.twin.campaign.course import Blackout, Break, Happening, Kill, Leave, LimitSite, Lossy, Plug, StepBase
from derms_agent.twin.campaign.judge import STEP_S, Judge, Violation, Worst
from derms_agent.twin.campaign.link import Link, News, Odds, Sample
from derms_agent.twin.faults import Fault, FaultKind
from derms_agent.twin.rehearsal import Rehearsal
from derms_agent.twin.scenario import Arrivals, Scenario

CYCLE_S = 1.0
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
    return _Episode(seed, trace).run()


class _Episode:
    def __init__(self, seed: int, trace: list[str] | None) -> None:
        self.seed = seed
        rng = Random(f"derms campaign {seed}")  # noqa: S311 - chance that can be repeated is the point
        self.scene = stage.draw(rng)
        self.course = script.draw(rng, self.scene)
        self.rng = rng
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
        self.disk = Disk()
        self.odds = Odds()
        self.asked = Asked()
        self.offset_s = 0.0
        self.boot = 1
        self.sampled: dict[str, tuple[float, tuple[float, float, float]]] = {}
        self.agent: Agent | None = None
        self.link: Link | None = None
        self.closed: list[Link] = []
        self.urgent = False
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
            if self.link is not None and self.agent is not None:
                stirred = self.link.step() or self.wrote
                self.wrote = False
                urgent = self._hear() or self.urgent
                if stirred:
                    self.judge.reached(self.link.taken, self.link.losses)
                if self.raising and self.dies_raising is not None:
                    self._kill(self.dies_raising)
                elif step % 10 == due or urgent:
                    self._cycle(self.agent, self.link)
            self.judge.look()
        energy_wh = sum(self.twin.outlet(evse.name).energy_wh for evse in self.scene.depot.evses())
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

    # Control

    def _start(self) -> None:
        """Start the agent's process."""
        now_s = self.twin.now_s
        self.link = Link(self.twin, self.scene, self.rng, self.odds, self.offset_s)
        self.agent = Agent(self.scene, self.disk, f"boot-{self.boot}", now_s + self.offset_s, self.rng)
        self.heard: list[News] = []
        self.sampled.clear()
        self.judge.started()
        self._say("control starts")

    def _hear(self) -> bool:
        """Take news in; whether it is such that control works at once."""
        urgent = False
        if self.link is None:
            return False
        for item in self.link.news():
            self.heard.append(item)
            if isinstance(item, Sample):
                known = self.sampled.get(item.circuit)
                sent_s = item.sent_s - self.offset_s
                if known is None or max(map(abs, map(float.__sub__, item.currents_a, known[1]))) > _STEPPED_A:
                    urgent = True
                self.sampled[item.circuit] = (sent_s, item.currents_a)
                self.judge.sampled(item.circuit, sent_s)
            elif isinstance(item, book.Lost | book.NotExecuted):
                self._say(f"{type(item).__name__} {item.evse} {item.write}")
        return urgent

    def _cycle(self, agent: Agent, link: Link) -> None:
        now_s = self.twin.now_s + self.offset_s
        plugged = [evse.name for evse in self.scene.depot.evses() if self.twin.outlet(evse.name).vehicle is not None]
        writes = agent.run(self.heard, now_s, self.asked, plugged)
        self.heard = []
        self.urgent = False
        self.judge.accounts(agent.spans(now_s))
        if writes:
            self.judge.wrote(writes, self._known_base())
        for write in writes:
            self._say(f"write {write.id} {write.evse} {write.amount.active_a:.1f} A, {write.purpose.value}")
            link.write(write.id, write.evse, write.amount, self.twin.now_s)
        self.writes += len(writes)
        self.wrote = bool(writes)
        link.renew(self.twin.now_s + 10.0)
        self.raising = any(write.purpose is Purpose.RAISE for write in writes)

    def _known_base(self) -> dict[str, tuple[float, float, float]]:
        """Return each circuit's base load as far as it can be known: measured a moment ago, or its declared worst."""
        now_s = self.twin.now_s
        found = {}
        for name, circuit in self.scene.depot.circuits.items():
            sample = self.sampled.get(name)
            fresh = sample is not None and now_s - sample[0] <= _FRESH_S
            found[name] = sample[1] if sample is not None and fresh else circuit.base_load_a
        return found

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
            case LimitSite(watts):
                self.judge.limit_moved(watts)
                self.asked = Asked(watts)
                self.urgent = True  # a cycle at once on an event
            case StepBase(circuit, amperes):
                self.judge.base_stepped(circuit, amperes)
                self.twin.do(SetBaseLoad(circuit, amperes))
            case Plug(evse, soc):
                self.twin.plug_in(evse, self.scene.vehicles[evse], soc)
            case Leave(evse):
                self.twin.unplug(evse)

    def _kill(self, how: Kill) -> None:
        if self.link is not None:
            self.link.close()
            self.closed.append(self.link)
        self.link = None
        self.agent = None
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


_FRESH_S = 2.6
_HOT_C = 30.0
