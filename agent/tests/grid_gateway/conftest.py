# SPDX-License-Identifier: Apache-2.0
"""An authority with certificates of several kinds, and openleadr's VTN as a process that can be killed."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from derms_agent.grid_gateway.transport import Endpoint

LAB = Path(__file__).with_name("lab_vtn.py")
STARTS_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 20.0


@dataclass
class Authority:
    """Issues certificates; `directory` has them as NAME.crt and NAME.key, its own as ca.crt."""

    directory: Path
    name: str = "authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        now = datetime.now(timezone.utc)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.certificate = made
        (self.directory / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, begins_days: float = -1, ends_days: float = 30, host: str = "localhost"
    ) -> tuple[Path, Path]:
        """Write a certificate and its key over those of this name, and return where they are."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(timezone.utc)
        names = (
            [x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))]
            if host == "localhost"
            else [x509.DNSName(host)]
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins_days))
            .not_valid_after(now + timedelta(days=ends_days))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        certificate_path, key_path = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_path, key_path

    @property
    def path(self) -> Path:
        return self.directory / "ca.crt"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that has issued for vtn and ven."""
    made = Authority(tmp_path_factory.mktemp("utility"))
    made.issue("vtn")
    made.issue("ven")
    return made


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that nobody knows."""
    made = Authority(tmp_path_factory.mktemp("stranger"), "stranger")
    made.issue("vtn")
    made.issue("ven")
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def endpoint_of(authority: Authority, port: int, **other: Any) -> Endpoint:
    """Return how ven of an authority speaks to a VTN on a port."""
    directory = authority.directory
    told = {"certificate": directory / "ven.crt", "key": directory / "ven.key", "authorities": authority.path, **other}
    return Endpoint(url=f"https://localhost:{port}", **told)


@dataclass
class LabVtn:
    """A VTN that can be killed and started again on the same port, which then has forgotten all."""

    authority: Authority
    port: int = field(default_factory=free_port)
    poll_s: int = 1
    vtn_id: str = "00123"
    more: dict[str, Any] = field(default_factory=dict)
    program: tuple[str | Path, ...] = (LAB,)
    process: subprocess.Popen[bytes] | None = None
    _errors: BinaryIO = field(default_factory=tempfile.TemporaryFile)

    def start(self) -> LabVtn:
        directory = self.authority.directory
        told = {
            "vtn_id": self.vtn_id, "port": self.port, "poll_s": self.poll_s, "cert": str(directory / "vtn.crt"),
            "key": str(directory / "vtn.key"), "ca": str(self.authority.path), **self.more,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, *self.program, json.dumps(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env={**os.environ, "TZ": "UTC"},
        )  # fmt: skip
        assert self._line(STARTS_WITHIN_S) == "ready"
        return self

    def _line(self, within_s: float) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            assert waiting.select(within_s), "the VTN does not answer"
        line = self.process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(self._errors.read().decode()[-4000:])
        return json.loads(line)

    def do(self, what: str, **told: Any) -> Any:
        """Have the VTN do something, and return what comes of it."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **told}).encode() + b"\n")
        self.process.stdin.flush()
        return self._line(ANSWERS_WITHIN_S)

    def seen(self, name: str) -> Any:
        return self.do("seen")[name]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


@pytest.fixture
def new_vtn(authority: Authority) -> Iterator[Callable[..., LabVtn]]:
    """Return what starts a VTN."""
    made: list[LabVtn] = []

    def started(**more: Any) -> LabVtn:
        made.append(LabVtn(more.pop("authority", authority), **more))
        return made[-1].start()

    yield started
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def lasting_vtn(authority: Authority) -> Iterator[LabVtn]:
    """Keep a VTN for all tests that may share one: to start it takes seconds of processor time."""
    kept = LabVtn(authority)
    yield kept
    kept.kill()


@pytest.fixture
def vtn(lasting_vtn: LabVtn) -> LabVtn:
    """Return a VTN that wants to be polled each second, and knows nobody."""
    if lasting_vtn.process is None:
        return lasting_vtn.start()
    lasting_vtn.do("reset")
    return lasting_vtn
