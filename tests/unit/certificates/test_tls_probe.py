# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe against real servers on loopback, each wrong in one way."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import tls_probe
from cryptography.hazmat.primitives.serialization import Encoding

from .issuing import NOW, Identity, identity

CA = identity("depot CA", authority=True)
OTHER_CA = identity("other CA", authority=True)
GOOD = identity("vtn", CA, names=("127.0.0.1",))
CLIENT = identity("ven", CA)
OTHER_CLIENT = identity("ven", OTHER_CA)
PAST = identity("vtn", CA, names=("127.0.0.1",), begins=NOW - timedelta(days=9), ends=NOW - timedelta(days=2))
FUTURE = identity("vtn", CA, names=("127.0.0.1",), begins=NOW + timedelta(days=2))


def write(directory: Path, name: str, content: bytes) -> str:
    path = directory / name
    path.write_bytes(content)
    return str(path)


@contextmanager
def server(
    directory: Path, shown: Identity, configure: Callable[[ssl.SSLContext], None] = lambda _: None
) -> Iterator[int]:
    """Serve handshakes on a port of loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write(directory, "s.crt", shown.pem), write(directory, "s.key", shown.key_pem))
    configure(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            while True:
                plain, _address = listener.accept()
                if ended.is_set():
                    plain.close()
                    return
                try:
                    with plain, context.wrap_socket(plain, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port
        finally:
            ended.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def probe(port: int, directory: Path, host: str = "127.0.0.1", **arguments: Any) -> dict[str, Any]:
    """Run the module."""
    given = {"host": host, "port": port, "timeout_s": 2, **arguments}
    given.setdefault("ca_path", write(directory, "ca.crt", CA.pem))
    printed = io.StringIO()
    with patch_module_args(given), redirect_stdout(printed), pytest.raises(SystemExit):
        tls_probe.main()
    result: dict[str, Any] = json.loads(printed.getvalue())
    assert result["changed"] is False
    assert result["openssl_version"] == ssl.OPENSSL_VERSION
    return result


def demand_client(context: ssl.SSLContext, directory: Path) -> None:
    context.load_verify_locations(write(directory, "clients.crt", CA.pem))
    context.verify_mode = ssl.CERT_REQUIRED


def client_of(directory: Path, shown: Identity) -> dict[str, str]:
    return {
        "certificate_path": write(directory, "c.crt", shown.pem),
        "private_key_path": write(directory, "c.key", shown.key_pem),
    }


def test_a_handshake_that_fits(tmp_path: Path) -> None:
    with server(tmp_path, GOOD, lambda context: demand_client(context, tmp_path)) as port:
        result = probe(port, tmp_path, **client_of(tmp_path, CLIENT))
    assert (result["reachable"], result["verified"], result["problem"]) == (True, True, "")
    assert (result["tls_version"], result["notes"]) == ("TLSv1.3", [])
    assert result["peer"]["common_name"] == "vtn"
    assert datetime.fromisoformat(result["peer"]["not_after"]) == GOOD.certificate.not_valid_after_utc


def only_1_2(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def test_an_old_tls_version_is_named_with_both_sides(tmp_path: Path) -> None:
    with server(tmp_path, GOOD, only_1_2) as port:
        result = probe(port, tmp_path)
        accepted = probe(port, tmp_path, tls_minimum="1.2")
    assert result["problem"] == (
        f"TLS Handshake Failure: 127.0.0.1:{port} offers at most TLS 1.2, this gateway demands at least TLS 1.3"
    )
    assert (accepted["verified"], accepted["tls_version"]) == (True, "TLSv1.2")


def test_an_old_tls_version_behind_a_client_certificate(tmp_path: Path) -> None:
    def configure(context: ssl.SSLContext) -> None:
        only_1_2(context)
        demand_client(context, tmp_path)

    with server(tmp_path, GOOD, configure) as port:
        result = probe(port, tmp_path, **client_of(tmp_path, CLIENT))
    assert "offers at most TLS 1.2" in result["problem"]


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (
            PAST,
            f"certificate expired on {PAST.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; this gateway's clock",
        ),
        (FUTURE, "certificate not yet valid (valid from "),
        (identity("vtn", OTHER_CA, names=("127.0.0.1",)), "by an authority that this gateway does not know"),
        (identity("vtn", CA, names=("192.0.2.1", "vtn.example")), "its certificate (vtn) is not for 127.0.0.1"),
    ],
)
def test_certificates_that_are_not_accepted(tmp_path: Path, shown: Identity, words: str) -> None:
    with server(tmp_path, shown) as port:
        result = probe(port, tmp_path)
    assert result["reachable"]
    assert not result["verified"]
    assert result["problem"].startswith("TLS Handshake Failure: ")
    assert words in result["problem"]
    assert result["peer"]["common_name"] == "vtn"
    if "clock" in words or "valid from" in words:
        assert "check timedatectl" in result["problem"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("shown", "words"),
    [(None, "client certificate"), (OTHER_CLIENT, "does not know the authority of the client certificate")],
)
def test_a_refused_client(tmp_path: Path, version: ssl.TLSVersion, shown: Identity | None, words: str) -> None:
    def configure(context: ssl.SSLContext) -> None:
        demand_client(context, tmp_path)
        context.maximum_version = version

    with server(tmp_path, GOOD, configure) as port:
        client = client_of(tmp_path, shown) if shown else {}
        result = probe(port, tmp_path, tls_minimum="1.2", **client)
    assert words in result["problem"] or "handshake failure" in result["problem"]
    assert not result["verified"]


def test_nobody_there_is_a_note(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = probe(port, tmp_path)
    assert (result["reachable"], result["problem"]) == (False, "")
    assert "cannot be reached" in result["notes"][0]


def test_silence_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = probe(listener.getsockname()[1], tmp_path, timeout_s=1)
    assert result["reachable"]
    assert "does not answer within 1 s" in result["problem"]


def test_something_that_speaks_no_tls_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _connection in range(2):
                plain, _address = listener.accept()
                with plain:
                    plain.recv(64)
                    plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        result = probe(listener.getsockname()[1], tmp_path)
        thread.join()
    assert result["problem"].startswith("TLS Handshake Failure: ")


def test_before_certificates_are_there_it_only_looks(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.crt")
    with server(tmp_path, GOOD) as port:
        result = probe(port, tmp_path, ca_path=absent)
    assert (result["verified"], result["problem"], result["tls_version"]) == (False, "", "TLSv1.3")
    assert absent in result["notes"][0]


def test_unusable_files_are_named(tmp_path: Path) -> None:
    result = probe(1, tmp_path, ca_path=write(tmp_path, "bad.crt", b"garbage"))
    assert "cannot be used" in result["problem"]


@pytest.mark.parametrize("year", [1960, 1999, 2049, 2050, 2105])
def test_dates_of_every_century_are_read(year: int) -> None:
    begins = datetime(year, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
    certificate = identity("é", begins=begins, ends=begins + timedelta(days=1)).certificate
    peer = tls_probe.peer_of(certificate.public_bytes(Encoding.DER))
    assert (peer.common_name, peer.not_before, peer.not_after) == ("é", begins, begins + timedelta(days=1))
