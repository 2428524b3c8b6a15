# SPDX-License-Identifier: Apache-2.0
"""The engine's log: its lines, its file, and when a device's silence is worth one."""

from __future__ import annotations

import logging
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.engine_log import (
    MOST_WAITING,
    EngineLog,
    Heartbeats,
    OneLineFormatter,
    heartbeat_timeout,
    listen,
    log_to,
    tls_handshake_failure,
)

WITHIN_S = 10.0
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) .*")


class Log:
    """A logger that writes to a file of its own."""

    def __init__(self, path: Path, most_waiting: int = MOST_WAITING) -> None:
        self.path, self.out = path, EngineLog(path, most_waiting)
        self.logger = logging.Logger("engine")
        self.logger.addHandler(self.out)

    def say(self, text: str) -> None:
        """Log something, and wait until it is written, or lost."""
        self.logger.warning(text)
        assert self.out.written(WITHIN_S)

    def lines(self) -> list[str]:
        assert self.out.written(WITHIN_S)
        return self.path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    opened = Log(tmp_path / "engine.log")
    yield opened
    opened.out.close()


def record(text: str, at: float = 0.0) -> logging.LogRecord:
    made = logging.LogRecord("engine", logging.WARNING, "", 0, text, (), None)
    made.created = at
    return made


def test_a_line_is_time_level_and_text() -> None:
    text = heartbeat_timeout("charger-003", 5.24).text
    assert OneLineFormatter().format(record(text, 1795646466.1239)) == (
        "2026-11-25T22:41:06.123Z WARNING Heartbeat Timeout charger-003: no answer for 5.2 s"
    )


def test_the_strings_that_people_look_for(log: Log) -> None:
    heartbeat_timeout("charger-003", 5.2).log(log.logger)
    tls_handshake_failure("vtn.example:443", "certificate has expired, 100 % sure").log(log.logger)
    assert [line.partition("Z ")[2] for line in log.lines()] == [
        "WARNING Heartbeat Timeout charger-003: no answer for 5.2 s",
        "ERROR TLS Handshake Failure vtn.example:443: certificate has expired, 100 % sure",
    ]


@given(st.text(st.characters()))
def test_an_entry_is_one_line_whatever_a_device_sends(text: str) -> None:
    line = OneLineFormatter().format(record(text))
    assert line.isprintable()
    assert LINE.fullmatch(line)


def test_an_exception_is_one_line_too(log: Log) -> None:
    try:
        raise OSError("first\nsecond")
    except OSError:
        log.logger.exception("bus yard")
    (line,) = log.lines()
    assert line.endswith(r"ERROR bus yard (OSError: first\nsecond)")


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_file_is_for_its_group_to_read_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        log = Log(tmp_path / "engine.log")
        log.say("one")
    finally:
        os.umask(before)
    log.out.close()
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o640


def test_a_file_that_is_there_keeps_its_mode_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("before\n", encoding="utf-8")
    path.chmod(0o600)
    log = Log(path)
    log.say("after")
    log.out.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert log.lines()[0] == "before"
    assert log.lines()[1].endswith("WARNING after")


def test_rotation_is_followed(log: Log) -> None:
    log.say("one")
    rotated = log.path.with_suffix(".1")
    log.path.rename(rotated)
    log.say("two")
    assert [line[-3:] for line in log.lines()] == ["two"]
    assert rotated.read_text(encoding="utf-8").endswith("one\n")


def test_entries_go_to_the_end_of_a_file_that_was_cut(log: Log) -> None:
    log.say("a long line before the file is cut to nothing")
    os.truncate(log.path, 0)
    log.say("two")
    (line,) = log.lines()
    assert LINE.fullmatch(line)


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, aside = log.path.parent, log.path.parent.with_name("aside")
    log.say("one")
    directory.rename(aside)
    log.say("two")
    log.say("three")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "No such file or directory" in told[0]
    assert told[0].startswith(str(log.path))
    aside.rename(directory)
    log.say("four")
    assert [line.rpartition(" ")[2] for line in log.lines()] == ["one", "four"]
    assert capsys.readouterr().err == ""


def test_a_full_disk_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(Path("/dev/full"))
    log.say("one")
    log.say("two")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "No space left on device" in told[0]
    log.out.close()


def test_a_log_that_cannot_be_opened_at_the_start_is_written_once_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full or read-only as the service started is mended while it runs."""
    path = tmp_path / "nowhere" / "engine.log"
    root = logging.getLogger()
    # A process has one engine.log, and services of other tests may have begun theirs in this one.
    monkeypatch.setattr(root, "handlers", [])
    log_to(path)
    (added,) = root.handlers
    assert isinstance(added, EngineLog)
    root.warning("one")
    assert added.written(WITHIN_S)
    assert "No such file or directory" in capsys.readouterr().err
    path.parent.mkdir()
    root.warning("two")
    root.warning("three")
    added.close()
    assert [line.rpartition(" ")[2] for line in path.read_text(encoding="utf-8").splitlines()] == ["two", "three"]


@pytest.fixture
def stalled(tmp_path: Path) -> Path:
    """Return where a log is that takes nothing until somebody reads it."""
    path = tmp_path / "engine.log"
    os.mkfifo(path)
    return path


def test_a_disk_that_takes_its_time_keeps_nobody_waiting_and_what_is_lost_is_counted(
    stalled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(stalled, most_waiting=10)
    log.logger.warning("0")
    while not log.out._entries.empty():  # the first one is being written
        time.sleep(0.01)
    began_s = time.monotonic()
    for number in range(1, 41):
        log.logger.warning("%d", number)
    assert time.monotonic() - began_s < 1.0
    assert not log.out.written(0.05)
    (told,) = capsys.readouterr().err.splitlines()
    assert "the disk takes its time; entries are lost" in told

    with stalled.open(encoding="utf-8") as read:
        assert log.out.written(WITHIN_S)
        log.logger.warning("41")
        log.out.close()
        lines = read.read().splitlines()
    assert [line.rpartition("WARNING ")[2] for line in lines] == [
        *(str(number) for number in range(11)), "30 entries are lost here", "41",
    ]  # fmt: skip
    assert all(LINE.fullmatch(line) for line in lines)
    assert capsys.readouterr().err == ""


def test_entries_that_are_lost_are_counted_at_the_end_too(stalled: Path) -> None:
    log = Log(stalled, most_waiting=2)
    for number in range(9):
        log.logger.warning("%d", number)
    with stalled.open(encoding="utf-8") as read:
        assert log.out.written(WITHIN_S)
        log.out.close()
        text = read.read()
    assert re.search(r"WARNING [67] entries are lost here\n$", text)


LOGS = """
import logging, pathlib, sys
from derms_agent.engine_log import log_to
log_to(pathlib.Path(sys.argv[1]))
for number in range(500):
    logging.warning("entry %d", number)
"""


def test_the_last_entries_of_a_process_are_written(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    subprocess.run([sys.executable, "-c", LOGS, path], check=True, stderr=subprocess.DEVNULL, timeout=60)
    assert [line.rpartition(" ")[2] for line in path.read_text(encoding="utf-8").splitlines()] == [
        str(number) for number in range(500)
    ]


def test_a_disk_that_takes_nothing_keeps_no_process_from_its_end(stalled: Path) -> None:
    subprocess.run([sys.executable, "-c", LOGS, stalled], check=True, stderr=subprocess.DEVNULL, timeout=30)


# --- heartbeats -------------------------------------------------------------------------------------------------------


def texts(answers_s: list[float], seconds: int, timeout_s: float = 5.0) -> dict[int, str]:
    """Return what is logged of a device that answers at these times, by the second at which it is."""
    state, found = Heartbeats(), {}
    for now_s in range(seconds):
        last_s = max((at for at in answers_s if at <= now_s), default=0.0)
        state, entries = listen(state, {"c": last_s}, {"c": timeout_s}, float(now_s))
        for entry in entries:
            assert now_s not in found
            found[now_s] = entry.text
    return found


def test_a_silence_is_logged_once_and_its_end_once() -> None:
    answers_s = [0.0, 1.0, *(20.0 + second for second in range(20))]
    assert texts(answers_s, 40) == {
        7: "Heartbeat Timeout c: no answer for 6.0 s",
        25: "Heartbeat Back c: answers again after 19.0 s",
    }


def test_a_device_that_never_answers_is_silent_from_when_asking_began() -> None:
    assert texts([], 100) == {6: "Heartbeat Timeout c: no answer for 6.0 s"}


def test_a_device_that_answers_now_and_then_is_one_silence() -> None:
    answers_s = [float(second) for second in range(0, 600, 7)]
    assert texts(answers_s, 600) == {6: "Heartbeat Timeout c: no answer for 6.0 s"}


def test_a_device_that_is_taken_out_is_forgotten() -> None:
    state, entries = listen(Heartbeats(), {"c": 0.0}, {"c": 5.0}, 10.0)
    assert len(entries) == 1
    assert listen(state, {}, {}, 11.0) == (Heartbeats(), ())


@given(st.lists(st.floats(0.1, 30), max_size=60), st.floats(0.5, 10))
def test_timeouts_and_returns_take_turns_and_are_true(gaps_s: list[float], timeout_s: float) -> None:
    answers_s = [0.0]
    for gap_s in gaps_s:
        answers_s.append(answers_s[-1] + gap_s)
    kinds = [(second, text.split()[1]) for second, text in texts(answers_s, int(answers_s[-1]) + 60, timeout_s).items()]
    assert [kind for _, kind in kinds] == [("Timeout", "Back")[index % 2] for index in range(len(kinds))]
    assert len(kinds) % 2 == 1  # it ends in silence
    for second, kind in kinds:
        age_s = second - max(at for at in answers_s if at <= second)
        assert (age_s > timeout_s) == (kind == "Timeout")
