# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.derms.edge.plugins.module_utils import text_files
from ansible_collections.derms.edge.plugins.module_utils.text_files import (
    ABSENT,
    Attributes,
    Found,
    WantedDirectory,
    WantedFile,
    directory_drift,
    file_bytes,
    file_diff,
    file_drift,
    line_drift,
    look_at,
    octal_mode,
    paired_lines,
    replace_file,
)
from hypothesis import given
from hypothesis import strategies as st

OURS = Attributes("root", "root", 0o600)
CONFIGURATION = "# Who may log in\nPermitRootLogin no\nMaxAuthTries 4\nX11Forwarding no\n"
LINES = st.lists(st.text(alphabet="ab =\t#", max_size=6), max_size=8)


def test_a_changed_line_is_named_with_both_values() -> None:
    found = CONFIGURATION.replace("PermitRootLogin no", "PermitRootLogin yes")
    assert line_drift("/etc/x", found, CONFIGURATION) == [
        {"what": "/etc/x", "is": "PermitRootLogin yes", "should_be": "PermitRootLogin no"}
    ]


def test_neighbouring_changes_are_paired_by_what_they_set() -> None:
    found = CONFIGURATION.replace("PermitRootLogin no\nMaxAuthTries 4", "MaxAuthTries 9\nPermitRootLogin yes")
    named = {(one["is"], one["should_be"]) for one in line_drift("/etc/x", found, CONFIGURATION)}
    assert named == {("PermitRootLogin yes", "PermitRootLogin no"), ("MaxAuthTries 9", "MaxAuthTries 4")}


def test_a_removed_and_an_added_line_are_two_differences() -> None:
    found = "AllowUsers mallory\n" + CONFIGURATION.replace("X11Forwarding no\n", "")
    assert [(one["is"], one["should_be"]) for one in line_drift("/etc/x", found, CONFIGURATION)] == [
        ("AllowUsers mallory", ABSENT),
        (ABSENT, "X11Forwarding no"),
    ]


def test_white_space_alone_is_said_to_be_it() -> None:
    (one,) = line_drift("/etc/x", "a  \n", "a\n")
    assert (one["is"], one["should_be"]) == ("a (other white space)", "a")


def test_carriage_returns_are_named_as_line_ends() -> None:
    (one,) = line_drift("/etc/x", "a\r\nb\r\n", "a\nb\n")
    assert one["is"] == "other line ends"


def test_many_differences_are_counted_instead() -> None:
    (one,) = line_drift("/etc/x", "".join(f"x{number}\n" for number in range(50)), "")
    assert one["is"] == "50 lines differ"


@given(LINES, LINES)
def test_equal_texts_and_only_they_show_no_drift(old: list[str], new: list[str]) -> None:
    found, wanted = "\n".join(old), "\n".join(new)
    assert bool(line_drift("/etc/x", found, wanted)) == (found != wanted)


@given(LINES, LINES)
def test_pairing_loses_and_invents_no_line(old: list[str], new: list[str]) -> None:
    pairs = list(paired_lines(old, new))
    assert sorted(has for has, _should in pairs if has is not None) == sorted(old)
    assert sorted(should for _has, should in pairs if should is not None) == sorted(new)
    assert len(pairs) == max(len(old), len(new))


@pytest.mark.parametrize(("text", "mode"), [("0640", 0o640), ("600", 0o600), ("02750", 0o2750), ("2750", 0o2750)])
def test_modes_are_octal(text: str, mode: int) -> None:
    assert octal_mode(text) == mode


@pytest.mark.parametrize("text", ["416", "u=rw", "0o640", "9640", ""])
def test_other_modes_are_refused_unless_they_read_as_octal(text: str) -> None:
    if text == "416":
        assert octal_mode(text) == 0o416
        return
    with pytest.raises(ValueError, match="not octal"):
        octal_mode(text)


def test_the_last_line_ends_like_the_others() -> None:
    assert file_bytes("a") == file_bytes("a\n") == b"a\n"
    assert file_bytes("") == b""


def test_hidden_content_is_in_neither_drift_nor_diff() -> None:
    wanted = WantedFile("/etc/key", b"canary-new\n", OURS, content_hidden=True)
    found = Found(OURS, b"canary-old\n")
    assert "canary" not in str(file_drift(wanted, found))
    assert "canary" not in str(file_diff(wanted, found))
    assert file_diff(wanted, found)["before"] != file_diff(wanted, found)["after"]


def test_each_attribute_is_named_by_itself() -> None:
    found = Found(Attributes("derms", "root", 0o644), b"a\n")
    assert file_drift(WantedFile("/etc/x", b"a\n", OURS), found) == [
        {"what": "/etc/x owner", "is": "derms", "should_be": "root"},
        {"what": "/etc/x mode", "is": "0644", "should_be": "0600"},
    ]


def test_a_link_in_place_of_a_file_is_drift() -> None:
    (one,) = file_drift(WantedFile("/etc/x", b"a\n", OURS), Found(OURS, link_to="/home/mallory/x"))
    assert one["is"] == "a link to /home/mallory/x"


def test_absent_is_a_state_of_files_and_directories() -> None:
    assert file_drift(WantedFile("/etc/x", None, OURS), None) == []
    assert file_drift(WantedFile("/etc/x", None, OURS), Found(OURS, b""))[0]["should_be"] == ABSENT
    assert directory_drift(WantedDirectory("/etc/x", OURS, present=False), None) == []
    assert directory_drift(WantedDirectory("/etc/x", OURS), None)[0]["is"] == ABSENT


def test_what_stands_at_a_path_is_seen_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    file, link, nothing = (look_at(str(tmp_path / name)) for name in ("file", "link", "nothing"))
    assert file is not None
    assert file.content == b"a"
    assert link is not None
    assert link.link_to == str(tmp_path / "file")
    assert nothing is None
    assert look_at(str(tmp_path / "file" / "below")) is None


def test_a_file_is_replaced_with_its_final_mode_from_the_first_moment(tmp_path: Path) -> None:
    target = tmp_path / "key"
    target.write_text("old")
    modes = []
    replace_file(
        str(target),
        b"new",
        owner=os.getuid(),
        group=os.getgid(),
        mode=0o600,
        label=lambda candidate: modes.append(stat.S_IMODE(Path(candidate).stat().st_mode)),
    )
    assert target.read_bytes() == b"new"
    assert modes == [0o600]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_failed_replacement_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "key"
    target.write_text("old")

    def refuse(_candidate: str) -> None:
        raise OSError("no label")

    with pytest.raises(OSError, match="no label"):
        replace_file(str(target), b"new", owner=os.getuid(), group=os.getgid(), mode=0o600, label=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert target.read_text() == "old"


def test_names_of_users_and_groups_have_numbers_and_back() -> None:
    assert text_files.owner_name(0) == "root"
    assert text_files.owner_id("root") == text_files.owner_id("0") == 0
    assert text_files.owner_id("no-such-user") is None
    assert text_files.group_id("no-such-group") is None
    assert text_files.owner_name(4_000_000_001) == "4000000001"
