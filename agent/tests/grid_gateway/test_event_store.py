# SPDX-License-Identifier: Apache-2.0
"""Events on the disk: whatever has been saved is there for a successor, and half a record is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from agent.tests.grid_gateway.test_events import MESSAGES, NOW, event, receive
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.document_store import Store
from derms_agent.grid_gateway.event_store import EVENTS, JOURNAL, EventStore
from derms_agent.grid_gateway.events import State
from derms_agent.grid_gateway.incoming import Event


def played(lists: list[list[Event]]) -> list[State]:
    states = [State()]
    for number, listed in enumerate(lists):
        states.append(receive(states[-1], *listed, now=NOW + 60.0 * number).state)
    return states


@settings(max_examples=50)
@given(MESSAGES, st.lists(st.sampled_from(["save", "shorten", "restart"]), max_size=12))
def test_what_was_saved_is_there_for_a_successor(lists: list[list[Event]], between: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        kept = EventStore(store, most_records=1)
        for number, state in enumerate(played(lists)):
            kept.save(state)
            what = between[number] if number < len(between) else "save"
            if what == "shorten":
                kept.shorten(state)
            elif what == "restart":
                kept = EventStore(store)
                assert kept.load() == (state, None)

            assert EventStore(store).load() == (state, None)


def some(count: int) -> list[State]:
    return played([[event(f"e{number}")] for number in range(count)])


def test_an_event_is_written_and_not_all_of_them(tmp_path: Path) -> None:
    kept = EventStore(Store(tmp_path))
    states = some(200)
    kept.save(states[-2])
    whole = (tmp_path / EVENTS).stat().st_size
    kept.save(states[-1])

    assert (tmp_path / EVENTS).stat().st_size == whole
    assert (tmp_path / JOURNAL).stat().st_size < whole / 50


def test_half_a_record_is_none_and_nothing_follows_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    states = some(3)
    kept = EventStore(store)
    kept.save(states[1])
    kept.save(states[2])
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-5])
    successor = EventStore(store)

    assert successor.load() == (states[1], None)
    successor.save(states[3])
    assert EventStore(store).load() == (states[3], None)


def test_after_a_disk_that_failed_all_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    states = some(3)
    kept = EventStore(store)
    kept.save(states[1])

    def half(name: str, _record: object) -> None:
        with (tmp_path / name).open("ab") as journal:
            journal.write(b'{"events":[')
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "append", half)
        with pytest.raises(OSError, match="space"):
            kept.save(states[2])
    # Nothing has changed since, and what was not stored is stored.
    kept.save(states[2])
    assert EventStore(store).load() == (states[2], None)
    kept.save(states[3])

    assert EventStore(store).load() == (states[3], None)


def test_what_is_stored_is_not_stored_again(tmp_path: Path) -> None:
    kept = EventStore(Store(tmp_path))
    states = some(2)
    kept.save(states[1])
    kept.save(states[2])
    journal = (tmp_path / JOURNAL).read_bytes()
    kept.save(State(dict(states[2].events)))

    assert (tmp_path / JOURNAL).read_bytes() == journal


def test_a_journal_that_grows_long_is_shortened(tmp_path: Path) -> None:
    kept = EventStore(Store(tmp_path), most_records=2)
    states = some(4)
    for state in states[1:4]:
        kept.save(state)
        kept.shorten(state)

    assert (tmp_path / JOURNAL).read_bytes() == b""
    assert EventStore(Store(tmp_path)).load() == (states[3], None)


@pytest.mark.parametrize("name", [EVENTS, JOURNAL])
def test_what_cannot_be_read_is_put_aside_and_said(tmp_path: Path, name: str) -> None:
    kept = EventStore(Store(tmp_path))
    states = some(2)
    kept.save(states[1])
    kept.save(states[2])
    (tmp_path / name).write_text("nonsense\n", encoding="utf-8")
    found, problem = EventStore(Store(tmp_path)).load()

    assert found == State()
    assert problem is not None
    assert (tmp_path / f"{EVENTS}.unreadable").exists()
    assert not (tmp_path / JOURNAL).exists()
