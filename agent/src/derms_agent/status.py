# SPDX-License-Identifier: Apache-2.0
"""`derms-agent status`, `explain`, `limit`, `session`: what a person asks the running services.

Needs neither the depot file nor control's packages: only the orchestrator's socket, and where there is a grid gateway
that one's as well.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from derms_agent.socket_client import GRID_SOCKET, SOCKET, Client, NoService
from derms_agent.socket_protocol import ProtocolError

WELL, WRONG, NO_ANSWER = 0, 1, 3
CLEAR = "\x1b[H\x1b[2J"
EVERY_S = 1.0
CLOCK_OFF_S = 60.0
_WIDEST = 60
_LINE = 118
_LINES = 6


def add_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    status = verbs.add_parser(
        "status",
        help="show what the depot does, and why",
        epilog="Exit status: 0 it answers, 1 it refuses, 3 nothing answers.",
    )
    status.add_argument("--json", action="store_true", help="the whole report, for programs")
    status.add_argument("--grid-socket", type=Path, default=GRID_SOCKET, metavar="F", help="%(default)s if not given")
    status.add_argument("--watch", action="store_true", help="again every second, until interrupted")
    status.set_defaults(run=_status)
    explain = verbs.add_parser("explain", help="show the limits in force on one EVSE, by rank")
    explain.add_argument("evse")
    explain.add_argument("--json", action="store_true")
    explain.set_defaults(run=_explain)
    _add_limit(verbs)
    session = verbs.add_parser("session", help="say when a vehicle leaves, and what it needs")
    session.add_argument("evse")
    session.add_argument("--departure", metavar="TIME", help="RFC 3339 with its zone: 2026-11-25T18:00:00Z")
    session.add_argument("--need-kwh", type=_finite, metavar="KWH")
    session.add_argument("--vehicle", metavar="NAME")
    session.set_defaults(run=_session)
    for parser in (status, explain, session):
        _add_socket(parser)


def _add_limit(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limit = verbs.add_parser("limit", help="ask for a limit, take it back, or list those that were asked for")
    what = limit.add_subparsers(required=True, metavar="WHAT")
    put = what.add_parser("put", help="ask for a limit; one with the same name is replaced")
    put.add_argument("name")
    put.add_argument(
        "kw", type=_finite, help="the most that the target may draw, in kW; below zero: what it is to give back"
    )
    put.add_argument("--target", default="site", help="site, a circuit, an EVSE or storage; default %(default)s")
    put.add_argument("--rank", choices=("grid", "operator", "price"), default="operator")
    put.add_argument("--for", dest="duration_s", type=_finite, metavar="S", help="for so many s; default: for good")
    put.set_defaults(run=_limit_put)
    remove = what.add_parser("remove", help="take a limit back")
    remove.add_argument("name")
    remove.set_defaults(run=_limit_remove)
    listed = what.add_parser("list", help="list them")
    listed.set_defaults(run=_limit_list)
    for parser in (put, remove, listed):
        _add_socket(parser)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="F", help="%(default)s if not given")


def _asked(options: argparse.Namespace, verb: str, **arguments: Any) -> Any:
    with Client(options.socket) as client:
        return client.ask(verb, **arguments)


def _answer(options: argparse.Namespace, verb: str, **arguments: Any) -> tuple[int, Any]:
    """Return an exit status and the result; say what went wrong."""
    try:
        return WELL, _asked(options, verb, **{key: value for key, value in arguments.items() if value is not None})
    except NoService as problem:
        sys.stderr.write(f"{problem}\n")
        return NO_ANSWER, None
    except ProtocolError as problem:
        sys.stderr.write(f"{problem}\n")
        return WRONG, None


def _status(options: argparse.Namespace) -> int:
    while True:
        status, report = _answer(options, "status")
        if status == WELL:
            report = {**report, "grid": _grid(options.grid_socket)}
            shown = json.dumps(report, indent=2) if options.json else "\n".join(screen(report))
            sys.stdout.write(f"{CLEAR if options.watch else ''}{shown}\n")
            sys.stdout.flush()
        if not options.watch:
            return status
        time.sleep(EVERY_S)


def _grid(socket: Path) -> Mapping[str, Any] | None:
    """Return what the grid gateway says of itself, or only why it says nothing; None where there is none.

    Its unit makes the socket's directory: where that is not, it has not been started since the host was.
    """
    if not socket.parent.is_dir():
        return None
    try:
        with Client(socket) as client:
            found: Mapping[str, Any] = client.ask("status")
            return found
    except (NoService, ProtocolError) as problem:
        return {"silent": str(problem)}


def _explain(options: argparse.Namespace) -> int:
    status, found = _answer(options, "explain", evse=options.evse)
    if status == WELL:
        shown = json.dumps(found, indent=2) if options.json else "\n".join(explained(found))
        sys.stdout.write(f"{shown}\n")
    return status


def _limit_put(options: argparse.Namespace) -> int:
    status, found = _answer(
        options,
        "limit.put",
        name=options.name,
        rank=options.rank,
        target=options.target,
        high_w=1000 * options.kw,
        duration_s=options.duration_s,
    )
    if status == WELL:
        can = "can be honoured" if found["can_honour"] else "CANNOT be honoured in full"
        reach = f"down to {found['reachable_w'] / 1000:.1f} kW within {found['within_s']:.0f} s"
        why = f" ({found['why']})" if found["why"] else ""
        sys.stdout.write(f"{found['name']}: {can}; the depot can be brought {reach}{why}\n")
    return status


def _limit_remove(options: argparse.Namespace) -> int:
    return _answer(options, "limit.remove", name=options.name)[0]


def _limit_list(options: argparse.Namespace) -> int:
    status, found = _answer(options, "limit.list")
    if status == WELL:
        rows = [
            (
                one["name"],
                one["target"],
                one["rank"],
                f"{one['high_w'] / 1000:g} kW" if "high_w" in one else "",
                one["end"] or "",
                one["put_by"],
            )
            for one in found
        ]
        sys.stdout.writelines(f"{line}\n" for line in table(("name", "target", "rank", "at most", "until", "by"), rows))
    return status


def _session(options: argparse.Namespace) -> int:
    return _answer(
        options,
        "session.put",
        evse=options.evse,
        departure=options.departure,
        energy_need_wh=None if options.need_kwh is None else 1000 * options.need_kwh,
        vehicle=options.vehicle,
    )[0]


# What a person sees. Pure.


def screen(report: Mapping[str, Any]) -> list[str]:
    """Return the report as the lines of one screen."""
    site = report["site"]
    lines = [
        f"{report['depot']} · {report['gateway']} · {report['at'][11:19]} UTC",
        f"{report['state'].replace('_', ' ').upper()}: {_short(report['reason'], 100)}",
        "",
        (
            f"site      {_kw(site['power_w'])} measured; "
            f"EVSEs {_kw(site['evse_power_w'])} of {_kw(site['evse_limit_w'])} that they may draw"
        ),
        f"          by {site['limit_by']}" if site["limit_by"] else "          no limit",
        f"ledger    {_kw(site['counted_w'])} is what the EVSEs could draw at the worst",
        f"base load {_kw(site['base_w'])} ({site['base_by']})",
    ]
    grid = report.get("grid")
    if grid is not None:
        lines += grid_lines(grid)
    if report["asks"]:
        lines.append("")
        lines += [_ask(one) for one in report["asks"]]
    lines += ["", *table(("circuit", "phase", "measured", "base", "ledger", "rating"), _circuits(report))]
    header = ("EVSE", "state", "draws", "setpoint", "ledger", "delivered", "why")
    lines += ["", *table(header, [_evse(one) for one in report["evses"]])]
    lines.append("")
    alarms = [f"! {one['about']} ({one['for_s']:.0f} s): {one['words']}" for one in report["alarms"]]
    alarms += [] if grid is None else grid_alarms(grid)
    lines += [line for alarm in alarms for line in _whole(alarm)] or ["no alarms"]
    cycle = report["cycle"]
    lines.append(
        f"cycle {cycle['count']}: {cycle['median_ms']:.1f} ms median, {cycle['p99_ms']:.1f} ms p99 · "
        f"derms-agent {report['version']}"
    )
    return lines


def grid_lines(grid: Mapping[str, Any]) -> list[str]:
    """Return what a person is to know of the link to the utility."""
    if "silent" in grid:
        return ["grid      derms-grid-gateway.service does not answer"]
    if grid["registered"]:
        who = f"registered with {grid['vtn_id']} as {grid['ven_id']}"
    else:
        who = f"not registered with {grid['vtn']}{', as was asked' if grid['absent'] else ''}"
    well = grid["trouble"] is None and not grid["link_lost"]
    heard = f"{'last answer' if well else 'no valid answer for'} {grid['heard_s_ago']:.0f} s"
    lines = [f"grid      {who}; {heard}{' ago' if well else ''}, polled every {grid['poll_s']:g} s"]
    others = [name.replace("_", " ") for name, term in grid["terms"].items() if term != grid["terms_by_file"][name]]
    if others:
        lines.append(f"          not as the depot file has it, but as was asked: {', '.join(others)}")
    phases = [event["phase"] for event in grid["events"] if event["why"] is None and not event["test"]]
    active, pending = phases.count("active"), phases.count("far") + phases.count("near")
    if active or pending:
        lines.append(f"          events: {active} active, {pending} pending")
    lines += [
        f"          opted out of {event['event']}: {_short(event['why'], 80)}"
        for event in grid["events"]
        if event["why"] is not None and event["phase"] in {"active", "far", "near"}
    ]
    return lines


def grid_alarms(grid: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with that link."""
    if "silent" in grid:
        return [f"! grid gateway: {grid['silent']}"]
    host = f"VTN {urlsplit(grid['vtn']).hostname}"
    trouble = grid["trouble"]
    alarms = [] if trouble is None else [f"! {host}: {trouble.removeprefix(f'{host}: ')}"]
    if grid["registered"] and grid.get("client_id") not in {None, grid["ven_id"]}:
        alarms.append(f"! {host}: knows this VEN as {grid['ven_id']}, and not by its CLIENT_ID {grid['client_id']}")
    if grid["link_lost"]:
        alarms.append(f"! {host}: Heartbeat Timeout: no valid answer for {grid['heard_s_ago']:.0f} s")
    off_s = grid.get("clock_off_s") or 0.0
    if abs(off_s) > CLOCK_OFF_S:
        words = f"this gateway's clock is {off_s:+.0f} s off the VTN's, and events go by it: chronyc tracking"
        alarms.append(f"! {host}: {words}")
    if grid["control_trouble"] is not None:
        alarms.append(f"! grid gateway: the orchestrator does not take events: {grid['control_trouble']}")
    if grid.get("unkept") is not None:
        alarms.append(f"! grid gateway: events cannot be kept: {grid['unkept']}")
    return alarms


def _ask(one: Mapping[str, Any]) -> str:
    bounds = [f"at most {one['high_w'] / 1000:g} kW"] if "high_w" in one else []
    bounds += [f"at least {one['low_w'] / 1000:g} kW"] if "low_w" in one else []
    until = f" until {one['end'][11:19]}" if one["end"] else ""
    word = "limit" if one["in_force"] else "to come"
    return f"{word:<9} {one['target']} {' and '.join(bounds)}{until}: {one['source']} ({one['rank']})"


def _circuits(report: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for circuit in report["circuits"]:
        for phase in circuit["phases"]:
            yield (
                circuit["name"],
                phase["phase"],
                _amperes(phase["measured_a"]),
                _amperes(phase["base_a"]),
                _amperes(phase["counted_a"]),
                _amperes(phase["rating_a"]),
            )


def _evse(one: Mapping[str, Any]) -> Sequence[str]:
    measured = one["measured_a"]
    silent = "" if one["silent_s"] is not None and one["silent_s"] < 5 else "silent"  # noqa: PLR2004 - its time-out
    why = "; ".join(filter(None, (one["why"], *(f"by {source}" for source in one["limited_by"][:1]))))
    return (
        one["name"],
        silent or (one["state"] or ("vehicle" if one["vehicle"] else "no vehicle")),
        "" if measured is None else f"{max(measured, key=abs):.1f} A",
        _amperes(one["setpoint_a"]),
        _amperes(one["counted_a"]),
        "" if one["delivered_wh"] is None else f"{one['delivered_wh'] / 1000:.1f} kWh",
        _short(why, _WIDEST),
    )


def explained(found: Mapping[str, Any]) -> list[str]:
    """Return what is known of one EVSE as lines."""
    told = _amperes(found["setpoint_a"]) or "nothing yet"
    lines = [
        (
            f"{found['name']}: told {told}, wanted {_amperes(found['wanted_a'])}, "
            f"counted {_amperes(found['counted_a'])}, {found['following'].replace('_', ' ')}"
        ),
        f"why: {found['why']}",
        "",
    ]
    rows = []
    for limit in found["limits"]:
        unit = {"current": "A", "active_power": "W", "apparent_power": "VA", "reactive_power": "var"}[limit["quantity"]]
        rows.append(
            (
                limit["rank"].replace("_", " "),
                limit["target"],
                "".join(limit["phases"]),
                "" if limit["low"] is None else f"{limit['low']:g} {unit}",
                "" if limit["high"] is None else f"{limit['high']:g} {unit}",
                limit["source"],
            )
        )
    lines += table(("rank", "on", "phases", "at least", "at most", "whose"), rows)
    lines += ["", "what the ledger counts, and why:"]
    claims = [
        (
            one["cause"].replace("_", " "),
            f"{one['low_a']:g} to {one['high_a']:g} A",
            f"{one['for_s']:.0f} s",
            "acknowledged" if one["acknowledged"] else "",
            "" if one["over_for_s"] is None else f"over for {one['over_for_s']:.0f} s",
        )
        for one in found["claims"]
    ]
    return lines + table(("because of", "span", "since", "", ""), claims)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows under a header, in columns."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _kw(watts: float | None) -> str:
    return "unknown" if watts is None else f"{watts / 1000:.1f} kW"


def _amperes(amperes: float | None) -> str:
    return "" if amperes is None else f"{amperes:.1f} A"


def _whole(text: str) -> list[str]:
    """Return a text that tells somebody what to do on as many lines as that takes; a device's own may have no end."""
    return textwrap.wrap(
        text, _LINE, subsequent_indent="  ", break_on_hyphens=False, max_lines=_LINES, placeholder=" …"
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
