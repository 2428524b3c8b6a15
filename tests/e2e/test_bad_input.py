# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes and mishaps: each is named, and leaves nothing half done.

Through ./deploy, as an operator would, against a host of each platform.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.e2e.conftest import LONGEST_RUN_S, ROOT, Deployment, Gateway, Run

NETWORK = ["10.213.8.0/24", "fd42:213:8::/64"]
# In the hosts' network, and no host's.
NOBODY = "10.213.8.250"
VARIABLES = {
    "ansible_user": "deploy",
    "derms_depot": "e2e",
    "derms_management_blocks": NETWORK,
    "derms_internal_blocks": NETWORK,
    "time_sync_sources": [{"address": "10.213.8.1"}],
    "fail2ban_manage_repository": False,
    "mqtt_broker_manage_repository": False,
}
CHRONY_FILE = {"ubuntu2204": "/etc/chrony/chrony.conf", "rhel9": "/etc/chrony.conf"}
CHRONY_UNIT = {"ubuntu2204": "chrony", "rhel9": "chronyd"}


class ControlNode:
    """An inventory of its own, and ./deploy on it."""

    def __init__(self, directory: Path, gateway: Gateway) -> None:
        self.directory = directory
        self.inventory = directory / "inventory"
        self.deployment = Deployment(self.inventory, directory / "drift.json")
        self.gateway = gateway
        (self.inventory / "group_vars" / "all").mkdir(parents=True)
        self.declare()
        self.list_hosts({})

    def list_hosts(self, others: dict[str, Any]) -> None:
        """Write the inventory's hosts: the gateway, and others."""
        hosts = {self.gateway.name: {"ansible_ssh_common_args": f"-F {self.gateway.ssh_config}"}, **others}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"derms_gateways": {"hosts": hosts}}))

    def declare(self, leave_out: str = "", **more: Any) -> None:
        """Write the inventory's variables."""
        variables = {name: value for name, value in {**VARIABLES, **more}.items() if name != leave_out}
        (self.inventory / "group_vars" / "all" / "main.yml").write_text(yaml.safe_dump(variables))

    def deploy(self, *words: str) -> Run:
        """Run ./deploy to its end."""
        return self.deployment.run(*words)


@pytest.fixture
def control_node(tmp_path: Path, gateway: Gateway) -> ControlNode:
    return ControlNode(tmp_path, gateway)


def fingerprint(gateway: Gateway) -> str:
    """Return what changes when anything does that a run could change on a host's disk.

    Not /etc/hosts, which test hosts are kept to know one another by, nor what reading rpm's database leaves beside it.
    """
    moving = (
        "*/__pycache__*",
        "/etc/hosts",
        "/var/lib/sudo/*",
        "/var/lib/systemd/*",
        "/var/lib/chrony/*",
        "/var/lib/rpm/rpmdb.sqlite-*",
    )
    find = "sudo find /etc /usr /opt /var/lib -xdev -type f " + " ".join(f"-not -path '{path}'" for path in moving)
    done = gateway.run(find + r" -printf '%p %m %u %s %T@\n' | sort | sha256sum")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def untouched(gateway: Gateway) -> Iterator[None]:
    """Let a test pass only if it leaves the host as it was."""
    before = fingerprint(gateway)
    yield
    assert fingerprint(gateway) == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("leave_out", "more", "named"),
    [
        ("derms_internal_blocks", {}, ["derms_internal_blocks", "missing"]),
        ("", {"logging_files_kept": "many"}, ["logging_files_kept", "many"]),
        ("", {"derms_managment_blocks": NETWORK}, ["derms_managment_blocks", "derms_management_blocks"]),
        ("", {"firewall_web_port": [443]}, ["firewall_web_port", "firewall_web_ports"]),
        ("", {"derms_internal_blocks": ["10.213.8.0/33"]}, ["derms_internal_blocks", "10.213.8.0/33"]),
        ("", {"certificates_tls_minimum": "1.1"}, ["certificates_tls_minimum", "1.1"]),
    ],
    ids=["missing", "mistyped", "misspelt", "misspelt in a role", "no CIDR block", "no choice"],
)
def test_a_wrong_variable_stops_the_run_before_the_first_change(
    control_node: ControlNode, leave_out: str, more: dict[str, Any], named: list[str]
) -> None:
    control_node.declare(leave_out, **more)
    run = control_node.deploy()
    assert run.status == 1, run.words
    assert all(word in run.words for word in named), run.words
    assert not any(run.report["hosts"].values())


@pytest.mark.usefixtures("untouched")
def test_a_control_node_without_pip_stops_before_the_first_change(
    control_node: ControlNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python's own way to say that there is no such module, in an environment that has it.
    (control_node.directory / "sitecustomize.py").write_text('import sys\n\nsys.modules["pip"] = None\n')
    monkeypatch.setenv("PYTHONPATH", str(control_node.directory))
    control_node.declare(derms_depot_document={})
    run = control_node.deploy()
    assert run.status == 1, run.words
    assert "found no pip; this control node needs pip and flit_core to make the agent's release" in run.words, run.words
    assert not any(run.report["hosts"].values())


@pytest.mark.usefixtures("untouched")
def test_an_unknown_operating_system_is_refused(control_node: ControlNode, gateway: Gateway) -> None:
    files = "/usr/lib/os-release /etc/redhat-release /etc/debian_version"
    older = 's/^VERSION_ID=.*/VERSION_ID="7"/; s/^VERSION=.*/VERSION="7"/; s/9\\.4/7.9/; s/^12\\.*/7/'
    gateway.run(
        f"for f in {files}; do [ ! -e $f ] || sudo cp -a $f $f.kept; done; sudo sed -i '{older}' {files} 2>/dev/null"
    )
    try:
        run = control_node.deploy()
    finally:
        gateway.run(f"for f in {files}; do [ ! -e $f.kept ] || sudo cp -a $f.kept $f; sudo rm -f $f.kept; done")
    assert run.status == 1, run.words
    assert "is not supported" in run.words


def test_an_unreachable_host_is_named_and_the_others_go_on(control_node: ControlNode, gateway: Gateway) -> None:
    control_node.list_hosts({"gone": {"ansible_host": NOBODY, "ansible_ssh_timeout": 3, "derms_depot": "elsewhere"}})
    gateway.run("sudo sysctl -w net.ipv4.tcp_syncookies=0")
    run = control_node.deploy("--tags", "kernel_parameters")
    assert run.status == 1, run.words
    assert [reason for reason in run.report["not_verified"] if reason.startswith("gone: unreachable")], run.report
    assert "gone" in run.words
    assert "net.ipv4.tcp_syncookies (running)" in {found["what"] for found in run.report["hosts"][gateway.name]}
    assert gateway.run("cat /proc/sys/net/ipv4/tcp_syncookies").stdout.strip() == "1"


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def certificate(key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, *, is_ca: bool, days: int) -> str:
    """Return a certificate that ends in so many days; negative: that has ended."""
    now = datetime.now(timezone.utc)
    subject, signer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA" if ca else "VEN")]) for ca in (is_ca, True)
    )
    key_usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if not is_ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def provided(*, own_key: bool = True, days: int = 300) -> dict[str, Any]:
    """Return variables with a utility operator's certificate for the VEN."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    entry = {
        "name": "grid-gateway",
        "certificate": certificate(key, authority, is_ca=False, days=days),
        "private_key": pem(key if own_key else ec.generate_private_key(ec.SECP256R1())),
        "ca": certificate(authority, authority, is_ca=True, days=3000),
    }
    return {"certificates_source": "provided", "certificates_provided": [entry]}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("variables", "named"),
    [
        (provided(own_key=False), "grid-gateway"),
        (provided(days=-3), "expired"),
        (provided() | {"derms_vtn_url": "http://vtn.example"}, "derms_vtn_url"),
    ],
    ids=["another's key", "expired", "no HTTPS"],
)
def test_a_certificate_that_cannot_work_is_refused(
    control_node: ControlNode, variables: dict[str, Any], named: str
) -> None:
    control_node.declare(**variables)
    run = control_node.deploy()
    assert run.status == 1, run.words
    assert named in run.words, run.words
    assert "PRIVATE KEY" not in run.words


def restart_is_due(gateway: Gateway) -> bool:
    """Tell whether chrony runs with an older configuration than the one on disk."""
    unit, file = CHRONY_UNIT[gateway.platform], CHRONY_FILE[gateway.platform]
    command = f"sudo sh -c 'date -d \"$(systemctl show -P ActiveEnterTimestamp {unit})\" +%s; stat -c %Y {file}'"
    started_s, changed_s = (int(line) for line in gateway.run(command).stdout.split())
    return started_s < changed_s


def killed_after_the_change(control_node: ControlNode, gateway: Gateway, minpoll: int) -> None:
    """Change chrony's configuration by a run that is killed as soon as it says so."""
    options = ["iburst", "minpoll", str(minpoll)]
    control_node.declare(time_sync_sources=[{"address": "10.213.8.1", "options": options}])
    log = control_node.directory / "killed.log"
    with log.open("wb") as output:
        killed = subprocess.Popen(
            [
                str(Path(sys.prefix) / "bin" / "ansible-playbook"),
                "-i",
                str(control_node.inventory),
                "--tags=time_sync",
                "site.yml",
            ],
            cwd=ROOT,
            env=control_node.deployment.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + LONGEST_RUN_S
    while f"changed: [{gateway.name}]" not in log.read_text().partition("Declare the sources]")[2]:
        assert killed.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()


def test_a_run_killed_between_a_change_and_its_restart_is_repaired_by_the_next(
    control_node: ControlNode, gateway: Gateway
) -> None:
    first = control_node.deploy("--tags", "time_sync")
    assert first.status == 0, first.words
    assert not restart_is_due(gateway)
    time.sleep(1.1)  # what is compared counts in seconds

    # The restart may have left for the host already when the kill comes; then the run was not killed in between.
    for minpoll in range(5, 10):
        killed_after_the_change(control_node, gateway, minpoll)
        time.sleep(2)
        if restart_is_due(gateway):
            break
    else:
        pytest.fail("no run was killed between its change and its handler")
    assert json.loads((control_node.directory / "drift.json").read_text())["status"] == "not_verified"

    dry = control_node.deploy("--dry-run", "--tags", "time_sync")
    assert dry.status == 2, dry.words
    repaired = control_node.deploy("--tags", "time_sync")
    assert repaired.status == 0, repaired.words
    assert not restart_is_due(gateway)


def artefacts() -> set[Path]:
    return set((ROOT / ".deploy" / "artifacts").glob("*"))


@pytest.mark.parametrize("fails", [False, True], ids=["passes", "fails"])
def test_a_secret_is_in_no_log_artefact_or_report(control_node: ControlNode, gateway: Gateway, fails: bool) -> None:
    variables = provided(own_key=not fails)
    key_lines = variables["certificates_provided"][0]["private_key"].splitlines()[1:-1]
    canary = "canary-of-the-depots-authority"
    password = control_node.directory / "vault-password"
    password.write_text("e2e\n")
    vault = control_node.inventory / "group_vars" / "all" / "vault.yml"
    # Both ways: the utility operator's key, and an authority whose key has a passphrase.
    secrets = {"certificates_ca_passphrase": canary, "certificates_provided": variables["certificates_provided"]}
    vault.write_text(yaml.safe_dump(secrets))
    encrypt = [
        str(Path(sys.prefix) / "bin" / "ansible-vault"),
        "encrypt",
        f"--vault-password-file={password}",
        str(vault),
    ]
    subprocess.run(encrypt, check=True, capture_output=True)

    before = artefacts()
    run = control_node.deploy("-vvv", "--tags", "certificates", "--vault-password-file", str(password))
    assert run.status == (1 if fails else 0), run.words
    kept = artefacts() - before
    assert kept
    places = {
        "output": run.words,
        "drift report": json.dumps(run.report),
        "host's journal": gateway.run("sudo journalctl --no-pager --output=cat --since=-10min").stdout,
        "host's temporary files": gateway.run(
            "sudo grep -rh . /tmp /var/tmp /home/deploy/.ansible /root/.ansible"
        ).stdout,
        **{
            str(path): path.read_text(encoding="utf-8", errors="replace")
            for directory in kept
            for path in directory.rglob("*")
            if path.is_file()
        },
    }
    assert "grid-gateway" in "".join(text for place, text in places.items() if place.startswith(str(ROOT)))
    leaks = {name for name, text in places.items() for secret in (canary, *key_lines) if secret in text}
    assert not leaks
