# SPDX-License-Identifier: GPL-3.0-or-later
"""`make rehearse`: what must hold before anything is raised, and what its report says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from derms_agent import depot as depots
from derms_agent.model import Depot, Phase
from derms_agent.profiles import load
from derms_agent.twin import day

from tests.hosts.settings import Settings, settings_from
from tools import rehearse

DEPOT = """\
plugin: derms.edge.depot
depot: small
region: north
site: {limit_kva: 40}
network: {management_blocks: [192.0.2.0/24], internal_blocks: [10.0.0.0/24]}
gateways: {gateway-1: {address: 192.0.2.11}}
circuits: {main: {voltage_v: 400, rating_a: 63}}
buses:
  box: {gateway: gateway-1, transport: tcp, host: 10.0.0.11}
  line: {gateway: gateway-1, transport: serial, path: /dev/derms/line, baud_rate: 19200}
devices:
  charger-1: {bus: box, unit_id: 255, profile: keba_p30, circuit: main, evses: {rating_a: 16}}
meters:
  grid: {bus: line, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}
"""
# What an inventory may say of how a gateway is reached, in all of Ansible's spellings.
ELSEWHERE = {
    "ansible_host": "192.0.2.66",
    "ansible_ssh_host": "192.0.2.67",
    "ansible_user": "root",
    "ansible_port": 2222,
    "ansible_ssh_common_args": "-o ProxyJump=bastion.example.net",
    "ansible_ssh_args": "-o ProxyCommand=false",
    "ansible_ssh_extra_args": "-o ProxyJump=other.example.net",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_from({"DERMS_HOSTS_DIR": str(tmp_path / "hosts")})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "small.yml"
    path.parent.mkdir()
    path.write_text(DEPOT, encoding="utf-8")
    return path


def pinned(depot: Depot, file: Path, settings: Settings, work: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the copy of a depot's inventory, and the options that pin it."""
    inventory = work / "inventory"
    rehearse.copy_inventory(file, inventory)
    path = work / "pins.json"
    path.write_text(json.dumps(rehearse.pins(settings, depot, {"gateway-1": ["192.0.2.0/24"]}, work)), encoding="utf-8")
    return inventory, ("-e", f"@{path}")


def test_ssh_leads_to_the_test_host_whatever_the_inventory_says(file: Path, settings: Settings, tmp_path: Path) -> None:
    for place in ("group_vars/all", "group_vars/depot_small", "host_vars/gateway-1"):
        path = file.parent / f"{place}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(ELSEWHERE), encoding="utf-8")
    depot = depots.load(file)
    inventory, options = pinned(depot, file, settings, tmp_path)
    rehearse.require_pinned(inventory, options, rehearse.hosts_of(depot), settings)


def test_another_way_than_ssh_is_refused(file: Path, settings: Settings, tmp_path: Path) -> None:
    (file.parent / "group_vars").mkdir()
    (file.parent / "group_vars" / "all.yml").write_text("ansible_connection: local\n", encoding="utf-8")
    depot = depots.load(file)
    with pytest.raises(rehearse.CannotRehearse, match="by ssh to rehearse-1 for gateway-1"):
        rehearse.require_pinned(*pinned(depot, file, settings, tmp_path), rehearse.hosts_of(depot), settings)


def test_pins_cover_every_way_to_say_where_ssh_leads(file: Path, settings: Settings, tmp_path: Path) -> None:
    found = rehearse.pins(settings, depots.load(file), {"gateway-1": ["192.0.2.0/24"]}, tmp_path)
    assert found.keys() >= ELSEWHERE.keys()
    assert found["rehearsal_management_blocks"]["gateway-1"] == ["192.0.2.0/24", "10.213.8.0/24", "fd42:213:8::/64"]


def test_devices_that_nobody_plays_are_left_out_where_the_run_would_ask_them(file: Path) -> None:
    assert rehearse.left_out(depots.load(file)) == {}  # a meter, for which nothing is declared
    second = "  charger-2: {bus: line, unit_id: 2, profile: heidelberg_energy_control, circuit: main,"
    second += " settings: {failsafe_current: 6}, evses: {rating_a: 16}}\nmeters:"
    file.write_text(DEPOT.replace("meters:", second), encoding="utf-8")
    assert rehearse.left_out(depots.load(file)) == {"derms_only": "charger-1"}


def test_devices_within_the_test_hosts_own_network_are_refused(file: Path, settings: Settings) -> None:
    rehearse.require_isolation(depots.load(file), settings)
    file.write_text(DEPOT.replace("host: 10.0.0.11", "host: 10.213.8.77"), encoding="utf-8")
    with pytest.raises(rehearse.CannotRehearse, match=r"10\.213\.8\.0/24.*DERMS_HOSTS_NET"):
        rehearse.require_isolation(depots.load(file), settings)


def test_hosts_are_taken_down_also_where_they_did_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def run(*command: str | Path) -> str:
        verb = str(command[4])
        called.append(verb)
        if verb == "up":
            raise rehearse.CannotRehearse("no room")
        return ""

    monkeypatch.setattr(rehearse, "run", run)
    with pytest.raises(rehearse.CannotRehearse, match="no room"), rehearse.raised({"g": "rehearse-1"}, "ubuntu2204"):
        pytest.fail("nothing is there")
    assert called == ["setup", "up", "down"]


def test_without_root_nothing_starts_and_it_says_what_would_help(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rehearse.main([str(file)]) == 3
    assert "sudo" in capsys.readouterr().err


def test_a_mistake_in_the_depot_file_is_told_as_ever(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(DEPOT.replace("keba_p30", "keba_p31"), encoding="utf-8")
    assert rehearse.main([str(file), "--only", "day"]) == 3
    assert "keba_p31" in capsys.readouterr().err


def test_a_depot_that_control_cannot_share_out_is_told_in_words() -> None:
    def play() -> day.Course:
        raise ValueError("found the trees of circuits hall, yard for gateway gateway-1")

    with ThreadPool(1) as pool, pytest.raises(rehearse.CannotRehearse, match="hall, yard"):
        rehearse.course_of(pool.apply_async(play))


def test_one_rehearsal_at_a_time(settings: Settings) -> None:
    with (
        rehearse.only_one(settings),
        pytest.raises(rehearse.CannotRehearse, match="another rehearsal"),
        rehearse.only_one(settings),
    ):
        pytest.fail("both run")


@pytest.mark.parametrize(("hours", "begins", "ends"), [(24, 0, 24), (2, 18, 20), (12, 12, 24)])
def test_a_part_of_the_day_holds_the_shed(hours: float, begins: float, ends: float) -> None:
    assert rehearse.span(hours) == (begins * day.HOUR_S, ends * day.HOUR_S)
    assert begins * day.HOUR_S < day.Shed().at_s < ends * day.HOUR_S - day.Shed().for_s


@pytest.mark.parametrize("hours", [0.5, 25.0])
def test_a_part_that_cannot_hold_it_is_refused(hours: float) -> None:
    with pytest.raises(rehearse.CannotRehearse, match="expected"):
        rehearse.span(hours)


HELD = day.Course(
    begins_s=0,
    ends_s=day.DAY_S,
    rows=(
        day.Row(name="main", line=Phase.L1, rating=63, highest=60.2, at_s=68_400),
        day.Row(name="site", line=None, rating=40_000, highest=40_400, over_s=3, at_s=68_460),
    ),
    sheds=(
        day.ShedCourse(
            gateway="gateway-1",
            before_w=30_000,
            target_w=15_000,
            reachable_w=4000,
            after_w=14_900,
            reached_s=7,
            over_s=0,
        ),
    ),
    visits=(day.Visit(evse="charger-1", arrived_s=0, left_s=3600, energy_wh=9000, possible_wh=9100),),
    energy_wh=9000,
    writes=10,
    proven=10,
)
NONE = rehearse.Writes()


def recaps(*statuses: str, writes: rehearse.Writes = NONE) -> list[rehearse.Recap]:
    row = {"what": "failsafe_current", "is": "0 A", "should_be": "6 A", "role": "derms.edge.field_devices"}
    rows = [
        {**row, "device": "small charger-1"},
        {**row, "what": "package chrony", "role": "r.time_sync", "device": ""},
    ]
    titles = ("dry", "apply", "again")
    return [
        rehearse.Recap(title, status, {"hosts": {"gateway-1": rows}, "not_verified": ["no agent yet"]}, writes)
        for title, status in zip(titles, statuses, strict=True)
    ]


def test_the_report_tells_what_would_change_and_whether_limits_held(file: Path) -> None:
    text = rehearse.report(depots.load(file), recaps("not_verified", "changed", "in_sync"), HELD)
    assert "**Passed.**" in text
    assert "- gateway-1: field_devices 1, time_sync 1" in text
    assert "| small charger-1 | failsafe_current | 0 A | 6 A |" in text
    assert "Not rehearsed over the wire, for they are serial adapters: line." in text
    assert "- Not verified: no agent yet" in text
    assert "- gateway-1: 30.0 kW before, 14.9 kW at its end; asked for 15.0 kW, 4.0 kW at the least" in text
    assert "there after 7 s, above it again for 0 s" in text
    assert "| main L1 | 63 A | 60.2 A | 19:00 | 0 s | yes |" in text
    assert "| site | 40 kVA | 40.4 kVA | 19:01 | 3 s | yes |" in text
    assert "energy delivered: 9.0 kWh in 1 sessions" in text
    assert "1 of 1" in text


@pytest.mark.parametrize("statuses", [("drift", "failed", "in_sync"), ("drift", "changed", "drift")])
def test_a_run_that_did_not_end_in_sync_has_failed(file: Path, statuses: tuple[str, ...]) -> None:
    assert not rehearse.passed(recaps(*statuses), HELD)
    assert "**Failed.**" in rehearse.report(depots.load(file), recaps(*statuses), HELD)


def test_a_dry_run_that_wrote_has_failed() -> None:
    assert rehearse.passed(recaps("drift", "changed", "in_sync"), None)
    assert not rehearse.passed(recaps("drift", "changed", "in_sync", writes=rehearse.Writes(other=1)), None)


def test_control_may_write_while_a_dry_run_asks() -> None:
    dry, apply, again = recaps("drift", "changed", "in_sync")
    assert rehearse.passed([dry, apply, replace(again, writes=rehearse.Writes(control=40))], None)
    assert not rehearse.passed([replace(dry, writes=rehearse.Writes(control=1)), apply, again], None)


def test_writes_of_control_are_told_from_those_of_settings() -> None:
    class Recorded:
        pages: ClassVar = [
            write(5004, 16000),  # the limit
            write(5016, 6000),  # the fallback: a setting
            write(5014, 1),  # the switch
            write(5004, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6000),  # across both
            {**write(5004, 6000), "unit": 7},  # nobody's
        ]

        def send(self, command: dict[str, int]) -> dict[str, Any]:
            page = self.pages[command["writes"] :][:2]
            return {"writes": page, "next": command["writes"] + len(page)}

    profiles = {("bus-1", 255): load("keba_p30")}
    field: Any = Recorded()
    devices = rehearse.Devices([field, field], profiles)
    assert devices.next_writes() == [5, 5]
    assert devices.written([0, 5]) == rehearse.Writes(control=2, other=3)
    assert devices.written([2, 4]) == rehearse.Writes(control=1, other=3)


def write(address: int, *words: int) -> dict[str, Any]:
    return {"bus": "bus-1", "unit": 255, "table": "holding", "address": address, "words": list(words)}


def test_a_limit_or_a_shed_that_did_not_hold_has_failed() -> None:
    over = replace(HELD, rows=(replace(HELD.rows[0], over_s=day.FOLLOWED_S + 1),))
    unheard = replace(HELD, sheds=(replace(HELD.sheds[0], reached_s=None),))
    assert rehearse.passed([], HELD)
    assert not rehearse.passed([], over)
    assert not rehearse.passed([], unheard)
    assert "never there" in "\n".join(rehearse.day_lines(unheard))
