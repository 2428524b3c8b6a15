# SPDX-License-Identifier: Apache-2.0
"""The LEDs, on a directory that looks like sysfs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from derms_agent.model import OperatingState
from derms_agent.orchestrator.led import DARK, Leds, Light, Pattern, pattern
from derms_agent.settings import AgentConf

TRIGGERS = "none kbd-scrolllock timer heartbeat default-on"
FLASHING_RED, STEADY_RED = pattern(OperatingState.NO_GRID_SYNC), pattern(OperatingState.FAULT)


class Sysfs:
    """An LED's directory. As in the kernel, `trigger` lists all triggers with the one that is set in brackets."""

    def __init__(self, path: Path, triggers: str | None = TRIGGERS) -> None:
        self.path, self.triggers = path, triggers
        self.make()

    def make(self) -> None:
        self.path.mkdir()
        for name, content in {"brightness": "0", "max_brightness": "255", "delay_on": "", "delay_off": ""}.items():
            (self.path / name).write_text(f"{content}\n", encoding="ascii")
        if self.triggers is not None:
            (self.path / "trigger").write_text(self.triggers.replace("default-on", "[default-on]"), encoding="ascii")

    def remove(self) -> None:
        for file in self.path.iterdir():
            file.unlink()
        self.path.rmdir()

    def settle(self) -> None:
        """Do with what was written to `trigger` what the kernel does."""
        if self.triggers is None or not (self.path / "trigger").exists():
            return
        now = self.read("trigger")
        if now in self.triggers.split():
            bracketed = " ".join(f"[{one}]" if one == now else one for one in self.triggers.split())
            (self.path / "trigger").write_text(bracketed, encoding="ascii")

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="ascii").strip()

    def light(self) -> Light:
        """Tell what a person would see."""
        if "[timer]" in self.read("trigger"):
            assert int(self.read("delay_on")) > 0
            assert int(self.read("delay_off")) > 0
            return Light.FLASHING
        assert "[none]" in self.read("trigger")
        return Light.STEADY if self.read("brightness") == "255" else Light.OFF

    def stamps(self) -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in self.path.iterdir()}


@pytest.fixture
def red(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "red")


def red_only(red: Sysfs) -> Leds:
    return Leds(AgentConf(gateway="g", led_red=red.path))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (OperatingState.FAULT, Pattern(red=Light.STEADY)),
        (OperatingState.NO_GRID_SYNC, Pattern(red=Light.FLASHING)),
        (OperatingState.FALLBACK, Pattern(amber=Light.FLASHING)),
        (OperatingState.RESOURCE_CONSTRAINTS, Pattern(amber=Light.STEADY)),
        (OperatingState.SHEDDING, Pattern(green=Light.STEADY)),
        (OperatingState.LIMITED, Pattern(green=Light.STEADY)),
        (OperatingState.NORMAL, Pattern(green=Light.STEADY)),
    ],
)
def test_a_state_has_its_pattern(state: OperatingState, expected: Pattern) -> None:
    assert pattern(state) == expected


def test_every_change_of_state_is_seen(tmp_path: Path) -> None:
    leds = {colour: Sysfs(tmp_path / colour) for colour in ("red", "amber", "green")}
    paths = {f"led_{colour}": led.path for colour, led in leds.items()}
    shown = Leds(AgentConf(gateway="g", **paths))  # type: ignore[arg-type] # mypy takes the values for every field's
    for before in OperatingState:
        for after in OperatingState:
            for state in (before, after):
                shown.show(pattern(state), 0.0)
                for led in leds.values():
                    led.settle()
            assert Pattern(**{colour: led.light() for colour, led in leds.items()}) == pattern(after)
    shown.show(DARK, 0.0)
    for led in leds.values():
        led.settle()
        assert led.light() is Light.OFF


def test_nothing_is_written_while_nothing_changes(red: Sysfs) -> None:
    leds = red_only(red)
    for wanted in (FLASHING_RED, STEADY_RED):
        leds.show(wanted, 0.0)
        red.settle()
        for name in red.stamps():
            os.utime(red.path / name, ns=(0, 0))
        for second in range(1, 5):
            leds.show(wanted, float(second))
        assert set(red.stamps().values()) == {0}


def test_an_led_without_triggers_flashes_by_the_clock(tmp_path: Path) -> None:
    led = Sysfs(tmp_path / "red", triggers=None)
    leds = red_only(led)
    seen = []
    for second in range(4):
        leds.show(FLASHING_RED, second + 0.3)
        seen.append(led.read("brightness"))
    assert seen == ["255", "0", "255", "0"]
    leds.show(STEADY_RED, 5.0)
    assert led.read("brightness") == "255"
    assert not (led.path / "trigger").exists()


def test_an_led_whose_kernel_has_no_timer_flashes_by_the_clock(tmp_path: Path) -> None:
    led = Sysfs(tmp_path / "red", triggers="none heartbeat")
    leds = red_only(led)
    seen = []
    for second in range(3):
        leds.show(FLASHING_RED, float(second))
        led.settle()
        seen.append(led.light())
    assert seen == [Light.STEADY, Light.OFF, Light.STEADY]


def test_an_led_that_is_gone_is_logged_once_and_taken_up_when_it_is_back(
    red: Sysfs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    amber = Sysfs(tmp_path / "amber")
    leds = Leds(AgentConf(gateway="g", led_red=red.path, led_amber=amber.path))
    leds.show(STEADY_RED, 0.0)
    red.settle()
    red.remove()
    with caplog.at_level(logging.WARNING):
        for second in range(1, 4):
            leds.show(STEADY_RED, float(second))
            amber.settle()
        leds.show(pattern(OperatingState.FALLBACK), 4.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"LED {red.path}: No such file or directory; the depot is controlled without it"
    ]
    assert not red.path.exists()
    amber.settle()
    assert amber.light() is Light.FLASHING
    red.make()
    leds.show(STEADY_RED, 5.0)
    red.settle()
    assert red.light() is Light.STEADY
    red.remove()
    with caplog.at_level(logging.WARNING):
        leds.show(FLASHING_RED, 6.0)
    assert len(caplog.records) == 2


def test_an_led_that_refuses_stops_nothing(red: Sysfs, caplog: pytest.LogCaptureFixture) -> None:
    (red.path / "brightness").unlink()
    (red.path / "brightness").mkdir()
    leds = red_only(red)
    for second in range(3):
        leds.show(STEADY_RED, float(second))
    assert [record.getMessage() for record in caplog.records] == [
        f"LED {red.path}: Is a directory; the depot is controlled without it"
    ]


def test_a_timer_whose_pace_cannot_be_set_is_not_begun_anew(red: Sysfs, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel makes the two files for root alone; here they refuse even that."""
    for name in ("delay_on", "delay_off"):
        (red.path / name).unlink()
        (red.path / name).mkdir()
    leds = red_only(red)
    with caplog.at_level(logging.INFO):
        for wanted in (FLASHING_RED, STEADY_RED, FLASHING_RED):
            leds.show(wanted, 0.0)
            red.settle()
            os.utime(red.path / "trigger", ns=(0, 0))
            for second in range(1, 5):
                leds.show(wanted, float(second))
            assert red.stamps()["trigger"] == 0
    assert "[timer]" in red.read("trigger")
    assert [record.getMessage() for record in caplog.records] == [
        f"LED {red.path}: Is a directory; it flashes at the kernel's own pace"
    ]


def test_no_led_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    Leds(AgentConf(gateway="g")).show(STEADY_RED, 0.0)
    assert not caplog.records
