# SPDX-License-Identifier: Apache-2.0
"""The gateway's LEDs: what the depot is doing, for whoever stands before the cabinet.

| red | amber | green | the depot |
| --- | --- | --- | --- |
| steady | | | fault |
| flashing | | | no grid sync |
| | steady | | resource constraints: no more can be taken or given without harm |
| | flashing | | fallback: the control's inputs are gone |
| | | steady | normal, limited or shedding |

Linux's LED class is what is written to (Documentation/ABI/testing/sysfs-class-led and sysfs-class-led-trigger-timer).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from derms_agent.model import OperatingState
from derms_agent.settings import AgentConf

FLASH_MS = 500
"""How long a flashing LED is on, and off, where the kernel's timer does it."""

logger = logging.getLogger(__name__)


class Light(str, Enum):
    """What one LED does."""

    OFF = "off"
    STEADY = "steady"
    FLASHING = "flashing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What each LED does."""

    red: Light = Light.OFF
    amber: Light = Light.OFF
    green: Light = Light.OFF


DARK = Pattern()
_GREEN = Pattern(green=Light.STEADY)
_PATTERNS: Mapping[OperatingState, Pattern] = {
    OperatingState.FAULT: Pattern(red=Light.STEADY),
    OperatingState.NO_GRID_SYNC: Pattern(red=Light.FLASHING),
    OperatingState.FALLBACK: Pattern(amber=Light.FLASHING),
    OperatingState.RESOURCE_CONSTRAINTS: Pattern(amber=Light.STEADY),
    OperatingState.SHEDDING: _GREEN,
    OperatingState.LIMITED: _GREEN,
    OperatingState.NORMAL: _GREEN,
}


def pattern(state: OperatingState) -> Pattern:
    """Return what the LEDs do in a state."""
    return _PATTERNS[state]


class Led:
    """One LED below /sys/class/leds. It is written to only when it is to do something else.

    One that is gone, or refuses, is logged once, tried again at every call, and stops nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: tuple[str, ...] | None = None
        self._gone = False
        self._own_pace = False

    def show(self, light: Light, now_s: float) -> None:
        """Let the LED do what it is to do now.

        :param now_s: the monotonic clock. An LED without the kernel's timer flashes by it: a second on, a second off,
            if this is called every second
        """
        try:
            self._show(light, now_s)
        except OSError as error:
            self._written = None
            if not self._gone:
                logger.warning("LED %s: %s; the depot is controlled without it", self.path, error.strerror or error)
            self._gone = True
        else:
            self._gone = False

    def _show(self, light: Light, now_s: float) -> None:
        self.path.stat()  # one that is gone is noticed while nothing is written, too
        triggers = self._triggers()
        if light is Light.FLASHING and "timer" in triggers:
            wanted: tuple[str, ...] = ("timer",)
        else:
            on = light is Light.STEADY or (light is Light.FLASHING and int(now_s) % 2 == 0)
            wanted = ("none", "on" if on else "off")
        if wanted == self._written:
            return
        if wanted == ("timer",):
            self._write("trigger", "timer")
            self._set_pace()
        else:
            # The trigger first, for it would go on switching the LED.
            if triggers:
                self._write("trigger", "none")
            self._write("brightness", self._read("max_brightness", "1") if wanted[1] == "on" else "0")
        self._written = wanted

    def _set_pace(self) -> None:
        """Say how fast the timer flashes. The kernel makes these two files with the trigger, and for root alone.

        Where they cannot be written it flashes as the kernel does by itself, at the same pace, where the hardware has
        none of its own. The trigger is not set again for that: each time the flashing would begin anew, with a light
        that is on.
        """
        try:
            self._write("delay_on", str(FLASH_MS))
            self._write("delay_off", str(FLASH_MS))
        except OSError as error:
            if not self._own_pace:
                logger.info("LED %s: %s; it flashes at the kernel's own pace", self.path, error.strerror or error)
            self._own_pace = True

    def _triggers(self) -> tuple[str, ...]:
        """Return what may switch the LED on its own; the one in brackets does so now."""
        return tuple(self._read("trigger", "").translate({ord("["): None, ord("]"): None}).split())

    def _read(self, name: str, otherwise: str) -> str:
        try:
            return (self.path / name).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return otherwise

    def _write(self, name: str, value: str) -> None:
        # Without O_CREAT: a file that is not there means an LED that is not there.
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


class Leds:
    """The gateway's LEDs, by colour; those that agent.conf does not name are left out."""

    def __init__(self, conf: AgentConf) -> None:
        paths = {"red": conf.led_red, "amber": conf.led_amber, "green": conf.led_green}
        self._leds = {colour: Led(path) for colour, path in paths.items() if path is not None}

    def show(self, shown: Pattern, now_s: float) -> None:
        """Let each LED do what the pattern says; to be called every second. It raises nothing that an LED raises.

        :param now_s: the monotonic clock
        """
        for colour, led in self._leds.items():
            led.show(getattr(shown, colour), now_s)
