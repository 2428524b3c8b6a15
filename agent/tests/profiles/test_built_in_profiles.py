# SPDX-License-Identifier: Apache-2.0
"""What holds for every built-in profile, and the traps that each has to carry as its own."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import derms_agent
from derms_agent.model import DeviceKind
from derms_agent.profiles import load, load_all, names
from derms_agent.profiles.point import OutOfRange, Point, Table
from derms_agent.profiles.profile import AfterBoot, Protocol, Refresh, Zero

NAMES = (
    "abb_terra_ac",
    "alfen_ng9",
    "alpitronic_hyc",
    "heidelberg_energy_control",
    "keba_p30",
    "mennekes_compact",
    "phoenix_charx",
    "sunspec_der",
    "sunspec_meter",
)


def test_the_nine_are_there_and_loaded_once() -> None:
    assert names() == NAMES
    assert tuple(load_all()) == NAMES
    assert load("keba_p30") is load("keba_p30")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"found profile keba_p31.*\(keba_p30\?\)"):
        load("keba_p31")


@pytest.mark.parametrize("name", NAMES)
def test_each_names_its_source_and_what_bites(name: str) -> None:
    profile = load(name)
    assert len(profile.source) > 40
    assert profile.traps
    assert profile.poll
    assert all(point.table is not Table.COIL for point in profile.points.values())


@pytest.mark.parametrize("name", [name for name in NAMES if load(name).kind is DeviceKind.CHARGER])
def test_each_charger_polls_its_state_power_the_limit_in_force_and_whether_a_vehicle_is_there(name: str) -> None:
    profile = load(name)
    assert profile.control is not None
    assert profile.occupancy is not None
    assert {"state", "active_power", profile.control.point, profile.occupancy.point} <= set(profile.poll)


@pytest.mark.parametrize("name", NAMES)
def test_each_readable_number_survives_any_words(name: str) -> None:
    for point in load(name).points.values():
        for word in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
            for read in (point, point.readback):
                if isinstance(read, Point) and read.readable:
                    value = read.decode((word,) * read.length)
                    assert value is None or isinstance(value, int | float | str)


def definition(model: int) -> dict[str, Any]:
    text = resources.files("sunspec2").joinpath(f"models/json/model_{model}.json").read_text(encoding="utf-8")
    group: dict[str, Any] = json.loads(text)["group"]
    return {point["name"]: point for point in group["points"]}


@pytest.mark.parametrize("name", [name for name in NAMES if load(name).protocol is Protocol.SUNSPEC])
def test_sunspec_points_are_in_the_alliances_definitions_and_as_writable_as_there(name: str) -> None:
    units = {"degC": "C", "percent": "Pct", "s": "Secs"}
    for point in load(name).sunspec_points.values():
        for model in (point.model, *point.alternatives):
            found = definition(model)[point.point]
            assert point.writable == (found.get("access") == "RW"), point.name
            unit = found.get("units")
            if point.unit and unit and not unit.startswith("%"):
                assert units.get(point.unit, point.unit).lower() == unit.lower(), point.name


def test_generation_is_negative_where_the_model_says_it_is_positive() -> None:
    assert "positive for DER generation" in definition(701)["W"]["desc"]
    der = load("sunspec_der").sunspec_points
    assert der["active_power"].sign == der["power_setpoint"].sign == der["failsafe_power"].sign == -1
    assert load("sunspec_meter").sunspec_points["active_power"].sign == 1


def test_keba_is_fed_by_writes_one_register_at_a_time_and_forgets_its_limit() -> None:
    keba = load("keba_p30")
    assert keba.fallback is not None
    assert keba.fallback.refreshed_by is Refresh.WRITE
    assert keba.fallback.after_boot is AfterBoot.RATING
    assert (keba.wire.max_read, keba.wire.max_write, keba.wire.write_function) == (2, 1, 6)
    assert keba.control is not None
    assert keba.control.switch is not None
    with pytest.raises(OutOfRange):
        keba.points["current_limit"].encode(0)
    for wrong in (9, 601):
        with pytest.raises(OutOfRange, match="10 to 600 or 0 s"):
            keba.points["failsafe_timeout"].encode(wrong)


def test_alfen_takes_whole_writes_and_two_clients_and_hangs_up_after_a_minute() -> None:
    wire = load("alfen_ng9").wire
    assert (wire.whole_writes, wire.max_connections, wire.idle_close_s) == (True, 2, 60)


def test_abb_never_writes_what_locks_out_or_blocks_the_bus() -> None:
    assert set(load("abb_terra_ac").never_write) == {0x4103, 0x4105}


def test_mennekes_beats_twice_within_its_time_and_pauses_by_its_switch() -> None:
    mennekes = load("mennekes_compact")
    assert mennekes.fallback is not None
    beat = mennekes.fallback.heartbeat
    assert beat is not None
    assert (beat.value, mennekes.fallback.fixed_timeout_s) == (0x55AA, 10)
    assert beat.every_s * 2 <= 10
    assert mennekes.points[beat.point].address == 0x0D00
    with pytest.raises(OutOfRange):  # 0 A is no limit at all
        mennekes.points["current_limit"].encode(0)
    with pytest.raises(OutOfRange):  # 0 turns the fallback off
        mennekes.points["failsafe_current"].encode(0)


def test_alpitronic_ends_its_session_at_zero_and_charx_is_counted_in_full() -> None:
    hyc, charx = load("alpitronic_hyc"), load("phoenix_charx")
    assert hyc.control is not None
    assert hyc.control.zero is Zero.ENDS_SESSION
    assert hyc.control.minimum > 1547
    known = {"failsafe_current": 6, "failsafe_timeout": 30}
    assert hyc.unattended_a(known, 125, 400, 3) == 125
    assert charx.unattended_a(known, 32, 400, 3) == 32
    assert charx.unattended_a({}, 32, 400, 3) == 32


def test_they_are_found_from_any_directory(tmp_path: Path) -> None:
    script = "from derms_agent import profiles; print(len(profiles.load_all()))"
    environment = {**os.environ, "PYTHONPATH": str(Path(derms_agent.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(len(NAMES))
