# SPDX-License-Identifier: Apache-2.0
"""`derms-twin`: a depot to rehearse against, from its own depot file."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from derms_agent import depot as depot_file
from derms_agent.model import Depot, Transport
from derms_agent.twin import control, server
from derms_agent.twin.choice import CannotStart, find_depot
from derms_agent.twin.namespace import NamespaceError, namespace
from derms_agent.twin.scenario import Scenario, ScenarioError, Settings, load

_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["send"]:
            return _send(given[1:])
        if given[:1] == ["vtn"]:
            return _vtn(given[1:])
        return _run(_parser().parse_args(given))
    except (
        CannotStart,
        NamespaceError,
        server.CannotListen,
        ScenarioError,
        depot_file.NoDepotFile,
        depot_file.DepotError,
    ) as error:
        # The text alone: an OSError's own begins with its number.
        text = error.strerror if isinstance(error, server.CannotListen) else str(error)
        print(text, file=sys.stderr)  # noqa: T201 - a command's errors go there
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="derms-twin",
        description="Serve a simulated depot: every device of a depot file, over Modbus/TCP. "
        "`derms-twin send SOCKET JSON` talks to a running one, `derms-twin vtn` plays the depot's utility.",
    )
    parser.add_argument("depot", type=Path, help="a depot file, or an inventory directory with one")
    parser.add_argument("--depot", dest="name", help="which depot, where the directory has several files")
    parser.add_argument("--namespace", metavar="NAME", help="serve in a network namespace of that name (as root)")
    parser.add_argument(
        "--gateway-namespace", metavar="NAME", help="join it to this namespace, instead of to the machine itself"
    )
    parser.add_argument("--control", type=Path, metavar="SOCKET", help="answer commands at this Unix socket")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="what happens, and when (YAML)")
    parser.add_argument(
        "--factory-settings", action="store_true", help="devices start unconfigured, so that all drifts"
    )
    parser.add_argument(
        "--latency-ms", type=float, default=0.0, metavar="MS", help="how long every device takes to answer"
    )
    parser.add_argument("--seed", type=int, default=0, help="another course of arrivals and vehicles")
    return parser


def _send(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="derms-twin send", description="Send one command to a running twin.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("command", help='one JSON object, such as {"fault": "silent", "on": "charger-003"}')
    given = parser.parse_args(arguments)
    try:
        answer = control.send(given.socket, given.command)
    except OSError as error:
        raise CannotStart(
            f"{given.socket}: {error.strerror or error}; expected a running twin's control socket"
        ) from None
    _print(answer)
    return 0 if answer and json.loads(answer)["ok"] else _FAILED


def _vtn(arguments: Sequence[str]) -> int:
    # Only who plays a utility has a VTN's packages.
    try:
        vtn = importlib.import_module("derms_agent.twin.vtn")
    except ModuleNotFoundError as error:
        raise CannotStart(f"found no package {error.name}, expected openleadr's (make setup-dev)") from None
    ended: int = vtn.main(arguments)
    return ended


def _run(given: argparse.Namespace) -> int:
    depot = find_depot(given.depot, given.name)
    scenario = Scenario()
    if given.scenario is not None:
        try:
            scenario = load(given.scenario, depot)
        except (OSError, UnicodeDecodeError) as error:
            raise CannotStart(f"{given.scenario}: {error}; expected a scenario file") from None
    if given.factory_settings:
        scenario = Scenario(
            arrivals=scenario.arrivals,
            base_load_share=scenario.base_load_share,
            settings=Settings.FACTORY,
            events=scenario.events,
        )
    _allow_many_sockets()
    twin = server.Twin(depot, given.seed, scenario=scenario)
    with ExitStack() as stack:
        # A first signal may come while the namespace is being made: it has to be taken away again all the same.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        listen: server.Listen = server.listen
        try:
            if given.namespace is not None:
                listen = stack.enter_context(namespace(given.namespace, depot, given.gateway_namespace))
            asyncio.run(_serve(twin, given, listen))
        except KeyboardInterrupt:
            return 0
    return 0


def _allow_many_sockets() -> None:
    """Take as many open files as this process may have: a large depot needs two for each endpoint."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


async def _serve(twin: server.Twin, given: argparse.Namespace, listen: server.Listen) -> None:
    """Serve until a signal comes, or the twin itself fails."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not ended.done():
            ended.set_result(None)

    def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and not ended.done():
            ended.set_exception(error)

    loop.set_exception_handler(fail)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(twin)
        addresses = await twin.serve(latency_s=given.latency_ms / 1000, listen=listen)
        if given.control is not None:
            try:
                await stack.enter_async_context(control.serving(partial(control.answer, twin), given.control))
            except OSError as error:
                raise CannotStart(f"{given.control}: {error.strerror}; expected a path for a new socket") from None
        _announce(twin.depot, addresses, given)
        await ended


def _announce(depot: Depot, addresses: dict[str, server.Address], given: argparse.Namespace) -> None:
    devices: dict[str, list[str]] = {}
    for device in depot.devices.values():
        devices.setdefault(device.bus, []).append(f"{device.name} (unit {device.unit_id}, {device.profile})")
    for name, bus in depot.buses.items():
        shown = ", ".join(devices.get(name, ["no device"]))
        if name in addresses:
            host, port = addresses[name]
            framing = "RTU over TCP" if bus.transport is Transport.RTU_OVER_TCP else "Modbus/TCP"
            _print(f"{name}: {host} port {port}, {framing}: {shown}")
        else:
            _print(f"{name}: not served, for it is a serial adapter: {shown}")
    if given.namespace is not None:
        _print(f"in the network namespace {given.namespace}")
    if given.control is not None:
        _print(f"control socket: {given.control}")
    _print(f"ready: {len(depot.devices)} devices, {len(depot.evses())} EVSEs")


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command speaks on its standard output
