# SPDX-License-Identifier: Apache-2.0
"""What people and programs are shown: the report, and the screens that are made from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from derms_agent import cli, status
from derms_agent.control.cycle import Outcome
from derms_agent.model import Rank
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Told
from derms_agent.orchestrator.report import Alarms, Running, explanation, report, troubles
from derms_agent.socket_client import NoService
from derms_agent.socket_protocol import ProtocolError

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

UNIX_S = 1_795_000_000.0
RUNNING = Running(cycles=7, median_ms=1.5, p99_ms=4.0, last_ms=1.0, buses={"yard": None, "grid": "lost"}, unix_s=UNIX_S)


def reported(one: Play, outcome: Outcome, alarms: Alarms | None = None) -> dict[str, Any]:
    found = report(one.controller, outcome, alarms or Alarms(), RUNNING, one.now_s)
    # As it travels: no NaN, nothing but JSON.
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def test_before_anything_answered_the_report_is_whole(play: MakePlay) -> None:
    one = play()
    found = reported(one, one.cycle())
    assert [evse["name"] for evse in found["evses"]] == [evse.name for evse in one.site.evses]
    assert all(evse["silent_s"] is None and evse["measured_a"] is None for evse in found["evses"])
    assert [evse["counted_a"] for evse in found["evses"]] == [evse.rating_a for evse in one.site.evses]
    assert found["site"]["power_w"] is None
    assert found["site"]["base_by"] == "base load of main: configured worst case"
    assert all(line == line.rstrip() for line in status.screen(found))


def test_the_report_of_a_depot_at_work(charging: Play) -> None:
    one = charging
    one.controller.put(Ask(id="less", source="root: less", rank=Rank.GRID, high_w=80_000.0, end_s=one.now_s + 90))
    one.controller.tell("charger-001", Told(departure_at_s=one.now_s + 600, energy_need_wh=5000.0))
    one.controller.tell("charger-001", Told(soc_percent=41.0, soc_read_at_s=one.now_s))
    one.silent = {"fast-1"}
    one.step(12)
    outcome = one.step()
    alarms = Alarms()
    began, ended = alarms.hold(troubles(one.controller, outcome, one.now_s), one.now_s)
    found = reported(one, outcome, alarms)
    assert {alarm.about for alarm in began} >= {"fast-1/1", "fast-1/2"}
    assert ended == []
    assert [evse["name"] for evse in found["evses"]] == [evse.name for evse in one.site.evses]
    assert found["evses"][0]["soc_percent"] == 41.0
    assert [circuit["name"] for circuit in found["circuits"]] == ["main", "yard", "front", "fast"]
    assert found["state"] == "fault"
    assert "fast-1/1" in found["reason"]
    by_name = {evse["name"]: evse for evse in found["evses"]}
    first = by_name["charger-001"]
    assert first["vehicle"] is True
    assert first["departure_in_s"] == pytest.approx(587, abs=2)
    assert first["need_wh"] == 5000.0
    assert first["setpoint_a"] == pytest.approx(one.limit_a["charger-001"], abs=0.01)
    assert by_name["fast-1/1"]["power_w"] is None
    assert by_name["fast-1/1"]["counted_a"] == 110.0
    assert by_name["fast-1/1"]["silent_s"] > 10
    assert found["asks"][0]["name"] == "less"
    assert found["asks"][0]["in_force"] is True
    assert found["buses"] == [{"name": "yard", "problem": None}, {"name": "grid", "problem": "lost"}]
    assert found["cycle"] == {"count": 7, "median_ms": 1.5, "p99_ms": 4.0, "last_ms": 1.0}

    one.silent = set()
    one.step(10)
    began, ended = alarms.hold(troubles(one.controller, one.step(), one.now_s), one.now_s)
    assert {alarm.about for alarm in ended} >= {"fast-1/1", "fast-1/2"}


def test_whether_the_power_of_the_site_comes_from_a_meter_does_not_change_when_that_is_stale(play: MakePlay) -> None:
    one = play()
    assert reported(one, one.cycle())["site"]["metered"] is True
    one.step(3)
    one.silent = {"grid"}
    site = reported(one, one.step(20))["site"]
    assert (site["power_w"], site["metered"]) == (None, True)


def test_a_meter_that_shows_currents_alone_is_none_of_power(play: MakePlay) -> None:
    one = play()
    one.silent = {"grid"}
    one.step(3)
    one.take("grid", {f"current_l{line}": 20.0 for line in (1, 2, 3)}, one.now_s)
    site = reported(one, one.step())["site"]
    assert (site["power_w"], site["metered"]) == (None, False)


def test_the_state_says_what_holds_the_depot(charging: Play, play: MakePlay) -> None:
    idle = play()
    idle.step(30)
    assert reported(idle, idle.step())["state"] == "normal"
    outcome = charging.step()
    found = reported(charging, outcome)
    assert found["state"] == "limited"
    assert "site limit 160 kVA" in found["reason"]
    charging.controller.put(Ask(id="e", source="grid event 7", rank=Rank.GRID, high_w=80_000.0))
    found = reported(charging, charging.step())
    assert found["state"] == "shedding"
    assert "grid event 7" in found["reason"]
    assert found["site"]["limit_by"].startswith("grid event 7")


@pytest.mark.parametrize("high_w", [130_000.0, 80_000.0, 20_000.0, 0.0])
def test_a_limit_that_was_put_holds_the_depot_while_its_decreases_settle(charging: Play, high_w: float) -> None:
    charging.controller.put(Ask(id="l", source="root: less", rank=Rank.OPERATOR, high_w=high_w))
    for _ in range(60):
        found = reported(charging, charging.step())
        assert (found["state"], "root: less" in found["reason"]) == ("limited", True)


def test_what_has_to_be_counted_still_holds_the_depot_though_less_is_told(charging: Play) -> None:
    """Told to come down to 20 kW, and at once allowed 80 again: what was drawn before leaves no room to rise yet."""
    charging.controller.put(Ask(id="l", source="root: less", rank=Rank.OPERATOR, high_w=20_000.0))
    charging.step(2)
    charging.controller.put(Ask(id="l", source="root: more", rank=Rank.OPERATOR, high_w=80_000.0))
    for _ in range(3):
        outcome = charging.step()
        assert charging.told_w() < 60_000
        found = reported(charging, outcome)
        assert (found["state"], "root: more" in found["reason"]) == ("limited", True)


def test_an_explanation_names_the_limits_by_rank_and_what_the_ledger_counts(charging: Play) -> None:
    charging.controller.put(Ask(id="e", source="event", rank=Rank.GRID, high_w=80_000.0, end_s=charging.now_s + 50))
    outcome = charging.step()
    ranks = [rank.name.lower() for rank in Rank]
    for evse in charging.site.evses:
        found = json.loads(
            json.dumps(explanation(charging.controller, outcome, evse.name, charging.now_s), allow_nan=False)
        )
        order = [ranks.index(limit["rank"]) for limit in found["limits"]]
        assert order == sorted(order)
        assert any(limit["source"] == "event" and limit["ends_in_s"] > 0 for limit in found["limits"])
        assert found["claims"]
        lines = status.explained(found)
        assert lines[0].startswith(f"{evse.name}: told {found['setpoint_a']:.1f} A")
        assert any("grid" in line and "event" in line and " W" in line for line in lines)
        assert any("setpoint" in line for line in lines[lines.index("what the ledger counts, and why:") :])
    with pytest.raises(KeyError):
        explanation(charging.controller, outcome, "charger-999", charging.now_s)


def test_the_screen_shows_site_asks_circuits_evses_and_alarms(charging: Play) -> None:
    one = charging
    one.controller.put(Ask(id="l", source="root: l", rank=Rank.OPERATOR, high_w=80_000.0, low_w=0.0, target="yard"))
    later = Ask(id="m", source="root: m", rank=Rank.PRICE, high_w=1.0, start_s=one.now_s + 99, end_unix_s=UNIX_S)
    one.controller.put(later)
    found = reported(one, one.step())
    found["alarms"] = [{"about": "charger-001", "words": "x" * 300, "for_s": 61.4}]
    lines = status.screen(found)
    text = "\n".join(lines)
    assert lines[0].startswith("demo · gateway-1 · ")
    assert lines[1].startswith(found["state"].upper())
    assert f"{found['site']['evse_power_w'] / 1000:.1f} kW of " in text
    assert "limit     yard at most 80 kW and at least 0 kW: root: l (operator)" in text
    assert "to come   site at most 0.001 kW until " in text
    assert all(sum(line.startswith(evse.name) for line in lines) == 1 for evse in one.site.evses)
    assert sum(line.startswith("yard") for line in lines) == 3
    assert any(line.startswith("! charger-001 (61 s):") for line in lines)
    assert max(len(line) for line in lines if "xxx" in line) <= 118
    assert sum(line.count("x") for line in lines if "xxx" in line) == 300
    assert "no alarms" not in text
    assert lines[-1].startswith("cycle 7: 1.5 ms median, 4.0 ms p99")
    assert "no alarms" in status.screen({**found, "alarms": []})


def test_each_charger_that_draws_more_is_an_alarm_that_says_all_of_what_to_check(charging: Play) -> None:
    one, frozen = charging, {"charger-001": 16.0, "charger-021": 12.0}
    one.frozen_a |= frozen
    one.controller.put(Ask(id="l", source="root: l", rank=Rank.OPERATOR, high_w=0.0))
    one.step(20)
    outcome, alarms = one.step(), Alarms()
    alarms.hold(troubles(one.controller, outcome, one.now_s), one.now_s)
    found = reported(one, outcome, alarms)
    assert {alarm["about"] for alarm in found["alarms"]} >= set(frozen)
    text = " ".join(line.strip() for line in status.screen(found))
    for name, drawn_a in frozen.items():
        said = text.split(f"! {name} (")[1].split(" ! ")[0].split(" cycle 7")[0]
        assert f"draws more than its limit: {drawn_a:.1f} A, allowed 0.0 A. Check the duty cycle" in said
        assert "53 % means 32 A" in said
        assert "its contactor: welded?" in said
        assert "the bridge between agent and charger" in said


def test_one_that_nothing_is_measured_of_is_an_alarm_though_it_answers(charging: Play) -> None:
    charging.blind = {"charger-001"}
    charging.step(30)
    outcome = charging.step()
    found = {(about, kind): words for about, kind, words in troubles(charging.controller, outcome, charging.now_s)}
    assert found.keys() == {("charger-001", "unproven")}
    assert found["charger-001", "unproven"].startswith("nothing shows whether it follows its limit. Check its meter")


@pytest.mark.parametrize(("silent_s", "word"), [(None, "silent"), (9.0, "silent"), (1.0, "charging")])
def test_who_does_not_answer_is_shown_as_silent(charging: Play, silent_s: float | None, word: str) -> None:
    found = reported(charging, charging.step())
    found["evses"] = [{**found["evses"][0], "silent_s": silent_s, "state": "charging"}]
    row = next(line for line in status.screen(found) if line.startswith("charger-001"))
    assert row.split()[1] == word


@pytest.mark.parametrize(
    ("measured_a", "shown"), [([-20.0, 0.0, 0.0], "-20.0 A"), ([0.0, 16.0, -1.0], "16.0 A"), ([0.0] * 3, "0.0 A")]
)
def test_what_is_drawn_or_given_back_on_one_phase_is_shown_with_its_sign(
    charging: Play, measured_a: list[float], shown: str
) -> None:
    found = reported(charging, charging.step())
    found["evses"] = [{**found["evses"][0], "state": "charging", "measured_a": measured_a}]
    row = next(line for line in status.screen(found) if line.startswith("charger-001"))
    assert " ".join(row.split()[2:4]) == shown


# The verbs' exit status


class Answers:
    """A client whose service answers, refuses, or is not there."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def __call__(self, _path: Path) -> Any:
        if isinstance(self.result, NoService):
            raise self.result
        yield self

    def ask(self, verb: str, **arguments: Any) -> object:
        self.asked.append((verb, arguments))
        if isinstance(self.result, ProtocolError):
            raise self.result
        return self.result


Answer = Callable[[object], Answers]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    def play_it(result: object) -> Answers:
        answers = Answers(result)
        monkeypatch.setattr(status, "Client", answers)
        return answers

    return play_it


PUT = {"name": "l", "can_honour": False, "reachable_w": 9000.0, "within_s": 12.0, "why": "1 EVSEs take no orders"}


@pytest.mark.parametrize("verb", [["status"], ["explain", "a"], ["limit", "put", "l", "5"], ["limit", "list"]])
def test_nothing_answers_is_3_and_a_refusal_is_1(
    verb: list[str], answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(NoService("/run/x: is it running?"))
    assert cli.main(verb) == 3
    answer(ProtocolError("argument", "evse: found 'a'"))
    assert cli.main(verb) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "/run/x: is it running?\nevse: found 'a'\n"


def test_an_answer_is_0_and_json_is_for_programs(
    charging: Play, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = charging.step()
    found = reported(charging, outcome)
    answer(found)
    assert cli.main(["status", "--json"]) == 0
    # No grid gateway runs here, and none is missed.
    assert json.loads(capsys.readouterr().out) == {**found, "grid": None}
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == status.screen(found)


def test_a_limit_is_put_in_w_and_says_what_can_be_honoured(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answer(PUT)
    assert cli.main(["limit", "put", "l", "5.5", "--rank", "grid", "--target", "yard", "--for", "60"]) == 0
    expected: Mapping[str, object] = {
        "name": "l",
        "rank": "grid",
        "target": "yard",
        "high_w": 5500.0,
        "duration_s": 60.0,
    }
    assert answers.asked == [("limit.put", expected)]
    said = capsys.readouterr().out
    assert "CANNOT be honoured in full" in said
    assert "9.0 kW within 12 s (1 EVSEs take no orders)" in said


def test_what_is_not_said_of_a_session_is_not_sent(answer: Answer) -> None:
    answers = answer({"evse": "a"})
    assert cli.main(["session", "a", "--need-kwh", "12"]) == 0
    assert answers.asked == [("session.put", {"evse": "a", "energy_need_wh": 12_000.0})]


@pytest.mark.parametrize("number", ["nan", "inf", "lots"])
def test_what_is_no_number_is_not_sent(number: str, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answer(PUT)
    with pytest.raises(SystemExit) as ended:
        cli.main(["limit", "put", "l", number])
    assert ended.value.code == 2
    assert answers.asked == []
    assert number in capsys.readouterr().err
