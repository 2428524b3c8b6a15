# SPDX-License-Identifier: Apache-2.0
"""Times and durations as OpenADR 2.0b writes them (oadr_xcal_20b.xsd: DateTimeType, DurationValueType). Pure.

Both are narrower than ISO 8601: a time has no offset, only `Z` or nothing, and either means UTC, the one zone of the
profile. A duration may have years and months, whose length depends on where they begin.
"""

from __future__ import annotations

import calendar
import math
import re
from datetime import datetime, timedelta, timezone

LATEST_UNIX_S = 32_503_680_000.0
"""The year 3000: times and ends of durations lie between 1970 and then."""
_LONGEST = 60
_TIME = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})T(?P<hour>[0-9]{2}):(?P<rest>[0-9]{2}:[0-9]{2})(?P<fraction>\.[0-9]*)?Z?",
    re.ASCII,
)
_DURATION = re.compile(
    r"(?P<sign>[+-])?P(?:(?P<years>[0-9]+)Y)?(?:(?P<months>[0-9]+)M)?(?:(?P<days>[0-9]+)D)?"
    r"(?P<time>T?(?:(?P<hours>[0-9]+)H)?(?:(?P<minutes>[0-9]+)M)?(?:(?P<seconds>[0-9]+)S)?)",
    re.ASCII,
)
# The schema's alternative binds so that weeks come without the P that ISO 8601 puts before them: both are taken.
_WEEKS = re.compile(r"(?P<sign>[+-])?P?(?P<weeks>[0-9]+)W", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def unix_s(text: str) -> float:
    """Return a time in s since 1970, UTC. Raises ValueError for what is no time, or not between 1970 and 3000."""
    found = _TIME.fullmatch(text.strip()[:_LONGEST])
    if found is None:
        raise ValueError(f"found {text[:_LONGEST]!r}, expected a time as 2026-11-25T18:00:00Z")
    midnight = found["hour"] == "24"  # the end of a day, which XML Schema admits and Python does not
    if midnight and found["rest"] != "00:00":
        raise ValueError(f"found {text!r}, expected a time as 2026-11-25T18:00:00Z")
    at = datetime.fromisoformat(f"{found['date']}T{'00' if midnight else found['hour']}:{found['rest']}+00:00")
    fraction_s = float(f"0{found['fraction']}0") if found["fraction"] else 0.0
    return _bounded((at - _EPOCH).total_seconds() + fraction_s + (86400.0 if midnight else 0.0))


def duration_s(text: str, from_unix_s: float | None = None) -> float:
    """Return how long a duration is, in s; below zero with a minus before it.

    :param from_unix_s: when it begins, by which its years and months are counted on the calendar; None: a month is 30
        days and a year 365
    :raises ValueError: it is no duration, or reaches out of the years 1970 to 3000
    """
    if len(text) > _LONGEST:
        raise ValueError(f"found a text of {len(text)} characters, expected a duration as PT30M")
    weeks = _WEEKS.fullmatch(text.strip())
    if weeks is not None:
        return _signed(weeks["sign"], _bounded(int(weeks["weeks"]) * 7 * 86400.0))
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found[name] for name in ("years", "months", "days", "hours", "minutes", "seconds")):
        raise ValueError(f"found {text!r}, expected a duration as PT30M")

    def number(name: str) -> int:
        return int(found[name] or 0)

    plain_s = 86400.0 * number("days") + 3600.0 * number("hours") + 60.0 * number("minutes") + number("seconds")
    months = 12 * number("years") + number("months")
    if not months:
        return _signed(found["sign"], _bounded(plain_s))
    if from_unix_s is None:
        return _signed(found["sign"], _bounded(plain_s + 86400.0 * (365 * number("years") + 30 * number("months"))))
    direction = -1 if found["sign"] == "-" else 1
    return _moved(from_unix_s, direction * months) - from_unix_s + direction * _bounded(plain_s)


def _moved(start_unix_s: float, months: int) -> float:
    """Return a time so many months on, on the last day of a month that is too short for it. Raises ValueError."""
    at = _EPOCH + timedelta(seconds=math.floor(start_unix_s))
    year, month = divmod(at.year * 12 + at.month - 1 + months, 12)
    if not _EPOCH.year <= year < 3000:  # noqa: PLR2004 - LATEST_UNIX_S
        raise ValueError("found a duration that reaches out of the years 1970 to 3000")
    day = min(at.day, calendar.monthrange(year, month + 1)[1])
    moved = at.replace(year=year, month=month + 1, day=day)
    return (moved - _EPOCH).total_seconds() + start_unix_s % 1.0


def _signed(sign: str | None, length_s: float) -> float:
    return -length_s if sign == "-" else length_s


def _bounded(seconds: float) -> float:
    if not 0.0 <= seconds <= LATEST_UNIX_S:
        raise ValueError("found a time or a duration that reaches out of the years 1970 to 3000")
    return seconds


def time_text(at_unix_s: float) -> str:
    """Return a time as OpenADR writes it, to the millisecond where it has a fraction."""
    at = _EPOCH + timedelta(milliseconds=round(at_unix_s * 1000))
    return at.isoformat(timespec="milliseconds" if at.microsecond else "seconds").replace("+00:00", "Z")


def duration_text(length_s: float) -> str:
    """Return a duration in whole seconds, as the schema has them, rounded; hours and minutes are not written out."""
    whole = round(length_s)
    return f"{'-' if whole < 0 else ''}PT{abs(whole)}S"
