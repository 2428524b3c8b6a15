# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import validated_files
from ansible_collections.derms.edge.plugins.modules.validated_files import (
    answered_values,
    overridden,
    refuse_unusable_paths,
    wanted_directories,
    where_set,
    with_first_line,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace and root's files take root")


def run(*, check: bool = False, **params: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return its result."""
    said = io.StringIO()
    with (
        patch_module_args({**params, "_ansible_check_mode": check, "_ansible_diff": True}),
        redirect_stdout(said),
        pytest.raises(SystemExit),
    ):
        validated_files.main()
    result: dict[str, Any] = json.loads(said.getvalue())
    return result


def file(path: Path, content: str, **others: Any) -> dict[str, Any]:
    return {"path": str(path), "content": content, **others}


def test_answers_are_read_by_lower_case_name() -> None:
    assert answered_values("port 22\nAcceptEnv LANG\nacceptenv LC_*\n") == {
        "port": ["22"],
        "acceptenv": ["LANG", "LC_*"],
    }


def test_spellings_that_mean_the_same_are_no_override() -> None:
    answered = answered_values("permitrootlogin without-password\nusepam yes\n")
    assert overridden({"PermitRootLogin": "prohibit-password", "UsePAM": "Yes"}, answered) == {}


def test_several_values_are_one_answer_however_often_they_are_told() -> None:
    answered = answered_values("allowusers ann\nallowusers bob\nallowusers ann\n")
    assert overridden({"AllowUsers": "ann bob"}, answered) == {}


def test_an_override_and_a_missing_answer_are_told() -> None:
    assert overridden({"A": "1", "B": "2"}, answered_values("a 9\n")) == {"A": "9", "B": "not answered"}


def test_the_line_that_overrides_is_found_outside_our_own_files() -> None:
    sources = [("/ours", "MaxAuthTries 4\n"), ("/theirs", "# x\n  maxauthtries 9\n")]
    assert where_set("MaxAuthTries", sources, {"/ours"}) == "/theirs:2"
    assert where_set("Port", sources, {"/ours"}) == ""


def test_the_first_line_stands_there_once() -> None:
    line = "Include /etc/a"
    once = with_first_line(b"x\nInclude /etc/a\ny", line)
    assert once == b"Include /etc/a\nx\ny\n"
    assert with_first_line(once, line) == once


@pytest.mark.parametrize("paths", [["relative"], ["/"], ["/a", "/a"]])
def test_unusable_paths_are_refused(paths: list[str]) -> None:
    with pytest.raises(ValueError, match=r"path|declared"):
        refuse_unusable_paths(paths)


def test_a_parent_is_made_before_what_it_contains() -> None:
    declared = [
        {"path": path, "owner": "root", "group": "root", "mode": "0755", "state": "present"} for path in ("/a/b", "/a")
    ]
    assert [one.path for one in wanted_directories(declared)] == ["/a", "/a/b"]


@as_root
def test_check_then_write_then_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    params: dict[str, Any] = {
        "directories": [{"path": str(target.parent), "mode": "0750"}],
        "files": [file(target, "a", mode="0600")],
        "validate": [["grep", "-q", "a", str(target)]],
    }
    predicted = run(check=True, **params)
    assert predicted["changed"]
    assert not target.parent.exists()
    written = run(**params)
    assert written["changed"]
    assert written["drift"] == predicted["drift"]
    assert target.read_text() == "a\n"
    assert target.stat().st_mode & 0o7777 == 0o600
    assert target.parent.stat().st_mode & 0o7777 == 0o750
    again = run(**params)
    assert not again["changed"]
    assert again["drift"] == []


@as_root
@pytest.mark.parametrize("check", [True, False])
def test_an_objection_leaves_everything_as_it_was(tmp_path: Path, check: bool) -> None:
    target = tmp_path / "file"
    target.write_text("good\n")
    result = run(check=check, files=[file(target, "bad")], validate=[["grep", "-q", "good", str(target)]])
    assert result["failed"]
    assert "nothing was written" in result["msg"]
    assert target.read_text() == "good\n"


@as_root
def test_a_checker_that_is_not_installed_yet_is_named(tmp_path: Path) -> None:
    result = run(check=True, files=[file(tmp_path / "file", "a")], validate=[["no-such-checker", "-t"]])
    assert result["not_validated"] == ["no-such-checker -t"]
    assert result["changed"]


@as_root
def test_an_owner_to_come_is_predicted_in_check_mode_and_refused_otherwise(tmp_path: Path) -> None:
    files = [file(tmp_path / "a", "a"), file(tmp_path / "b", "b", owner="no-such-user")]
    assert run(check=True, files=files)["changed"]
    refused = run(files=files)
    assert "no user no-such-user" in refused["msg"]
    assert list(tmp_path.iterdir()) == []


@as_root
def test_an_attribute_is_mended_without_a_new_time(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("a\n")
    target.chmod(0o666)
    os.utime(target, (1, 1))
    result = run(files=[file(target, "a", mode="0640")])
    assert [one["what"] for one in result["drift"]] == [f"{target} mode"]
    assert (target.stat().st_mtime, target.stat().st_mode & 0o7777) == (1, 0o640)


@as_root
def test_copies_are_kept_of_what_is_about_to_change_and_older_ones_stay(tmp_path: Path) -> None:
    conf, unit, link = tmp_path / "a.conf", tmp_path / "a.service", tmp_path / "current"
    conf.write_text("OLD\n", encoding="utf-8")
    unit.write_text("UNIT\n", encoding="utf-8")
    keep = {"directory": str(tmp_path / "before"), "link": str(link), "files": [str(conf), str(unit)]}
    before = tmp_path / "before" / str(tmp_path).lstrip("/")

    # Nothing is in service, so there is nothing to go back to.
    assert run(files=[file(conf, "FIRST")], keep=keep)["changed"]
    assert not before.exists()
    link.symlink_to("release")
    assert not run(files=[file(conf, "FIRST")], keep=keep)["changed"]
    assert run(check=True, files=[file(conf, "NEW")], keep=keep)["changed"]
    assert not before.exists()
    assert run(files=[file(conf, "NEW")], keep=keep)["changed"]
    assert run(files=[file(unit, "NEW")], keep=keep)["changed"]
    assert {path.name: path.read_text(encoding="utf-8") for path in before.iterdir()} == {
        "a.conf": "FIRST\n",
        "a.service": "UNIT\n",
    }
    assert str((tmp_path / "before" / "current").readlink()) == "release"


def test_an_existing_file_keeps_its_content(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("theirs\n")
    target.chmod(0o644)
    entries = [{"path": str(path), "state": "existing", "mode": "0600"} for path in (target, tmp_path / "missing")]
    assert len(run(files=entries)["drift"]) == 1
    assert (target.read_text(), target.stat().st_mode & 0o7777) == ("theirs\n", 0o600)


@as_root
def test_what_another_file_overrides_is_named_and_given_way(tmp_path: Path) -> None:
    """A stand-in for sshd: the first value counts, and `include` lines are read where they stand."""
    main, ours = tmp_path / "main", tmp_path / "ours"
    main.write_text(f"tries 9\ninclude {ours}\n")
    ask = tmp_path / "ask"
    ask.write_text(
        "#!/bin/sh\nwhile read -r word value; do\n"
        "  if [ $word = include ]; then cat $value; else echo $word $value; fi\n"
        f"done <{main} | sort -u -k1,1 -s\n"
    )
    ask.chmod(0o755)
    params: dict[str, Any] = {
        "files": [file(ours, "tries 4")],
        "effective": {
            "command": [str(ask)],
            "expected": {"Tries": 4},
            "sources": [str(main)],
            "first_line": {"path": str(main), "line": f"include {ours}"},
        },
    }
    result = run(**params)
    assert {"what": "Tries (effective)", "is": f"9 ({main}:1)", "should_be": "4"} in result["drift"]
    assert main.read_text() == f"include {ours}\ntries 9\n"
    assert not run(**params)["changed"]


@as_root
def test_hidden_content_is_in_no_part_of_the_result(tmp_path: Path) -> None:
    result = run(files=[file(tmp_path / "key", "canary", no_diff=True)])
    result.pop("invocation", None)
    assert "canary" not in json.dumps(result)


def test_a_script_among_a_checkers_words_is_not_printed() -> None:
    assert validated_files.command_line(["sh", "-c", "true\nfalse\n", "sh", "/etc/x"]) == "sh -c … sh /etc/x"
