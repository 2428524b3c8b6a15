# SPDX-License-Identifier: GPL-3.0-or-later
"""The grid gateway on the host: who it is, what it may, what it says without a VTN, and what it does with one.

The VTN is openleadr's, under mutual TLS 1.3, at the control node's address. Before it starts, nothing listens there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import Gateway
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

AGENT = "/opt/derms/current/bin/derms-agent"
UNIT = "derms-grid-gateway.service"
USER = "derms-grid-gateway"
CREDENTIALS = "/run/derms-grid-gateway"
SOCKET = "/run/derms/grid-gateway/ven.sock"
OPERATOR = "olivia"
LAB = Path(__file__).parents[3] / "agent" / "tests" / "grid_gateway" / "lab_vtn.py"
ADDRESS = "10.213.8.1"
PORTS = {"ubuntu2204": 15109, "rhel9": 15119, "vm": 15129}
POLL_S = 1
LEVEL_W = 30000.0
WITHIN_S = 45.0


def shown(root: Any, *properties: str) -> dict[str, str]:
    """Return properties of the unit as systemd holds them."""
    lines = root.check_output(f"systemctl show --property={','.join(properties)} {UNIT}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def grid(root: Any, user: str = "root") -> dict[str, Any]:
    """Return what the service says of itself, as `derms-agent status` has it."""
    answer: dict[str, Any] = json.loads(root.check_output(f"runuser --user {user} -- {AGENT} status --json"))["grid"]
    return answer


def await_(happens: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Return the first true answer to a question that is asked again and again."""
    ends_s = time.monotonic() + within_s
    while not (answer := happens()):
        assert time.monotonic() < ends_s
        time.sleep(0.5)
    return answer


def test_it_runs_as_its_own_user_in_the_services_slice(root: Any) -> None:
    state = shown(root, "ActiveState", "UnitFileState", "MainPID", "Slice", "NRestarts", "LogNamespace")
    pid = state.pop("MainPID")
    assert state == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "Slice": "derms.slice",
        "NRestarts": "0",
        "LogNamespace": "derms",
    }
    assert root.check_output("ps -o user:32= -o group:32= -p %s", pid).split() == [USER, "derms"]
    assert f"/derms.slice/{UNIT}" in root.file(f"/proc/{pid}/cgroup").content_string
    status = dict(re.findall(r"^(\w+):\s*(.*)$", root.check_output(f"cat /proc/{pid}/status"), re.MULTILINE))
    assert (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapBnd"], 16)) == ("1", 0, 0)


def test_it_is_confined(root: Any) -> None:
    exposure = root.check_output(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(exposure.split(":")[1].split()[0]) <= 2.0


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        (f"/etc/systemd/system/{UNIT}", "644 root:root"),
        ("/var/lib/derms/grid-gateway", f"700 {USER}:derms"),
        ("/run/derms", "755 derms-orchestrator:derms"),
        ("/run/derms/orchestrator.sock", "660 derms-orchestrator:derms-operators"),
        ("/run/derms/grid-gateway", f"755 {USER}:derms"),
        (SOCKET, f"660 {USER}:derms-operators"),
    ],
)
def test_files_are_whose_they_should_be(root: Any, path: str, mode: str) -> None:
    assert root.check_output("stat -c '%%a %%U:%%G' %s", path) == mode


def test_its_keys_are_its_users_alone(root: Any) -> None:
    assert root.check_output("stat -c '%%a %%U' %s", CREDENTIALS) == "711 root"
    for name in ("key", "mqtt-key"):
        assert root.check_output("stat -c '%%a %%U' %s", f"{CREDENTIALS}/{name}") == f"400 {USER}"


def test_without_its_vtn_it_runs_and_says_so(root: Any) -> None:
    said = await_(lambda: (one := grid(root)) and one["trouble"] and one)
    assert said["vtn"].startswith(f"https://{ADDRESS}:")
    assert "takes no connection" in said["trouble"]
    assert f"! VTN {ADDRESS}: " in root.check_output(f"{AGENT} status")
    entries = ("unreachable: ", "Heartbeat Timeout VTN")
    await_(lambda: all(one in root.file("/var/log/derms/engine.log").content_string for one in entries))


def test_operators_may_ask_it(root: Any) -> None:
    assert grid(root, OPERATOR)["vtn"].startswith(f"https://{ADDRESS}:")


class Vtn:
    """The utility's end."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, LAB, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TZ": "UTC"},
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, what: str, **told: Any) -> Any:
        """Have the VTN do something, and return what comes of it."""
        assert self.process.stdin is not None
        print(json.dumps({"do": what, **told}), file=self.process.stdin, flush=True)
        return self._line()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def vtn(gateway: Gateway, root: Any) -> Iterator[Vtn]:
    """Start the VTN, with a certificate that the depot's authority has issued."""
    pki = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "pki"
    started = Vtn(
        {
            "vtn_id": "utility",
            "host": ADDRESS,
            "port": PORTS[gateway.platform],
            "poll_s": POLL_S,
            "cert": str(pki / gateway.name / "vtn.crt"),
            "key": str(pki / gateway.name / "vtn.key"),
            "ca": str(pki / "ca.crt"),
        }
    )
    # Rather than waiting for its next attempt.
    root.check_output(f"systemctl restart {UNIT}")
    yield started
    started.end()


def test_it_registers_and_has_an_event_obeyed(root: Any, vtn: Vtn) -> None:
    # Of an earlier VTN it may have been registered; this one remembers nothing.
    (registered,) = await_(lambda: vtn.do("seen")["registrations"])
    assert registered["ven_name"] == "molecule"
    said = await_(lambda: (one := grid(root))["registered"] and one["trouble"] is None and one)
    assert (said["vtn_id"], said["ven_id"], said["link_lost"]) == ("utility", registered["ven_id"], False)
    assert "grid      registered with" in root.check_output(f"{AGENT} status")

    event = vtn.do("add", ven_id=said["ven_id"], values=[1.0], start=time.time(), length_s=600)
    (opted,) = await_(lambda: vtn.do("seen")["opts"])
    assert (opted["event_id"], opted["opt"]) == (event, "optIn")
    (ask,) = json.loads(root.check_output(f"{AGENT} status --json"))["asks"]
    assert (ask["put_by"], ask["rank"], ask["high_w"], ask["in_force"]) == (USER, "grid", LEVEL_W, True)

    vtn.do("cancel", ven_id=said["ven_id"], event_id=event)
    await_(lambda: not json.loads(root.check_output(f"{AGENT} status --json"))["asks"])


def renewed(pki: Path) -> dict[str, str]:
    """Return another certificate of the gateway's, of the same authority, and its key, by the ending of each file."""
    authority = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
    signing = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, USER)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(signing, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"crt": made.public_bytes(pem).decode(), "key": secret.decode()}


def test_a_renewed_certificate_is_shown_without_a_restart(root: Any, vtn: Vtn) -> None:
    pki = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "pki"
    files = {ending: f"/etc/derms/certs/grid-gateway.{ending}" for ending in ("crt", "key")}
    before = {ending: root.file(path).content_string for ending, path in files.items()}
    pid = shown(root, "MainPID")["MainPID"]
    await_(lambda: (one := grid(root))["registered"] and one["trouble"] is None)
    registered = len(vtn.do("seen")["registrations"])

    def put(contents: dict[str, str]) -> None:
        for ending, path in files.items():
            root.check_output("printf %%s %s > %s", contents[ending], path)
        root.check_output(f"systemctl reload {UNIT}")

    try:
        fresh = renewed(pki)
        put(fresh)
        # This VTN knows a VEN by its certificate, as the connection shows it, and takes another one for another VEN.
        await_(lambda: len(vtn.do("seen")["registrations"]) > registered)
        shows = ssl.PEM_cert_to_DER_cert(fresh["crt"])
        digest = hashlib.sha256(shows).hexdigest()[-20:].upper()
        assert re.findall("..", digest) in [one.split(":") for one in vtn.do("seen")["vens"].values()]
        assert shown(root, "MainPID")["MainPID"] == pid
        assert grid(root)["trouble"] is None
    finally:
        put(before)
    assert shown(root, "MainPID", "ActiveState") == {"MainPID": pid, "ActiveState": "active"}
