# SPDX-License-Identifier: Apache-2.0
"""The loop: what waits for what, with devices that answer when a test lets them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from agent.tests.orchestrator.conftest import VACANT

from derms_agent.control.guard import Purpose, Write
from derms_agent.control.ledger import Amount
from derms_agent.document_store import Store
from derms_agent.model import Proof, ProofKind, Rank, Setpoint
from derms_agent.orchestrator import engine, planning
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Controller, Told
from derms_agent.orchestrator.engine import Engine
from derms_agent.orchestrator.store import JOURNAL, LEDGER
from derms_agent.profiles.profile import Profile

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import Play

pytestmark = pytest.mark.anyio

LONG_S = 10.0
"""Longer than anything here takes on a busy machine, and so stands for what must not be waited for."""
SOON_S = 3.0
SHORT_S = 0.2
HALF_W = 30_000.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Field:
    """All devices of a depot: what they were told, in which order, and whether they answer."""

    answers: anyio.Event = field(default_factory=anyio.Event)
    told: list[Setpoint] = field(default_factory=list)
    within_s: list[float] = field(default_factory=list)
    begun: Callable[[], None] = lambda: None

    def last(self) -> dict[str, float]:
        """Return what each was told last, in W."""
        return {one.evse: one.p_w for one in self.told}

    def clear(self) -> None:
        self.told.clear()
        self.within_s.clear()
        self.answers = anyio.Event()


@dataclass
class Charger:
    """Stands for a driver; `silent`: it never answers."""

    profile: Profile
    field: Field
    silent: bool = False

    def begin(self, setpoint: Setpoint, within_s: float) -> Setpoint:
        self.field.begun()
        self.field.told.append(setpoint)
        self.field.within_s.append(within_s)
        return setpoint

    async def finish(self, begun: Setpoint) -> Proof:
        if self.silent:
            await anyio.sleep_forever()
        await self.field.answers.wait()
        return Proof(evse=begun.evse, kind=ProofKind.ACKNOWLEDGED, asked=begun.p_w, in_force=begun.p_w)

    def renew(self, evse: str, valid_for_s: float) -> None:
        """Take note of nothing."""


@dataclass
class Bench:
    """An engine at work on a depot that charges."""

    engine: Engine
    field: Field
    chargers: dict[str, Any]

    def shed(self) -> None:
        ask = Ask(id="half", source="test", rank=Rank.GRID, high_w=HALF_W)
        self.engine.controller.put(ask)
        self.engine.wake()

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        with anyio.fail_after(within_s):
            while not holds():
                await anyio.sleep(0.002)


@asynccontextmanager
async def at_work(play: Play, directory: Path) -> AsyncIterator[Bench]:
    """Let the engine work until its first cycle is over and all that it wrote is proven."""
    began_s = time.monotonic()
    devices = Field()
    chargers: dict[str, Any] = {
        name: Charger(play.site.profiles[name], devices) for name, device in play.site.devices.items() if device.evses
    }
    works = Engine(
        controller=play.controller,
        devices=chargers,
        buses={},
        store=Store(directory),
        boot_id="boot",
        began_s=play.now_s,
        clock=lambda: play.now_s + time.monotonic() - began_s,
    )
    devices.answers.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(works._work, tasks)
        await works.first_cycle.wait()
        await anyio.sleep(2 * engine.CALMEST_S)
        devices.clear()
        yield Bench(works, devices, chargers)
        tasks.cancel_scope.cancel()


async def test_each_cycle_is_told_of_the_walls_clock(charging: Play, tmp_path: Path) -> None:
    async with at_work(charging, tmp_path) as bench:
        wall = charging.controller.memory().wall
        assert wall is not None
        assert wall.ahead_s == pytest.approx(time.time() - bench.engine.clock(), abs=1.0)


@pytest.mark.parametrize(("disk_s", "most_s"), [(0.5, engine.SHED_S - 0.5), (engine.SHED_S, None)])
async def test_the_time_that_the_disk_takes_is_part_of_a_writes_own(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_s: float, most_s: float | None
) -> None:
    """The ledger counts on a write to be executed in time from its issue, or never."""
    monkeypatch.setattr(engine, "DISK_S", LONG_S)
    async with at_work(charging, tmp_path) as bench:
        append = Store.append
        appended: list[str] = []

        def slowly(store: Store, name: str, record: Any) -> None:
            time.sleep(disk_s)
            append(store, name, record)
            appended.append(name)

        monkeypatch.setattr(Store, "append", slowly)
        bench.shed()
        await bench.until(lambda: bool(appended), LONG_S)
        await anyio.sleep(SHORT_S)
        monkeypatch.undo()
        if most_s is None:
            assert not bench.field.told
        else:
            assert 0 < bench.field.within_s[0] <= most_s


async def test_a_disk_that_takes_nothing_keeps_raises_back_and_no_decrease(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    caplog.set_level(logging.INFO)
    async with at_work(charging, tmp_path) as bench:
        bench.field.answers.set()
        append, save = Store.append, Store.save
        monkeypatch.setattr(Store, "append", full)
        monkeypatch.setattr(Store, "save", full)
        bench.shed()
        await bench.until(lambda: {one.evse for one in bench.field.told} == set(charging.most_a), LONG_S)
        assert bench.engine.unkept

        async def never(*_: object) -> None:
            await anyio.sleep_forever()

        monkeypatch.setattr(Engine, "_due", never)  # no cycle is beside what follows
        await anyio.sleep(1.5 * engine.PERIOD_S)
        name = next(iter(charging.most_a))
        proved: list[tuple[str, int, ProofKind]] = []
        monkeypatch.setattr(
            Controller, "proved", lambda _, evse, write, proof, _at_s: proved.append((evse, write, proof.kind))
        )
        wanted = [Write(901, name, Amount(16.0), Purpose.RAISE), Write(902, name, Amount(6.0), Purpose.REFRESH)]

        async def let_out() -> int:
            bench.field.told.clear()
            async with anyio.create_task_group() as tasks:
                await bench.engine._let_out(tasks, wanted, bench.engine.clock())
            return len(bench.field.told)

        assert await let_out() == 1, "a successor would not know of a raise"
        assert (name, 901, ProofKind.UNSENT) in proved
        proved.clear()
        monkeypatch.setattr(Store, "append", append)
        monkeypatch.setattr(Store, "save", save)
        assert await let_out() == 2
        assert (name, 901, ProofKind.ACKNOWLEDGED) in proved
        assert not bench.engine.unkept
    assert caplog.text.count("The ledger cannot be kept") == 1
    assert "The ledger is kept again" in caplog.text


async def test_a_disk_that_stalls_delays_no_decrease_and_keeps_raises_back(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had begun to store ends before anything else is stored."""
    goes_on = threading.Event()
    append, save = Store.append, Store.save
    saved: list[bool] = []

    def stalls(store: Store, name: str, record: Any) -> int:
        goes_on.wait(LONG_S)
        return append(store, name, record)

    def saves(store: Store, name: str, document: Any) -> None:
        saved.append(goes_on.is_set())
        save(store, name, document)

    async with at_work(charging, tmp_path) as bench:
        monkeypatch.setattr(Store, "append", stalls)
        monkeypatch.setattr(Store, "save", saves)
        bench.shed()
        await bench.until(lambda: {one.evse for one in bench.field.told} == set(charging.most_a), LONG_S)
        assert not goes_on.is_set()
        assert 0 < bench.field.within_s[0] <= engine.SHED_S - engine.DISK_S
        assert "did not answer" in bench.engine.unkept
        await anyio.sleep(1.5 * engine.PERIOD_S)
        assert bench.engine.unkept
        goes_on.set()
        await bench.until(lambda: not bench.engine.unkept, LONG_S)
        assert saved
        assert all(saved)


async def test_a_disk_that_stalls_amid_a_refresh_delays_the_next_decrease_by_no_more(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(charging, tmp_path) as bench:
        monkeypatch.setattr(Store, "append", lambda *_: time.sleep(4 * engine.DISK_S))
        refresh = Write(901, next(iter(charging.most_a)), Amount(6.0), Purpose.REFRESH)
        began_s = time.monotonic()
        async with anyio.create_task_group() as tasks:
            await bench.engine._let_out(tasks, [refresh], bench.engine.clock())
            assert time.monotonic() - began_s < 3 * engine.DISK_S


async def test_the_last_ledger_is_stored_behind_what_is_being_stored(charging: Play, tmp_path: Path) -> None:
    """On a slow disk there is something nearly always, and a cancelled cycle leaves it to end by itself."""
    async with at_work(charging, tmp_path) as bench:
        works = bench.engine
    works.devices = {}
    works._disk.acquire()
    threading.Timer(3 * SHORT_S, works._disk.release).start()
    stored = tmp_path / LEDGER
    stored.unlink(missing_ok=True)
    with anyio.move_on_after(SHORT_S):
        await works.run()
    assert stored.exists()
    assert not works.unkept


async def test_a_change_is_seen_to_at_once(charging: Play, tmp_path: Path) -> None:
    """Not in the next second: the reading says that a vehicle has come, say, or that a frequency has left its band."""
    async with at_work(charging, tmp_path) as bench:
        name, reading = next((name, one) for name, one in charging.last.items() if name in bench.chargers)
        gone = {**reading.values, **VACANT[charging.site.devices[name].profile]}
        before = bench.engine.cycles
        while bench.engine.cycles == before:  # right after one that came by the clock
            await anyio.sleep(0.002)
        before, began_s = bench.engine.cycles, bench.engine.clock()
        bench.engine._published(name)(
            replace(reading, values=gone, read_at_s=began_s, asked_at_s=began_s, answered_at_s=began_s)
        )
        await bench.until(lambda: bench.engine.cycles > before, LONG_S)
        assert bench.engine.clock() - began_s < 0.7 * engine.PERIOD_S


async def test_decreases_are_on_disk_and_leave_one_right_after_the_other(charging: Play, tmp_path: Path) -> None:
    turns = 0
    seen: list[tuple[int, bool]] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with at_work(charging, tmp_path) as bench, anyio.create_task_group() as tasks:
        stored = len(bench.engine.store.records(JOURNAL))
        bench.field.begun = lambda: seen.append((turns, len(bench.engine.store.records(JOURNAL)) > stored))
        tasks.start_soon(others)
        bench.shed()
        await bench.until(lambda: bool(seen), SOON_S)
        tasks.cancel_scope.cancel()
        evses = {setpoint.evse for setpoint in bench.field.told}
        assert evses == set(charging.most_a), "each that charges is lowered"
        assert len({turn for turn, _ in seen}) == 1, "nobody else had a turn between the first and the last"
        assert all(on_disk for _, on_disk in seen)


async def test_whoever_asked_is_answered_before_decreases_are_worked_out(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    async with at_work(charging, tmp_path) as bench:
        monkeypatch.setattr(Controller, "shed", lambda *_: order.append("worked out"))
        bench.shed()
        await anyio.lowlevel.checkpoint()  # as sending an answer does
        order.append("answered")
        await bench.until(lambda: len(order) > 1, SOON_S)
    assert order == ["answered", "worked out"]


async def test_no_cycle_begins_while_whoever_asked_is_answered(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HOLD_S", 2 * engine.PERIOD_S)
    async with at_work(charging, tmp_path) as bench:
        bench.field.answers.set()
        cycles = bench.engine.cycles
        with bench.engine.asked():
            bench.engine.controller.put(Ask(id="half", source="test", rank=Rank.GRID, high_w=HALF_W))
            await anyio.sleep(1.2 * engine.PERIOD_S)  # as long as a slow disk may take
            assert bench.engine.cycles == cycles
        await bench.until(lambda: bool(bench.field.told), SOON_S)


async def test_a_disk_that_never_answers_puts_a_cycle_off_for_a_moment_only(charging: Play, tmp_path: Path) -> None:
    async with at_work(charging, tmp_path) as bench:
        cycles = bench.engine.cycles

        async def ask_for_ever() -> None:
            with bench.engine.asked():
                await anyio.sleep_forever()

        async def ask_again_and_again() -> None:
            while True:
                tasks.start_soon(ask_for_ever)
                await anyio.sleep(engine.HOLD_S / 2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_again_and_again)
            await bench.until(lambda: bench.engine.cycles > cycles, SOON_S)
            tasks.cancel_scope.cancel()


async def test_the_next_cycle_waits_for_decreases_and_no_longer(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HOLD_S", LONG_S)
    async with at_work(charging, tmp_path) as bench:
        cycles = bench.engine.cycles
        bench.shed()
        await bench.until(lambda: bool(bench.field.told), SOON_S)
        bench.engine._changed = True  # as a reading does
        bench.engine._wake.set()
        await anyio.sleep(1.2 * engine.PERIOD_S)
        assert bench.engine.cycles == cycles, "it takes no time while decreases are under way"
        bench.field.answers.set()
        await bench.until(lambda: bench.engine.cycles > cycles, SOON_S)


async def test_a_device_that_does_not_answer_holds_the_next_cycle_back_for_a_moment(
    charging: Play, tmp_path: Path
) -> None:
    async with at_work(charging, tmp_path) as bench:
        next(iter(bench.chargers.values())).silent = True
        cycles = bench.engine.cycles
        bench.field.answers.set()
        bench.shed()
        began_s = time.monotonic()
        await bench.until(lambda: bench.engine.cycles > cycles, engine.SHED_S - SHORT_S)
        assert time.monotonic() - began_s >= engine.HOLD_S


async def test_a_limit_that_follows_another_is_not_held_back(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HOLD_S", LONG_S)
    async with at_work(charging, tmp_path) as bench:
        bench.shed()
        await bench.until(lambda: bool(bench.field.told), SOON_S)
        first = len(bench.field.told)
        ask = Ask(id="quarter", source="test", rank=Rank.GRID, high_w=HALF_W / 2)
        bench.engine.controller.put(ask)
        bench.engine.wake()
        await bench.until(lambda: len(bench.field.told) > first, SOON_S)


async def test_a_limit_does_not_wait_for_the_calm_that_a_change_waits_for(
    charging: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(charging, tmp_path) as bench:
        bench.field.answers.set()
        monkeypatch.setattr(engine, "CALMEST_S", LONG_S)
        monkeypatch.setattr(engine, "PERIOD_S", LONG_S)
        cycles = bench.engine.cycles
        await bench.until(lambda: bench.engine.cycles > cycles, SOON_S)  # the next is due in a long time
        bench.engine._changed = True  # as a reading does
        bench.engine._wake.set()
        await anyio.sleep(SHORT_S)
        bench.field.told.clear()
        bench.shed()
        await bench.until(lambda: bool(bench.field.told), SOON_S)


async def test_what_may_wait_lets_decreases_go_first_and_waits_no_longer(charging: Play, tmp_path: Path) -> None:
    async with at_work(charging, tmp_path) as bench:
        began_s = time.monotonic()
        await bench.engine.decreases_gone()
        assert time.monotonic() - began_s < SHORT_S, "none was asked for"
        bench.shed()
        await bench.engine.decreases_gone()
        assert bench.field.told, "asked for, and not yet worked out"
        bench.field.clear()
        began_s = time.monotonic()
        with anyio.fail_after(SOON_S):
            await bench.engine.decreases_gone()  # no device has answered
        assert time.monotonic() - began_s <= engine.HOLD_S


def _raises(_question: object) -> None:
    raise MemoryError("no plan fits")


def _is_killed(_question: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("planner", "failure"), [(_raises, MemoryError), (_is_killed, anyio.BrokenWorkerProcess)])
async def test_a_planner_that_fails_ends_no_control_and_leaves_the_last_plan(
    charging: Play,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    planner: Callable[[object], None],
    failure: type[Exception],
) -> None:
    told = Told(departure_at_s=charging.now_s + 3600.0, energy_need_wh=5_000.0)
    charging.controller.tell("charger-001", told)
    async with at_work(charging, tmp_path) as bench:
        asked = planning.question(charging.controller, charging.controller.needs(), charging.now_s)
        assert asked.needs
        await bench.engine._plan_once(asked)
        before = charging.controller.plan
        assert before is not None
        with monkeypatch.context() as patched:
            patched.setattr(planning, "answer", planner)
            await bench.engine._plan_once(asked)
            await bench.engine._plan_once(asked)
        assert charging.controller.plan is before
        said = [one for one in caplog.records if "No plan could be made" in one.getMessage()]
        assert [one.exc_info[0] for one in said if one.exc_info] == [failure]
        await bench.engine._plan_once(asked)
        assert charging.controller.plan is not before
