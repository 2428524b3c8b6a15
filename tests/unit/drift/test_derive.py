# SPDX-License-Identifier: GPL-3.0-or-later
"""What a changed result says about drift, and how the recap says it."""

from __future__ import annotations

import json

import pytest
from ansible_collections.derms.edge.plugins.callback.drift import (
    LINES_SHOWN,
    Report,
    Run,
    Source,
    derive,
    drift,
    recap,
    why_failed,
    why_skipped,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
ACTIONS = st.sampled_from(["apt", "ansible.builtin.service", "ansible.builtin.file", "derms.edge.firewall", ""])
KNOWN_KEYS = ["drift", "diff", "invocation", "results", "status", "path", "dest", "name", "state", "enabled"]
KNOWN_DIFF_KEYS = ["before", "after", "before_header", "prepared", "dst_binary"]


def args(**module_args: object) -> dict[str, object]:
    return {"changed": True, "invocation": {"module_args": module_args}}


def test_own_drift_is_used_as_it_is_even_beside_a_diff() -> None:
    own = [{"device": "", "what": "net.ipv4.tcp_syncookies (running)", "is": "0", "should_be": "1"}]
    assert derive({"drift": own, "diff": {"before": "x", "after": "y"}}) == own


def test_own_drift_of_numbers_becomes_text() -> None:
    assert derive({"drift": [{"what": "x", "is": 0, "should_be": 1}]}) == [drift("x", "0", "1")]


def test_an_empty_own_drift_does_not_lose_the_change() -> None:
    assert derive({"drift": [], "path": "/etc/x"}) == [drift("/etc/x", "not as declared", "as declared")]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"path": "/k", "mode": "0644"}, {"path": "/k", "mode": "0600"}, [("/k mode", "0644", "0600")]),
        (
            {"path": "/k", "mode": "0644", "owner": 1000},
            {"path": "/k", "mode": "0600", "owner": 0},
            [("/k mode", "0644", "0600"), ("/k owner", "1000", "0")],
        ),
        (
            {"path": "/d", "state": "absent", "mode": "0755"},
            {"path": "/d", "state": "directory", "mode": "0700"},
            [("/d", "absent", "directory")],
        ),
        ({"path": "/d", "state": "file"}, {"path": "/d", "state": "link"}, [("/d state", "file", "link")]),
        ({}, {"a": {"b": 1}}, [("task a", "unset", '{"b": 1}')]),
        ("", {"a": "1"}, [("task a", "unset", "1")]),
    ],
)
def test_attributes(before: object, after: object, found: list[tuple[str, str, str]]) -> None:
    result = {"diff": {"before": before, "after": after}}
    assert derive(result, task="task") == [drift(*expected) for expected in found]


def test_text_shows_only_the_lines_that_differ() -> None:
    before, after = "Port 22\nPermitRootLogin yes\nUsePAM yes\n", "Port 22\nPermitRootLogin no\nUsePAM yes\n"
    result = {"diff": [{"before_header": "/etc/s", "after_header": "/root/x.j2", "before": before, "after": after}]}
    assert derive(result) == [drift("/etc/s", "PermitRootLogin yes", "PermitRootLogin no")]


@pytest.mark.parametrize(
    ("before", "after", "is_now", "should_be"),
    [
        ("", "a\n", "absent or empty", "a"),
        ("a\n", "", "a", "absent or empty"),
        ("a\n", "a\nb\n", "lines missing", "b"),
        ("a\nb\n", "a\n", "b", "these lines absent"),
        ("a\n", "a", "other line ends", "the declared line ends"),
        (None, "a", "absent or empty", "a"),
    ],
)
def test_text_edges(before: object, after: object, is_now: str, should_be: str) -> None:
    assert derive({"path": "/f", "diff": {"before": before, "after": after}}) == [drift("/f", is_now, should_be)]


def test_a_long_text_is_bounded() -> None:
    result = {"path": "/f", "diff": {"before": "", "after": "\n".join("x" * 1000 for _ in range(500))}}
    (found,) = derive(result)
    lines = found["should_be"].splitlines()
    assert len(lines) == LINES_SHOWN + 1
    assert lines[-1] == f"… {500 - LINES_SHOWN} more lines"
    assert max(map(len, lines)) < 200


def test_a_list_of_diffs_names_each_file_and_leaves_equal_parts_out() -> None:
    result = {
        "path": "/f",
        "diff": [
            {"before_header": "/f (content)", "before": "a", "after": "b"},
            {"before_header": "/f (file attributes)", "before": {"mode": "1"}, "after": {"mode": "2"}},
            {"before": "same", "after": "same"},
            {},
        ],
    }
    assert derive(result) == [drift("/f", "a", "b"), drift("/f mode", "1", "2")]


def test_a_prepared_diff() -> None:
    result = {"path": "/f", "diff": {"prepared": "--- x\n+++ y\n@@ -1 +1 @@\n-old\n+new\n same\n"}}
    assert derive(result) == [drift("/f", "old", "new")]
    assert derive({"path": "/f", "diff": {"prepared": "what\n\nelse\n"}}) == [
        drift("/f", "not as declared", "what\nelse")
    ]


def test_binary_content() -> None:
    result = {"path": "/f", "diff": [{"dst_binary": 1, "before": "", "after": ""}]}
    assert derive(result) == [drift("/f", "other content, binary or too large to show", "the declared content")]


@pytest.mark.parametrize(
    ("action", "module_args", "more", "found"),
    [
        ("ansible.builtin.package", {"name": "chrony"}, {}, [("package chrony", "absent", "present")]),
        ("ansible.builtin.apt", {"name": ["a"], "state": "absent"}, {}, [("package a", "installed", "absent")]),
        (
            "ansible.builtin.apt",
            {"name": ["chrony", "fail2ban=1.0", "cron"], "state": "present"},
            {"diff": {"prepared": "The following NEW packages will be installed:\n  fail2ban\n"}},
            [("package fail2ban=1.0", "absent", "present")],
        ),
        (
            "ansible.builtin.dnf",
            {"name": ["chrony", "fail2ban"], "state": "latest"},
            {"results": ["Installed: chrony-4.5-1.el9.x86_64"]},
            [("package chrony", "absent or outdated", "latest")],
        ),
        (
            "ansible.builtin.systemd_service",
            {"name": "chrony", "state": "started", "enabled": True},
            {"status": {"ActiveState": "inactive", "UnitFileState": "enabled"}},
            [("service chrony", "inactive", "started")],
        ),
        (
            "ansible.builtin.systemd_service",
            {"name": "chrony", "state": "started", "enabled": True},
            {"status": {"ActiveState": "active", "UnitFileState": "disabled"}},
            [("service chrony at boot", "disabled", "enabled")],
        ),
        (
            "ansible.builtin.service",
            {"name": "chrony", "state": "stopped", "enabled": None},
            {},
            [("service chrony", "not as declared", "stopped")],
        ),
        ("ansible.builtin.user", {"name": "derms-web"}, {}, [("user derms-web", "not as declared", "as declared")]),
        ("ansible.builtin.command", {"_raw_params": "x"}, {}, [("Do it", "not as declared", "as declared")]),
        ("ansible.builtin.x", {"path": "/p", "state": "absent"}, {}, [("/p", "not as declared", "absent")]),
    ],
)
def test_without_a_diff_the_module_and_its_arguments_speak(
    action: str, module_args: dict[str, object], more: dict[str, object], found: list[tuple[str, str, str]]
) -> None:
    assert derive({**args(**module_args), **more}, action, {}, "Do it") == [drift(*expected) for expected in found]


def test_what_a_host_answers_cannot_steer_the_terminal() -> None:
    (found,) = derive({"drift": [{"what": "a\x1b[2J\rb", "is": "\udcff", "should_be": "\u202etxt"}]})
    assert "".join(found.values()).isprintable()  # type: ignore[arg-type]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(st.sampled_from(KNOWN_KEYS), JSON | st.dictionaries(st.sampled_from(KNOWN_DIFF_KEYS), JSON)),
    ACTIONS,
    st.dictionaries(st.sampled_from(KNOWN_KEYS), JSON),
)
def test_no_answer_loses_a_change(result: dict[str, object], action: str, module_args: dict[str, object]) -> None:
    found = derive(result, action, module_args, "task")
    assert found
    for entry in found:
        assert set(entry) == {"device", "what", "is", "should_be"}
        assert all(isinstance(value, str) for value in entry.values())
    json.dumps(found, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("result", "conditional", "reason"),
    [
        ({"skip_reason": "Conditional result was False"}, True, None),
        ({"skipped_reason": "No items in the list"}, False, None),
        ({"msg": "skipped, since /x exists"}, False, None),
        ({"censored": "…"}, True, None),
        ({"censored": "…"}, False, "skipped, it does not support check mode"),
        ({}, True, "skipped, it does not support check mode"),
        ({"msg": "remote module (x) …"}, True, "skipped, it does not support check mode (remote module (x) …)"),
    ],
)
def test_skips(result: dict[str, object], conditional: bool, reason: str | None) -> None:
    assert why_skipped(result, conditional) == reason


def test_a_failure_is_told_in_one_line() -> None:
    assert why_failed({"msg": "a\n b", "module_stderr": "c"}) == "a b: c"
    assert why_failed({"censored": "x", "msg": "secret"}) == "its message is hidden by no_log"
    assert why_failed({}) == "no message"


def a_run(*, dry_run: bool = True) -> Run:
    run = Run(dry_run=dry_run)
    run.executed = True
    run.hosts = {"gw1": [], "gw2": []}
    return run


def verdict(report: Report) -> list[str]:
    return recap(report, 100).splitlines()


def test_in_sync_is_one_exact_line() -> None:
    assert verdict(a_run().report()) == ["No Changes Required"]


def test_nothing_executed_is_not_in_sync() -> None:
    assert verdict(Run(dry_run=True).report()) == ["Not verified: nothing was executed"]


def test_scope_is_on_the_line() -> None:
    run = a_run()
    run.scope = "--limit gw1"
    assert verdict(run.report()) == ["No Changes Required (only --limit gw1)"]


def test_the_table_is_aligned_and_wraps() -> None:
    run = a_run()
    run.changed(Source("gw1", "t", "r"), [drift("long " * 20, "no", "yes\nyes")], applied=False)
    run.changed(Source("gw1", "t", "r", "localhost"), [drift("b", "1", "2")], applied=False)
    lines = recap(run.report(), 60).splitlines()
    assert lines[0].split() == ["host", "what", "is", "should", "be"]
    assert max(map(len, lines)) <= 60
    column = lines[0].index("should be")
    assert [line[column:].strip() for line in lines[1:3]] == ["yes", "yes"]
    assert any(line.startswith("gw1 → localhost") for line in lines)
    assert lines[-1] == "2 changes required on 1 of 2 hosts"


def test_paint_does_not_move_columns() -> None:
    run = a_run()
    run.changed(Source("gw1", "t"), [drift("a", "1", "22"), drift("bbb", "333", "4")], applied=False)
    painted = recap(run.report(), 80, lambda text, _colour: f"\x1b[1m{text}\x1b[0m" if text else text)
    assert painted.replace("\x1b[1m", "").replace("\x1b[0m", "") == recap(run.report(), 80)


def test_an_applied_run_tells_what_was_and_is() -> None:
    run = a_run(dry_run=False)
    run.changed(Source("gw1", "t"), [drift("a", "1", "2")], applied=True)
    report = run.report()
    assert report["status"] == "changed"
    assert recap(report, 80).splitlines()[0].split() == ["host", "what", "was", "is", "now"]
    assert verdict(report)[-1] == "1 change applied on 1 of 2 hosts"


def test_what_a_real_run_only_predicts_stays_drift() -> None:
    run = a_run(dry_run=False)
    run.changed(Source("gw1", "t"), [drift("a", "1", "2")], applied=False)
    assert run.report()["status"] == "drift"


def test_many_applied_changes_are_counted_by_role_and_a_dry_run_lists_them_all() -> None:
    for dry_run in (True, False):
        run = a_run(dry_run=dry_run)
        for role, number in (("baseline", 3), ("firewall", 2)):
            run.changed(
                Source("gw1", "Hold", role), [drift(f"{role} {n}", "a", "b") for n in range(number)], not dry_run
            )
        told = recap(run.report(), 120, applied_rows=4)
        assert ("gw1: baseline 3, firewall 2" in told) is not dry_run
        assert ("  baseline 1  " in told) is dry_run
        assert "5 changes" in told


def test_hidden_changes_count_and_notes_are_told() -> None:
    run = a_run()
    run.changed_hidden(Source("gw1", "Set key"), applied=False)
    run.changed_hidden(Source("gw1", "Set key"), applied=False)
    run.noted("gw2", ["net.core.rmem_max is modelled", "net.core.rmem_max is modelled"])
    run.noted("gw2", "not a list")
    report = run.report()
    assert report["status"] == "drift"
    assert report["hidden"] == [{"host": "gw1", "role": "", "task": "Set key", "changes": 2}]
    assert verdict(report) == [
        "gw2: net.core.rmem_max is modelled",
        "gw1: 2 hidden changes in Set key",
        "",
        "2 changes required on 1 of 2 hosts",
    ]


def test_a_host_that_was_not_reached_is_named_and_not_shown_as_in_sync() -> None:
    run = a_run(dry_run=False)
    run.addressed, run.met = {"play": {"gw1", "gw2", "gw3"}}, {"play": {"gw1"}}
    run.unverified("gw2: unreachable: no route")
    report = run.report(stopped=["gw2"])
    assert report["status"] == "failed"
    assert report["hosts"] == {"gw1": []}
    assert report["not_verified"] == ["gw2: unreachable: no route", "gw3: not reached, the run ended before"]
    assert verdict(report)[0] == "Failed: gw2: unreachable: no route"


def test_a_stopped_host_without_a_reason_gets_one() -> None:
    assert a_run().report(stopped=["gw2"])["not_verified"] == ["gw2: the run stopped there"]
