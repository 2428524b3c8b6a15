# SPDX-License-Identifier: Apache-2.0
"""The engine's log: its lines, its file, and when a device's silence is worth one."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.engine_log import (
    EngineLog,
    Heartbeats,
    OneLineFormatter,
    heartbeat_timeout,
    listen,
    log_to,
    tls_handshake_failure,
)

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) .*")


class Log:
    """A logger that writes to a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.out = path, EngineLog(path)
        self.logger = logging.Logger("engine")
        self.logger.addHandler(self.out)

    def lines(self) -> list[str]:
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
        log.logger.warning("one")
    finally:
        os.umask(before)
    log.out.close()
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o640


def test_a_file_that_is_there_keeps_its_mode_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("before\n", encoding="utf-8")
    path.chmod(0o600)
    log = Log(path)
    log.logger.warning("after")
    log.out.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert log.lines()[0] == "before"
    assert log.lines()[1].endswith("WARNING after")


def test_rotation_is_followed(log: Log) -> None:
    log.logger.warning("one")
    rotated = log.path.with_suffix(".1")
    log.path.rename(rotated)
    log.logger.warning("two")
    assert [line[-3:] for line in log.lines()] == ["two"]
    assert rotated.read_text(encoding="utf-8").endswith("one\n")


def test_entries_go_to_the_end_of_a_file_that_was_cut(log: Log) -> None:
    log.logger.warning("a long line before the file is cut to nothing")
    os.truncate(log.path, 0)
    log.logger.warning("two")
    (line,) = log.lines()
    assert LINE.fullmatch(line)


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, aside = log.path.parent, log.path.parent.with_name("aside")
    log.logger.warning("one")
    directory.rename(aside)
    log.logger.warning("two")
    log.logger.warning("three")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "No such file or directory" in told[0]
    assert told[0].startswith(str(log.path))
    aside.rename(directory)
    log.logger.warning("four")
    assert [line.rpartition(" ")[2] for line in log.lines()] == ["one", "four"]
    assert capsys.readouterr().err == ""


def test_a_full_disk_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(Path("/dev/full"))
    log.logger.warning("one")
    log.logger.warning("two")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "No space left on device" in told[0]
    with pytest.raises(OSError, match="No space left"):
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
    root.warning("one")
    assert "No such file or directory" in capsys.readouterr().err
    path.parent.mkdir()
    root.warning("two")
    root.warning("three")
    root.handlers[0].close()
    assert [line.rpartition(" ")[2] for line in path.read_text(encoding="utf-8").splitlines()] == ["two", "three"]


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
