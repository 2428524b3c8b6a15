# SPDX-License-Identifier: Apache-2.0
"""How much of its rating something hot may still carry: derating that keeps it under its cut-off temperature.

There are three kinds of sensor, each with limits of its own: the enclosure, the charger, the vehicle's battery. The
result of one is a *share* of the rated power, 0 to 1, for charging and for discharging alike: both heat.

**Model.** T' = (T_amb + R * P_loss - T) / tau. R * P_loss is written as `rise_k * share ** loss_exponent`: `rise_k` is
how far a steady full load lifts the temperature above the ambient one in the end. `Physics` bounds what is physically
possible; where a plant really lies in these bounds is not known in advance.

A share is the least of three, so that each of their arguments holds whatever the other two say:

1. **Barrier: never above the cut-off.** Let H be the longest time between the moment at which a temperature was
   sensed and the last moment at which a command computed from it, or from an older one, can still be in force
   (`Sensor.reach_s`: age of a reading until it is stale, plus cycle, plus what the device and vehicle take to follow).
   In H and from y on, no possible plant gets hotter than D(y) = y + (A + rise_max - y) * (1 - e^(-H/tau_min)), even at
   full power. From the *brink* on, the reading y with D(y + noise) = c, the cut-off, the share is at most s_eq with
   A + rise_max * s_eq <= c: a load at which no possible plant heats at c.
   *Proof.* Suppose that T goes above c, and let t be a moment with T(t) >= c and T'(t) > 0. The command in force at t
   was computed from a y sensed at most H before, when the temperature was at most y + noise; so c <= T(t) <= D(y +
   noise), whatever loads were in force in between, and y is at the brink or above. Its share is therefore at most s_eq,
   and T'(t) <= (A + rise_max * s_eq - c) / tau <= 0: a contradiction. What is assumed: the plant is within `Physics`,
   whose ambient temperature is below the cut-off; it follows within H; noise is within `noise_k`; losses are convex in
   the load (loss_exponent >= 1, so share ** exponent <= share); the sensor speaks or is `required` (0 once it is
   stale). Nothing learnt enters.
2. **Taper: zero at the cut-off.** From `taper_k` below the cut-off on, the share falls in line with what is left: 0 at
   and above it.
3. **Prediction: smooth, long before.** The share at which the learnt model, at the pessimistic end of what is known of
   its parameters, stays `margin_k` under the cut-off for the whole `horizon_s`. For one set of parameters and a
   constant load T moves monotonically, so that its start and its end bound it; the end's bound takes the worse of both
   ends of tau's interval for cooling, and the upper ends for heating. Before anything is learnt these ends are
   `Physics` itself, which is conservative; each reading narrows them.

**Monotone.** For the same learnt model each of the three is a non-increasing function of the temperature: the barrier
falls from 1 to s_eq between two fixed temperatures; the taper is a falling line; and the prediction is linear with a
negative slope in the greater of two increasing functions of T. Their least is therefore monotone too.

**Learning.** Over windows of `learn_every_s` the model is integrated, which is exact whatever the load did:
T1 - T0 = a * integral(T_amb - T) + b * integral(share ** exponent), with a = 1/tau and b = rise/tau. Recursive least
squares on (a, b), clipped to what `Physics` allows; a step of the covariance (`_DRIFT`) keeps it able to follow. It
needs T_amb: where nobody measures the air, nothing is learnt and the warmest possible air is predicted with. It bears
on the prediction alone, so whatever is learnt, barrier and taper hold: nothing flows at the cut-off, and less the
hotter it is.

**A lost sensor** (no reading, a stale, bad or impossible one): 0 where it is `required`; otherwise the share may not
rise above what it was when the sensor fell silent. A sensor that has never spoken and is not required limits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from derms_agent.model import Limit, LimitQuantity, Quality, Rank

_COLDEST_C, _HOTTEST_C = -60.0, 200.0  # beyond these a reading is a broken sensor's
_SIGMAS = 2.0
_DRIFT = 2e-4  # of the prior's variance, per window
_QUANTISED_K = 0.1


class SensorKind(str, Enum):
    """Where a temperature is taken."""

    ENCLOSURE = "enclosure"
    CHARGER = "charger"
    BATTERY = "battery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Physics:
    """What is physically possible of a plant: bounds of its parameters, ends included.

    `tau_s`: time constant; `rise_k`: what a steady full load adds to the ambient temperature in the end;
    `ambient_max_c`: the warmest air around it; `loss_exponent`: losses grow with this power of the load, 1 or more.

    Raises `ValueError` unless each lower end is positive and below the upper one, and the exponent at least 1.
    """

    tau_s: tuple[float, float]
    rise_k: tuple[float, float]
    ambient_max_c: float
    loss_exponent: float = 1.0

    def __post_init__(self) -> None:
        for name, (low, high) in (("tau_s", self.tau_s), ("rise_k", self.rise_k)):
            if not 0 < low <= high < math.inf:
                raise ValueError(f"found {low} to {high} for {name}, expected two positive numbers, the lower first")
        if not 1 <= self.loss_exponent < math.inf:
            raise ValueError(f"found a loss exponent of {self.loss_exponent}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """One temperature sensor and its limits.

    `cut_off_c`: at and above, nothing flows. `required`: nothing flows while it is silent. `noise_k` bounds how far a
    reading is off. `stale_after_s` is the oldest that a reading may be; `follow_s` is how long after it is computed a
    share may still not be in force: cycle, transport, and the vehicle's own delay (12 s for slow ones) together.

    Raises `ValueError` unless the ambient temperature can be at most the cut-off less the taper.
    """

    name: str
    kind: SensorKind
    cut_off_c: float
    physics: Physics
    required: bool = False
    noise_k: float = 0.5
    stale_after_s: float = 30.0
    follow_s: float = 15.0
    taper_k: float = 2.0
    margin_k: float = 1.0
    horizon_s: float = 900.0
    learn_every_s: float = 60.0

    def __post_init__(self) -> None:
        if self.physics.ambient_max_c >= self.cut_off_c - self.noise_k:
            raise ValueError(
                f"found {self.physics.ambient_max_c:g} degC as the warmest air of {self.name!r}, expected less than "
                f"its cut-off of {self.cut_off_c:g} degC: no derating can keep it below that"
            )
        spans = (self.taper_k, self.stale_after_s, self.follow_s, self.horizon_s, self.learn_every_s)
        if min(spans) <= 0 or min(self.noise_k, self.margin_k) < 0:
            raise ValueError(f"found a span of 0 or less for {self.name!r}, expected positive ones")

    @property
    def reach_s(self) -> float:
        """Return the longest time from sensing to the end of the last command that rests on it."""
        return self.stale_after_s + self.follow_s


DEFAULTS: Mapping[SensorKind, Sensor] = {
    # The manual's operating range of an enclosure is 25 to 45 degC.
    SensorKind.ENCLOSURE: Sensor(
        name="enclosure",
        kind=SensorKind.ENCLOSURE,
        cut_off_c=45.0,
        physics=Physics(tau_s=(300.0, 7200.0), rise_k=(2.0, 20.0), ambient_max_c=40.0, loss_exponent=2.0),
        horizon_s=300.0,
    ),
    # The board in a charger. Vendors name no figure in their register lists: an assumption, to be declared per device.
    SensorKind.CHARGER: Sensor(
        name="charger",
        kind=SensorKind.CHARGER,
        cut_off_c=70.0,
        physics=Physics(tau_s=(240.0, 3600.0), rise_k=(5.0, 50.0), ambient_max_c=45.0, loss_exponent=2.0),
        # Nobody measures the air around a wallbox, so nothing is learnt: far ahead, the worst of all that is possible
        # would derate a cold one. Its board is read each second, and twice the reach is far enough.
        horizon_s=120.0,
    ),
    SensorKind.BATTERY: Sensor(
        name="battery",
        kind=SensorKind.BATTERY,
        cut_off_c=45.0,
        physics=Physics(tau_s=(1800.0, 20_000.0), rise_k=(2.0, 60.0), ambient_max_c=40.0),
        # Telematics tell it once a minute or so, and one in between may be lost; the barrier's reach has it in it.
        stale_after_s=150.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Temperature:
    """One reading: degC, and when it was sensed (monotonic s)."""

    celsius: float
    read_at_s: float
    quality: Quality = Quality.GOOD


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a = 1/tau and b = rise/tau, per s and K/s: mean, and covariance (aa, ab, bb)."""

    a: float
    b: float
    aa: float
    ab: float
    bb: float


@dataclass(frozen=True, slots=True)
class Window:
    """The running window of learning: where it began, where it is, and its integrals of cooling and of losses."""

    begun_s: float
    begun_c: float
    at_s: float
    at_c: float
    cooling_ks: float = 0.0
    losses_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one sensor has shown in one session, and the share that it gave last."""

    estimate: Estimate
    window: Window | None = None
    last_share: float | None = None


def fresh(sensor: Sensor) -> Learnt:
    """Return what is known at the start of a session: nothing but what is physically possible."""
    return Learnt(_prior(sensor.physics))


def _ends(physics: Physics) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the possible ranges of a and of b."""
    (tau_low, tau_high), (rise_low, rise_high) = physics.tau_s, physics.rise_k
    return (1 / tau_high, 1 / tau_low), (rise_low / tau_high, rise_high / tau_low)


def _prior(physics: Physics) -> Estimate:
    (a_low, a_high), (b_low, b_high) = _ends(physics)
    # The ends lie _SIGMAS from the middle, so that the pessimistic end is the physical one.
    aa, bb = ((high - low) / 2 / _SIGMAS for low, high in ((a_low, a_high), (b_low, b_high)))
    return Estimate((a_low + a_high) / 2, (b_low + b_high) / 2, aa * aa, 0.0, bb * bb)


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(sensor: Sensor, learnt: Learnt, reading: Temperature, share: float, ambient_c: float | None) -> Learnt:
    """Return what is known after one more reading.

    :param share: the share of its rating, 0 to 1 by magnitude, that was carried since the reading before
    :param ambient_c: the air around it as measured; None: unknown, then the window is dropped, for without it a warm
        day and a good cooling are the same
    """
    window = learnt.window
    usable = ambient_c is not None and math.isfinite(ambient_c) and _plausible(reading)
    if not usable or ambient_c is None:
        return replace(learnt, window=None)
    if window is None or not 0 <= reading.read_at_s - window.at_s <= sensor.stale_after_s:
        started = Window(reading.read_at_s, reading.celsius, reading.read_at_s, reading.celsius)
        return replace(learnt, window=started)
    elapsed_s = reading.read_at_s - window.at_s
    cooling_k = ambient_c - (window.at_c + reading.celsius) / 2
    losses = min(abs(share), 1.0) ** sensor.physics.loss_exponent
    window = replace(
        window,
        at_s=reading.read_at_s,
        at_c=reading.celsius,
        cooling_ks=window.cooling_ks + cooling_k * elapsed_s,
        losses_s=window.losses_s + losses * elapsed_s,
    )
    if window.at_s - window.begun_s < sensor.learn_every_s:
        return replace(learnt, window=window)
    following = Window(window.at_s, window.at_c, window.at_s, window.at_c)
    return replace(learnt, estimate=_updated(sensor, learnt.estimate, window), window=following)


def _updated(sensor: Sensor, known: Estimate, window: Window) -> Estimate:
    """Return the estimate after one window: a step of recursive least squares, clipped to what is possible."""
    prior = _prior(sensor.physics)
    aa, ab, bb = known.aa + _DRIFT * prior.aa, known.ab, known.bb + _DRIFT * prior.bb
    x, y = window.cooling_ks, window.losses_s
    gain_a, gain_b = aa * x + ab * y, ab * x + bb * y
    noise_k = max(sensor.noise_k, _QUANTISED_K)
    spread = 2 * noise_k * noise_k + gain_a * x + gain_b * y  # both ends of the window are noisy
    residual_k = window.at_c - window.begun_c - (known.a * x + known.b * y)
    (a_low, a_high), (b_low, b_high) = _ends(sensor.physics)
    return Estimate(
        min(max(known.a + gain_a / spread * residual_k, a_low), a_high),
        min(max(known.b + gain_b / spread * residual_k, b_low), b_high),
        aa - gain_a * gain_a / spread,
        ab - gain_a * gain_b / spread,
        bb - gain_b * gain_b / spread,
    )


# --- derating ---------------------------------------------------------------------------------------------------------


def share(sensor: Sensor, estimate: Estimate, celsius: float, ambient_c: float | None = None) -> float:
    """Return what share of its rating may flow at a temperature: 0 to 1, falling with it, 0 from the cut-off on.

    :param ambient_c: the air around it as measured; None: the warmest possible. Only the prediction uses it.
    """
    taper = (sensor.cut_off_c - celsius) / sensor.taper_k
    allowed = min(_barrier(sensor, celsius), taper, _predicted(sensor, estimate, celsius, ambient_c))
    return min(max(allowed, 0.0), 1.0)


def _barrier(sensor: Sensor, celsius: float) -> float:
    physics = sensor.physics
    heated_c = physics.ambient_max_c + physics.rise_k[1]
    balance = min((sensor.cut_off_c - physics.ambient_max_c) / physics.rise_k[1], 1.0)
    gone = -math.expm1(-sensor.reach_s / physics.tau_s[0])
    if heated_c <= sensor.cut_off_c:
        return 1.0
    # The reading whose true temperature, at most t = reading + noise, gets to t + (heated - t) * gone = cut-off.
    brink_c = (sensor.cut_off_c - heated_c * gone) / (1 - gone) - sensor.noise_k
    if celsius >= brink_c:
        return balance
    return min(balance + (1 - balance) * (brink_c - celsius) / sensor.taper_k, 1.0)


def _predicted(sensor: Sensor, estimate: Estimate, celsius: float, ambient_c: float | None) -> float:
    """Return the share whose temperature reaches the cut-off less the margin at the end of the horizon."""
    (a_low, a_high), (b_low, b_high) = _ends(sensor.physics)
    spread_a, spread_b = (_SIGMAS * math.sqrt(max(variance, 0.0)) for variance in (estimate.aa, estimate.bb))
    slow, fast = max(estimate.a - spread_a, a_low), min(estimate.a + spread_a, a_high)
    heating = max(min(estimate.b + spread_b, b_high), b_low)
    air_c = sensor.physics.ambient_max_c if ambient_c is None else min(ambient_c, sensor.physics.ambient_max_c)
    above_k = celsius + sensor.noise_k - air_c
    left_k = max(above_k * math.exp(-slow * sensor.horizon_s), above_k * math.exp(-fast * sensor.horizon_s))
    full_k = min(heating * -math.expm1(-slow * sensor.horizon_s) / slow, sensor.physics.rise_k[1])
    room_k = sensor.cut_off_c - sensor.margin_k - air_c - left_k
    return float(max(room_k / full_k, 0.0) ** (1 / sensor.physics.loss_exponent))


def _plausible(reading: Temperature) -> bool:
    return reading.quality is Quality.GOOD and _COLDEST_C <= reading.celsius <= _HOTTEST_C


@dataclass(frozen=True, slots=True)
class Derating:
    """What a sensor leaves, and why, in words for a person."""

    share: float
    reason: str


def derate(
    sensor: Sensor, learnt: Learnt, reading: Temperature | None, now_s: float, ambient_c: float | None = None
) -> tuple[Derating, Learnt]:
    """Return what a sensor leaves at this moment, and the state to hand in next time.

    :param reading: the sensor's last one; None: it has never spoken
    """
    lost = _lost(sensor, reading, now_s)
    if reading is None or lost is not None:
        left = learnt.last_share if learnt.last_share is not None else 1.0
        if sensor.required:
            return Derating(0.0, f"{sensor.name}: {lost}, and it is required"), replace(learnt, window=None)
        return Derating(left, f"{sensor.name}: {lost}, so no more than before"), replace(learnt, window=None)
    left = share(sensor, learnt.estimate, reading.celsius, ambient_c)
    reason = f"{sensor.name} {reading.celsius:.1f} degC, cut-off {sensor.cut_off_c:g} degC"
    return Derating(left, reason), learnt if learnt.last_share == left else replace(learnt, last_share=left)


def _lost(sensor: Sensor, reading: Temperature | None, now_s: float) -> str | None:
    """Return what is wrong with a sensor, or None."""
    if reading is None:
        return "no reading"
    if not _plausible(reading):
        return f"reading is bad ({reading.celsius:g} degC, {reading.quality.value})"
    age_s = now_s - reading.read_at_s
    if not 0 <= age_s <= sensor.stale_after_s:
        return f"reading is {age_s:.0f} s old"
    return None


def limits(derating: Derating, rated_w: Mapping[str, float]) -> tuple[Limit, ...]:
    """Return a derating as limits on what heats the sensor: by target, its rated power in W."""
    return tuple(
        Limit(
            target=target,
            quantity=LimitQuantity.ACTIVE_POWER,
            low=-derating.share * watts,
            high=derating.share * watts,
            source=derating.reason,
            rank=Rank.THERMAL_AND_SOC,
        )
        for target, watts in rated_w.items()
    )


def coolest(deratings: Iterable[Derating]) -> Derating:
    """Return the one of several that leaves least; with none, all is left."""
    return min(deratings, key=lambda derating: derating.share, default=Derating(1.0, "no temperature is known"))
