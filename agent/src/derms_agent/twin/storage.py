# SPDX-License-Identifier: Apache-2.0
"""A storage inverter in SunSpec, as an inverter control unit speaks it: models 1, 701 to 714 and 802.

It obeys 703 (enter service), 704 (active and reactive power, maximum power, each with its time to revert) and 711
(frequency droop), and takes curves over as the models say. Volt-var, volt-watt, watt-var and trip curves are stored and
adopted, but do nothing: the twin's voltage does not move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from derms_agent.model import Device, Value
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile
from derms_agent.twin import curves, physics
from derms_agent.twin.faults import FaultKind
from derms_agent.twin.meter import decimals, fill, identify, power_sign
from derms_agent.twin.pdu import Code, Refusal
from derms_agent.twin.physics import Storage, StorageInputs, StorageState
from derms_agent.twin.sunspec import Image

_NOMINAL_HZ = 50.0
_PERCENT = 100.0
_DC_VOLTS = 800.0
_SCALES = {
    701: {"A_SF": -1, "V_SF": -1, "Hz_SF": -3, "PF_SF": -3, "TotWh_SF": 0, "TotVarh_SF": 0, "Tmp_SF": -1},
    702: {"PF_SF": -3, "V_SF": -1, "A_SF": -1, "S_SF": -1},
    703: {"V_SF": -1, "Hz_SF": -3},
    704: {
        "PF_SF": -3,
        "WMaxLimPct_SF": -1,
        "WSet_SF": 0,
        "WSetPct_SF": -1,
        "VarSet_SF": 0,
        "VarSetPct_SF": -1,
    },
    705: {"V_SF": -1, "DeptRef_SF": -1, "RspTms_SF": -1},
    706: {"V_SF": -1, "DeptRef_SF": -1, "RspTms_SF": -1},
    707: {"V_SF": -1, "Tms_SF": -2},
    708: {"V_SF": -1, "Tms_SF": -2},
    709: {"Hz_SF": -2, "Tms_SF": -2},
    710: {"Hz_SF": -2, "Tms_SF": -2},
    711: {"Db_SF": -3, "K_SF": -3, "RspTms_SF": -1},
    712: {"W_SF": -1, "DeptRef_SF": -1},
    713: {"Pct_SF": -1},
    714: {"DCA_SF": -1, "DCV_SF": -1, "DCWH_SF": 0, "Tmp_SF": -1},
    802: {
        "AHRtg_SF": 0,
        "SoC_SF": -1,
        "DoD_SF": -1,
        "SoH_SF": -1,
        "V_SF": -1,
        "A_SF": -1,
        "AMax_SF": -1,
        "DisChaRte_SF": -1,
        "CellV_SF": -3,
    },
}
_RATED_SCALES = {
    701: ("W_SF", "VA_SF", "Var_SF"),
    702: ("W_SF", "VA_SF", "Var_SF"),
    714: ("DCW_SF",),
    802: ("WChaDisChaMax_SF", "W_SF"),
}


@dataclass(frozen=True, slots=True)
class _Timer:
    """One of 704's settings that lapse: the names of its enabling point, its value and their reverting twins."""

    enable: str
    timeout: str
    remaining: str
    enable_after: str
    values: tuple[tuple[str, str], ...]


_TIMERS = (
    _Timer("WSetEna", "WSetRvrtTms", "WSetRvrtRem", "WSetEnaRvrt", (("WSet", "WSetRvrt"), ("WSetPct", "WSetPctRvrt"))),
    _Timer(
        "VarSetEna",
        "VarSetRvrtTms",
        "VarSetRvrtRem",
        "VarSetEnaRvrt",
        (("VarSet", "VarSetRvrt"), ("VarSetPct", "VarSetPctRvrt")),
    ),
    _Timer(
        "WMaxLimPctEna",
        "WMaxLimPctRvrtTms",
        "WMaxLimPctRvrtRem",
        "WMaxLimPctEnaRvrt",
        (("WMaxLimPct", "WMaxLimPctRvrt"),),
    ),
)


class StorageInverter:
    """A storage inverter behind its unit id; `state` is what its battery and inverter do.

    `settings` are what it holds at its start, by the profile's names; what was written since is lost with its power.
    `off`: it has no power, or starts. `sensor_lost` is a fault.
    """

    def __init__(
        self, device: Device, profile: Profile, settings: Mapping[str, Value], voltage_v: float, storage: Storage
    ) -> None:
        self.device = device
        self.storage = storage
        self.state = StorageState()
        self.off = False
        self.sensor_lost = False
        self.frequency_hz = _NOMINAL_HZ
        self._profile = profile
        self._settings = settings
        self._voltage_v = voltage_v
        self._sign = power_sign(profile, -1)
        self._held = False
        self._filled: object = None
        self._expires: dict[_Timer, float] = {}
        self._now_s = 0.0
        self.image = self._image()
        self._sets = curves.StoredSets(self.image)

    def _image(self) -> Image:
        """Return the registers as they are after a start."""
        models = self._profile.models
        image = Image(self._profile.base_addresses[0], models, curves.COUNTS | {"NPrt": 1})
        identify(image, self._profile, self.device)
        for model in models:
            for path, exponent in _SCALES.get(model, {}).items():
                image.set_raw(model, path, exponent)
            for path in _RATED_SCALES.get(model, ()):
                image.set_raw(model, path, max(decimals(2 * self.storage.rating_va), 0))
        for model, path, most in (
            (713, "WH_SF", self.storage.capacity_wh),
            (802, "WHRtg_SF", self.storage.capacity_wh),
        ):
            if image.has(model):
                image.set_raw(model, path, max(decimals(most), 0))
        self._fill_ratings(image)
        self._fill_controls(image)
        for name, value in self._settings.items():
            point = self._profile.sunspec_points[name]
            if isinstance(value, str):
                image.set_named(point.model, point.point, value)
            else:
                image.set(point.model, point.point, point.sign * float(value))
        return image

    def _fill_ratings(self, image: Image) -> None:
        power, volts = self.storage.rating_va, self._voltage_v
        ratings = dict.fromkeys(
            ("WMax", "VAMax", "WChaRteMax", "WDisChaRteMax", "VAChaRteMax", "VADisChaRteMax"), power
        )
        ratings |= dict.fromkeys(("VarMaxInj", "VarMaxAbs"), power)
        ratings |= {"VNom": volts, "VMax": 1.1 * volts, "VMin": 0.9 * volts, "AMax": power / volts / math.sqrt(3)}
        fill(image, 702, ratings)
        fill(image, 702, {f"{name}Rtg": value for name, value in ratings.items()})
        fill(image, 713, {"WHRtg": self.storage.capacity_wh, "SoH": _PERCENT, "Sta": 0})
        fill(image, 702, {"NorOpCatRtg": 1, "AbnOpCatRtg": 2})
        fill(
            image,
            802,
            {
                "AHRtg": self.storage.capacity_wh / _DC_VOLTS,
                "WHRtg": self.storage.capacity_wh,
                "WChaRteMax": power,
                "WDisChaRteMax": power,
                "SoCMax": _PERCENT,
                "SoCMin": 0,
                "SocRsvMax": _PERCENT,
                "SoCRsvMin": 0,
                "SoH": _PERCENT,
                "LocRemCtl": 0,
                "Typ": 4,
                "State": 3,
                "V": _DC_VOLTS,
                **dict.fromkeys(("Evt1", "Evt2", "EvtVnd1", "EvtVnd2", "AlmRst", "CtrlHb", "Hb"), 0),
            },
        )

    def _fill_controls(self, image: Image) -> None:
        fill(image, 703, {"ES": 1, "ESVHi": 105, "ESVLo": 91.7, "ESHzHi": 50.1, "ESHzLo": 49.5, "ESDlyTms": 300})
        fill(image, 703, {"ESRndTms": 0, "ESRmpTms": 0, "ESDlyRemTms": 0})
        for direction in ("PFWInj", "PFWAbs"):
            fill(image, 704, {f"{direction}.PF": 1.0, f"{direction}.Ext": 0})
        names = ("PFWInjEna", "PFWAbsEna", "WSetEna", "VarSetEna", "WMaxLimPctEna", "WSetPct", "VarSet", "VarSetPct")
        zeros = (
            *names,
            "WSet",
            "WSetRvrt",
            "WSetPctRvrt",
            "VarSetRvrt",
            "VarSetPctRvrt",
            "VarSetEnaRvrt",
        )
        fill(image, 704, dict.fromkeys((*zeros, "AntiIslEna"), 0) | {"WSetEnaRvrt": 1, "WMaxLimPctEnaRvrt": 1})
        fill(image, 704, {timer.timeout: 0 for timer in _TIMERS} | {timer.remaining: 0 for timer in _TIMERS})
        fill(
            image,
            704,
            {"WSetMod": 1, "VarSetMod": 4, "VarSetPri": 0, "WMaxLimPct": _PERCENT, "WMaxLimPctRvrt": _PERCENT},
        )

    def read(self, table: Table, address: int, count: int) -> list[int]:
        """Return registers. Raises `Refusal`."""
        if table is not Table.HOLDING:
            raise Refusal(Code.ILLEGAL_FUNCTION)
        fresh = (self.state, self.frequency_hz, self.sensor_lost)
        if not self._held and fresh != self._filled:
            self._fill_measured()
            self._filled = fresh
        for timer, expires_s in self._expires.items():
            self.image.set(704, timer.remaining, max(expires_s - self._now_s, 0.0))
        return self.image.read(address, count)

    def write(self, table: Table, address: int, values: Sequence[int], function: int, now_s: float) -> None:
        """Write registers. Raises `Refusal`, having written nothing."""
        del function
        if table is not Table.HOLDING:
            raise Refusal(Code.ILLEGAL_FUNCTION)
        for model, path in self.image.write(address, values):
            if path in curves.REQUESTS:
                self._sets.request(model, path, now_s)
            for timer in _TIMERS:
                if model == 704 and path in (timer.enable, timer.timeout, *(value for value, _ in timer.values)):  # noqa: PLR2004
                    self._start(timer, now_s)

    def requested(self, now_s: float) -> None:
        """Do nothing: its timers are reset by writes alone."""

    def boot(self, now_s: float) -> None:
        """Start anew, with the controls as they were delivered and what has been counted."""
        del now_s
        self._expires.clear()
        self.image = self._image()
        faults, self._sets = self._sets.faults, curves.StoredSets(self.image)
        self._sets.faults |= faults
        self._filled = None

    def adoption_fault(self, kind: FaultKind, *, present: bool) -> None:
        """Have, or no longer have, a fault of adopting curves."""
        if present:
            self._sets.faults.add(kind)
        else:
            self._sets.faults.discard(kind)

    def hold(self, held: bool) -> None:
        """Stop, or resume, bringing the registers up to date."""
        self._held = held

    def step(self, now_s: float, dt_s: float, ambient_c: float) -> None:
        """Move on by `dt_s`, to `now_s`."""
        self._now_s = now_s
        for timer in [timer for timer, expires_s in self._expires.items() if expires_s <= now_s]:
            self._revert(timer)
        self._sets.step(now_s)
        inputs = StorageInputs(self._wanted_w(), self._wanted_var(), ambient_c)
        self.state = physics.step_storage(self.storage, self.state, inputs, dt_s)

    def _start(self, timer: _Timer, now_s: float) -> None:
        """Start a reversion timer anew; without a time, or without the control, there is none."""
        seconds = self.image.get(704, timer.timeout)
        if seconds > 0 and self.image.raw(704, timer.enable):
            self._expires[timer] = now_s + seconds
        else:
            self._expires.pop(timer, None)
            self.image.set(704, timer.remaining, 0)

    def _revert(self, timer: _Timer) -> None:
        del self._expires[timer]
        self.image.set(704, timer.remaining, 0)
        self.image.set_raw(704, timer.enable, self.image.raw(704, timer.enable_after))
        for value, after in timer.values:
            self.image.set_raw(704, value, self.image.raw(704, after))

    def _wanted_w(self) -> float:
        """Return the power asked for, consumption positive: 704's, then 711's on top, then what 704 allows at most."""
        image, rating = self.image, self.storage.rating_va
        if self.off or (image.has(703) and image.raw(703, "ES") == 0):
            return 0.0
        wanted = 0.0
        if image.has(704) and image.raw(704, "WSetEna") == 1:
            watts = image.raw(704, "WSetMod") == 1
            value = image.get(704, "WSet") if watts else image.get(704, "WSetPct") / _PERCENT * rating
            wanted = 0.0 if math.isnan(value) else -value
        wanted -= self._droop_w()
        most = rating
        if image.has(704) and image.raw(704, "WMaxLimPctEna") == 1:
            most = image.get(704, "WMaxLimPct") / _PERCENT * rating
        return max(wanted, -most)

    def _droop_w(self) -> float:
        """Return what 711 adds to the injected power: beyond the deadband, the share of the rating that k asks for."""
        image = self.image
        if not image.has(711) or image.raw(711, "Ena") != 1:
            return 0.0
        over = self.frequency_hz - _NOMINAL_HZ - image.get(711, "Ctl.1.DbOf")
        under = _NOMINAL_HZ - self.frequency_hz - image.get(711, "Ctl.1.DbUf")
        per_unit = max(under, 0.0) / image.get(711, "Ctl.1.KUf") - max(over, 0.0) / image.get(711, "Ctl.1.KOf")
        return per_unit / _NOMINAL_HZ * self.storage.rating_va

    def _wanted_var(self) -> float:
        image = self.image
        if self.off or not image.has(704) or image.raw(704, "VarSetEna") != 1:
            return 0.0
        vars_ = image.raw(704, "VarSetMod") == 4  # noqa: PLR2004 - VARS
        value = image.get(704, "VarSet") if vars_ else image.get(704, "VarSetPct") / _PERCENT * self.storage.rating_va
        return 0.0 if math.isnan(value) else -value

    def _fill_measured(self) -> None:
        image, state, sign = self.image, self.state, self._sign
        power, reactive = sign * state.power_w, sign * state.reactive_var
        apparent = math.hypot(power, reactive)
        to_neutral = self._voltage_v / math.sqrt(3)
        current = apparent / 3 / to_neutral
        running = bool(image.raw(703, "ES")) if image.has(703) else True
        whole = {"W": power, "Var": reactive, "VA": apparent, "A": 3 * current}
        measured: dict[str, float] = {
            "ACType": 2,
            "St": running,
            "InvSt": 3 if running else 0,
            "ConnSt": running,
            "Alrm": 0,
            "DERMode": 1,
        }
        measured |= whole | {"Hz": self.frequency_hz, "LLV": self._voltage_v, "LNV": to_neutral}
        measured |= {"PF": power / apparent if apparent else 1.0}
        measured |= {"TotWhInj": state.injected_wh, "TotWhAbs": state.absorbed_wh}
        measured |= {"TmpCab": state.temperature_c, "TmpAmb": state.temperature_c, "ThrotPct": 0, "ThrotSrc": 0}
        for line in ("L1", "L2", "L3"):
            measured |= {
                f"W{line}": power / 3,
                f"Var{line}": reactive / 3,
                f"VA{line}": apparent / 3,
                f"A{line}": current,
            }
            measured[f"V{line}"] = to_neutral
        measured |= {"VL1L2": self._voltage_v, "VL2L3": self._voltage_v, "VL3L1": self._voltage_v}
        fill(image, 701, measured)
        soc_percent = state.soc * _PERCENT
        fill(image, 713, {"SoC": soc_percent, "WHAvail": state.soc * self.storage.capacity_wh, "Sta": 0})
        direct_a = -state.power_w / _DC_VOLTS
        port: dict[str, float] = {
            "PrtTyp": 1,
            "ID": 1,
            "DCA": direct_a,
            "DCV": _DC_VOLTS,
            "DCW": -state.power_w,
            "DCSta": 1,
            "DCAlrm": 0,
        }
        fill(
            image,
            714,
            {"PrtAlrms": 0, "DCA": direct_a, "DCW": -state.power_w} | {f"Prt.1.{k}": v for k, v in port.items()},
        )
        charging = 6 if state.power_w == 0 else 4 if state.power_w > 0 else 3
        fill(
            image,
            802,
            {"SoC": soc_percent, "DoD": _PERCENT - soc_percent, "ChaSt": charging, "A": direct_a, "W": -state.power_w},
        )
        if self.sensor_lost:
            lost = ((701, "TmpCab"), (701, "TmpAmb"), (713, "SoC"), (713, "WHAvail"), (802, "SoC"), (802, "DoD"))
            for model, path in lost:
                if image.has(model, path):
                    image.clear(model, path)
