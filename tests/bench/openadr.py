# SPDX-License-Identifier: GPL-3.0-or-later
"""What an OpenADR event takes: from a VTN through the real grid gateway and orchestrator to the chargers.

The VTN is openleadr's, under mutual TLS 1.3 on loopback; push is added to it. 100 chargers answer after 20 ms, each on
a socket of its own. An event is as in agent.service: a tenth of the chargers, another tenth each time, fall silent
0.2 s before it, and it takes the depot from 16 A an EVSE to 60 % of that. It is timed from the return of the VTN's
add_event until the last charger that is not silent has acknowledged its first lower limit. Then it is cancelled, and
the depot goes back to 16 A before the next.

The reference is openleadr's own VEN, which polls the same VTN each second and has nothing behind it: from the return of
add_event until its handler is called. It has its events in turn with the gateway's.

The polls of 72 hours are signed and so are their answers, and each is verified. DERMS_BENCH_EVENTS and
DERMS_BENCH_POLLS make it shorter.
"""

from __future__ import annotations

import json
import math
import os
import random
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.tests.grid_gateway.conftest import Authority, LabVtn, free_port
from tests.bench.agent_service import EVENT_S as LEAST_S
from tests.bench.agent_service import (
    NOTICE_S,
    SETTLED_S,
    SHARE,
    SILENT_SHARE,
    START_S,
    WATTS,
    Chargers,
    Service,
    chargers,
    configured,
    depot_file,
    in_words,
    p99,
    settle,
    wait_for_full,
)
from tests.bench.figures import Figure
from tests.bench.openadr_stock import VEN_NAME as STOCK

ROOT = Path(__file__).parents[2]
COUNT = 100
EVENTS = int(os.environ.get("DERMS_BENCH_EVENTS", "200"))
POLL_S = 1
LATE_S = 0.25
"""What is allowed beyond the wait for a poll."""
LONGEST_S = 10.0
KILLS = 5
NEVER_S = 60.0
"""How long the stock client is waited for after the last restart."""
IDLE_POLL_S = 10
"""openleadr's VTN asks for that by default, and POLL_S of the gateway's where a VTN asks for nothing."""
POLLS = int(os.environ.get("DERMS_BENCH_POLLS", str(72 * 3600 // IDLE_POLL_S)))
WARM_UP_SHARE = 0.1
HEARTBEAT, BACK = "Heartbeat Timeout VTN", "Heartbeat Back VTN"
VEN_NAME = "bench"


class Stock:
    """openleadr's own VEN, and when which event reached its handler."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def handled(self, longest_s: float) -> Iterator[tuple[str, float]]:
        """Give the events that have reached the handler, and when, as they come within so long."""
        assert self._process.stdout is not None
        until_s = time.monotonic() + longest_s
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while waiting.select(max(0.0, until_s - time.monotonic())):
                line = self._process.stdout.readline()
                if not line:
                    sys.exit(f"openadr: the stock client ended with {self._process.wait()}")
                told = json.loads(line)
                yield told["event"], float(told["at_s"])


@contextmanager
def stock_client(vtn: LabVtn, directory: Path) -> Iterator[Stock]:
    """Run openleadr's own VEN beside."""
    pki = vtn.authority.directory
    told = {
        "url": f"https://localhost:{vtn.port}",
        "certificate": str(pki / "ven.crt"),
        "key": str(pki / "ven.key"),
        "authorities": str(vtn.authority.path),
    }
    command = [sys.executable, "-m", "tests.bench.openadr_stock", json.dumps(told)]
    with (
        (directory / "stock").open("ab") as journal,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TZ": "UTC"}, stdout=subprocess.PIPE, stderr=journal, text=True
        ) as process,
    ):
        try:
            yield Stock(process)
        finally:
            process.terminate()


@dataclass
class Utility:
    """A depot under control, its gateway and the VTN that both are registered with."""

    directory: Path
    vtn: LabVtn
    orchestrator: Service
    gateway: Service
    depot: Chargers
    push_url: str | None = None
    ven_ids: dict[str, str] = field(default_factory=dict)

    def wait_for(self, ven_name: str) -> str:
        """Return the id that the VTN has given a VEN, once it did.

        :raises SystemExit: it does not register
        """
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            for one in self.vtn.seen("registrations"):
                if one["ven_name"] == ven_name:
                    self.ven_ids[ven_name] = one["ven_id"]
                    return str(one["ven_id"])
            time.sleep(0.2)
        sys.exit(f"openadr: {ven_name} does not register:\n{self.log()[-2000:]}")

    def log(self) -> str:
        """Return what both services have written into engine.log."""
        return (self.directory / "engine.log").read_text(encoding="utf-8")

    def notes(self) -> list[dict[str, Any]]:
        """Return what the gateway's process has noted, in its order."""
        return [json.loads(line) for line in (self.directory / "notes").open(encoding="utf-8")]

    def shed(self) -> dict[str, Any]:
        """Send an event; return its id and when add_event had returned."""
        found: dict[str, Any] = self.vtn.do("shed", ven_id=self.ven_ids[VEN_NAME], push_url=self.push_url)
        return found

    def obeyed(self, event_id: str) -> None:
        """See that the gateway has opted in, then cancel the event and wait until the depot is back at 16 A.

        :raises SystemExit: it opted out, or the depot does not come back
        """
        if (answer := self.vtn.do("answer_to", event_id=event_id)) != "optIn":
            sys.exit(f"openadr: event {event_id} was answered {answer}, expected optIn:\n{self.log()[-2000:]}")
        self.vtn.do("end", ven_id=self.ven_ids[VEN_NAME], event_id=event_id, push_url=self.push_url)
        with self.orchestrator.client() as client:
            until_s = time.monotonic() + SETTLED_S
            while client.ask("limit.list"):
                if time.monotonic() > until_s:
                    sys.exit(f"openadr: event {event_id} was cancelled and still holds:\n{self.log()[-2000:]}")
                time.sleep(0.1)
            wait_for_full(client, self.depot, SETTLED_S)


@contextmanager
def registered(
    poll_s: int,
    *,
    push: bool = False,
    signed: bool = False,
    count: int = COUNT,
    brokered: Callable[[Path, Authority], tuple[Mapping[str, str], Mapping[str, object]]] = lambda *_: ({}, {}),
) -> Iterator[Utility]:
    """Raise a depot with its chargers at 16 A, under control, and registered with a VTN; both sign where `signed`.

    :param brokered: given a directory and an authority, gives what both services have in their environment, and what
        stands in agent.conf beside
    """
    with tempfile.TemporaryDirectory() as name, chargers(count) as depot:
        directory = Path(name)
        authority = Authority(directory / "pki")
        for whose in ("vtn", "ven"):
            authority.issue(whose)
        # openleadr's client makes a number of an id of digits, and then opts out of everything.
        program = ("-m", "tests.bench.openadr_vtn")
        vtn = LabVtn(authority, poll_s=poll_s, vtn_id="VTN-1", more={"signs": signed}, program=program).start()
        text = depot_file(depot.port, count, 1, None)
        level_kw = SHARE * WATTS * count / 1000
        url = f"https://localhost:{vtn.port}"
        text += f"vtn: {{url: '{url}', ven_name: {VEN_NAME}, levels: {{moderate: {{limit_kw: {level_kw}}}}}}}\n"
        (directory / "gateway").mkdir()
        told: dict[str, object] = {
            "VTN_URL": url,
            "CERT_PATH": authority.directory / "ven.crt",
            "KEY_PATH": authority.directory / "ven.key",
            "CA_PATH": authority.path,
            "GRID_STATE_DIRECTORY": directory / "gateway",
            "GRID_SOCKET": directory / "gateway.socket",
        }
        push_url = f"https://localhost:{free_port()}" if push else None
        if push_url is not None:
            told["PUSH_URL"] = push_url
        if signed:
            told["XML_SIGNATURES"] = "require"
        environment, more = brokered(directory, authority)
        orchestrator = configured(directory, text, environment, **told, **more)
        noting = (sys.executable, "-m", "tests.bench.openadr_gateway", directory / "notes")
        gateway = Service(directory, "grid-gateway", "gateway.socket", noting, environment)
        try:
            orchestrator.start()
            settle(orchestrator, depot)
            gateway.start()
            utility = Utility(directory, vtn, orchestrator, gateway, depot, push_url)
            utility.wait_for(VEN_NAME)
            yield utility
        finally:
            gateway.stop()
            orchestrator.stop()
            vtn.kill()


@dataclass(slots=True)
class Sheds:
    """What became of events: from add_event to the last decrease, or to the stock client's handler, in s."""

    last_s: list[float] = field(default_factory=list)
    stock_s: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def sheds(utility: Utility, stock: Stock, longest_wait_s: float) -> Sheds:
    """Shed and release, and send the stock client an event, so many times.

    :param longest_wait_s: how long an event may wait for a poll
    :raises SystemExit: a charger that was not silent was not lowered, or the stock client has no event
    """
    found = Sheds()
    draw = random.Random(7)  # noqa: S311 - no secret
    depot = utility.depot
    for number in range(EVENTS):
        silent = list(range(number % SILENT_SHARE, COUNT, SILENT_SHARE))
        time.sleep(draw.random())  # whatever the polls and cycles are doing just then
        depot.ask("silence", chargers=silent)
        time.sleep(NOTICE_S)
        sent = utility.shed()
        lowered = depot.wait_until_lowered(
            set(range(COUNT)) - set(silent), sent["returned_s"], LONGEST_S, longest_wait_s + LEAST_S
        )
        found.last_s.append(max(lowered.values()) - sent["returned_s"])
        found.ids.append(sent["event"])
        depot.ask("silence", chargers=[])
        utility.obeyed(sent["event"])
        time.sleep(draw.random())
        found.stock_s.append(stock_takes_s(utility, stock))
    return found


def stock_takes_s(utility: Utility, stock: Stock) -> float:
    """Return how long an event takes to the stock client's handler.

    :raises SystemExit: it does not arrive
    """
    sent = utility.vtn.do("shed", ven_id=utility.ven_ids[STOCK])
    handled_s = next((at_s for event_id, at_s in stock.handled(LONGEST_S) if event_id == sent["event"]), None)
    if handled_s is None:
        sys.exit(f"openadr: the stock client had no event in {LONGEST_S:g} s")
    while utility.vtn.do("answer_to", event_id=sent["event"]) is None:
        time.sleep(0.05)
    utility.vtn.do("withdraw", ven_id=utility.ven_ids[STOCK], event_id=sent["event"])
    return handled_s - float(sent["returned_s"])


def figure(name: str, times_s: Sequence[float], goal_ms: float, reference_s: Sequence[float] = ()) -> Figure:
    """Return a figure of the 99th percentile, beside that of a reference where there is one."""
    value_ms = 1000 * p99(times_s)
    reference_ms = 1000 * p99(reference_s) if reference_s else None
    words = in_words(times_s)
    if reference_s:
        words += f"; stock: {in_words(reference_s)}"
    return Figure(
        name,
        value_ms,
        "ms",
        reference_ms,
        None if reference_ms is None else value_ms / reference_ms,
        f"p99 ≤ {goal_ms:g} ms",
        value_ms <= goal_ms,
        f"{words}; load {os.getloadavg()[0]:.1f}",
    )


def push() -> list[Figure]:
    """Measure events that the VTN pushes."""
    with registered(POLL_S, push=True) as utility, stock_client(utility.vtn, utility.directory) as stock:
        utility.wait_for(STOCK)
        found = sheds(utility, stock, 0.0)
    return [figure("openadr.push", found.last_s, 1000 * LATE_S, found.stock_s)]


def pull() -> list[Figure]:
    """Measure events that wait for a poll, and of that what the gateway takes until the orchestrator has the bound."""
    with registered(POLL_S) as utility, stock_client(utility.vtn, utility.directory) as stock:
        utility.wait_for(STOCK)
        found = sheds(utility, stock, POLL_S)
        persisted_s = [persisted(utility.notes(), event_id) for event_id in found.ids]
    return [
        figure("openadr.pull", found.last_s, 1000 * (POLL_S + LATE_S), found.stock_s),
        figure("openadr.persisted", persisted_s, 20),
    ]


def persisted(notes: Sequence[dict[str, Any]], event_id: str) -> float:
    """Return how long it took from the answer to a poll that first listed an event until its bound was persisted."""
    answered_s = next(one["answered_s"] for one in notes if event_id in one.get("events", ()))
    return float(next(one["persisted_s"] for one in notes if one.get("event") == event_id) - answered_s)


def vtn_killed() -> list[Figure]:
    """Measure when a VTN that is killed is known to be gone, and when events flow again from one without memory.

    It is known when status and engine.log say that it does not answer. The alarm, Heartbeat Timeout, comes when it has
    not for three intervals, which is less than three after the end, by what the last answer was older.
    """
    known_s: list[float] = []
    alarm_s: list[float] = []
    again_s: list[float] = []
    draw = random.Random(5)  # noqa: S311 - no secret
    with registered(POLL_S) as utility, stock_client(utility.vtn, utility.directory) as stock:
        utility.wait_for(STOCK)
        stock_takes_s(utility, stock)  # it is well before
        for _ in range(KILLS):
            # One that ends again before it has answered for as long as three intervals is one silence, and one alarm.
            until(lambda: utility.log().count(BACK) == utility.log().count(HEARTBEAT), BACK)
            time.sleep(1 + draw.random())
            timeouts = utility.log().count(HEARTBEAT)
            utility.vtn.kill()
            killed_s = time.monotonic()
            known_s.append(until(lambda: trouble(utility), "status says that the VTN is gone") - killed_s)
            alarmed = until(lambda timeouts=timeouts: utility.log().count(HEARTBEAT) > timeouts, HEARTBEAT)  # type: ignore[misc]
            alarm_s.append(alarmed - killed_s)
            time.sleep(5 * draw.random())
            utility.vtn.start()
            began_s = time.monotonic()
            sent = utility.shed()
            utility.vtn.do("shed", ven_id=utility.ven_ids[STOCK])
            lowered = utility.depot.wait_until_lowered(set(range(COUNT)), began_s, START_S)
            again_s.append(max(lowered.values()) - began_s)
            time.sleep(POLL_S)  # its answer is on the way
            utility.obeyed(sent["event"])
        handled = len([*stock.handled(NEVER_S)])
    goal_s, flow_goal_s = 3.0 * POLL_S, 2.0 * POLL_S + 10
    stock_words = f"; stock: {handled} of {KILLS}, {NEVER_S:g} s waited"
    return [
        worst("openadr.vtn_killed.known", known_s, goal_s),
        worst("openadr.vtn_killed.alarm", alarm_s, goal_s),
        worst("openadr.vtn_killed.again", again_s, flow_goal_s, stock_words),
    ]


def worst(name: str, times_s: Sequence[float], goal_s: float, more: str = "") -> Figure:
    """Return a figure of the worst of a few times."""
    value_s = max(times_s)
    words = f"median {statistics.median(times_s):.2f}, worst of {len(times_s)}{more}"
    return Figure(name, value_s, "s", None, None, f"≤ {goal_s:g} s", value_s <= goal_s, words)


def until(what: Callable[[], object], name: str, longest_s: float = START_S, look_every_s: float = 0.02) -> float:
    """Return when something, which has a name, is the case.

    :raises SystemExit: it does not become so
    """
    until_s = time.monotonic() + longest_s
    while not what():
        if time.monotonic() > until_s:
            sys.exit(f"openadr: {name}: not within {longest_s:g} s")
        time.sleep(look_every_s)
    return time.monotonic()


def trouble(utility: Utility) -> str | None:
    """Return what the gateway says is wrong."""
    with utility.gateway.client() as client:
        found: str | None = client.ask("status")["trouble"]
        return found


@dataclass(slots=True)
class Taken:
    """What the gateway's process held at one moment: memory in MiB, threads, open files."""

    rss_mib: float
    threads: int
    files: int


def taken(gateway: Service) -> Taken:
    """Look at the gateway's process."""
    assert gateway.process is not None
    proc = Path(f"/proc/{gateway.process.pid}")
    return Taken(gateway.rss_mib(), len([*(proc / "task").iterdir()]), len([*(proc / "fd").iterdir()]))


def polls_72h() -> list[Figure]:
    """Measure what grows over as many polls as there are in 72 hours, each asked for as soon as the last is answered.

    `event.sync` is what asks for them: the process is as in service.

    :raises SystemExit: polls are not made
    """
    looks: list[Taken] = []
    every = max(1, POLLS // 200)
    with registered(IDLE_POLL_S, signed=True) as utility, utility.gateway.client() as client:
        notes = utility.directory / "notes"
        began_s = time.monotonic()
        while (left := POLLS - (polls := utility.vtn.do("polls"))) > 0:
            for number in range(left):
                before = notes.stat().st_size
                client.ask("event.sync")
                until(lambda before=before: notes.stat().st_size > before, "a poll", LONGEST_S, 0.0005)  # type: ignore[misc]
                if number % every == 0:
                    looks.append(taken(utility.gateway))
        took_s = time.monotonic() - began_s
        tasks = [one["tasks"] for one in utility.notes() if "tasks" in one]
    warm = math.ceil(len(looks) * WARM_UP_SHARE)
    base = statistics.median(one.rss_mib for one in looks[warm : 2 * warm])
    off = max((one.rss_mib - base for one in looks[warm:]), key=abs)
    percent = 100 * off / base
    first, last = tasks[len(tasks) // 10 : len(tasks) // 5], tasks[-len(tasks) // 10 :]
    more = max(last) - max(first)
    words = f"{base:.1f} MiB; {polls} signed polls, {1000 * took_s / POLLS:.1f} ms each"
    last_look = looks[-1]
    others = f"{max(last)} tasks; {last_look.threads} threads, {last_look.files} files, before {looks[warm].files}"
    leaked = more + last_look.files - looks[warm].files + last_look.threads - looks[warm].threads
    return [
        Figure("openadr.polls_72h.memory", percent, "%", None, None, "within ± 5 %", abs(percent) <= 5, words),
        Figure("openadr.polls_72h.leaked", leaked, "", None, None, "0", leaked <= 0, others),
    ]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("openadr.push",): push,
    ("openadr.pull", "openadr.persisted"): pull,
    ("openadr.vtn_killed.known", "openadr.vtn_killed.alarm", "openadr.vtn_killed.again"): vtn_killed,
    ("openadr.polls_72h.memory", "openadr.polls_72h.leaked"): polls_72h,
}
