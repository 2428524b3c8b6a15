# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulator's control socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.errors import HostsError
from tests.hosts.vm import Control

Answers = Callable[[dict[str, Any]], list[dict[str, Any]]]


@contextmanager
def emulator(path: Path, answers: Answers) -> Iterator[list[dict[str, Any]]]:
    """Run an emulator of the emulator, and collect what it was told."""
    told: list[dict[str, Any]] = []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as lines:
            print('{"QMP": {"version": {}, "capabilities": []}}', file=lines, flush=True)
            for line in lines:
                told.append(json.loads(line))
                for message in answers(told[-1]):
                    print(json.dumps(message), file=lines, flush=True)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield told
        thread.join(timeout=5)


def done(_command: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"return": {}}]


def test_what_happens_in_between_is_no_answer(tmp_path: Path) -> None:
    def answers(_command: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"event": "STOP"}, {"return": {"status": "paused"}}]

    with emulator(tmp_path / "q", answers), Control(tmp_path / "q", timeout_s=5) as control:
        assert control.execute("query-status") == {"status": "paused"}


def test_a_refusal_is_told_in_the_emulators_words(tmp_path: Path) -> None:
    def answers(command: dict[str, Any]) -> list[dict[str, Any]]:
        return done(command) if command["execute"] == "qmp_capabilities" else [{"error": {"desc": "no such thing"}}]

    with (
        emulator(tmp_path / "q", answers),
        Control(tmp_path / "q", timeout_s=5) as control,
        pytest.raises(HostsError, match="stop: no such thing"),
    ):
        control.execute("stop")


def test_the_state_is_saved_once_the_machine_stands_still(tmp_path: Path) -> None:
    progress = iter(["setup", "active", "completed"])

    def answers(command: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"return": {"status": next(progress)} if command["execute"] == "query-migrate" else {}}]

    with emulator(tmp_path / "q", answers) as told, Control(tmp_path / "q", timeout_s=5) as control:
        control.save(tmp_path / "state")
    order = [command["execute"] for command in told]
    assert order.index("stop") < order.index("migrate")
    assert order.count("query-migrate") == 3
    assert told[order.index("migrate")]["arguments"] == {"uri": f"exec:cat > {tmp_path}/state"}


def test_a_state_that_could_not_be_saved_is_no_base(tmp_path: Path) -> None:
    def answers(command: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"return": {"status": "failed"} if command["execute"] == "query-migrate" else {}}]

    with (
        emulator(tmp_path / "q", answers),
        Control(tmp_path / "q", timeout_s=5) as control,
        pytest.raises(HostsError, match="could not be saved: failed"),
    ):
        control.save(tmp_path / "state")


def test_an_emulator_that_never_opens_its_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostsError, match=r"opened no control\.sock"):
        Control(tmp_path / "control.sock", timeout_s=0.05)
