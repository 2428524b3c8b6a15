# SPDX-License-Identifier: Apache-2.0
"""The twin's control socket: one JSON object a line in, one a line out.

What may be asked is what a scenario may say (`derms_agent.twin.actions`), and besides:

    {"status": true}     the time that it is of, each EVSE, meter and circuit, the faults in force
    {"writes": 0}        every write received, from that number on; "next" is where to go on from

An answer has `ok: true`, or `ok: false` and `problems`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from derms_agent.depot.problem import Path as Place
from derms_agent.twin.actions import Reader
from derms_agent.twin.physics import duty_percent
from derms_agent.twin.rehearsal import Rehearsal

_LONGEST_LINE = 1 << 20
_MOST_WRITES = 10_000
_ANSWER_S = 10.0


def answer(twin: Rehearsal, line: str) -> dict[str, Any]:
    """Do what a line asks for and return the answer to it."""
    try:
        asked = json.loads(line)
    except json.JSONDecodeError as error:
        return _refusal(f"found no JSON at character {error.pos + 1}; expected one JSON object")
    if isinstance(asked, dict) and "status" in asked:
        return {"ok": True, **status(twin)}
    if isinstance(asked, dict) and "writes" in asked:
        since = asked["writes"]
        if isinstance(since, bool) or not isinstance(since, int) or since < 0:
            return _refusal(f"writes: found {since!r}; expected the number of the first write, from 0 on")
        return {"ok": True, **writes(twin, since)}
    reader = Reader(twin.depot)
    place: Place = ()
    action = reader.action(place, asked)
    if action is None:
        return _refusal(*map(str, reader.problems))
    twin.do(action)
    return {"ok": True}


def _refusal(*problems: str) -> dict[str, Any]:
    return {"ok": False, "problems": list(problems)}


def status(twin: Rehearsal) -> dict[str, Any]:
    """Return what the depot physically does now, whatever its registers say."""
    evses = {}
    for evse in twin.depot.places():
        state = twin.outlet(evse.name)
        vehicle = state.vehicle_type
        evses[evse.name] = {
            "limit_a": round(twin.limit_a(evse.name), 3),
            "pilot_a": round(state.pilot_a, 3),
            "duty_percent": round(duty_percent(state.pilot_a), 1),
            "current_a": round(state.current_a, 3),
            "power_w": round(state.power_w, 1),
            "energy_wh": round(state.energy_wh, 3),
            "vehicle": None if vehicle is None else vehicle.name,
            "soc_percent": None if state.vehicle is None else round(state.vehicle.soc * 100, 2),
        }
    return {
        "at_s": round(twin.moved_to_s, 3),
        "frequency_hz": round(twin.frequency_hz, 4),
        "evses": evses,
        "inverters": {
            name: {"power_w": round(unit.state.power_w, 1), "soc_percent": round(unit.state.soc * 100, 2)}
            for name, unit in twin.inverters.items()
        },
        "meters": {
            name: {
                "power_w": round(sum(unit.reading.powers_w), 1),
                "currents_a": [round(amperes, 3) for amperes in unit.reading.currents_a],
            }
            for name, unit in twin.meters.items()
        },
        "circuits": {
            name: [round(abs(current), 3) for current in currents] for name, currents in twin.currents.items()
        },
        "faults": {on: [fault.kind.value for fault in faults] for on, faults in twin.faults().items()},
    }


def writes(twin: Rehearsal, since: int) -> dict[str, Any]:
    """Return the writes from number `since` on, as many as one answer holds; the first ever has number 0."""
    first_kept = twin.write_count - len(twin.writes)
    start = max(since - first_kept, 0)
    kept = list(twin.writes)[start : start + _MOST_WRITES]
    return {
        "first": first_kept + start,
        "next": first_kept + start + len(kept),
        "writes": [
            {
                "at_s": round(write.at_s, 4),
                "bus": write.bus,
                "unit": write.unit,
                "table": write.table.value,
                "address": write.address,
                "words": list(write.words),
                "function": write.function,
                "executed": write.executed,
            }
            for write in kept
        ],
    }


@asynccontextmanager
async def serving(answers: Callable[[str], dict[str, Any]], path: Path) -> AsyncIterator[None]:
    """Answer at a Unix socket that only its owner may open. Raises OSError, if somebody else already answers there.

    :param answers: returns the answer to a line
    """
    _remove_if_dead(path)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(answers(line.decode("utf-8", "replace"))).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            # The other side left, or sent a line without an end.
            return
        finally:
            writer.close()

    server = await asyncio.start_unix_server(talk, path, limit=_LONGEST_LINE)
    try:
        path.chmod(0o600)
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _remove_if_dead(path: Path) -> None:
    """Remove the socket of a twin that was killed."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "address in use: another twin answers there")


def send(path: Path, line: str) -> str:
    """Send one line to a running twin and return its answer. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(_ANSWER_S)
        wire.connect(str(path))
        wire.sendall(line.replace("\n", " ").encode() + b"\n")
        with wire.makefile(encoding="utf-8") as answers:
            return answers.readline().rstrip("\n")
