# SPDX-License-Identifier: Apache-2.0
"""The loader: strict, and every mistake answered with file, line, column, what was found and what was expected."""

import re
from pathlib import Path

import pytest

from derms_agent.profiles import ProfileError, load_all, parse, read
from derms_agent.profiles.point import Order, PointType

GOOD = """\
name: mine
title: A charger of mine
kind: charger
source: its manual, revision 3
points:
  active_power: {table: input, address: 0x10, type: u32, scale: 0.1, unit: W}
  current_limit:
    {table: holding, address: 20, type: u16, scale: 0.001, unit: A, access: write,
     readback: {address: 30, type: u32}}
  failsafe_current: {table: holding, address: 22, type: u16, unit: A, access: read_write, setting: true}
  state:
    table: holding
    address: 24
    type: u16
    states: {0: off, 1: on}
control: {point: current_limit, quantity: current, minimum: 6, step: 0.001}
fallback: {refreshed_by: write, after_boot: rating, current: failsafe_current, fixed_timeout_s: 60}
never_write: [99]
traps: [It bites.]
poll: [active_power, state]
"""


def test_what_is_good_is_read_as_it_stands() -> None:
    profile = parse(GOOD, "mine.yml")
    limit = profile.points["current_limit"]
    assert profile.points["active_power"].address == 16
    assert profile.points["active_power"].length == 2
    assert limit.readback is not None
    assert (limit.readback.table, limit.readback.scale, limit.readback.unit) == (limit.table, 0.001, "A")
    assert (limit.readback.address, limit.readback.type, limit.readback.length) == (30, PointType.U32, 2)
    assert profile.points["state"].states == {0: "off", 1: "on"}
    assert profile.never_write == (99,)


def test_a_profiles_word_order_is_that_of_its_numbers() -> None:
    text = GOOD.replace("points:", "word_order: little\npoints:", 1)
    profile = parse(text, "mine.yml")
    assert profile.points["active_power"].word_order is Order.LITTLE
    readback = profile.points["current_limit"].readback
    assert readback is not None
    assert readback.word_order is Order.LITTLE


def test_a_leading_zero_is_no_octal() -> None:
    assert parse(GOOD.replace("address: 20", "address: 0020"), "mine.yml").points["current_limit"].address == 20


MISTAKES: dict[str, tuple[str, str, str, str]] = {
    # what is replaced, by what, where the error has to point, and what it has to say
    "unknown key": (
        "kind: charger",
        "kind: charger\nkined: x",
        "4:1",
        "kined: found a key that is not known.*mean kind",
    ),
    "unknown key of a point": ("scale: 0.1,", "scal: 0.1,", "6:58", "scal: found a key .* mean scale"),
    "missing key": ("source: its manual, revision 3\n", "", "1:1", "found no source, expected one"),
    "missing address": ("    address: 24\n", "", "12:5", "points.state: found no address"),
    "not one of": ("type: u32, scale", "type: u33, scale", "6:53", "found 'u33', expected one of u16.* mean u32"),
    "kind": ("kind: charger", "kind: chargr", "3:7", "did you mean charger"),
    "text for a number": ("address: 20", "address: twenty", "8:31", "found 'twenty', expected a whole number"),
    "number for a flag": ("setting: true", "setting: 1", "10:100", "found '1', expected true or false"),
    "flag for a number": ("scale: 0.1", "scale: true", "6:65", "expected a number"),
    "a list for a mapping": ("control: {", "control: [a]\nx: {", "16:10", "found a list, expected a mapping"),
    "a mapping for a list": ("never_write: [99]", "never_write: {a: 1}", "18:14", "found a mapping, expected a list"),
    "states without raw values": ("states: {0: off", "states: {zero: off", "15:14", "expected a raw value"),
    "key twice": (
        "table: holding\n",
        "table: holding\n    table: input\n",
        "13:5",
        "a second time, expected each key once",
    ),
    "point twice": (
        "  state:\n",
        "  active_power: {table: input, address: 1, type: u16, unit: W}\n  state:\n",
        "11:3",
        "second",
    ),
    "contradiction": ("minimum: 6, step", "minimum: -6, step", "16:61", "found -6, expected 0 or more"),
    "contradiction of two parts": (
        "current: failsafe_current",
        "current: failsafe_curent",
        "17:62",
        "mean failsafe_current",
    ),
    "control that cannot be": ("quantity: current", "quantity: power", "16:18", "expected a point in W"),
    "poll of nothing": ("[active_power, state]", "[active_power, stat]", "20:22", "poll.1: found stat.* mean state"),
    "beyond the table": ("address: 24", "address: 65536", "13:14", "found 65536, expected 0 to 65535"),
    "overlap": ("address: 24", "address: 20", "", "within current_limit, expected registers that no other"),
    "unit of a readback": ("{address: 30,", "{unit: mA, address: 30,", "9:23", "readback.unit: found mA, expected A"),
    "text without a length": ("type: u16\n", "type: string\n", "12:5", "found no length"),
    "YAML": ("traps: [It bites.]", "traps: [It bites.", "", "expected YAML"),
    "tag": ("title: A charger of mine", "title: !!python/object:os.system {}", "2:8", "expected"),
}


@pytest.mark.parametrize(("old", "new", "position", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_answered_where_it_is(old: str, new: str, position: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ProfileError) as refused:
        parse(GOOD.replace(old, new, 1), "mine.yml")
    text = str(refused.value)
    assert re.search(message, text), text
    assert text.startswith(f"mine.yml:{position}"), text
    assert f"{refused.value.line}:{refused.value.column}:" in text


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "word\n", "\x00", "a: b: c"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match=r"mine\.yml:1"):
        parse(text, "mine.yml")


def test_a_file_is_called_as_its_profile(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(GOOD)
    assert read(tmp_path / "mine.yml").name == "mine"
    (tmp_path / "other.yml").write_text(GOOD)
    with pytest.raises(ProfileError, match="found mine, expected other, as the file is called"):
        read(tmp_path / "other.yml")
    (tmp_path / "latin.yml").write_bytes(GOOD.replace("mine", "m\xfcne").encode("latin-1"))
    with pytest.raises(ProfileError, match=r"found byte 0xfc .*expected UTF-8"):
        read(tmp_path / "latin.yml")


def test_a_directory_of_ones_own_stands_beside_the_built_in(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("no profile")
    assert set(load_all(tmp_path)) == {*load_all(), "mine"}
    (tmp_path / "keba_p30.yml").write_text(GOOD.replace("name: mine", "name: keba_p30"))
    with pytest.raises(ProfileError, match="found keba_p30, expected a name that no other profile has"):
        load_all(tmp_path)
    with pytest.raises(NotADirectoryError):
        load_all(tmp_path / "mine.yml")


def test_what_was_loaded_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        load_all()["keba_p30"].points["state"] = None  # type: ignore[index]
