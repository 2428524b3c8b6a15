# SPDX-License-Identifier: Apache-2.0
"""A service's socket: who may ask what, and the taking apart of arguments. docs/socket.md.

Whoever may open the socket (its mode: the service's user and the group derms-operators) may look. Verbs that change
something are for the users that agent.conf names, by the kernel's own word on who is at the other end (SO_PEERCRED).
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import socket
import sqlite3
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from derms_agent.profiles.profile import nearest
from derms_agent.socket_protocol import MOST_BYTES, VERSION, ProtocolError, answered, decode, encode, refused, shown

OPERATORS = "derms-operators"
IDLE_S = 300.0
SEND_S = 5.0
MOST_CONNECTIONS = 64
"""Of each user: whoever leaves connections open takes no room from others."""
ACCEPT_AGAIN_S = 1.0
LOOKED_AT_EVERY_S = 2.0
ANSWERS_WITHIN_S = 2.0
RUNS_ALREADY = 1
"""What a service ends with that refuses to start beside another, which answers at its socket."""
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_LONGEST_NAME = 200
_LATEST_UNIX_S = 32_503_680_000.0

logger = logging.getLogger("derms")

Verb: TypeAlias = "Callable[[Mapping[str, Any], str], Awaitable[object]]"
"""Arguments and the user who asks, in; the result, out."""


@dataclass(frozen=True, slots=True)
class Verbs:
    """What may be asked: by anybody who gets in, and by named users only; who they are is looked up at each request."""

    looking: Mapping[str, Verb]
    changing: Mapping[str, Verb]
    users: Callable[[], Collection[str]]

    async def run(self, message: Mapping[str, Any], user: str) -> object:
        """Carry a request out. Raises ProtocolError."""
        name = message.get("verb")
        verb = self.looking.get(str(name))
        if verb is None:
            verb = self.changing.get(str(name))
            if verb is None:
                known = (*self.looking, *self.changing)
                meant = nearest(str(name), known)
                hint = f" (did you mean {meant}?)" if meant else ""
                expected = f"one of {', '.join(known)}{hint}"
                raise ProtocolError("unknown verb", f"found verb {shown(name)}, expected {expected}")
            users = self.users()
            if user not in users:
                allowed = ", ".join(sorted(users))
                raise ProtocolError("not allowed", f"found user {user}, expected one of {allowed} for {name}")
        arguments = {key: value for key, value in message.items() if key not in {"v", "id", "verb"}}
        with refused_where_it_fails(str(name), looks=name in self.looking):
            return await verb(arguments, user)


@contextmanager
def refused_where_it_fails(verb: str, *, looks: bool = False) -> Iterator[None]:
    """Have what fails while a verb is carried out refused, wherever it was asked: the service goes on.

    Whoever asked is not told that it is kept where the disk does not take it. Raises ProtocolError.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as problem:
        words = f"{verb}: {type(problem).__name__}: {problem}"
        if looks:
            raise ProtocolError("failed", words) from problem
        raise ProtocolError("not stored", f"{words}; it holds until this service ends") from problem
    except ValueError as problem:
        logger.exception("%s cannot be carried out", verb)
        raise ProtocolError("failed", f"{verb}: {type(problem).__name__}: {problem}") from problem


async def serve(listener: anyio.abc.SocketListener, verbs: Verbs) -> None:
    """Answer connections until cancelled."""
    open_of: Counter[str] = Counter()

    async def connection(stream: anyio.abc.SocketStream, user: str) -> None:
        async with stream:
            if open_of[user] >= MOST_CONNECTIONS:
                return
            open_of[user] += 1
            try:
                await _converse(stream, verbs, user)
            finally:
                open_of[user] -= 1

    async with anyio.create_task_group() as tasks:
        while True:
            if (stream := await _accepted(listener)) is not None:
                tasks.start_soon(connection, stream, peer(stream))


async def _accepted(listener: anyio.abc.SocketListener) -> anyio.abc.SocketStream | None:
    """Return the next who connects; after a pause None where the process has no more files to open: they wait."""
    try:
        return await listener.accept()
    except anyio.BrokenResourceError as problem:
        logger.warning("A connection could not be taken: %s", problem.__cause__ or problem)
        await anyio.sleep(ACCEPT_AGAIN_S)
        return None


async def _converse(stream: anyio.abc.SocketStream, verbs: Verbs, user: str) -> None:
    received = BufferedByteReceiveStream(stream)
    while True:
        with anyio.move_on_after(IDLE_S) as idle:
            try:
                line = await received.receive_until(b"\n", MOST_BYTES)
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.DelimiterNotFound, anyio.BrokenResourceError):
                return
        if idle.cancelled_caught:
            return
        request_id = None
        try:
            message = decode(line)
            request_id = message.get("id")
            answer = answered(request_id, await verbs.run(message, user))
        except ProtocolError as problem:
            answer = refused(request_id, problem)
        with anyio.move_on_after(SEND_S) as sending:
            try:
                await stream.send(encode(answer))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
        if sending.cancelled_caught:
            return


def peer(stream: anyio.abc.SocketStream) -> str:
    """Return the name of the user at the other end; the number where it has none."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's, no database's
    found = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", found)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# What arguments must be


class Arguments:
    """A request's arguments, taken one by one; what is left over in the end was not known."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._left = dict(found)
        self._names: list[str] = []

    def _take(self, name: str) -> Any:
        self._names.append(name)
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        """Return a text that must be there. Raises ProtocolError."""
        value = self._take(name)
        if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable():  # noqa: PLR2004
            raise _wrong(name, value, "a printable text of 1 to 200 characters")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None where there is none. Raises ProtocolError."""
        if self._left.get(name) is None:
            self._take(name)
            return None
        return self.text(name)

    def optional_texts(self, name: str, among: Collection[str] | None = None) -> tuple[str, ...] | None:
        """Return a list of texts, or None where there is none. Raises ProtocolError."""
        value = self._take(name)
        if value is None:
            return None
        expected = "texts" if among is None else f"some of {', '.join(among)}"
        if not isinstance(value, list):
            raise _wrong(name, value, f"a list of {expected}")
        for one in value:
            if not isinstance(one, str) or not one or (among is not None and one not in among):
                raise _wrong(name, one, expected)
        return tuple(dict.fromkeys(value))

    def optional_texts_by_name(self, name: str, among: Collection[str]) -> dict[str, str] | None:
        """Return texts of a few by their names, or None where there are none. Raises ProtocolError."""
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, dict) or not all(value):
            raise _wrong(name, value, "texts by name")
        for one in value.values():
            if not isinstance(one, str) or one not in among:
                raise _wrong(name, one, f"one of {', '.join(sorted(among))}")
        return dict(value)

    def one_of(self, name: str, among: Mapping[str, Any], default: str) -> str:
        """Return a name that must be among others. Raises ProtocolError."""
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in among:
            raise _wrong(name, value, f"one of {', '.join(among)}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number within a range, or None where there is none. Raises ProtocolError."""
        value = self._take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int:
        """Return a whole number that must be there. Raises ProtocolError."""
        value = self._take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def time(self, name: str) -> float | None:
        """Return a wall-clock time in s since 1970, or None where there is none. Raises ProtocolError."""
        value = self._take(name)
        if value is None:
            return None
        try:
            found = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        except ValueError as problem:
            raise _wrong(name, value, "a time as 2026-11-25T18:00:00Z") from problem
        if found.tzinfo is None:
            raise _wrong(name, value, "a time with its zone, as 2026-11-25T18:00:00Z")
        unix_s = found.timestamp()
        # A report shows it in UTC, also with a duration added: the calendar must not end there.
        if not 0.0 <= unix_s <= _LATEST_UNIX_S:
            raise _wrong(name, value, "a time from 1970 to 3000")
        return unix_s

    def items(self, name: str) -> list[Any]:
        """Return a list that must be there. Raises ProtocolError."""
        value = self._take(name)
        if not isinstance(value, list) or not value:
            raise _wrong(name, value, "a list of one at least")
        return value

    def end(self) -> None:
        """Say what was given and is not known. Raises ProtocolError."""
        if self._left:
            name = next(iter(self._left))
            meant = nearest(name, self._names)
            hint = f" (did you mean {meant}?)" if meant else ""
            known = ", ".join(self._names)
            raise ProtocolError("argument", f"found {_cut(name)}, expected one of {known}{hint}")


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def _wrong(name: str, found: object, expected: str) -> ProtocolError:
    what = "nothing" if found is None else shown(found)
    return ProtocolError("argument", f"{name}: found {what}, expected {expected}")


# Where it is


async def answers_at(path: Path) -> bool:
    """Whether a program is alive at the socket.

    One that hangs, in a disk that has stalled say, takes connections and answers nothing: it keeps nobody out.
    """
    with anyio.move_on_after(ANSWERS_WITHIN_S):
        try:
            async with await anyio.connect_unix(path) as stream:
                await stream.send(encode({"v": VERSION, "id": 1, "verb": "version"}))
                await stream.receive()
        except OSError:
            return False
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True  # it has no room for one more, and says so
        return True
    return False


async def serve_at(path: Path, verbs: Verbs, ready: Callable[[], object]) -> None:
    """Listen at a path and answer until cancelled; `ready` is called once somebody may ask.

    Where the socket is removed, or another program's stands in its place, it is made anew: again and again, while the
    process, or the host, has no more files to open. Raises OSError where it cannot be made for another reason: with its
    directory gone it is systemd that makes that, when the service starts.
    """
    said = ""
    while True:
        problem = await _served_at(path, verbs, ready)
        words = "was taken away, so that nobody could ask: it is made anew"
        if problem is not None:
            words = f"cannot be made, so that nobody can ask: {problem}"
            await anyio.sleep(LOOKED_AT_EVERY_S)
        if problem is None or words != said:
            logger.error("%s %s", path, words)
        said = words


async def _served_at(path: Path, verbs: Verbs, ready: Callable[[], object]) -> OSError | None:
    """Answer for as long as the socket is there; return what it could not be made for, of what passes."""
    try:
        async with listening(path) as listener, anyio.create_task_group() as tasks:
            own = _which(path)  # before anybody knows of it
            tasks.start_soon(serve, listener, verbs)
            ready()
            while own is not None and _which(path) == own:
                await anyio.sleep(LOOKED_AT_EVERY_S)
            tasks.cancel_scope.cancel()
    except OSError as problem:
        if problem.errno not in _NO_FILES:
            raise
        return problem
    return None


def _which(path: Path) -> tuple[int, int] | None:
    """Return which file there is at a path."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[anyio.abc.SocketListener]:
    """Listen on the socket; it is never open to more than the service's user and the depot's operators."""
    before = os.umask(0o177)
    try:
        listener = await anyio.create_unix_listener(path)
    finally:
        os.umask(before)
    async with listener:
        try:
            os.chown(path, -1, grp.getgrnam(OPERATORS).gr_gid)
        except (KeyError, PermissionError) as problem:
            logger.warning("%s is open to %s's user and root only: %s", path, "this service", problem)
        path.chmod(0o660)
        own = _which(path)
        try:
            yield listener
        finally:
            if _which(path) == own:
                path.unlink(missing_ok=True)
