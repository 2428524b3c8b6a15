# SPDX-License-Identifier: Apache-2.0
"""The socket's lines and arguments: whatever comes, it is answered or named as wrong, and nothing else is raised."""

from __future__ import annotations

import errno
import getpass
import json
import math
import os
import resource
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from derms_agent import socket_server
from derms_agent.model import Rank
from derms_agent.mqtt import side_by_side
from derms_agent.notify import notify
from derms_agent.orchestrator.api import ask_of
from derms_agent.orchestrator.asks import from_json, placed, to_json
from derms_agent.orchestrator.report import ask_json
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError, answered, decode, encode, refused
from derms_agent.socket_server import MOST_CONNECTIONS, Arguments, Verbs

NOW_UNIX_S = 1_795_000_000.0
TARGETS = {"site": None, "main": None, "charger-1": None}
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just([1]), st.just({"a": 1})
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ASK_NAMES = ("source", "rank", "target", "low_w", "high_w", "start", "end", "duration_s", "baseline_w")
times = st.datetimes(timezones=st.just(timezone.utc)).map(lambda at: at.isoformat())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"name": ""}, "name: found '', expected a printable text"),
        ({"name": 5}, "name: found 5, expected a printable text"),
        ({"name": "a\nb"}, "name: found 'a\\nb', expected a printable text"),
        ({"name": "x" * 201}, "name: found 'xxx"),
        ({"name": None}, "name: found nothing, expected"),
        ({"source": 7}, "source: found 7, expected"),
        ({"rank": "high"}, "rank: found 'high', expected one of grid, operator, price"),
        ({"rank": ["grid"]}, "rank: found ['grid'], expected one of"),
        (
            {"target": "charger-l"},
            "target: found 'charger-l', expected site, a circuit or an EVSE (did you",
        ),
        ({"high_w": "5"}, "high_w: found '5', expected a number"),
        ({"high_w": True}, "high_w: found True, expected a number"),
        ({"high_w": 10**400}, "high_w: found 1000"),
        ({"low_w": math.inf}, "low_w: found inf, expected a number"),
        ({"low_w": math.nan}, "low_w: found nan, expected a number"),
        ({"baseline_w": "5"}, "baseline_w: found '5', expected a number"),
        ({"high_w": None}, "found neither low_w nor high_w"),
        ({"low_w": 6.0, "high_w": 5.0}, "low_w: found 6, expected at most high_w, 5"),
        ({"start": "tomorrow"}, "start: found 'tomorrow', expected a time as"),
        ({"start": "2030-01-01T00:00:00"}, "expected a time with its zone"),
        ({"start": "0001-01-01T00:00:00+01:00"}, "expected a time from 1970 to 3000"),
        ({"end": "9999-12-31T23:59:59-01:00"}, "expected a time from 1970 to 3000"),
        ({"duration_s": -1}, "duration_s: found -1, expected a number from 0"),
        ({"end": "2030-01-01T00:00:00Z", "duration_s": 5}, "found both end and duration_s"),
        ({"start": "2030-01-02T00:00:00Z", "end": "2030-01-01T00:00:00Z"}, "end: found a time before the start"),
        ({"high_kw": 5}, "found high_kw, expected one of name"),
    ],
)
def test_what_is_wrong_with_an_ask_is_named(found: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        ask_of({"name": "less", "high_w": 1.0, **found}, "root", TARGETS, NOW_UNIX_S)
    assert refusal.value.code == "argument"
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_an_argument_that_is_not_known_is_named_with_the_nearest() -> None:
    arguments = Arguments({"energy_need": 5})
    arguments.number("energy_need_wh", 0.0, 1.0)
    with pytest.raises(ProtocolError, match=r"found energy_need, .*\(did you mean energy_need_wh\?\)"):
        arguments.end()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"lists": "a"}, "lists: found 'a', expected a list of some of a, b"),
        ({"lists": ["c"]}, "lists: found 'c', expected some of a, b"),
        ({"lists": [["a"]]}, "lists: found ['a'], expected some of a, b"),
        ({"names": ["a"]}, "names: found ['a'], expected texts by name"),
        ({"names": {"": "a"}}, "names: found {'': 'a'}, expected texts by name"),
        ({"names": {"x": "c"}}, "names: found 'c', expected one of a, b"),
        ({"names": {"x": {}}}, "names: found {}, expected one of a, b"),
    ],
)
def test_texts_that_are_none(found: Mapping[str, Any], words: str) -> None:
    arguments = Arguments(found)
    take = arguments.optional_texts if "lists" in found else arguments.optional_texts_by_name
    with pytest.raises(ProtocolError) as refusal:
        take(next(iter(found)), ("a", "b"))
    assert str(refusal.value) == words


def test_texts_are_taken_once_each_and_may_be_missing() -> None:
    arguments = Arguments({"lists": ["b", "a", "b"], "names": {"x": "a"}, "none": None})
    assert arguments.optional_texts("lists") == ("b", "a")
    assert arguments.optional_texts_by_name("names", ("a", "b")) == {"x": "a"}
    assert arguments.optional_texts("none") is None
    assert arguments.optional_texts_by_name("nothing", ()) is None
    arguments.end()


def test_an_ask_has_what_was_asked_for_and_who_asked() -> None:
    ask = ask_of({"name": "less", "high_w": 5, "duration_s": 60}, "root", TARGETS, NOW_UNIX_S)
    assert (ask.id, ask.source, ask.rank, ask.target, ask.put_by) == (
        "less",
        "root: less",
        Rank.OPERATOR,
        "site",
        "root",
    )
    assert (ask.low_w, ask.high_w, ask.start_unix_s, ask.end_unix_s) == (-math.inf, 5.0, None, NOW_UNIX_S + 60)
    later = {
        "name": "l",
        "low_w": 1,
        "rank": "grid",
        "target": "main",
        "start": "2026-11-25T18:00:00Z",
        "duration_s": 9,
    }
    ask = ask_of({**later, "duration_s": 9}, "root", TARGETS, NOW_UNIX_S)
    start = datetime(2026, 11, 25, 18, tzinfo=timezone.utc).timestamp()
    assert (ask.rank, ask.high_w, ask.start_unix_s, ask.end_unix_s) == (Rank.GRID, math.inf, start, start + 9)
    assert "baseline_w" not in ask_json(ask, 0.0)
    ask = ask_of({**later, "baseline_w": 80_000}, "root", TARGETS, NOW_UNIX_S)
    assert ask_json(ask, 0.0)["baseline_w"] == 80_000.0


asked = st.fixed_dictionaries(
    {"name": st.just("less") | scalars},
    optional={name: scalars | times | st.sampled_from(["site", "grid", "less"]) for name in ASK_NAMES},
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(asked)
def test_any_argument_makes_an_ask_that_can_be_kept_and_shown_or_is_refused(found: Mapping[str, Any]) -> None:
    try:
        ask = placed(ask_of(found, "root", TARGETS, NOW_UNIX_S), 100.0, NOW_UNIX_S)
    except ProtocolError as refusal:
        encode(refused(1, refusal))
        return
    assert from_json(json.loads(json.dumps(to_json(ask), allow_nan=False))) == ask
    assert encode(answered(1, ask_json(ask, 100.0)))


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_message_or_is_refused(line: bytes) -> None:
    try:
        decode(line)
    except ProtocolError as refusal:
        encode(refused(None, refusal))


@given(json_values)
def test_any_id_and_verb_are_answered(value: object) -> None:
    line = json.dumps({"v": 1, "id": value, "verb": value}).encode()
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert encode(answered(message["id"], message["verb"]))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "malformed"),
        (b"[1]", "malformed"),
        (b'{"v": 1, "id": NaN}', "malformed"),
        (b'{"v": 1, "id": 1e999}', "malformed"),
        (b'{"v": 1, "high_w": -Infinity}', "malformed"),
        (b'{"v": 1, "id": [1]}', "malformed"),
        (b'{"v": 1, "id": ' + b"[" * 100_000, "malformed"),
        (b"{}", "version"),
        (b'{"v": 2}', "version"),
        (b'{"v": ' + b"[" * 90 + b"]" * 90 + b"}", "version"),
    ],
)
def test_a_line_that_is_no_request_is_refused_by_its_code(line: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        decode(line)
    assert refusal.value.code == code
    assert encode(refused(None, refusal.value))


async def _told(found: Mapping[str, Any], user: str) -> object:
    return [dict(found), user]


VERBS = Verbs({"status": _told}, {"limit.put": _told}, lambda: {"root", "grid"})


@pytest.mark.anyio
async def test_a_verb_gets_its_arguments_and_the_user() -> None:
    assert await VERBS.run({"v": 1, "id": 3, "verb": "status", "a": 1}, "guest") == [{"a": 1}, "guest"]
    assert await VERBS.run({"v": 1, "verb": "limit.put"}, "grid") == [{}, "grid"]


@pytest.mark.anyio
async def test_what_the_disk_does_not_take_is_refused_and_ends_no_service() -> None:
    async def full(_found: Mapping[str, Any], _user: str) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    verbs = Verbs({"status": full}, {"limit.put": full}, lambda: {"root"})
    for verb, code in (("limit.put", "not stored"), ("status", "failed")):
        with pytest.raises(ProtocolError, match="No space left on device") as refusal:
            await verbs.run({"verb": verb}, "root")
        assert refusal.value.code == code


@pytest.mark.anyio
async def test_a_value_that_a_verb_cannot_work_with_is_refused_and_ends_no_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def odd(_found: Mapping[str, Any], _user: str) -> object:
        raise ValueError("Out of range float values are not JSON compliant")

    with pytest.raises(ProtocolError, match="Out of range") as refusal:
        await Verbs({}, {"limit.put": odd}, lambda: {"root"}).run({"verb": "limit.put"}, "root")
    assert refusal.value.code == "failed"
    (said,) = caplog.records
    assert said.exc_info is not None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("verb", "user", "code", "words"),
    [
        ("limit.put", "guest", "not allowed", "found user guest, expected one of grid, root for limit.put"),
        ("limit.putt", "root", "unknown verb", "did you mean limit.put?"),
        (["status"], "root", "unknown verb", "found verb ['status'], expected one of status, limit.put"),
        (None, "root", "unknown verb", "found verb None"),
    ],
)
async def test_who_may_not_and_what_is_no_verb_is_refused(verb: object, user: str, code: str, words: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        await VERBS.run({"verb": verb}, user)
    assert refusal.value.code == code
    assert words in str(refusal.value)


# The server, whoever connects


def ask_status(path: Path) -> object:
    with Client(path, timeout_s=5.0) as client:
        return client.ask("status")


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(socket_server.serve_at, path, VERBS, ready.set)
        await ready.wait()
        yield
        tasks.cancel_scope.cancel()


def connected(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(5)
    one.connect(str(path))
    return one


@pytest.mark.anyio
async def test_who_connects_and_says_nothing_takes_no_room_from_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = "operator"
    monkeypatch.setattr(socket_server, "peer", lambda _stream: user)
    async with served(tmp_path / "s"):
        idle = [connected(tmp_path / "s") for _ in range(MOST_CONNECTIONS)]
        beyond = connected(tmp_path / "s")
        assert await anyio.to_thread.run_sync(beyond.recv, 1) == b""
        user = "derms-grid-gateway"
        assert await anyio.to_thread.run_sync(ask_status, tmp_path / "s") == [{}, user]
        idle.pop().close()
        await anyio.sleep(0.1)
        user = "operator"
        assert await anyio.to_thread.run_sync(ask_status, tmp_path / "s") == [{}, user]
        for one in (*idle, beyond):
            one.close()


@pytest.mark.anyio
async def test_with_no_file_left_to_open_those_who_connect_are_heard_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket_server, "ACCEPT_AGAIN_S", 0.1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with served(tmp_path / "s"):
        with connected(tmp_path / "s") as waits:
            free = os.dup(waits.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most[1]))
            try:
                await anyio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, most)
            assert "Too many open files" in caplog.text
            waits.sendall(b'{"v":1,"id":1,"verb":"status"}\n')
            assert b'"ok":true' in await anyio.to_thread.run_sync(waits.recv, 65536)


@pytest.mark.anyio
async def test_with_no_file_left_to_open_a_socket_that_was_removed_is_made_anew_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else the service does goes on meanwhile."""
    monkeypatch.setattr(socket_server, "LOOKED_AT_EVERY_S", 0.05)
    path = tmp_path / "s"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with served(path):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            path.unlink()
            await anyio.sleep(0.5)
            assert not path.exists()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert caplog.text.count("cannot be made, so that nobody can ask: [Errno 24] Too many open files") == 1
        with anyio.fail_after(5):
            while not path.exists():
                await anyio.sleep(0.05)
        assert await anyio.to_thread.run_sync(ask_status, path) == [{}, getpass.getuser()]


@pytest.mark.anyio
async def test_a_socket_whose_directory_is_gone_ends_the_service_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which systemd starts again, and makes its directory."""
    monkeypatch.setattr(socket_server, "LOOKED_AT_EVERY_S", 0.05)
    path = tmp_path / "run" / "s"
    path.parent.mkdir()
    ready = anyio.Event()

    async def remove() -> None:
        await ready.wait()
        shutil.rmtree(path.parent)

    with anyio.fail_after(5), pytest.raises(FileNotFoundError):
        await side_by_side(remove, partial(socket_server.serve_at, path, VERBS, ready.set))


# The client, and what it says of a service that is not there or answers nonsense

Serve = Callable[[bytes | None], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def start(answer: bytes | None) -> Path:
        """Answer one request with these bytes, then close; None: keep silent until the client is gone."""
        path = tmp_path / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with listener, listener.accept()[0] as wire:
                wire.recv(65536)
                if answer is None:
                    wire.recv(65536)
                else:
                    wire.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return path

    return start


def test_an_answer_in_pieces_is_the_result(serve: Serve) -> None:
    with Client(serve(encode(answered(1, {"a": [1.5, None]})))) as client:
        assert client.ask("status", b=1) == {"a": [1.5, None]}


def test_a_refusal_keeps_its_code(serve: Serve) -> None:
    refusal = encode(refused(1, ProtocolError("not allowed", "found user guest")))
    with Client(serve(refusal)) as client, pytest.raises(ProtocolError, match="found user guest") as raised:
        client.ask("limit.put")
    assert raised.value.code == "not allowed"


@pytest.mark.parametrize(
    ("answer", "words"), [(b"", "closed the connection"), (b'{"v":1', "closed the connection"), (None, "in time")]
)
def test_no_whole_answer_is_no_service(serve: Serve, answer: bytes | None, words: str) -> None:
    with Client(serve(answer), timeout_s=0.3) as client, pytest.raises(NoService, match=words):
        client.ask("status")


def test_an_answer_that_is_none_is_refused(serve: Serve) -> None:
    with Client(serve(b"nonsense\n")) as client, pytest.raises(ProtocolError, match="found no JSON"):
        client.ask("status")


def test_no_socket_says_what_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(NoService, match=r"is derms-orchestrator.service running\?"):
        Client(tmp_path / "none")


def test_systemd_is_told_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")
    for address, bound in ((str(tmp_path / "n"), str(tmp_path / "n")), ("@derms-test-notify", "\0derms-test-notify")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(bound)
            heard.settimeout(2)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            assert notify("READY=1", "STATUS=controls 4 EVSEs")
            assert heard.recv(4096) == b"READY=1\nSTATUS=controls 4 EVSEs"


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [True, False])
async def test_one_that_hangs_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """It takes connections, as far as those who connect can tell, for as long as its last thread waits for a disk."""
    monkeypatch.setattr(socket_server, "ANSWERS_WITHIN_S", 0.2)
    path = tmp_path / "o.sock"
    assert not await socket_server.answers_at(path)
    if answers:
        async with served(path):
            assert await socket_server.answers_at(path)
            await anyio.sleep(0.1)
    else:
        async with await anyio.create_unix_listener(path):
            assert not await socket_server.answers_at(path)
