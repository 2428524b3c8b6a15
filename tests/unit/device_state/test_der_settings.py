# SPDX-License-Identifier: GPL-3.0-or-later
"""der_settings against the twin's IEEE 1547 device, over Modbus on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.module_utils import device_state
from ansible_collections.derms.edge.plugins.modules import der_settings
from derms_agent.device_state.run import depot_of
from derms_agent.twin import Fault, FaultKind, Twin

CURVE = {"volt_var": {"enabled": True, "points": [[93, 44], [98, 0], [102, 0], [107, -44]]}}
STARTS_WITHIN_S = 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def document(*, inverters: int = 2) -> dict[str, Any]:
    names = [f"icu-{number}" for number in range(1, inverters + 1)]
    return {
        "plugin": "derms.edge.depot",
        "depot": "riverside",
        "site": {"limit_kva": 200},
        "gateways": {"gateway-1": {"address": "192.0.2.1"}, "gateway-2": {"address": "192.0.2.2"}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 400, "base_load_a": 10, "allocator": "gateway-1"}},
        "buses": {
            name: {"gateway": "gateway-1", "transport": "tcp", "host": "127.0.0.1", "port": free_port()}
            for name in [*names, "wallbox"]
        },
        "devices": {
            **{name: {"bus": name, "unit_id": 1, "profile": "sunspec_der", "circuit": "main"} for name in names},
            "wallbox": {
                "bus": "wallbox",
                "unit_id": 1,
                "profile": "heidelberg_energy_control",
                "circuit": "main",
                "settings": {"failsafe_current": 6, "failsafe_timeout": 30},
                "evses": {"rating_a": 16},
            },
        },
    }


class Played:
    """A twin that runs in a thread of its own, so that the module may block."""

    def __init__(self) -> None:
        self.document = document()
        self.twin = Twin(depot_of(self.document))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Played:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.twin.serve(), self._loop).result(STARTS_WITHIN_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.twin.close(), self._loop).result(STARTS_WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fault(self, on: str, kind: FaultKind) -> None:
        self._loop.call_soon_threadsafe(self.twin.fault, on, Fault(kind=kind))


@pytest.fixture(scope="module")
def served() -> Iterator[Played]:
    with Played() as played:
        yield played


@pytest.fixture
def played(served: Played) -> Played:
    served.twin.writes.clear()
    return served


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*devices: tuple[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "depot": played.document,
            "gateway": "gateway-1",
            "devices": [{"name": name, "profile": profile} for name, profile in devices],
            "socket": str(tmp_path / "none.sock"),
            "state_directory": str(tmp_path),
            "_ansible_check_mode": check,
            **options,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            der_settings.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def test_checked_applied_checked_again_and_applied_again(run: Run, played: Played) -> None:
    foreseen = run(("icu-1", CURVE), ("icu-2", {}), check=True)
    assert not played.twin.writes
    done = run(("icu-1", CURVE), ("icu-2", {}))
    for result in (foreseen, done):
        assert result["changed"]
        first, second = result["devices"]
        assert (first["name"], first["status"], second["status"]) == ("icu-1", "changed", "ok")
        assert first["before"]["volt_var"]["points"] == [[92, 44], [98, 0], [102, 0], [108, -44]]
        assert first["after"] == {"volt_var": CURVE["volt_var"]}
        assert (first["ieee_1547_2018"], first["missing_models"], first["incapable"]) == (True, [], "")
        moved = next(entry for entry in result["drift"] if entry["what"] == "volt_var.points[1].V")
        assert moved["device"] == "riverside icu-1"
        assert moved["is"].startswith("92 percent of nominal voltage (holding ")
        assert moved["should_be"].endswith("= 930)")
        assert {entry["what"] for entry in result["drift"]} == {
            "volt_var.points[1].V",
            "volt_var.points[4].V",
            "volt_var.enabled",
        }
        (shown,) = result["diff"]
        assert shown["before_header"] == "icu-1"
        assert "volt_var.enabled: disabled (holding " in shown["before"]
        assert "volt_var.enabled: enabled (holding " in shown["after"]
    assert {write.bus for write in played.twin.writes} == {"icu-1"}
    played.twin.writes.clear()
    for check in (True, False):
        result = run(("icu-1", CURVE), ("icu-2", {}), check=check)
        assert (result["changed"], result["drift"], result["diff"]) == (False, [], [])
    assert not played.twin.writes


def declaring(played: Played, **devices: dict[str, Any]) -> dict[str, Any]:
    """Return the depot with something more declared of devices."""
    own = played.document["devices"]
    return {**played.document, "devices": {name: {**own[name], **devices.get(name, {})} for name in own}}


def test_what_the_depot_file_declares_is_held(run: Run, played: Played) -> None:
    wanted = {"volt_var": {"enabled": False, "points": [[91, 44], [98, 0], [102, 0], [109, -44]]}}
    depot = declaring(played, **{"icu-2": {"der_settings": wanted}})
    for check in (True, False):
        result = run(depot=depot, devices=None, check=check)
        assert [(one["name"], one["status"]) for one in result["devices"]] == [("icu-2", "changed")]
        assert {entry["device"] for entry in result["drift"]} == {"riverside icu-2"}
        assert bool(played.twin.writes) is not check
    again = run(depot=depot, devices=None)
    assert (again["changed"], again["drift"], [one["status"] for one in again["devices"]]) == (False, [], ["ok"])


def test_only_some_of_them(run: Run, played: Played) -> None:
    slower = {"der_settings": {"enter_service": {"delay_s": 61}}}
    depot = declaring(played, **{"icu-1": slower, "icu-2": slower})
    result = run(depot=depot, devices=None, only=["*-1"], check=True)
    assert ([one["name"] for one in result["devices"]], result["scope"]) == (["icu-1"], "devices *-1")
    assert run(depot=depot, devices=None, only=["wallbox"])["devices"] == []
    assert "only: found icu-9, expected a device" in run(depot=depot, devices=None, only=["icu-9"])["msg"]
    assert "gateway: found gateway-3, expected one of" in run(depot=depot, devices=None, gateway="gateway-3")["msg"]
    assert not played.twin.writes


def test_on_a_gateway_without_an_agent_those_that_are_declared_are_unknown(
    run: Run, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise device_state.NoAgent("the agent is not on this gateway yet")

    monkeypatch.setattr(der_settings, "ask", absent)
    depot = declaring(played, **{"icu-2": {"der_settings": CURVE}})
    checked = run(depot=depot, devices=None, check=True)
    assert (checked.get("failed", False), checked["changed"]) == (False, False)
    assert checked["not_verified"] == ["icu-2 unknown: the agent is not on this gateway yet"]
    assert run(depot=depot, devices=None)["failed"]


def test_limits_that_the_circuits_could_not_bear_are_refused(run: Run, played: Played) -> None:
    result = run(("icu-1", {"limits": {"charge_power_w": 8000}}), ("icu-2", {"enter_service": {"delay_s": 59}}))
    assert [one["status"] for one in result["devices"]] == ["refused", "changed"]
    assert "icu-1: limits: found icu-1 to draw 11.55 A from circuit main, expected at most 10 A, its" in result["msg"]
    assert {write.bus for write in played.twin.writes} == {"icu-2"}


def test_nothing_is_written_to_another_device_than_the_one_that_is_meant(run: Run, played: Played) -> None:
    for number, status in (("17041", "refused"), ("icu-1", "changed")):
        on = {"volt_watt": {"enabled": True}}
        depot = declaring(played, **{"icu-1": {"serial_number": number, "der_settings": on}})
        result = run(depot=depot, devices=None)
        assert [one["status"] for one in result["devices"]] == [status]
        assert bool(played.twin.writes) is (status == "changed")
        if status == "refused":
            assert "expected 17041: another device answers here" in result["msg"]


def test_a_profile_that_cannot_be_refuses_its_device_and_not_the_others(run: Run, played: Played) -> None:
    result = run(
        ("icu-1", {"volt_var": {"points": [[98, 0], [92, 44]]}}), ("icu-2", {"enter_service": {"delay_s": 60}})
    )
    assert result["failed"]
    assert result["msg"].startswith("1 of 2 devices: icu-1 refused: nothing was written: icu-1: volt_var.points: found")
    assert [device["status"] for device in result["devices"]] == ["refused", "changed"]
    assert {write.bus for write in played.twin.writes} == {"icu-2"}


def test_an_adoption_that_fails_fails_the_task_whatever_is_excused(run: Run, played: Played) -> None:
    played.fault("icu-2", FaultKind.ADOPTION_FAILED)
    result = run(("icu-2", CURVE), max_failures="100%")
    assert result["failed"]
    assert "icu-2 verify_failed: volt_var: the device says FAILED" in result["msg"]
    (device,) = result["devices"]
    assert (device["changed"], device["after"]["volt_var"]["enabled"]) == (False, False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("icu-9", "found icu-9, expected a device of gateway gateway-1: icu-1, icu-2, wallbox"),
        ("wallbox", "wallbox: found profile heidelberg_energy_control, expected one of a device that speaks SunSpec"),
    ],
)
def test_what_is_no_der_of_the_gateway(run: Run, name: str, says: str) -> None:
    result = run((name, CURVE))
    assert result["failed"]
    assert says in result["msg"]


def test_a_device_named_twice(run: Run) -> None:
    assert "found icu-1 twice, expected each device once" in run(("icu-1", CURVE), ("icu-1", {}))["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_an_agent_of_another_interface_is_unknown(
    run: Run, played: Played, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    monkeypatch.setattr(device_state, "INTERFACE", 99)
    result = run(("icu-1", CURVE), check=check)
    assert result.get("failed", False) is not check
    assert (result["changed"], result["devices"][0]["status"]) == (False, "unknown")
    assert not played.twin.writes


def test_the_documentations_profiles_are_taken() -> None:
    from derms_agent.grid_code import parse  # noqa: PLC0415 - what the module itself imports late

    for task in yaml.safe_load(der_settings.EXAMPLES):
        for device in task["derms.edge.der_settings"].get("devices", ()):
            parse(device["name"], device.get("profile") or {})
