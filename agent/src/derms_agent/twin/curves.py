# SPDX-License-Identifier: Apache-2.0
"""The stored sets of SunSpec's models 705 to 712: how they are delivered, checked and adopted.

As the models say (pysunspec2 1.3.7): the first set is read-only and is the one in force; a request names another one,
which is checked as a whole when it is asked for, not while it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from derms_agent.twin.faults import FaultKind
from derms_agent.twin.meter import fill
from derms_agent.twin.sunspec import Image

COUNTS = {"NPt": 6, "NCrv": 3, "NCrvSet": 3, "NCtl": 3}
"""Six points are what IEEE 1547-2018's watt-var curve takes."""
GROUPS = {705: "Crv", 706: "Crv", 707: "Crv", 708: "Crv", 709: "Crv", 710: "Crv", 711: "Ctl", 712: "Crv"}
REQUESTS = ("AdptCrvReq", "AdptCtlReq")
ADOPTION_FAULTS = frozenset({FaultKind.ADOPTION_FAILED, FaultKind.ADOPTION_STALE, FaultKind.ADOPTION_ENDLESS})
_ADOPTION_S = 0.5
_IN_PROGRESS, _COMPLETED, _FAILED = 0, 1, 2
_PERCENT = 100.0
_TRIP_CURVES = ("MustTrip", "MayTrip", "MomCess")
_DROOP = {"DbOf": 0.036, "DbUf": 0.036, "KOf": 0.05, "KUf": 0.05, "RspTms": 5.0, "PMin": -_PERCENT}
# In force when delivered, by model: the names of a point's two numbers, and the points. Category B's volt-var curve
# (IEEE 1547-2018 table 8) in percent of nominal voltage and of reactive power; trips in the five points of SunSpec's
# profile of that standard, for 50 Hz.
_CURVES: Mapping[int, tuple[str, str, Sequence[tuple[float, float]]]] = {
    705: ("V", "Var", ((92.0, 44.0), (98.0, 0.0), (102.0, 0.0), (108.0, -44.0))),
    706: ("V", "W", ((106.0, 100.0), (110.0, 0.0))),
    707: ("V", "Tms", ((0.0, 2.0), (50.0, 2.0), (50.0, 21.0), (88.0, 21.0), (88.0, 1000.0))),
    708: ("V", "Tms", ((150.0, 0.16), (120.0, 0.16), (120.0, 13.0), (110.0, 13.0), (110.0, 1000.0))),
    709: ("Hz", "Tms", ((40.0, 0.16), (46.0, 0.16), (46.0, 300.0), (47.5, 300.0), (47.5, 1000.0))),
    710: ("Hz", "Tms", ((60.0, 0.16), (52.0, 0.16), (52.0, 300.0), (51.5, 300.0), (51.5, 1000.0))),
    712: ("W", "Var", ((20.0, 0.0), (50.0, 0.0), (100.0, -44.0))),
}


class StoredSets:
    """The sets of one device's image. `faults` are those of adoption that it has now."""

    def __init__(self, image: Image) -> None:
        self.faults: set[FaultKind] = set()
        self._image = image
        self._due: dict[int, tuple[float, int]] = {}
        for model, group in GROUPS.items():
            if image.has(model):
                self._deliver(model, group)

    def request(self, model: int, path: str, now_s: float) -> None:
        """Take a request to adopt a set."""
        if FaultKind.ADOPTION_STALE in self.faults:
            return
        self._image.set_raw(model, path.replace("Req", "Rslt"), _IN_PROGRESS)
        if FaultKind.ADOPTION_ENDLESS not in self.faults:
            self._due[model] = (now_s + _ADOPTION_S, self._image.raw(model, path))

    def step(self, now_s: float) -> None:
        """Adopt what is due."""
        for model in [model for model, (due_s, _) in self._due.items() if due_s <= now_s]:
            self._adopt(model, self._due.pop(model)[1])

    def _adopt(self, model: int, index: int) -> None:
        """Make a stored set the first, which is the one in force, if it is one that can be."""
        image, group = self._image, GROUPS[model]
        conforms = FaultKind.ADOPTION_FAILED not in self.faults and self._conforms(model, f"{group}.{index}")
        if conforms:
            image.copy_group(model, f"{group}.{index}", f"{group}.1")
        result = "AdptCtlRslt" if group == "Ctl" else "AdptCrvRslt"
        image.set_raw(model, result, _COMPLETED if conforms else _FAILED)

    def _conforms(self, model: int, at: str) -> bool:
        """Whether there is such a set, and each of its curves has as many points as it says, in one direction."""
        image = self._image
        if not image.has(model, f"{at}.ReadOnly"):
            return False
        if model not in _CURVES:
            return True
        most, name = image.raw(model, "NPt"), _CURVES[model][0]
        for curve in self._curves(model, at):
            count = image.raw(model, f"{curve}.ActPt")
            if count > most:
                return False
            along = [image.get(model, f"{curve}.Pt.{number}.{name}") for number in range(1, count + 1)]
            if not (all(a <= b for a, b in pairwise(along)) or all(a >= b for a, b in pairwise(along))):
                return False
        return True

    def _curves(self, model: int, at: str) -> list[str]:
        trips = self._image.has(model, f"{at}.{_TRIP_CURVES[0]}.ActPt")
        return [f"{at}.{curve}" for curve in _TRIP_CURVES] if trips else [at]

    def _deliver(self, model: int, group: str) -> None:
        image = self._image
        request = "AdptCtlReq" if group == "Ctl" else "AdptCrvReq"
        fill(image, model, {"Ena": 0, request: 0, request.replace("Req", "Rslt"): _COMPLETED, "RvrtTms": 0})
        for index in range(1, 4):
            at = f"{group}.{index}"
            image.set_raw(model, f"{at}.ReadOnly", int(index == 1))
            if model not in _CURVES:
                fill(image, model, {f"{at}.{name}": value for name, value in _DROOP.items()})
                continue
            percent_of_var = model == 705  # noqa: PLR2004 - a SunSpec model's number is its name
            fill(image, model, {f"{at}.DeptRef": int(percent_of_var), f"{at}.Pri": 1, f"{at}.RspTms": 5.0})
            fill(image, model, {f"{at}.VRef": _PERCENT, f"{at}.VRefAutoEna": 0})
            x, y, points = _CURVES[model]
            filled, *others = self._curves(model, at)
            fill(image, model, {f"{curve}.ActPt": 0 for curve in others} | {f"{filled}.ActPt": len(points)})
            for number, (along, value) in enumerate(points, start=1):
                fill(image, model, {f"{filled}.Pt.{number}.{x}": along, f"{filled}.Pt.{number}.{y}": value})
