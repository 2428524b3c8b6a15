# SPDX-License-Identifier: GPL-3.0-or-later
"""openadr_info against openleadr's VTN with mutual TLS: each stage that can fail, and what a bare gateway knows."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.derms.edge.plugins.modules import openadr_info

from agent.tests.grid_gateway.conftest import Authority, LabVtn, free_port

if TYPE_CHECKING:
    from tests.unit.openadr.conftest import Play

ROOT = Path(__file__).parents[3]
STAGES = ["dns", "tcp", "tls", "client_certificate", "registration_query"]


def options(authority: Authority, port: int, **other: Any) -> dict[str, Any]:
    directory = authority.directory
    return {
        "vtn_url": f"https://localhost:{port}",
        "certificate_path": str(directory / "ven.crt"),
        "private_key_path": str(directory / "ven.key"),
        "ca_path": str(authority.path),
        **other,
    }


def statuses(result: dict[str, Any]) -> list[str]:
    assert [one["name"] for one in result["stages"]] == STAGES
    return [one["status"] for one in result["stages"]]


@pytest.mark.parametrize("check", [False, True])
def test_a_vtn_that_answers(play: Play, vtn: LabVtn, check: bool) -> None:
    result = play(openadr_info, check, **options(vtn.authority, vtn.port))

    assert statuses(result) == ["ok"] * 5, result
    assert (result["changed"], result["reachable"], result["notes"], result["not_verified"]) == (False, True, [], [])
    assert result["registration"] == {"vtn_id": "00123", "poll_s": 1.0, "profiles": ["2.0b"]}
    assert result["tls_version"] == "TLSv1.3"
    assert [one["subject"] for one in result["chain"]] == ["CN=vtn", "CN=authority"]
    assert 29 < result["chain"][0]["expires_in_days"] < 31
    assert {"127.0.0.1", "::1"} & {*result["addresses"]}
    took_ms = {one["name"]: one["latency_ms"] for one in result["stages"] if one["name"] != "client_certificate"}
    # A name and a port of this host may be found within 0.05 ms, which is 0.0.
    assert took_ms["dns"] >= 0
    assert took_ms["tcp"] >= 0
    assert took_ms["tls"] > 0
    assert took_ms["registration_query"] > 0
    # Whoever is registered loses nothing by it.
    assert vtn.seen("polls") == 0
    assert vtn.seen("registrations") == []
    assert vtn.seen("requests") == ["EiRegisterParty"]


def test_the_fingerprint_that_it_shows_is_the_one_to_pin(play: Play, vtn: LabVtn) -> None:
    seen = play(openadr_info, **options(vtn.authority, vtn.port))["chain"][0]["sha256"]
    assert play(openadr_info, **options(vtn.authority, vtn.port, fingerprint=seen[-20:]))["reachable"]
    result = play(openadr_info, **options(vtn.authority, vtn.port, fingerprint="00" * 32))
    assert statuses(result) == ["ok", "ok", "failed", "not_tried", "not_tried"]
    assert "does not have VTN_FINGERPRINT" in result["notes"][0]


def test_a_vtn_of_an_unknown_authority(play: Play, vtn: LabVtn, stranger: Authority) -> None:
    result = play(openadr_info, **options(vtn.authority, vtn.port, ca_path=str(stranger.path)))
    assert statuses(result) == ["ok", "ok", "failed", "not_tried", "not_tried"]
    assert result["stages"][2]["reason"].startswith("unknown CA")
    assert "CA_PATH" in result["stages"][2]["advice"]
    assert (result.get("failed"), result["reachable"]) == (None, False)
    # It is shown all the same, so that one sees whom it is from.
    assert result["chain"][0]["issuer"] == "CN=authority"


@pytest.mark.parametrize("whose", ["none", "strange"])
def test_a_client_certificate_that_is_refused_after_the_handshake(
    play: Play, vtn: LabVtn, stranger: Authority, whose: str
) -> None:
    given = options(vtn.authority, vtn.port)
    if whose == "none":
        del given["certificate_path"], given["private_key_path"]
    else:
        given |= {name: options(stranger, 0)[name] for name in ("certificate_path", "private_key_path")}
    result = play(openadr_info, **given)
    assert statuses(result) == ["ok", "ok", "ok", "failed", "not_tried"]
    assert "certificate" in result["stages"][3]["reason"]
    assert "CERT_PATH" in result["stages"][3]["advice"]
    assert result["notes"][0].startswith(f"VTN localhost:{vtn.port}: client_certificate failed: ")
    assert vtn.seen("requests") == []


def test_a_vtn_of_tls_1_2(play: Play, new_vtn: Callable[..., LabVtn]) -> None:
    old = new_vtn(more={"tls_minimum": "1.2", "tls_maximum": "1.2"})
    result = play(openadr_info, **options(old.authority, old.port))
    assert statuses(result) == ["ok", "ok", "failed", "not_tried", "not_tried"]
    assert result["stages"][2]["reason"].startswith("protocol version")
    # What it shows is told all the same.
    assert result["tls_version"] == "TLSv1.2"
    assert statuses(play(openadr_info, **options(old.authority, old.port, tls_minimum="1.2"))) == ["ok"] * 5


def test_a_client_certificate_that_is_refused_within_the_handshake(
    play: Play, authority: Authority, stranger: Authority
) -> None:
    """TLS 1.2, whose server has judged the client when the handshake ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(authority.directory / "vtn.crt", authority.directory / "vtn.key")
    context.load_verify_locations(authority.path)
    context.verify_mode = ssl.CERT_REQUIRED

    def refuse(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain, suppress(OSError):
                context.wrap_socket(plain, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = Thread(target=refuse, args=(listener,), daemon=True)
        serving.start()
        strange = {name: options(stranger, 0)[name] for name in ("certificate_path", "private_key_path")}
        port = listener.getsockname()[1]
        result = play(openadr_info, **options(authority, port, tls_minimum="1.2", **strange))
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(10)
    assert statuses(result) == ["ok", "ok", "ok", "failed", "not_tried"]
    assert result["stages"][3]["reason"].startswith("unknown CA: the VTN does not know the authority of this gateway")


@pytest.mark.parametrize(
    ("mode", "reason"), [("403", "HTTP error: 403"), ("empty", "answered with nothing"), ("<a/>", "no valid answer")]
)
def test_a_vtn_that_answers_badly(play: Play, vtn: LabVtn, mode: str, reason: str) -> None:
    vtn.do("mode", mode=mode)
    result = play(openadr_info, **options(vtn.authority, vtn.port))
    assert statuses(result) == ["ok", "ok", "ok", "ok", "failed"]
    assert reason in result["stages"][4]["reason"]
    assert result["stages"][4]["advice"]
    assert result["registration"] is None


def test_a_vtn_that_does_not_answer(play: Play, vtn: LabVtn) -> None:
    vtn.do("mode", mode="stall")
    result = play(openadr_info, **options(vtn.authority, vtn.port, timeout_s=1))
    assert statuses(result) == ["ok", "ok", "ok", "unknown", "failed"]
    assert result["stages"][4]["reason"] == "no answer in time: within 1 s"


def test_a_handshake_that_stalls(play: Play, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = play(openadr_info, **options(authority, silent.getsockname()[1]))
    assert statuses(result) == ["ok", "ok", "failed", "not_tried", "not_tried"]
    assert "does not answer the handshake" in result["stages"][2]["reason"]


def test_a_closed_port_and_a_name_of_nobody(play: Play, authority: Authority) -> None:
    port = free_port()
    result = play(openadr_info, **options(authority, port))
    assert statuses(result) == ["ok", "failed", "not_tried", "not_tried", "not_tried"]
    assert result["notes"] == [
        f"VTN localhost:{port}: tcp failed: Connection refused; check the port in VTN_URL, and the firewalls on the way"
    ]
    result = play(openadr_info, **options(authority, port, vtn_url="https://vtn.invalid"))
    assert statuses(result) == ["failed", "not_tried", "not_tried", "not_tried", "not_tried"]
    assert result["stages"][0]["reason"].startswith("vtn.invalid has no address: ")
    assert (result["addresses"], result["changed"], result["reachable"]) == ([], False, False)


def test_certificates_that_are_not_there(play: Play, vtn: LabVtn) -> None:
    result = play(openadr_info, **options(vtn.authority, vtn.port, ca_path="/nonexistent/ca.crt"))
    assert statuses(result) == ["ok", "ok", "failed", "not_tried", "not_tried"]
    assert result["stages"][2]["reason"] == "this gateway's certificates cannot be used: No such file or directory"


@pytest.mark.parametrize("url", ["http://vtn.example", "vtn.example", "https://", "https://vtn.example:x"])
def test_an_address_that_is_none(play: Play, url: str) -> None:
    result = play(openadr_info, vtn_url=url)
    assert result["msg"] == f"vtn_url: found {url}, expected an address such as https://vtn.example"


@pytest.mark.usefixtures("no_agent")
def test_a_bare_gateway_knows_no_more_than_that_somebody_is_there(play: Play, vtn: LabVtn, tmp_path: Path) -> None:
    given = options(vtn.authority, vtn.port, agent_directory=str(tmp_path))
    result = play(openadr_info, check=True, **given)
    assert statuses(result) == ["ok", "ok", "unknown", "unknown", "unknown"]
    why = f"the agent is not on this gateway yet: there is no {tmp_path}/current/bin/python"
    assert {one["reason"] for one in result["stages"][2:]} == {why}
    assert result["not_verified"] == [
        f"VTN localhost:{vtn.port}: tls, client_certificate, registration_query unknown: {why}"
    ]
    assert play(openadr_info, **given)["failed"]
    # What needs no agent is told without.
    assert "failed" not in play(openadr_info, **{**given, "vtn_url": f"https://localhost:{free_port()}"})


def test_it_starts_on_the_oldest_python_and_has_the_release_do_the_rest(vtn: LabVtn, tmp_path: Path) -> None:
    """Python 3.9 is what RHEL 9 comes with."""
    found = sorted((Path.home() / ".pyenv" / "versions").glob("3.9.*"))
    if not found:
        pytest.skip("no Python 3.9 here")
    python = tmp_path / "agent" / "current" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    asked = options(vtn.authority, vtn.port, agent_directory=str(tmp_path / "agent"))
    tasks = [
        {"name": "Ask", "derms.edge.openadr_info": asked, "register": "found"},
        {"name": "See", "ansible.builtin.assert": {"that": ["found.reachable", "not found.changed"]}},
        {
            "name": "Ask without an agent",
            "derms.edge.openadr_info": {**asked, "agent_directory": str(tmp_path)},
            "check_mode": True,
            "register": "bare",
        },
        {"name": "See", "ansible.builtin.assert": {"that": ["bare.stages[1].status == 'ok'", "not bare.reachable"]}},
    ]
    play = {"name": "Run", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks,
            "vars": {"ansible_python_interpreter": str(found[-1] / "bin" / "python")}}  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(tmp_path / "play.yml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
