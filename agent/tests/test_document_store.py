# SPDX-License-Identifier: Apache-2.0
"""A document that is stored often: what was acknowledged is there, wherever the process ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent import document_store
from derms_agent.document_store import Latest, Store

NAME, JOURNAL = "asks.json", "asks.journal"


class Killed(Exception):
    """The process ended here."""


class Steps(Store):
    """A store that ends the process before one of its steps, or in the middle of it."""

    def __init__(self, directory: Path, left: int, *, halfway: bool) -> None:
        super().__init__(directory)
        self._left, self._halfway = left, halfway

    def _step(self) -> bool:
        self._left -= 1
        if self._left == -1 and not self._halfway:
            raise Killed
        return self._left == -1

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace it, and end before the caller is told."""
        ends = self._step()
        super().save(name, document)
        if ends:
            raise Killed

    def begin(self, name: str) -> None:
        """Empty it, and end before the caller is told."""
        ends = self._step()
        super().begin(name)
        if ends:
            raise Killed

    def append(self, name: str, record: Mapping[str, Any]) -> int:
        """Add half a record, and end."""
        if self._step():
            with (self.directory / name).open("ab") as journal:
                journal.write(document_store._encoded(record)[:-3])
            raise Killed
        return super().append(name, record)

    def put_aside(self, name: str, why: str) -> str:
        """Rename it, and end before the caller is told."""
        ends = self._step()
        said = super().put_aside(name, why)
        if ends:
            raise Killed
        return said


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6), st.integers(0, 200), st.integers(1, 8))
def test_what_was_acknowledged_is_there_wherever_the_process_ends(
    ends: list[tuple[int, bool]], most_bytes: int, saved_each: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, number, acknowledged = Path(name), 0, 0
        for left, halfway in [*ends, (10**9, False)]:
            kept = Latest(Steps(directory, left, halfway=halfway), NAME, JOURNAL, most_bytes)
            document, problem = kept.load()
            assert problem is None
            # What was on its way when the process ended may be there or not; what was acknowledged is.
            found = (document or {"value": 0})["value"]
            assert found in {acknowledged, number}
            acknowledged = found
            try:
                for _ in range(saved_each):
                    number += 1
                    kept.save({"value": number})
                    acknowledged = number
            except Killed:
                continue


def stored(directory: Path, values: int) -> Latest:
    kept = Latest(Store(directory), NAME, JOURNAL)
    for value in range(values):
        kept.save({"value": value})
    return kept


def value_of(directory: Path) -> tuple[int | None, str | None]:
    document, problem = Latest(Store(directory), NAME, JOURNAL).load()
    return (None if document is None else document["value"]), problem


def test_each_is_a_line_and_the_file_stays(tmp_path: Path) -> None:
    kept = stored(tmp_path, 1)
    whole = (tmp_path / NAME).read_bytes()
    kept.save({"value": 7})

    assert (tmp_path / NAME).read_bytes() == whole
    assert value_of(tmp_path) == (7, None)


@pytest.mark.parametrize("damage", [b"nothing\n", b"\xff\n", b"[]\n"])
def test_a_damaged_line_hides_no_other_and_is_said_to_be_there(tmp_path: Path, damage: bytes) -> None:
    stored(tmp_path, 3)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(damage)
    value, problem = value_of(tmp_path)

    assert value == 2
    assert problem is not None
    assert f"{JOURNAL}: found a line that is no document; it becomes {JOURNAL}.unreadable" in problem

    damaged = (tmp_path / JOURNAL).read_bytes()
    kept = Latest(Store(tmp_path), NAME, JOURNAL)
    kept.load()
    kept.save({"value": 9})
    assert (tmp_path / f"{JOURNAL}.unreadable").read_bytes() == damaged
    kept.save({"value": 10})
    assert value_of(tmp_path) == (10, None)


@pytest.mark.parametrize("damaged", [NAME, JOURNAL])
@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("left", range(4))
def test_beside_what_is_damaged_there_is_the_rest_wherever_the_process_ends(
    tmp_path: Path, damaged: str, left: int, halfway: bool
) -> None:
    """Until the rest is stored anew it is nowhere else: for seconds after a start, and as long as a disk is full."""
    stored(tmp_path, 3)
    with (tmp_path / damaged).open("ab") as file:
        file.write(b"{\n")
    kept, acknowledged = Latest(Steps(tmp_path, left, halfway=halfway), NAME, JOURNAL), False
    with contextlib.suppress(Killed):
        kept.load()
        kept.save({"value": 9})
        acknowledged = True
    for _ in range(2):
        value, _ = value_of(tmp_path)
        assert value in ({9} if acknowledged else {2, 9})


def test_a_journal_is_worth_nothing_beside_a_file_that_another_release_wrote(tmp_path: Path) -> None:
    stored(tmp_path, 3)
    Store(tmp_path).save(NAME, {"value": 7})

    assert value_of(tmp_path) == (7, None)


def test_lines_of_an_earlier_series_count_for_nothing(tmp_path: Path) -> None:
    kept = stored(tmp_path, 3)
    earlier = (tmp_path / JOURNAL).read_bytes()
    kept.save({"value": 9}, whole=True)
    (tmp_path / JOURNAL).write_bytes(earlier)  # as where the process ends before it is emptied

    assert value_of(tmp_path) == (9, None)


def test_whole_it_can_be_read_by_whoever_knows_no_journal(tmp_path: Path) -> None:
    stored(tmp_path, 3).save({"value": 9}, whole=True)

    assert json.loads((tmp_path / NAME).read_bytes())["value"] == 9
    assert value_of(tmp_path) == (9, None)


def test_the_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    kept = Latest(Store(tmp_path), NAME, JOURNAL, most_bytes=1000)
    for value in range(200):
        kept.save({"value": value})
        assert (tmp_path / JOURNAL).stat().st_size < 1100

    assert value_of(tmp_path) == (199, None)


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_beside_a_file_that_holds_no_document_the_journal_does(tmp_path: Path, content: bytes) -> None:
    stored(tmp_path, 3)
    (tmp_path / NAME).write_bytes(content)
    value, problem = value_of(tmp_path)

    assert value == 2
    assert problem is not None
    assert f"{NAME}.unreadable" in problem
    assert (tmp_path / f"{NAME}.unreadable").read_bytes() == content


def test_of_what_can_be_used_in_part_a_copy_is_kept_and_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, 3)
    store = Store(tmp_path)
    assert f"{NAME}: why; a copy is kept as {NAME}.unreadable" in store.keep_copy(NAME, {"value": 2}, "why")
    assert json.loads((tmp_path / f"{NAME}.unreadable").read_bytes()) == {"value": 2}
    assert value_of(tmp_path) == (2, None)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Store, "save", full)
    assert store.keep_copy(NAME, {"value": 2}, "why").endswith(
        "no copy is kept, for none can be stored: No space left on device"
    )


def test_after_a_disk_that_failed_it_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = stored(tmp_path, 2)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", full)
        with pytest.raises(OSError, match="space"):
            kept.save({"value": 8})
    kept.save({"value": 9})

    assert (tmp_path / JOURNAL).read_bytes() == b""
    assert value_of(tmp_path) == (9, None)


def test_on_a_disk_that_takes_nothing_what_cannot_be_read_stays_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that has found damage is mounted read-only: then both come together, and a service starts on it."""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / NAME).write_bytes(b"")
    (tmp_path / JOURNAL).write_bytes(b"\0\n")
    monkeypatch.setattr(Path, "replace", read_only)
    found, said = value_of(tmp_path)
    assert found is None
    assert said is not None
    assert f"{NAME}: Expecting value" in said
    assert "it stays, for it cannot be renamed: [Errno 30] Read-only file system" in said
    assert f"{JOURNAL}: found a line that is no document" in said
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize("whole", [True, False])
def test_what_was_acknowledged_is_on_the_disk_and_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """After a power cut there is what was synced: the file before its name, and the name before the caller goes on."""
    kept, synced = stored(tmp_path, 1), []

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fsync", lambda one: synced.append((name_of(one), (tmp_path / f".{NAME}.new").exists())))
    monkeypatch.setattr(os, "fdatasync", lambda one: synced.append((name_of(one), False)))
    kept.save({"value": 2}, whole=whole)
    assert synced == ([(f".{NAME}.new", True), (tmp_path.name, False)] if whole else [(JOURNAL, False)])
