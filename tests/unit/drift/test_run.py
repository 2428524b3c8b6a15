# SPDX-License-Identifier: GPL-3.0-or-later
"""The recap of real ansible-playbook runs: what may be called in sync, and what may not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

TREE = Path(__file__).parents[3]
ANSIBLE_PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
IN_SYNC = "No Changes Required"

CONFIGURATION = f"""
[defaults]
collections_path = {TREE}/collections
callbacks_enabled = derms.edge.drift
library = library
inventory = hosts.yml
inject_facts_as_vars = false
gathering = explicit
retry_files_enabled = false
host_key_checking = true
[diff]
always = true
"""
# Answers what the task tells it to, as a module that supports check mode.
ANSWER = """
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({"result": {"type": "dict", "default": {}}}, supports_check_mode=True)
module.exit_json(**module.params["result"])
"""
# Has never heard of check mode.
BLIND = """
from ansible.module_utils.basic import AnsibleModule
AnsibleModule({}).exit_json(changed=True)
"""
IN_SYNC_TASK = {"name": "In sync", "answer": {}}
ONE = {"what": "net.ipv4.tcp_syncookies (running)", "is": "0", "should_be": "1"}
TWO = {"what": "/etc/derms/certs/key.pem mode", "is": "0644", "should_be": "0600"}


def planted(*drifts: dict[str, str], **result: Any) -> dict[str, Any]:
    return {"answer": {"result": {"changed": True, "drift": list(drifts), **result}}}


@dataclass
class Outcome:
    returncode: int
    output: str
    report: dict[str, Any]

    @property
    def last_lines(self) -> list[str]:
        recap = self.output.partition("PLAY RECAP")[2]
        return [line for line in recap.splitlines()[1:] if line and " ok=" not in line]

    def found(self, host: str = "gw1") -> list[tuple[str, str, str]]:
        return [(entry["what"], entry["is"], entry["should_be"]) for entry in self.report["hosts"].get(host, [])]


class Project:
    """A playbook project in a directory of its own, whose hosts are all this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.json_path = path / "drift.json"
        (path / "ansible.cfg").write_text(CONFIGURATION, encoding="utf-8")
        (path / "library").mkdir()
        (path / "library" / "answer.py").write_text(ANSWER, encoding="utf-8")
        (path / "library" / "blind.py").write_text(BLIND, encoding="utf-8")
        self.hosts("gw1")

    def hosts(self, *names: str, **more: dict[str, Any]) -> None:
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory = {"all": {"hosts": {**{name: dict(local) for name in names}, **more}}}
        (self.path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")

    def play(self, *options: str, plays: list[dict[str, Any]] | None = None, **keys: Any) -> Outcome:
        plays = plays or [{"hosts": "all", **keys}]
        (self.path / "site.yml").write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
        finished = subprocess.run(
            [ANSIBLE_PLAYBOOK, "site.yml", *options],
            cwd=self.path,
            env={**os.environ, "DERMS_DRIFT_JSON": str(self.json_path), "COLUMNS": "200", "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        output = finished.stdout + finished.stderr
        assert "DEPRECATION" not in output
        assert "Callback dispatch" not in output
        report = json.loads(self.json_path.read_text(encoding="utf-8")) if self.json_path.exists() else {}
        return Outcome(finished.returncode, output, report)

    def check(self, *tasks: dict[str, Any], options: tuple[str, ...] = (), **keys: Any) -> Outcome:
        return self.play("--check", *options, tasks=list(tasks), **keys)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def assert_not_verified(outcome: Outcome, reason: str, prefix: str = "Not verified") -> None:
    assert IN_SYNC not in outcome.output
    assert outcome.report["status"] == ("not_verified" if prefix == "Not verified" else "failed")
    assert any(reason in line and line.startswith(f"{prefix}: ") for line in outcome.last_lines), outcome.last_lines
    assert any(reason in known for known in outcome.report["not_verified"])


def test_in_sync(project: Project) -> None:
    outcome = project.check(
        {"name": "Probe", "ansible.builtin.command": "true", "check_mode": False, "changed_when": False},
        {"name": "Fact", "ansible.builtin.set_fact": {"x": 1}},
        {"name": "Group", "ansible.builtin.group_by": {"key": "some"}},
        {"name": "Host", "ansible.builtin.add_host": {"name": "other"}},
        {"name": "Not here", "answer": {"result": {"changed": True}}, "when": False},
        {"name": "Not here, secretly", "answer": {"result": {"changed": True}}, "when": False, "no_log": True},
        {"name": "None", "answer": {"result": {"changed": True}}, "loop": []},
        {"name": "No item", "answer": {"result": {"changed": True}}, "loop": [1, 2], "when": "item > 2"},
        {"name": "Not shown", "ansible.builtin.debug": {"msg": "x", "verbosity": 3}},
        {"name": "Flush", "ansible.builtin.meta": "flush_handlers"},
        IN_SYNC_TASK,
    )
    assert outcome.last_lines == [IN_SYNC]
    assert outcome.report == {
        "status": "in_sync",
        "dry_run": True,
        "scope": "",
        "hosts": {"gw1": []},
        "notes": {},
        "hidden": [],
        "not_verified": [],
    }
    assert stat.S_IMODE(project.json_path.stat().st_mode) == 0o600
    assert {path.name for path in project.path.iterdir()} == {
        "ansible.cfg",
        "drift.json",
        "hosts.yml",
        "library",
        "site.yml",
    }


def test_the_planted_set_is_the_reported_set(project: Project) -> None:
    project.hosts("gw1", "gw2")
    (project.path / "key").write_text("k", encoding="utf-8")
    (project.path / "key").chmod(0o644)
    (project.path / "conf").write_text("a\nb\nc\n", encoding="utf-8")
    here = "{{ playbook_dir }}"
    outcome = project.check(
        {**planted(ONE, TWO), "name": "Own", "when": "inventory_hostname == 'gw1'"},
        {"name": "Mode", "ansible.builtin.file": {"path": f"{here}/key", "mode": "0600"}, "run_once": True},
        {
            "name": "Text",
            "ansible.builtin.copy": {"dest": f"{here}/conf", "content": "a\nB\nc\n"},
            "delegate_to": "localhost",
            "when": "inventory_hostname == 'gw2'",
        },
        {"name": "Items", "answer": {"result": "{{ item }}"}, "loop": [planted(ONE)["answer"]["result"], {}]},
        IN_SYNC_TASK,
    )
    one, two = tuple(ONE.values()), tuple(TWO.values())
    assert outcome.report["status"] == "drift"
    assert outcome.found("gw1") == [one, two, (f"{project.path}/key mode", "0644", "0600"), one]
    assert outcome.found("gw2") == [(f"{project.path}/conf", "b", "B"), one]
    assert outcome.report["hosts"]["gw2"][0]["delegated_to"] == "localhost"
    assert outcome.last_lines[-1] == "6 changes required on 2 of 2 hosts"
    assert any(line.startswith("gw2 → localhost") for line in outcome.last_lines)
    assert (project.path / "conf").read_text(encoding="utf-8") == "a\nb\nc\n"


def test_a_diff_is_not_shown_where_the_task_says_so(project: Project) -> None:
    task = {"name": "Key", "ansible.builtin.copy": {"dest": "{{ playbook_dir }}/x", "content": "SECRET"}, "diff": False}
    outcome = project.check(task)
    assert outcome.found() == [(f"{project.path}/x", "not as declared", "as declared")]
    assert "SECRET" not in project.json_path.read_text(encoding="utf-8")


def test_handlers_follow_from_drift_and_are_left_out(project: Project) -> None:
    outcome = project.check(
        {"name": "Own", **planted(ONE), "notify": ["Restart", "Restart blindly"]},
        handlers=[{"name": "Restart", **planted(TWO)}, {"name": "Restart blindly", "blind": {}}],
    )
    assert outcome.found() == [tuple(ONE.values())]
    assert outcome.report["status"] == "drift"


def test_role_and_task_are_named(project: Project) -> None:
    role = project.path / "roles" / "firewall" / "tasks"
    role.mkdir(parents=True)
    (role / "main.yml").write_text(yaml.safe_dump([{"name": "Set rules", **planted(ONE)}]), encoding="utf-8")
    outcome = project.check(roles=["firewall"])
    assert outcome.report["hosts"]["gw1"] == [
        {**ONE, "device": "", "task": "Set rules", "role": "firewall", "delegated_to": None, "rolled_back": False}
    ]


CHARGER = {"device": "north hall-07", "what": "failsafe_current", "is": "10 A", "should_be": "6 A"}


def test_devices_are_listed_as_hosts_are(project: Project) -> None:
    other = {**CHARGER, "device": "north hall-08"}
    outcome = project.check(planted(ONE, CHARGER, {**CHARGER, "what": "failsafe_timeout"}, other))
    table = [" ".join(line.split()) for line in outcome.last_lines]
    assert table[0] == "host or device what is should be"
    assert [line.split()[0] for line in table[1:5]] == ["gw1", "north", "failsafe_timeout", "north"]
    assert table[-1] == "4 changes required on 1 of 1 host, 2 devices"
    assert [entry["device"] for entry in outcome.report["hosts"]["gw1"]] == [
        "",
        *["north hall-07"] * 2,
        "north hall-08",
    ]


def test_what_a_module_could_not_verify_keeps_a_run_from_being_in_sync(project: Project) -> None:
    why = "charger-01 unknown: the agent is not on this gateway yet"
    outcome = project.check({"answer": {"result": {"not_verified": [why]}}})
    assert outcome.last_lines == [f"Not verified: gw1: {why}"]
    assert (outcome.returncode, outcome.report["status"]) == (0, "not_verified")


def test_a_module_that_looked_at_a_part_only_makes_the_run_a_partial_one(project: Project) -> None:
    outcome = project.check({"answer": {"result": {"scope": "devices hall-0*"}}})
    assert outcome.last_lines == [f"{IN_SYNC} (only devices hall-0*)"]


def test_what_was_changed_beside_a_failure_is_told(project: Project) -> None:
    failed = {"failed": True, "msg": "hall-08 verify_failed", "changed": True, "drift": [CHARGER]}
    outcome = project.play(tasks=[{"answer": {"result": failed}}])
    assert "1 change applied on 1 of 1 host, 1 device" in outcome.last_lines
    assert outcome.report["status"] == "failed"


def test_no_log_counts_and_hides(project: Project) -> None:
    secret = planted({"what": "SECRET", "is": "SECRET", "should_be": "SECRET"}, notes=["SECRET"])
    outcome = project.check(
        {"name": "Set key", **secret, "no_log": True},
        {"name": "Set keys", "answer": {"result": secret["answer"]["result"]}, "loop": [1, 2], "no_log": True},
    )
    assert outcome.report["status"] == "drift"
    assert [(hidden["task"], hidden["changes"]) for hidden in outcome.report["hidden"]] == [
        ("Set key", 1),
        ("Set keys", 2),
    ]
    assert "gw1: 1 hidden change in Set key" in outcome.last_lines
    assert outcome.last_lines[-1] == "3 changes required on 1 of 1 host"
    assert "SECRET" not in outcome.output + project.json_path.read_text(encoding="utf-8")


def test_notes_are_told_and_are_no_drift(project: Project) -> None:
    outcome = project.check({"answer": {"result": {"notes": ["net.core.rmem_max: modelled"]}}})
    assert outcome.last_lines == ["gw1: net.core.rmem_max: modelled", IN_SYNC]
    assert outcome.report["notes"] == {"gw1": ["net.core.rmem_max: modelled"]}


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"name": "T", "blind": {}}, "gw1: T: skipped, it does not support check mode (remote module (blind)"),
        ({"name": "T", "blind": {}, "loop": [1]}, "gw1: T: skipped, it does not support check mode"),
        ({"name": "T", "blind": {}, "no_log": True}, "gw1: T: skipped, it does not support check mode"),
        ({"name": "T", "ansible.builtin.command": "true"}, "gw1: T: skipped, it does not support check mode"),
        ({"name": "T", "ansible.builtin.raw": "true"}, "gw1: T: skipped, it does not support check mode"),
        ({"name": "T", "ansible.builtin.fail": {"msg": "oops"}}, "gw1: T: failed: oops"),
        (
            {"name": "T", "ansible.builtin.fail": {"msg": "oops"}, "ignore_errors": True},
            "gw1: T: failed (ignored): oops",
        ),
        ({"name": "T", "ansible.builtin.fail": {"msg": "{{ item }}"}, "loop": ["oops"]}, "gw1: T: failed: oops"),
        (
            {"name": "T", "ansible.builtin.fail": {"msg": "SECRET"}, "no_log": True},
            "gw1: T: failed: its message is hidden by no_log",
        ),
        (
            {"block": [{"name": "T", "ansible.builtin.fail": {"msg": "oops"}}], "rescue": [IN_SYNC_TASK]},
            "gw1: T: failed: oops",
        ),
        ({"name": "T", "answer": {"result": "{{ missing_variable }}"}}, "gw1: T: failed: "),
    ],
)
def test_not_verified(project: Project, task: dict[str, Any], reason: str) -> None:
    outcome = project.check(IN_SYNC_TASK, task)
    assert_not_verified(outcome, reason)
    # Ansible's own output shows a no_log task's error; the recap and the report do not.
    assert "SECRET" not in "".join(outcome.last_lines) + project.json_path.read_text(encoding="utf-8")


def test_drift_is_told_even_if_not_all_was_verified(project: Project) -> None:
    outcome = project.check({"name": "Own", **planted(ONE)}, {"name": "T", "blind": {}})
    assert_not_verified(outcome, "gw1: T: skipped")
    assert outcome.found() == [tuple(ONE.values())]
    assert "1 change required on 1 of 1 host" in outcome.last_lines


def test_an_unreachable_host_is_named_and_the_others_go_on(project: Project) -> None:
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    project.hosts("gw1", gw2=away)
    outcome = project.check(IN_SYNC_TASK, {"name": "Own", **planted(ONE)})
    assert_not_verified(outcome, "gw2: unreachable: ")
    assert outcome.found("gw1") == [tuple(ONE.values())]
    assert "gw2" not in outcome.report["hosts"]
    assert_not_verified(project.play(tasks=[IN_SYNC_TASK]), "gw2: unreachable: ", "Failed")


def test_batches_that_a_failure_leaves_out_are_named(project: Project) -> None:
    project.hosts("gw1", "gw2", "gw3")
    fails_on_two = {"name": "T", "ansible.builtin.fail": {"msg": "oops"}, "when": "inventory_hostname == 'gw2'"}
    outcome = project.play(tasks=[IN_SYNC_TASK, fails_on_two], serial=1, max_fail_percentage=0)
    assert_not_verified(outcome, "gw2: T: failed: oops", "Failed")
    assert "gw3: not reached, the run ended before" in outcome.report["not_verified"]


def test_batches_that_a_failure_leaves_out_are_named_though_earlier_plays_came_to_them(project: Project) -> None:
    project.hosts("gw1", "gw2", "gw3")
    fails_on_two = {"name": "T", "ansible.builtin.fail": {"msg": "oops"}, "when": "inventory_hostname == 'gw2'"}
    plays: list[dict[str, Any]] = [
        {"hosts": "all", "tasks": [IN_SYNC_TASK]},
        {"hosts": "all", "tasks": [IN_SYNC_TASK, fails_on_two], "serial": 1, "max_fail_percentage": 0},
    ]
    outcome = project.play(plays=plays)
    assert outcome.report["not_verified"] == ["gw2: T: failed: oops", "gw3: not reached, the run ended before"]
    assert outcome.report["hosts"] == {"gw1": []}


def test_what_a_failure_took_back_is_not_called_applied(project: Project) -> None:
    mode = {**ONE, "what": "/etc/derms/agent.conf mode"}
    outcome = project.play(
        tasks=[
            {"name": "Own", **planted(ONE, TWO, {**ONE, "what": "agent"}, mode)},
            {"name": "Secret", **planted(ONE), "no_log": True},
            {
                "name": "T",
                "answer": {
                    "result": {"failed": True, "msg": "oops", "rolled_back": ["agent", "/etc/derms/agent.conf"]}
                },
            },
        ]
    )
    assert [entry["rolled_back"] for entry in outcome.report["hosts"]["gw1"]] == [False, False, True, True]
    rows = [line.rpartition("  ")[2].strip() for line in outcome.last_lines if line.startswith(("gw1 ", "    "))]
    assert rows == [ONE["should_be"], TWO["should_be"], "as before: rolled back", "as before: rolled back"]
    assert "gw1: 1 hidden change in Secret, perhaps rolled back as well" in outcome.last_lines
    assert outcome.last_lines[-3:] == [
        "3 changes applied on 1 of 1 host",
        "2 changes rolled back on gw1",
        "Failed: gw1: T: failed: oops",
    ]


def test_nothing_executed(project: Project) -> None:
    always = [{"name": "Always", "answer": {}, "tags": "always"}, {"name": "Tagged", "answer": {}, "tags": "firewall"}]
    for options, reason in {
        ("--tags", "typo"): "no task with the tag typo was run",
        ("--tags", "firewall,typo"): "no task with the tag typo was run",
        ("--start-at-task", "typo"): "nothing was executed",
        ("--skip-tags", "always,firewall"): "nothing was executed",
    }.items():
        outcome = project.check(*always, options=options, gather_facts=True)
        assert_not_verified(outcome, reason)
        assert " ".join(options) in outcome.report["scope"]


def test_hosts_that_are_not_there(project: Project) -> None:
    assert_not_verified(project.check(IN_SYNC_TASK, hosts="nobody"), "nothing was executed")
    outcome = project.check(IN_SYNC_TASK, options=("--limit", "gw1,gw9"))
    assert_not_verified(outcome, "--limit gw9: no such host or group")
    outcome = project.check({"name": "Not here", "answer": {}, "when": False})
    assert_not_verified(outcome, "nothing was executed")


@pytest.mark.parametrize(
    "options",
    [
        ("--limit", "gw1"),
        ("--limit", "al*"),
        ("--tags", "firewall"),
        ("--tags", "tagged"),
        ("--skip-tags", "logging"),
        ("--start-at-task", "First"),
    ],
)
def test_a_partial_run_names_its_scope_on_the_line(project: Project, options: tuple[str, str]) -> None:
    outcome = project.check({"name": "First", "answer": {}, "tags": "firewall"}, options=options)
    assert outcome.last_lines == [f"{IN_SYNC} (only {' '.join(options)})"]
    assert outcome.report["scope"] == " ".join(options)


def test_a_real_run_lists_what_it_changed(project: Project) -> None:
    tasks = [{"name": "Text", "ansible.builtin.copy": {"dest": "{{ playbook_dir }}/x", "content": "a\n"}}]
    outcome = project.play(tasks=tasks)
    assert outcome.report["status"] == "changed"
    assert outcome.last_lines[0].split() == ["host", "what", "was", "is", "now"]
    assert outcome.last_lines[-1] == "1 change applied on 1 of 1 host"
    again = project.play(tasks=tasks)
    assert again.last_lines == [IN_SYNC]
    assert again.report["status"] == "in_sync"


def test_what_a_real_run_only_predicts_is_still_required(project: Project) -> None:
    task = {"name": "Text", "ansible.builtin.copy": {"dest": "{{ playbook_dir }}/x", "content": "a"}}
    outcome = project.play(tasks=[{**task, "check_mode": True}])
    assert outcome.report["status"] == "drift"
    assert outcome.last_lines[-1] == "1 change required on 1 of 1 host"


def test_a_real_run_with_an_ignored_failure_claims_nothing(project: Project) -> None:
    outcome = project.play(tasks=[{"name": "T", "ansible.builtin.fail": {"msg": "oops"}, "ignore_errors": True}])
    assert_not_verified(outcome, "gw1: T: failed (ignored): oops")


def test_a_run_that_breaks_off_leaves_no_earlier_report(project: Project) -> None:
    project.json_path.write_text('{"status": "in_sync"}', encoding="utf-8")
    outcome = project.play(
        "--check",
        plays=[
            {"hosts": "all", "tasks": [IN_SYNC_TASK]},
            {"hosts": "all", "name": "{{ missing_variable }}", "serial": "{{ missing_variable }}"},
        ],
    )
    assert outcome.returncode != 0
    assert IN_SYNC not in outcome.output
    assert outcome.report["status"] == "not_verified"


def test_a_report_that_cannot_be_written_is_told(project: Project) -> None:
    project.json_path = project.path / "missing" / "drift.json"
    outcome = project.check(IN_SYNC_TASK)
    assert IN_SYNC in outcome.last_lines
    assert "The drift report could not be written" in outcome.output
