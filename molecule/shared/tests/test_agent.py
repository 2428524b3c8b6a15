# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as it runs on the gateway, one of its chargers silent: who it is, what it may, and that it answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

DIRECTORY = "/opt/derms"
UNIT = "derms-orchestrator.service"
SOCKET = "/run/derms/orchestrator.sock"
USER = "derms-orchestrator"
RELEASE = re.compile(r"\d+(\.\d+)*\+h[0-9a-f]{10}\.py3\d+")
OPERATOR = "olivia"
STAND_IN = "/dev/net/tun"


def shown(root: Any, *properties: str, unit: str = UNIT) -> dict[str, str]:
    """Return properties of a unit as systemd holds them."""
    lines = root.check_output(f"systemctl show --property={','.join(properties)} {unit}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_it_runs_as_its_own_user_in_the_services_slice(root: Any) -> None:
    state = shown(root, "ActiveState", "UnitFileState", "MainPID", "Slice", "ControlGroup", "NRestarts")
    assert (state["ActiveState"], state["UnitFileState"], state["NRestarts"]) == ("active", "enabled", "0")
    assert state["Slice"] == "derms.slice"
    pid = state["MainPID"]
    assert root.check_output("ps -o user:32= -o group:32= -p %s", pid).split() == [USER, "derms"]
    # The process itself, not what systemd believes of it.
    assert f"/derms.slice/{UNIT}" in root.file(f"/proc/{pid}/cgroup").content_string
    status = dict(re.findall(r"^(\w+):\s*(.*)$", root.check_output(f"cat /proc/{pid}/status"), re.MULTILINE))
    assert (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapBnd"], 16)) == ("1", 0, 0)


def test_it_may_open_what_a_depot_of_a_thousand_chargers_takes(root: Any) -> None:
    limits = root.file(f"/proc/{shown(root, 'MainPID')['MainPID']}/limits").content_string
    (soft,) = re.findall(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    assert int(soft) >= 4096


def test_the_slice_bounds_what_all_services_take(root: Any) -> None:
    held = shown(root, "CPUWeight", "CPUQuotaPerSecUSec", "MemoryHigh", "MemoryMax", unit="derms.slice")
    assert float(held.pop("CPUQuotaPerSecUSec").removesuffix("s")) == 1.5
    assert held == {"CPUWeight": "80", "MemoryHigh": str(384 << 20), "MemoryMax": str(512 << 20)}


def test_its_socket_is_the_operators_and_nobody_elses(root: Any) -> None:
    assert root.check_output(f"stat -c '%F %a %U:%G' {SOCKET}") == f"socket 660 {USER}:derms-operators"
    ask = f"{DIRECTORY}/current/bin/derms-agent status --json"
    assert json.loads(root.check_output(f"runuser --user {OPERATOR} -- {ask}"))["ready"] is True
    assert root.run(f"runuser --user nobody -- {ask}").rc == 3


def test_an_operator_may_ask_but_not_command(root: Any) -> None:
    agent = f"{DIRECTORY}/current/bin/derms-agent"
    refused = root.run(f"runuser --user {OPERATOR} -- {agent} limit put test 10 --for 60")
    assert refused.rc == 1, refused.stderr
    assert f"found user {OPERATOR}, expected one of" in refused.stdout + refused.stderr
    assert "test" not in root.check_output(f"{agent} limit list")


def test_it_answers_as_the_release_in_service(root: Any) -> None:
    version = root.check_output(f"readlink {DIRECTORY}/current")
    assert RELEASE.fullmatch(version)
    report = json.loads(root.check_output(f"{DIRECTORY}/current/bin/derms-agent status --json"))
    assert (report["version"], report["ready"]) == (version, True)
    pid = shown(root, "MainPID")["MainPID"]
    interpreter = root.file(f"/proc/{pid}/cmdline").content_string.split("\0")[0]
    assert interpreter.startswith(f"{DIRECTORY}/{version}/bin/python")


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/etc/derms/agent.conf", "640 root:derms"),
        ("/etc/derms/limits.conf", "640 root:derms"),
        ("/etc/derms/depot.yml", "640 root:derms"),
        (f"/etc/systemd/system/{UNIT}", "644 root:root"),
        ("/etc/systemd/system/derms.slice", "644 root:root"),
        (DIRECTORY, "755 root:root"),
        (f"{DIRECTORY}/current/release.json", "644 root:root"),
        ("/var/log/derms/engine.log", f"660 {USER}:derms"),
        ("/var/lib/derms/orchestrator", f"700 {USER}:derms"),
    ],
)
def test_files_are_whose_they_should_be(root: Any, path: str, mode: str) -> None:
    assert root.check_output("stat -c '%%a %%U:%%G' %s", path) == mode


def test_nobody_but_root_can_change_a_release(root: Any) -> None:
    assert not root.check_output(rf"find {DIRECTORY} ! -type l \( ! -user root -o -perm /022 \)")


def test_it_is_confined(root: Any) -> None:
    exposure = root.check_output(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(exposure.split(":")[1].split()[0]) <= 2.0


def try_to_open(root: Any, device: str, *, in_service: bool) -> Any:
    """Open a device, within the service's control groups or outside them."""
    groups = root.check_output(f"find /sys/fs/cgroup -path '*/derms.slice/{UNIT}/cgroup.procs'").split()
    assert groups
    join = "".join(f"echo $$ > {group}; " for group in groups) if in_service else ""
    return root.run(f"sh -c '{join}exec 3<>{device}'")


def test_it_opens_no_device_but_an_adapter_that_udev_names(root: Any) -> None:
    """A character device that every test host has stands for the adapter."""
    assert try_to_open(root, STAND_IN, in_service=False).rc == 0
    refused = try_to_open(root, STAND_IN, in_service=True)
    assert refused.rc != 0
    assert "not permitted" in refused.stderr
    rules = root.file("/etc/udev/rules.d/70-derms-serial.rules").content_string
    (plugged_in,) = re.findall(r'^ACTION=="add".* SYMLINK=="derms/\*", RUN\+="(.*)"$', rules, re.MULTILINE)
    try:
        root.check_output(plugged_in.replace("%N", STAND_IN))
        assert try_to_open(root, STAND_IN, in_service=True).rc == 0
    finally:
        root.check_output(f"rm -r /run/systemd/system.control/{UNIT}.d && systemctl daemon-reload")
    assert try_to_open(root, STAND_IN, in_service=True).rc != 0


def test_it_does_not_read_the_hosts_own_journal(root: Any) -> None:
    assert root.check_output("journalctl --system --boot --no-pager --quiet --lines=1")
    read = root.run(f"runuser --user {USER} -- journalctl --system --boot --no-pager --quiet")
    assert not read.stdout


def test_it_starts_without_a_place_to_log(root: Any) -> None:
    """Somebody has cleaned up, or the disk takes nothing: control does not depend on a log."""
    root.check_output("mv -T /var/log/derms /var/log/derms.away")
    try:
        root.check_output(f"systemctl restart {UNIT}")
        assert shown(root, "ActiveState") == {"ActiveState": "active"}
    finally:
        root.check_output(f"mv -T /var/log/derms.away /var/log/derms && systemctl restart {UNIT}")


def test_it_starts_without_its_certificates_and_says_so(root: Any) -> None:
    """They are for the broker, on which control does not depend."""
    files = "/etc/derms/certs/orchestrator"
    root.check_output(f"mv -T {files}.crt {files}.crt.away && mv -T {files}.key {files}.key.away")
    try:
        root.check_output(f"systemctl restart {UNIT}")
        assert shown(root, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
        words = root.check_output(f"sleep 3; {DIRECTORY}/current/bin/derms-agent status")  # a cycle or two
        assert "MQTT" in words
        assert "found no cert, key in the service's credentials" in " ".join(words.split())
    finally:
        root.check_output(
            f"mv -T {files}.crt.away {files}.crt && mv -T {files}.key.away {files}.key && systemctl restart {UNIT}"
        )
    assert "MQTT" not in root.check_output(f"sleep 3; {DIRECTORY}/current/bin/derms-agent status")


def test_it_logs_where_the_services_do(root: Any) -> None:
    assert shown(root, "LogNamespace") == {"LogNamespace": "derms"}
    journal = root.check_output(f"journalctl --namespace=derms --unit={UNIT} --no-pager --output=cat")
    assert "charger-3 never answered" in journal
    assert "charger-3 never answered" in root.file("/var/log/derms/engine.log").content_string
