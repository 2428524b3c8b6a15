# SPDX-License-Identifier: Apache-2.0
"""What the VEN can report, what was asked for, and the samples that were not sent yet; those are on disk.

A sample leaves the disk when the VTN has taken the report that it is in. So a report after an outage holds the history
of it, and a restart loses nothing. Where the VEN is registered anew, samples are set aside until the VTN asks for the
same data points again, under whichever request. What nobody fetches for too long goes, the oldest first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derms_agent.grid_gateway.events import Bound
from derms_agent.grid_gateway.incoming import ReportRequest
from derms_agent.grid_gateway.messages import GOOD, LAST_KNOWN, DataPoint, Offer, Point, ReportInterval, ResourceStatus
from derms_agent.grid_gateway.signals import SITE

METADATA = "METADATA"
"""The specifier by which a VTN asks for the METADATA reports once more."""
MOST_SAMPLES = 200_000
MOST_IN_A_REPORT = 500
LEAST_S, MOST_S = 1.0, 86400.0
NO_VALUE = "No Quality - No Value"
SITE_POWER, EVSE_POWER, SITE_STATUS = "site-power", "evse-power", "site-status"

BASELINE_S = 900.0
"""How far back a baseline goes."""
DISOBEYED_W = 500.0
"""So much more than a bound may be drawn before it counts as not obeyed."""
_DISTRUSTED = frozenset({"overdrawing", "recovering"})
"""What the shed check finds of an EVSE that draws more than it was told, or did until lately (control.obedience)."""
_EACH_S = {"least_s": LEAST_S, "most_s": MOST_S}
_POWER = {"resource": SITE, "report_type": "demand", "reading_type": "Direct Read", "unit": "W"}
_STATUS = {"report_type": "x-resourceStatus", "reading_type": "x-notApplicable", "unit": None}
USAGE, STATUS = "TELEMETRY_USAGE", "TELEMETRY_STATUS"


def status_point(resource: str) -> str:
    """Return the rID of the status of one of the utility's resources."""
    return f"status-{resource}"


def offers(resources: Iterable[str]) -> tuple[Offer, ...]:
    """Return the reports of a depot, of which the utility knows these resources beside the site."""
    statuses = {SITE_STATUS: SITE, **{status_point(name): name for name in resources}}
    return (
        Offer(
            "telemetry-usage",
            USAGE,
            tuple(DataPoint(id=name, **_POWER, **_EACH_S) for name in (SITE_POWER, EVSE_POWER)),  # type: ignore[arg-type]
        ),
        Offer(
            "telemetry-status",
            STATUS,
            tuple(DataPoint(id=name, resource=of, **_STATUS, **_EACH_S) for name, of in statuses.items()),  # type: ignore[arg-type]
        ),
    )


def offer_of(request: ReportRequest, offered: Iterable[Offer]) -> Offer | None:
    """Return what a request is about, or None where that is not offered, or not one of its data points."""
    for offer in offered:
        if offer.specifier == request.specifier and {*request.data_points} <= {point.id for point in offer.points}:
            return offer
    return None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a report is sampled and sent, by a monotonic clock; it starts at `start_s` and ends at `end_s`.

    After so many `failures` in a row it is not sent before `again_s`.
    """

    request: ReportRequest
    start_s: float
    end_s: float
    sample_s: float
    send_s: float
    failures: int = 0
    again_s: float = -math.inf

    @property
    def once(self) -> bool:
        """Whether it is sent once."""
        return self.request.report_back_s == 0.0

    @property
    def every_s(self) -> float:
        """How often a sample is taken."""
        return max(LEAST_S, self.request.granularity_s or self.request.report_back_s)


def begun(request: ReportRequest, now_s: float, now_unix_s: float) -> Schedule:
    """Return the schedule of a report that was asked for.

    What is asked for without a start begins now, and has its start from then on: begun again it ends no later.
    """
    asked = request if request.start_unix_s is not None else dataclasses.replace(request, start_unix_s=now_unix_s)
    asked_s = now_s if request.start_unix_s is None else now_s + request.start_unix_s - now_unix_s
    start_s = max(now_s, asked_s)
    end_s = asked_s + request.duration_s if request.duration_s and request.report_back_s else math.inf
    return Schedule(asked, start_s, end_s, start_s, start_s + max(0.0, request.report_back_s))


def sampled(schedule: Schedule, now_s: float) -> Schedule:
    """Return the schedule after a sample; one that was late does not make the next ones early."""
    if schedule.once:
        return dataclasses.replace(schedule, sample_s=math.inf)
    next_s = schedule.sample_s + schedule.every_s
    return dataclasses.replace(schedule, sample_s=next_s if next_s > now_s else now_s + schedule.every_s)


def failed(schedule: Schedule, again_s: float) -> Schedule:
    """Return the schedule after a report that was not taken, and is not to be sent again before `again_s`."""
    return dataclasses.replace(schedule, failures=schedule.failures + 1, again_s=again_s)


def taken(schedule: Schedule) -> Schedule:
    """Return the schedule after a report that was taken."""
    return dataclasses.replace(schedule, failures=0, again_s=-math.inf)


def sent(schedule: Schedule, now_s: float) -> Schedule:
    """Return the schedule after a report."""
    back_s = max(LEAST_S, schedule.request.report_back_s)
    next_s = schedule.send_s + back_s
    return dataclasses.replace(schedule, send_s=next_s if next_s > now_s else now_s + back_s)


def power_w(status: Mapping[str, Any] | None) -> float | None:
    """Return what the site draws: by its meter, or where it has none, what its EVSEs say together.

    None: that is not known, or but in part: its meter is stale, or an EVSE has just fallen silent. One that has been
    silent for longer than a baseline goes back is no part of one, and none of what is held against it.
    """
    site: Mapping[str, Any] = {} if status is None else status.get("site") or {}
    evses = () if status is None else status.get("evses") or ()
    whole = not site.get("metered") and not any(
        one.get("power_w") is None and (one.get("silent_s") or 0.0) <= BASELINE_S for one in evses
    )
    return least_power_w(status) if whole or site.get("power_w") is not None else None


def least_power_w(status: Mapping[str, Any] | None) -> float | None:
    """Return what the site draws at the least: by its meter, or else what its EVSEs say together; None: who knows.

    The orchestrator adds up those that answer: where none does yet, as after its start, that 0 says nothing.
    """
    site: Mapping[str, Any] = {} if status is None else status.get("site") or {}
    if site.get("power_w") is not None:
        return float(site["power_w"])
    evses = () if status is None else status.get("evses") or ()
    heard = not evses or any(one.get("power_w") is not None for one in evses)
    return float(site["evse_power_w"]) if heard and site.get("evse_power_w") is not None else None


def points(
    status: Mapping[str, Any] | None, in_force: Iterable[Bound], resources: Mapping[str, str]
) -> Mapping[str, Point]:
    """Return the value of every data point, from the orchestrator's report; None: it does not answer.

    :param in_force: the grid's bounds of this moment
    :param resources: of each of the utility's resources, the place that it is
    """
    held = tuple(in_force)
    online = status is not None and status.get("state") not in {"fault", "fallback"}
    found = {
        SITE_STATUS: _status(
            SITE_STATUS,
            status,
            held,
            SITE,
            least_power_w(status),
            online=online,
            distrusted=_distrusted(_evses(status, SITE)),
        )
    }
    for resource, place in resources.items():
        name = status_point(resource)
        evses = tuple(_evses(status, place))
        drawn_w = [float(one["power_w"]) for one in evses if one.get("power_w") is not None]
        found[name] = _status(
            name,
            status,
            held,
            place,
            least_power_w(status) if place == SITE else sum(drawn_w),
            online=any(one.get("power_w") is not None or one.get("measured_a") is not None for one in evses),
            distrusted=_distrusted(evses),
        )
    site: Mapping[str, Any] = {} if status is None else status.get("site") or {}
    for name, key in ((SITE_POWER, "power_w"), (EVSE_POWER, "evse_power_w")):
        value = site.get(key)
        found[name] = (
            Point(data_point=name, quality=NO_VALUE) if value is None else Point(data_point=name, value=float(value))
        )
    return found


def _distrusted(evses: Iterable[Mapping[str, Any]]) -> bool:
    return any(one.get("following") in _DISTRUSTED for one in evses)


def _status(
    name: str,
    status: Mapping[str, Any] | None,
    in_force: Iterable[Bound],
    place: str,
    drawn_w: float | None,
    *,
    online: bool,
    distrusted: bool,
) -> Point:
    """Return the status of a place; it is held to the tightest bound on itself."""
    tightest = min((one for one in in_force if one.target == place), key=lambda one: one.high_w, default=None)
    over = tightest is not None and drawn_w is not None and drawn_w > tightest.high_w + DISOBEYED_W
    return Point(
        data_point=name,
        status=ResourceStatus(
            online=online,
            manual_override=over or distrusted,
            setpoint_w=None if tightest is None else tightest.high_w,
            normal_w=None if tightest is None or place != SITE else tightest.baseline_w,
        ),
        quality=GOOD if status is not None else LAST_KNOWN,
    )


def _evses(status: Mapping[str, Any] | None, place: str) -> Iterator[Mapping[str, Any]]:
    """Yield what the orchestrator says of the EVSEs at a place: all, those on a circuit or below it, or one."""
    report: Mapping[str, Any] = {} if status is None else status
    above = {str(one["name"]): one.get("parent") for one in report.get("circuits") or ()}
    for evse in report.get("evses") or ():
        at: str | None = evse.get("circuit")
        places = {SITE, evse.get("name")}
        while at is not None and at not in places:
            places.add(at)
            at = above.get(at)
        if place in places:
            yield evse


class Buffer:
    """The samples on disk. One process has it at a time; its calls block. Every method raises sqlite3.Error."""

    def __init__(self, path: Path, most: int = MOST_SAMPLES) -> None:
        """Open or make the file; one that is broken is put aside as NAME.broken."""
        self._most = most
        try:
            self._connection = self._opened(path)
        except sqlite3.DatabaseError as problem:
            if type(problem) is not sqlite3.DatabaseError:
                raise
            path.replace(path.with_name(f"{path.name}.broken"))
            self._connection = self._opened(path)

    def _opened(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS sample (number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL, "
            "start_unix_s REAL NOT NULL, duration_s REAL NOT NULL, points TEXT NOT NULL)"
        )
        connection.execute("CREATE INDEX IF NOT EXISTS by_request ON sample (request, number)")
        return connection

    def add(self, request_id: str, interval: ReportInterval) -> None:
        """Keep a sample for a request."""
        stored = json.dumps([dataclasses.asdict(point) for point in interval.points], allow_nan=False)
        with self._connection:
            self._connection.execute(
                "INSERT INTO sample (request, start_unix_s, duration_s, points) VALUES (?, ?, ?, ?)",
                (request_id, interval.start_unix_s, interval.duration_s, stored),
            )
            self._connection.execute(
                "DELETE FROM sample WHERE number <= (SELECT max(number) FROM sample) - ?", (self._most,)
            )

    def oldest(self, request_id: str) -> tuple[int, tuple[ReportInterval, ...]]:
        """Return the oldest samples of a request, as many as a report may hold, and the number of the last of them."""
        rows = self._connection.execute(
            "SELECT number, start_unix_s, duration_s, points FROM sample WHERE request = ? ORDER BY number LIMIT ?",
            (request_id, MOST_IN_A_REPORT),
        ).fetchall()
        return (rows[-1][0] if rows else 0), tuple(
            ReportInterval(float(row[1]), float(row[2]), tuple(map(_point, json.loads(row[3])))) for row in rows
        )

    def taken(self, request_id: str, number: int) -> None:
        """Forget the samples of a request up to a number."""
        with self._connection:
            self._connection.execute("DELETE FROM sample WHERE request = ? AND number <= ?", (request_id, number))

    def keep_only(self, request_ids: Sequence[str]) -> None:
        """Forget the samples of all other requests; those that are set aside stay."""
        marks = ", ".join("?" * len(request_ids))
        with self._connection:
            # The marks are question marks, as many as there are values.
            self._connection.execute(
                f"DELETE FROM sample WHERE request NOT IN ({marks}) AND substr(request, 1, 1) != ?",  # noqa: S608
                (*request_ids, _ASIDE),
            )

    def set_aside(self, request: ReportRequest) -> None:
        """Keep the samples of a request that ends, until others for the same data points take them up."""
        with self._connection:
            self._connection.execute("UPDATE sample SET request = ? WHERE request = ?", (_aside(request), request.id))

    def take_up(self, request: ReportRequest) -> None:
        """Let a request have the samples that were set aside for one of the same data points."""
        with self._connection:
            self._connection.execute("UPDATE sample SET request = ? WHERE request = ?", (request.id, _aside(request)))

    def forget(self) -> None:
        """Forget all samples."""
        with self._connection:
            self._connection.execute("DELETE FROM sample")

    def count(self) -> int:
        """Return how many samples there are."""
        return int(self._connection.execute("SELECT count(*) FROM sample").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


_ASIDE = "\x1f"
"""What the name of samples that were set aside begins with: no XML that a VTN sends can hold it."""


def _aside(request: ReportRequest) -> str:
    return _ASIDE + json.dumps([request.specifier, *sorted(request.data_points)])


def _point(stored: Mapping[str, Any]) -> Point:
    status = stored["status"]
    return Point(**{**stored, "status": None if status is None else ResourceStatus(**status)})


def data_points(offered: Iterable[Offer]) -> tuple[str, ...]:
    """Return the ids of all data points."""
    return tuple(point.id for offer in offered for point in offer.points)


def to_json(requests: Iterable[ReportRequest], offered: Sequence[str]) -> dict[str, Any]:
    """Return what was asked for, and the data points that the VTN was told of, as plain JSON."""
    return {
        "version": 1,
        "requests": [dataclasses.asdict(request) for request in requests],
        "offered": [*offered],
    }


def from_json(document: Mapping[str, Any]) -> tuple[tuple[ReportRequest, ...], tuple[str, ...]]:
    """Return what was given to `to_json`. Raises ValueError, TypeError or KeyError for anything else.

    Where it does not say what was offered, it is of a time at which that was always the site alone.
    """
    requests = tuple(
        ReportRequest(**{**stored, "data_points": tuple(stored["data_points"])}) for stored in document["requests"]
    )
    return requests, tuple(document.get("offered") or data_points(offers(())))
