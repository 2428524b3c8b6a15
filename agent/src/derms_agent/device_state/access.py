# SPDX-License-Identifier: Apache-2.0
"""The way to a gateway's buses: through the agent's socket while it runs, directly and under a lock while it does not.

A bus has one master. While the agent runs, every job goes through its scheduler, after sheds, watchdogs and polls, and
only where the agent means the same endpoint by that name. While it does not, whoever wants the buses takes a lock that
the agent takes as well when it starts.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from derms_agent.drivers import errors
from derms_agent.drivers.bus_lock import buses_locked
from derms_agent.drivers.errors import BusError, ConnectionLost, NotAllowed, Refused, Unreachable
from derms_agent.drivers.interface import Priority, RegisterBus
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import Bus
from derms_agent.profiles.point import Table
from derms_agent.socket_client import SOCKET, NoService
from derms_agent.socket_protocol import MOST_BYTES, VERSION, ProtocolError, decode, encode

STATE_DIRECTORY = Path("/var/lib/derms/orchestrator")
CONNECTIONS = 48
"""To the agent's socket at the most: it takes 64, and others want some of them."""
PACE_S = 0.002
"""Between two requests to the agent, on average: it has control to see to, and answers one in a fifth of that."""
ANSWER_S = 5.0
"""What an answer may take on top of what its job may."""
LEAST_DEADLINE_S, MOST_DEADLINE_S = 0.1, 60.0
"""What the agent takes for the deadline of a job."""


@dataclass(frozen=True, slots=True)
class Access:
    """The buses that may be asked, and for every other one why not."""

    buses: Mapping[str, RegisterBus] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    through_agent: bool = False


@asynccontextmanager
async def open_buses(
    declared: Mapping[str, Bus], *, socket: Path = SOCKET, state_directory: Path = STATE_DIRECTORY
) -> AsyncIterator[Access]:
    """Yield the way to buses, by the names that they are declared under.

    A bus of no gateway is an endpoint that no depot names: it is asked directly, unless the agent has a bus there too.

    Raises NoService where the agent runs and does not answer, ProtocolError where it speaks another version of the
    protocol, and Locked.
    """
    agent = await _agent(socket)
    if agent is None:
        async with _directly(declared, state_directory) as access:
            yield access
        return
    async with agent:
        theirs = {str(bus["name"]): bus for bus in await agent.ask("bus.list")}
        buses: dict[str, RegisterBus] = {}
        unknown: dict[str, str] = {}
        own: dict[str, Bus] = {}
        for name, bus in declared.items():
            if not bus.gateway:
                there = [
                    known for known, their in theirs.items() if same_endpoint(str(their["endpoint"]), bus.endpoint)
                ]
                if there:
                    buses[name] = AgentBus(there[0], agent)
                else:
                    own[name] = bus
            elif name not in theirs:
                unknown[name] = f"the agent does not have the bus {name} yet"
            elif bus.endpoint != theirs[name].get("endpoint"):
                unknown[name] = f"the agent has the bus {name} at {theirs[name].get('endpoint')}, not {bus.endpoint}"
            else:
                buses[name] = AgentBus(name, agent)
        async with _connected(own) as direct:
            yield Access({**buses, **direct}, unknown, through_agent=True)


@asynccontextmanager
async def _directly(declared: Mapping[str, Bus], state_directory: Path) -> AsyncIterator[Access]:
    with buses_locked(state_directory):
        async with _connected(declared) as buses:
            yield Access(buses)


@asynccontextmanager
async def _connected(declared: Mapping[str, Bus]) -> AsyncIterator[Mapping[str, RegisterBus]]:
    async with anyio.create_task_group() as tasks:
        yield {name: OwnBus(bus, tasks) for name, bus in declared.items()}
        tasks.cancel_scope.cancel()


class OwnBus:
    """A bus that nobody else has; implements `derms_agent.drivers.interface.RegisterBus`.

    It is connected to once it is asked: devices that one meant to ask may turn out not to matter.
    """

    def __init__(self, bus: Bus, tasks: anyio.abc.TaskGroup) -> None:
        self._bus = ModbusBus(bus)
        self._tasks = tasks
        self._asked = False

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        """Read registers from a PDU address on. Raises BusError."""
        bus = self._connected()
        return await bus.read(unit_id, table, address, count, priority=priority, deadline_s=deadline_s)

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        """Write registers from a PDU address on, once. Raises BusError."""
        bus = self._connected()
        await bus.write(unit_id, table, address, values, priority=priority, deadline_s=deadline_s, function=function)

    def _connected(self) -> ModbusBus:
        """Return the bus, which from now on has a connection, or tries to."""
        if not self._asked:
            self._asked = True
            self._tasks.start_soon(self._bus.run)
        return self._bus


def same_endpoint(one: str, other: str) -> bool:
    """Whether two endpoints, such as 10.0.0.7:502, are one, be one of them by name."""
    return one == other or not _addresses(one).isdisjoint(_addresses(other))


@lru_cache(maxsize=4096)
def _addresses(endpoint: str) -> frozenset[tuple[str, int]]:
    host, _, port = endpoint.rpartition(":")
    try:
        found = getaddrinfo(host.strip("[]"), int(port), type=SOCK_STREAM)
    except (OSError, ValueError):
        return frozenset()  # a serial line, or a name that nobody knows: neither can be asked by address
    return frozenset((str(address[0]), int(address[1])) for *_, address in found)


# Through the agent


async def _agent(path: Path) -> Agent | None:
    """Return the agent that listens on a socket, or None where none does. Raises NoService, ProtocolError."""
    agent = Agent(path)
    try:
        await agent.connect()
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return agent


class Agent:
    """The agent's socket, over as many connections as there are requests at once."""

    def __init__(self, path: Path, connections: int = CONNECTIONS) -> None:
        self._path = path
        self._room = anyio.CapacityLimiter(connections)
        self._idle: list[_Connection] = []
        self._turn_s = -math.inf
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def connect(self) -> None:
        """Have one connection. Raises OSError, NoService, ProtocolError."""
        connection = _Connection(await anyio.connect_unix(self._path))
        self._stack.push_async_callback(connection.stream.aclose)
        # Its answer shows that the connection was taken, and that both speak one version.
        await connection.ask("version", ANSWER_S)
        self._idle.append(connection)

    async def ask(self, verb: str, within_s: float = ANSWER_S, **arguments: Any) -> Any:
        """Return the result of a verb. Raises NoService, and ProtocolError for a refusal."""
        async with self._room:
            await self._turn()
            if not self._idle:
                try:
                    await self.connect()
                except OSError as problem:
                    raise NotAsked(f"{self._path}: {problem.strerror}") from problem
            connection = self._idle.pop()
            try:
                answer = await connection.ask(verb, within_s, **arguments)
            except ProtocolError:
                self._idle.append(connection)
                raise
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await connection.stream.aclose()
                raise
            self._idle.append(connection)
            return answer

    async def _turn(self) -> None:
        """Wait until the next request may leave."""
        now_s = anyio.current_time()
        self._turn_s = max(self._turn_s + PACE_S, now_s)
        await anyio.sleep(self._turn_s - now_s)


class NotAsked(NoService):
    """The service was not asked at all."""


class _Connection:
    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._received = BufferedByteReceiveStream(stream)

    async def ask(self, verb: str, within_s: float, **arguments: Any) -> Any:
        try:
            with anyio.fail_after(within_s):
                await self.stream.send(encode({"v": VERSION, "id": verb, "verb": verb, **arguments}))
                answer = decode(await self._received.receive_until(b"\n", MOST_BYTES))
        except TimeoutError as problem:
            raise NoService(f"the agent did not answer {verb} within {within_s:g} s") from problem
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as problem:
            raise NoService(f"the agent closed the connection before it answered {verb}") from problem
        if answer.get("ok"):
            return answer.get("result")
        error = answer.get("error") or {}
        raise ProtocolError(str(error.get("code", "unknown")), str(error.get("message", "no reason was given")))


class AgentBus:
    """One of the agent's buses; implements `derms_agent.drivers.interface.RegisterBus`.

    Whatever the priority, the agent serves its jobs after its own.
    """

    def __init__(self, name: str, agent: Agent) -> None:
        self._name = name
        self._agent = agent

    async def read(
        self,
        unit_id: int,
        table: Table,
        address: int,
        count: int,
        *,
        priority: Priority,  # noqa: ARG002 - the agent's own choice
        deadline_s: float,
    ) -> tuple[int, ...]:
        """Read registers from a PDU address on. Raises BusError."""
        job = {"unit_id": unit_id, "table": table.value, "address": address, "count": count}
        return tuple((await self._carried_out(job, deadline_s, writes=False))["values"])

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,  # noqa: ARG002 - the agent's own choice
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        """Write registers from a PDU address on, once. Raises BusError; NotAllowed for what control owns."""
        job: dict[str, Any] = {
            "unit_id": unit_id,
            "table": table.value,
            "address": address,
            "values": [int(value) for value in values],
        }
        if function is not None:
            job["function"] = function
        await self._carried_out(job, deadline_s, writes=True)

    async def _carried_out(self, job: Mapping[str, Any], deadline_s: float, *, writes: bool) -> Mapping[str, Any]:
        deadline_s = min(max(deadline_s, LEAST_DEADLINE_S), MOST_DEADLINE_S)
        try:
            (answer,) = await self._agent.ask(
                "bus.transact", deadline_s + ANSWER_S, bus=self._name, jobs=[job], deadline_s=deadline_s
            )
        except NotAsked as problem:
            raise Unreachable(str(problem)) from problem
        except NoService as problem:
            raise ConnectionLost(str(problem), may_have_happened=writes) from problem
        except ProtocolError as refusal:
            raise NotAllowed(str(refusal)) from refusal
        if answer.get("ok"):
            found: Mapping[str, Any] = answer
            return found
        raise _failure(answer)


def _failure(answer: Mapping[str, Any]) -> BusError:
    """Return the failure that the agent tells of, as the bus itself would have raised it."""
    message = str(answer.get("message", "the agent gave no reason"))
    doubtful = bool(answer.get("may_have_happened", True))
    if answer.get("kind") == Refused.__name__:
        return Refused(message, int(answer.get("exception_code", 0)), may_have_happened=doubtful)
    kind = getattr(errors, str(answer.get("kind")), BusError)
    if not (isinstance(kind, type) and issubclass(kind, BusError)):
        kind = BusError
    return kind(message, may_have_happened=doubtful)
