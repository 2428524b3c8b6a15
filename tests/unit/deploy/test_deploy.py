# SPDX-License-Identifier: GPL-3.0-or-later
"""./deploy on a small tree of its own: exit codes, what it prints, what it leaves behind, and what it refuses."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

import pexpect  # type: ignore[import-untyped]
import pytest
import yaml
from rich.console import Console

if TYPE_CHECKING:
    from types import ModuleType

TREE = Path(__file__).parents[3]
IN_SYNC = "No Changes Required"
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
AWAY = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
CANARY = "canary-7f3a9c"
VAULT_PASSWORD = "correct horse"  # noqa: S105
LOG = [{"name": "Write", "ansible.builtin.copy": {"dest": "{{ target }}", "content": "a\n", "mode": "0644"}}]
NO_CHANGE = [{"name": "Look", "ansible.builtin.stat": {"path": "/"}}]


class Tree:
    """A copy of what ./deploy needs, with two roles of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("deploy", "ansible.cfg", "site.yml"):
            shutil.copy(TREE / name, path / name)
        (path / "plugins" / "callback").mkdir(parents=True)
        shutil.copy(TREE / "plugins" / "callback" / "drift.py", path / "plugins" / "callback")
        # ansible.cfg enables it, and Ansible warns of one that is not there.
        shutil.copytree(TREE / "plugins" / "inventory", path / "plugins" / "inventory")
        (path / "collections" / "ansible_collections" / "derms").mkdir(parents=True)
        (path / "collections" / "ansible_collections" / "derms" / "edge").symlink_to("../../..")
        self.write("playbooks/site.yml", [{"name": "Gateways", "hosts": "all", "roles": ["derms.edge.logging"]}])
        self.role(LOG)
        self.hosts(gw1={})

    def write(self, name: str, content: object) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def role(self, tasks: list[dict[str, Any]]) -> None:
        self.write("roles/logging/tasks/main.yml", tasks)

    def hosts(self, **hosts: dict[str, Any]) -> None:
        target = str(self.path / "written-{{ inventory_hostname }}")
        everyone = {"vars": {**LOCAL, "target": target}, "hosts": hosts}
        self.write("inventories/demo/hosts.yml", {"all": everyone})

    def deploy(
        self, *options: str, cwd: Path | None = None, python: tuple[str, ...] = (sys.executable,), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python, self.path / "deploy", *options],
            cwd=cwd or self.path,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def artefacts(self) -> Path:
        """The newest run's."""
        return max((self.path / ".deploy" / "artifacts").iterdir(), key=lambda run: run.stat().st_mtime_ns)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.artefacts / "drift.json").read_text(encoding="utf-8"))
        return report

    def vault(self, inventory: str, **secrets: str) -> Path:
        """Give the inventory a vault, and return the file with its password."""
        password_file = self.path.parent / "vault-password"
        password_file.write_text(VAULT_PASSWORD, encoding="utf-8")
        name = f"{inventory}/group_vars/all/vault.yml"
        self.write(name, secrets)
        program = Path(sys.executable).parent / "ansible-vault"
        encrypt = [str(program), "encrypt", "--vault-password-file", str(password_file), str(self.path / name)]
        subprocess.run(encrypt, check=True, capture_output=True)
        return password_file


NO_PROCESS = 999_999_999
"""More than any system's pid_max."""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    path = tmp_path / "tree"
    path.mkdir()
    return Tree(path)


@pytest.fixture(scope="module")
def deploy() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("deploy", str(TREE / "deploy"))
    spec = importlib.util.spec_from_loader("deploy", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def everything_under(path: Path) -> str:
    files = [file for file in path.rglob("*") if stat.S_ISREG(file.lstat().st_mode)]
    return "\n".join([*map(str, files), *(file.read_text(encoding="utf-8", errors="replace") for file in files)])


def test_dry_run_apply_dry_run(tree: Tree) -> None:
    dry = tree.deploy("--dry-run", cwd=Path("/"))
    written = tree.path / "written-gw1"
    assert dry.returncode == 2, dry.stdout
    assert not written.exists()
    assert [entry["what"] for entry in tree.report()["hosts"]["gw1"]] == [str(written)]
    assert dry.stdout.splitlines()[-1] == "1 change required on 1 of 1 host"
    assert "gw1  logging  drift" in dry.stdout

    applied = tree.deploy()
    assert applied.returncode == 0, applied.stdout
    assert written.read_text(encoding="utf-8") == "a\n"
    assert applied.stdout.splitlines()[-1] == "1 change applied on 1 of 1 host"
    assert "gw1  logging  changed" in applied.stdout

    again = tree.deploy("--dry-run", "-i", "../inventories/demo/hosts.yml", cwd=tree.path / "roles")
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[-1] == IN_SYNC
    assert "gw1  logging  ok" in again.stdout


def test_a_failed_task_is_told_in_one_line(tree: Tree) -> None:
    tree.role([{"name": "Break", "ansible.builtin.fail": {"msg": "no such depot"}}])
    failed = tree.deploy()
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == "Failed: gw1: derms.edge.logging : Break: failed: no such depot"
    assert "{" not in failed.stdout
    assert tree.deploy("--dry-run").stdout.splitlines()[-1].startswith("Not verified: gw1: derms.edge.logging : Break")


def test_an_unreachable_host_fails_the_run_and_the_others_go_on(tree: Tree) -> None:
    tree.hosts(gw1={}, gw2=AWAY)
    outcome = tree.deploy()
    assert outcome.returncode == 1
    assert "Failed: gw2: unreachable: " in outcome.stdout
    assert (tree.path / "written-gw1").exists()
    assert "gw2  logging  unreachable" in outcome.stdout


def test_options_reach_ansible(tree: Tree) -> None:
    tree.hosts(gw1={}, gw2={})
    tree.write("more.yml", {"target": str(tree.path / "elsewhere")})
    outcome = tree.deploy(
        "--dry-run", "--limit", "gw2", "--skip-tags", "other", "--forks", "1", "-e", "@more.yml", "-e", "x=1 y=2", "-v"
    )
    assert outcome.returncode == 2, outcome.stdout
    report = tree.report()
    assert report["scope"] == "--limit gw2 --skip-tags other"
    assert [entry["what"] for entry in report["hosts"]["gw2"]] == [str(tree.path / "elsewhere")]
    assert "PLAY RECAP" in outcome.stdout
    typo = tree.deploy("--dry-run", "--tags", "typo")
    assert typo.returncode == 1
    assert "Not verified: no task with the tag typo was run (only --tags typo)" in typo.stdout
    assert IN_SYNC not in typo.stdout


def test_host_keys_are_checked_and_the_tree_stays_itself(tree: Tree) -> None:
    checks = [
        "lookup('ansible.builtin.config', 'HOST_KEY_CHECKING')",
        "lookup('ansible.builtin.env', 'KEPT') == 'for lookups'",
        "lookup('ansible.builtin.env', 'ANSIBLE_CACHE_PLUGIN') == ''",
        "ansible_config_file == tree ~ '/ansible.cfg'",
    ]
    tree.role([{"name": "Look", "ansible.builtin.assert": {"that": checks}}])
    outcome = tree.deploy(
        "-e",
        f"tree={tree.path}",
        cwd=Path("/"),
        KEPT="for lookups",
        ANSIBLE_HOST_KEY_CHECKING="False",
        ANSIBLE_CALLBACKS_ENABLED="",
        ANSIBLE_COLLECTIONS_PATH="/nowhere",
        ANSIBLE_CONFIG="/dev/null",
    )
    assert outcome.returncode == 0, outcome.stdout


def test_no_secret_is_left_behind(tree: Tree) -> None:
    password_file = tree.vault("inventories/demo", vault_key=CANARY)
    secret = {"dest": "{{ target }}", "content": "{{ vault_key }}{{ given }}", "mode": "0600"}
    tree.role(
        [
            {"name": "Key", "ansible.builtin.copy": secret, "no_log": True},
            {"name": "Keys", "ansible.builtin.copy": secret, "no_log": True, "loop": [1, 2]},
            {"name": "Break", "ansible.builtin.fail": {"msg": "{{ vault_key }}"}, "no_log": True},
        ]
    )
    options = ("--vault-password-file", str(password_file), "-e", f"given={CANARY}")
    for more in (("--dry-run", "-vvv"), ()):
        outcome = tree.deploy(*options, *more, CONTROLLER_TOKEN=CANARY)
        assert outcome.returncode == 1, outcome.stdout
        assert "Break: failed: its message is hidden by no_log" in outcome.stdout
        assert CANARY not in outcome.stdout
        left_behind = everything_under(tree.path / ".deploy")
        assert "Break" in left_behind
        assert CANARY not in left_behind
        assert VAULT_PASSWORD not in left_behind
        assert "CONTROLLER_TOKEN" not in left_behind
        assert not list((tree.path / ".deploy").rglob("fact_cache"))
    assert CANARY in (tree.path / "written-gw1").read_text(encoding="utf-8")


def test_artefacts_are_for_their_owner_and_the_last_ten_are_kept(tree: Tree) -> None:
    tree.role(NO_CHANGE)
    state = tree.path / ".deploy"
    for number in range(12):
        old = state / "artifacts" / f"2026-01-01T00-00-{number:02}-{NO_PROCESS}"
        old.mkdir(parents=True)
        os.utime(old, (number, number))
    # One that goes on, of another inventory say, is left what it writes, however many have begun since.
    goes_on = state / "artifacts" / f"2026-01-01T00-00-00-{os.getpid()}"
    goes_on.mkdir()
    os.utime(goes_on, (0, 0))
    state.chmod(0o755)
    assert tree.deploy().returncode == 0
    assert goes_on.exists()
    assert len(list((state / "artifacts").iterdir())) == 10 + 1
    assert (state / "artifacts" / f"2026-01-01T00-00-11-{NO_PROCESS}").exists()
    mode_of = {path: stat.S_IMODE(path.lstat().st_mode) for path in [state, state / "artifacts", tree.artefacts]}
    assert set(mode_of.values()) == {0o700}, mode_of
    assert {path.name for path in tree.artefacts.iterdir()} == {"drift.json", "output.log", "rc", "status"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tree.artefacts.iterdir()} == {0o600}


def test_a_second_deploy_of_the_same_inventory_is_refused(tree: Tree) -> None:
    tree.role(NO_CHANGE)
    tree.write("inventories/other/hosts.yml", {"all": {"hosts": {"gw9": LOCAL}}})
    assert tree.deploy().returncode == 0
    (lock_path,) = (tree.path / ".deploy").glob("*.lock")
    with lock_path.open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for inventory in ("inventories/demo", "inventories/demo/hosts.yml"):
            refused = tree.deploy("-i", inventory)
            assert refused.returncode == 1
            assert "another deploy is at work on" in refused.stdout
            assert "(process " in refused.stdout
            assert len(refused.stdout.splitlines()) == 1
        assert tree.deploy("-i", "inventories/other").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-i", "inventories/typo"), "there is no inventory inventories/typo"),
        (("-e", "@typo.yml"), "there is no file of variables typo.yml"),
        (("--vault-password-file", "typo"), "there is no password file typo"),
        (("--typo",), "unrecognized arguments: --typo"),
        (("--forks", "many"), "argument --forks: invalid int value"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tree: Tree, options: tuple[str, ...], message: str) -> None:
    outcome = tree.deploy(*options)
    assert outcome.returncode == 1
    assert len(outcome.stdout.splitlines()) == 1
    assert outcome.stdout.startswith("deploy: ")
    assert message in outcome.stdout


def test_a_tree_without_its_playbook(tree: Tree) -> None:
    (tree.path / "site.yml").unlink()
    outcome = tree.deploy()
    assert outcome.returncode == 1
    assert "there is no playbook" in outcome.stdout
    assert len(outcome.stdout.splitlines()) == 1


def test_ansibles_own_refusals_are_shown(tree: Tree) -> None:
    nobody = tree.deploy("--limit", "gw9", "--dry-run")
    assert nobody.returncode == 1
    assert "leaves us with no hosts to target" in nobody.stdout
    (tree.path / "playbooks" / "site.yml").write_text("- hosts: all\n  rolls: []\n", encoding="utf-8")
    broken = tree.deploy("--dry-run")
    assert broken.returncode == 1
    assert "rolls" in broken.stdout
    assert IN_SYNC not in nobody.stdout + broken.stdout


def test_without_the_set_up_one_line_says_what_to_do(tree: Tree) -> None:
    bare = tree.deploy("--help", python=(sys.executable, "-S"))
    assert bare.returncode == 1
    assert "run `make setup` in" in bare.stdout
    assert len(bare.stdout.splitlines()) == 1


def test_the_projects_environment_is_entered(tree: Tree) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tree.path / ".venv"], check=True)
    # It is empty: that its packages are missing shows that it was entered.
    assert "run `make setup` in" in tree.deploy("--help").stdout


def test_help_documents_options_exit_codes_and_files(tree: Tree) -> None:
    outcome = tree.deploy("--help")
    assert outcome.returncode == 0
    for word in ("--dry-run", "--limit", "--tags", "--forks", "--ask-vault-pass", "exit codes:", "drift.json", "130"):
        assert word in outcome.stdout


@contextlib.contextmanager
def terminal(tree: Tree, *options: str) -> Iterator[pexpect.spawn]:
    child = pexpect.spawn(
        sys.executable,
        [str(tree.path / "deploy"), *options],
        cwd=tree.path,
        env={**os.environ, "TERM": "xterm-256color"},
        dimensions=(40, 150),
        encoding="utf-8",
        timeout=60,
    )
    try:
        yield child
    finally:
        child.close(force=True)


def test_a_terminal_gets_the_grid_colours_and_the_vaults_prompt(tree: Tree) -> None:
    tree.vault("inventories/demo", vault_key=CANARY)
    with terminal(tree, "--dry-run", "--ask-vault-pass") as child:
        child.expect("Vault password: ")
        child.sendline(VAULT_PASSWORD)
        child.expect("role.*gw1")
        child.expect("logging +.*running")
        child.expect("logging +.*drift")
        child.expect("\x1b\\[.*1 change required on 1 of 1 host")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 2
    assert VAULT_PASSWORD not in everything_under(tree.path / ".deploy")


def ended(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


def test_an_interruption_ends_ansible_and_says_where_hosts_are(tree: Tree) -> None:
    at_work = tree.path / "at-work"
    tree.role([{"name": "Wait", "ansible.builtin.shell": f"touch {at_work}; sleep 60"}])
    child = subprocess.Popen(
        [sys.executable, tree.path / "deploy"], cwd=tree.path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not at_work.exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (playbook,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and parent_of(int(entry.name)) == child.pid
    ]
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=40)
    assert child.returncode == 130
    assert "gw1: logging : Wait: may or may not have been done" in said
    assert IN_SYNC not in said
    assert ended(playbook, within_s=5)
    assert tree.report()["status"] == "not_verified"
    tree.role(NO_CHANGE)
    assert tree.deploy().returncode == 0


def parent_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1])


def started(host: str, role: str, task: str = "T") -> tuple[str, dict[str, Any]]:
    return "runner_on_start", {"host": host, "role": role, "task": task}


def done(host: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "runner_on_ok", {"host": host, "res": {"changed": False}, **more}


def drawn(progress: Any, width: int = 150, height: int = 30) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    progress.console = console
    console.print(progress)
    return console.export_text()


def test_a_role_is_as_bad_as_its_worst_task(deploy: ModuleType) -> None:
    progress = deploy.Progress(Console(), ["baseline", "firewall"], dry_run=True, lines=False)
    for event in [
        started("gw1", "derms.edge.baseline"),
        done("gw1", res={"changed": True}),
        started("gw1", "baseline"),
        done("gw1"),
        started("gw1", "firewall"),
        ("runner_on_failed", {"host": "gw1", "ignore_errors": True}),
    ]:
        progress.follow(*event)
    assert progress.outcomes == {"gw1": {"baseline": "changed"}}
    grid = drawn(progress)
    assert ["baseline", "drift"] in [line.split() for line in grid.splitlines()]
    assert ["firewall", "running"] in [line.split() for line in grid.splitlines()]
    progress.follow("runner_on_failed", {"host": "gw1"})
    progress.follow("playbook_on_stats", {})
    assert ["firewall", "failed"] in [line.split() for line in drawn(progress).splitlines()]


def test_many_hosts_show_the_failed_and_count_the_rest(deploy: ModuleType) -> None:
    progress = deploy.Progress(Console(), ["baseline"], dry_run=False, lines=False)
    for number in range(50):
        progress.follow(*started(f"gw{number:02}", "baseline"))
        progress.follow(*done(f"gw{number:02}"))
    progress.follow("runner_on_unreachable", {"host": "gw49"})
    progress.follow("playbook_on_stats", {})
    grid = drawn(progress, height=16)
    assert "gw49" in grid
    assert "unreachable" in grid
    assert "and 40 more: 40 ok" in grid
    assert len(grid.splitlines()) <= 16


def test_the_sites_roles_are_known_before_they_run(deploy: ModuleType, tree: Tree, monkeypatch: Any) -> None:
    monkeypatch.setattr(deploy, "TREE", tree.path)
    roles = [
        "derms.edge.baseline",
        {"role": "derms.edge.firewall", "tags": "firewall"},
        {"name": "derms.edge.baseline"},
    ]
    tree.write("playbooks/site.yml", [{"import_playbook": "x"}, {"hosts": "all", "roles": roles}])
    assert deploy.declared_roles() == ["baseline", "firewall"]
    (tree.path / "playbooks" / "site.yml").write_text("- hosts: !vault x", encoding="utf-8")
    assert deploy.declared_roles() == []
