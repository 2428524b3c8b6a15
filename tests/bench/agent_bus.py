# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent's transport reaches: a thousand devices polled, dead ones among them, one connection, one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from derms_agent.serial_line import write_s

from tests.bench.figures import Figure, median_and_spread

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
SEQUENTIAL_READS = ROOT / "tests" / "bench" / "sequential_reads.c"
LIBMODBUS_SERVER = ROOT / "agent" / "tests" / "interop" / "libmodbus_server.c"
RUNS = 3
DEVICES = 1000
DEAD = 200
WINDOW_S = 10.0
START_UP_S = 6.0
REPLY_S = 0.02
NEVER = 1e12
CANNOT_RUN = 3


@contextmanager
def server(*command: str) -> Iterator[int]:
    """Run a server that prints its port; yield that."""
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def role(name: str, **arguments: Any) -> list[str]:
    """Return the command that plays one end."""
    return [sys.executable, "-m", "tests.bench.agent_bus_ends", name, json.dumps(arguments)]


def client(name: str, **arguments: Any) -> dict[str, Any]:
    """Run a client to its end and return what it found."""
    done = subprocess.run(role(name, **arguments), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compiled(source: Path) -> Path:
    """Compile a C program against libmodbus.

    :raises SystemExit: with status 3, when this machine has no compiler or no libmodbus
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / source.stem
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libmodbus"], check=True, capture_output=True, text=True
        ).stdout.split()
        subprocess.run(["cc", "-O2", "-o", str(program), str(source), *flags], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no C compiler or no libmodbus (libmodbus-dev, pkg-config): {error}")
        sys.exit(CANNOT_RUN)
    return program


def polled(which: str, dead: int) -> dict[str, Any]:
    """Poll a thousand devices for one window, or for two, between which some fall silent."""
    begin_s = time.monotonic() + START_UP_S
    silent_at_s = begin_s + WINDOW_S
    windows = [(begin_s, silent_at_s)]
    if dead:
        windows.append((silent_at_s + 5, silent_at_s + 5 + WINDOW_S))
    living = role("devices", delay_s=REPLY_S, silent_at_s=NEVER)
    dying = role("devices", delay_s=REPLY_S, silent_at_s=silent_at_s)
    with server(*living) as living_port, server(*dying) as dying_port:
        ports = [living_port] * (DEVICES - dead) + [dying_port] * dead
        return client("poll", client=which, ports=ports, dying=dead, windows=windows, silent_at_s=silent_at_s)


def poll_1000() -> list[Figure]:
    """Measure 1,000 devices polled each second, in turn with pymodbus's own client doing the same."""
    ours: list[dict[str, Any]] = []
    library: list[dict[str, Any]] = []
    for _ in range(RUNS):
        ours.append(polled("ours", 0))
        library.append(polled("library", 0))
    name = "agent.bus.poll_1000"
    for run in ours:
        if run["windows"][0]["reads"] < 0.95 * DEVICES * WINDOW_S:
            sys.exit(
                f"{name}: {run['windows'][0]['reads']} reads came in {WINDOW_S:g} s, expected {DEVICES * WINDOW_S}"
            )
    age_s, ages = median_and_spread([run["windows"][0]["oldest_s"] for run in ours])
    worst_age_s = max(run["windows"][0]["oldest_s"] for run in ours)
    cpu, cpus = median_and_spread([100 * run["windows"][0]["cpu"] for run in ours])
    library_cpu, _ = median_and_spread([100 * run["windows"][0]["cpu"] for run in library])
    rss_mib, rsses = median_and_spread([run["rss_mib"] for run in ours])
    library_rss_mib, _ = median_and_spread([run["rss_mib"] for run in library])
    library_age_s, _ = median_and_spread([run["windows"][0]["oldest_s"] for run in library])
    return [
        Figure(f"{name}.oldest", age_s, "s", library_age_s, age_s / library_age_s, "≤ 1.5 s", worst_age_s <= 1.5, ages),
        Figure(f"{name}.cpu", cpu, "% of a core", library_cpu, cpu / library_cpu, "≤ 15 %", cpu <= 15, cpus),
        Figure(
            f"{name}.rss",
            rss_mib,
            "MiB",
            library_rss_mib,
            rss_mib / library_rss_mib,
            "≤ 150 MiB",
            rss_mib <= 150,
            rsses,
        ),
    ]


def poll_1000_dead() -> list[Figure]:
    """Measure what 200 devices that fall silent do to the other 800, and how soon they are declared dead."""
    runs = [polled("ours", DEAD) for _ in range(RUNS)]
    name = "agent.bus.poll_1000_dead"
    without_ms, _ = median_and_spread([1000 * run["windows"][0]["p99_s"] for run in runs])
    with_ms, spread = median_and_spread([1000 * run["windows"][1]["p99_s"] for run in runs])
    ratio, _ = median_and_spread([run["windows"][1]["p99_s"] / run["windows"][0]["p99_s"] for run in runs])
    declared_s, declared = median_and_spread([run["declared_s"] for run in runs])
    worst_s = max(run["declared_s"] for run in runs)
    return [
        Figure(f"{name}.p99", with_ms, "ms", without_ms, ratio, "≤ 1.1 × without", ratio <= 1.1, spread),
        Figure(f"{name}.declared", declared_s, "s", None, None, "≤ 3 s", worst_s <= 3, declared),
    ]


def sequential() -> list[Figure]:
    """Measure reads one after the other over one connection, in turn with libmodbus in C."""
    reads, registers = 20_000, 10
    reference = compiled(SEQUENTIAL_READS)
    ours: list[float] = []
    in_c: list[float] = []
    for _ in range(5):
        with server(str(compiled(LIBMODBUS_SERVER))) as port:
            ours.append(client("sequential", port=port, reads=reads, registers=registers)["rate"])
            done = subprocess.run(
                [str(reference), str(port), str(reads), str(registers)], check=True, capture_output=True, text=True
            )
            in_c.append(float(done.stdout))
    rate, spread = median_and_spread(ours)
    c_rate, _ = median_and_spread(in_c)
    ratio = rate / c_rate
    return [Figure("agent.bus.sequential", rate, "reads/s", c_rate, ratio, "≥ 0.4 × C", ratio >= 0.4, spread)]


def shed_shared_bus() -> list[Figure]:
    """Measure a shed to 12 units on one line at 19,200 baud while all are polled, against the line's arithmetic."""
    units, baud_rate = 12, 19_200
    with server(*role("line", baud_rate=baud_rate)) as port:
        found = client("shed", port=port, units=units, times=100)
    rounds_ms = sorted(1000 * round_s for round_s in found["rounds_s"])
    arithmetic_ms = 1000 * units * write_s(baud_rate, 1)
    p99_ms = rounds_ms[math.ceil(len(rounds_ms) * 0.99) - 1]
    spread = f"{rounds_ms[0]:.1f} to {rounds_ms[-1]:.1f} in {len(rounds_ms)}"
    ratio = p99_ms / arithmetic_ms
    return [
        Figure(
            "agent.bus.shed_shared_bus", p99_ms, "ms", arithmetic_ms, ratio, "≤ 1.2 × the line", ratio <= 1.2, spread
        )
    ]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("agent.bus.poll_1000.oldest", "agent.bus.poll_1000.cpu", "agent.bus.poll_1000.rss"): poll_1000,
    ("agent.bus.poll_1000_dead.p99", "agent.bus.poll_1000_dead.declared"): poll_1000_dead,
    ("agent.bus.sequential",): sequential,
    ("agent.bus.shed_shared_bus",): shed_shared_bus,
}
