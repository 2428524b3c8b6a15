# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.derms.edge.plugins.module_utils.private_mounts import (
    Answer,
    Candidate,
    TrialError,
    answers_on_trial,
    covered_directory,
    covers,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
PATH = {"PATH": os.environ["PATH"]}


def test_the_nearest_existing_directory_is_covered() -> None:
    assert covered_directory("/etc/ssh/sshd_config.d/00-x.conf", ["/", "/etc", "/etc/ssh"]) == "/etc/ssh"


def test_outer_directories_are_covered_first() -> None:
    existing = ["/", "/etc", "/etc/fail2ban", "/etc/fail2ban/jail.d"]
    assert covers(["/etc/fail2ban/jail.d/a", "/etc/fail2ban/b", "/etc/fail2ban/new/c"], existing) == {
        "/etc/fail2ban": ["b"],
        "/etc/fail2ban/jail.d": ["a"],
    }


def ask(candidates: list[Candidate], *argv: str) -> Answer:
    (answer,) = answers_on_trial(candidates, [list(argv)], PATH)
    return answer


def candidate(path: Path, content: bytes | None) -> Candidate:
    return Candidate(str(path), content, 0, 0, 0o640)


@as_root
def test_the_checker_sees_the_candidate_among_the_real_files_and_nobody_else_does(tmp_path: Path) -> None:
    for name in ("changed", "kept", "removed"):
        (tmp_path / name).write_text(f"old {name}\n")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "inner").write_text("inner\n")
    candidates = [
        candidate(tmp_path / "changed", b"new\n"),
        candidate(tmp_path / "removed", None),
        candidate(tmp_path / "missing" / "deep" / "added", b"added\n"),
    ]
    answer = ask(candidates, "sh", "-c", f"cd {tmp_path} && grep -r . | sort && stat -c %a changed && readlink link")
    assert answer.status == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        "changed:new",
        "directory/inner:inner",
        "kept:old kept",
        "missing/deep/added:added",
        "640",
        "kept",
    ]
    assert (tmp_path / "changed").read_text() == "old changed\n"
    assert (tmp_path / "removed").exists()
    assert not (tmp_path / "missing").exists()


@as_root
def test_a_directory_that_is_reached_by_a_link_is_covered_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old\n")
    (tmp_path / "alias").symlink_to("real")
    answer = ask([candidate(tmp_path / "alias" / "file", b"new\n")], "cat", str(tmp_path / "real" / "file"))
    assert answer.stdout == "new\n"


@as_root
def test_an_objection_is_passed_on_in_its_own_words() -> None:
    answer = ask([], "sh", "-c", "echo line 3: no >&2; exit 7")
    assert (answer.status, answer.stderr) == (7, "line 3: no\n")


@as_root
def test_nothing_stays_mounted_and_nothing_stays_behind(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    ask([candidate(tmp_path / "file", b"new\n")], "true")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert list(tmp_path.iterdir()) == []


@as_root
def test_a_program_that_cannot_be_run_is_an_error_and_no_silence() -> None:
    with pytest.raises(TrialError, match="no-such-checker"):
        ask([], "/no-such-checker")
