# SPDX-License-Identifier: Apache-2.0
"""`derms-twin vtn`, a depot file's utility as a program, with the VEN that it gave an id and a certificate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.grid_gateway.conftest import STARTS_WITHIN_S, Authority, LabVtn
from agent.tests.grid_gateway.test_ven import Depot, Field, registered, within

from derms_agent.twin import cli, control

COMMAND = (sys.executable, "-c", "import sys; from derms_agent.twin.cli import main; sys.exit(main())", "vtn")
DEPOT = """\
plugin: derms.edge.depot
depot: small
utility: example-power
site: {limit_kva: 60, default_limit_kw: 30}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 100, allocator: gateway-1}}
buses: {bus: {gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: 1}}
devices: {charger: {bus: bus, unit_id: 1, profile: keba_p30, circuit: main, evses: {rating_a: 16}}}
"""
VTN = "vtn: {url: 'https://localhost:PORT', ven_name: small depot, client_id: 'ven-17'}\n"


@dataclass
class Utility:
    """The program, what it says, and what it answers."""

    lab: LabVtn
    log: Path
    socket: Path

    def send(self, **command: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(control.send(self.socket, json.dumps(command)))
        return answer

    def says(self, words: str) -> bool:
        return words in self.log.read_text(encoding="utf-8")


@pytest.fixture
def utility(authority: Authority, tmp_path: Path) -> Iterator[Utility]:
    lab = LabVtn(authority)  # only its port: another program listens there
    depot, made = tmp_path / "depot.yml", Utility(lab, tmp_path / "vtn.log", tmp_path / "vtn.sock")
    depot.write_text(DEPOT + VTN.replace("PORT", str(lab.port)), encoding="utf-8")
    options = (depot, "--certificates", authority.directory, "--control", made.socket, "--report-s", "1")
    with made.log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([*COMMAND, *options], stdout=output, stderr=subprocess.STDOUT)
    try:
        ends_s = time.monotonic() + STARTS_WITHIN_S
        while not made.says("\nready: "):
            assert process.poll() is None, made.log.read_text(encoding="utf-8")
            assert time.monotonic() < ends_s
            time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        ended = process.wait(20)
    assert ended == 0
    assert not made.socket.exists()


@pytest.mark.anyio
async def test_it_sheds_load_and_is_told_what_was_drawn(utility: Utility, authority: Authority, tmp_path: Path) -> None:
    send = anyio.to_thread.run_sync
    early = utility.send(event="SIMPLE", level=1, for_s=20)
    assert early == {"ok": False, "problems": ["found no VEN that has registered, expected one"]}

    directory = tmp_path / "ven"
    directory.mkdir()
    field = Field(utility.lab, Depot(), authority, directory)
    field.renew(client_id="ven-17")
    async with field.running():
        await within(15, lambda: registered(field))
        assert field.ven_id == "ven-17"
        sent = await send(lambda: utility.send(event="SIMPLE", level=1, for_s=600))
        assert sent["ok"], sent
        await within(5, lambda: field.depot.high_w() == [60_000.0])
        await within(5, lambda: utility.says(f"VEN ven-17 answers {sent['event']}: optIn"))
        await within(5, lambda: utility.says("TELEMETRY_USAGE: site-power 80.0 kW, evse-power 70.0 kW"))
        assert (await send(lambda: utility.send(cancel=sent["event"]))) == {"ok": True}
        await within(5, lambda: not field.depot.bounds)
        # A second one, which ends by itself, and a third after it: openleadr fails at answers about what is over.
        await anyio.sleep(1)
        sent = await send(lambda: utility.send(event="SIMPLE", level=1, for_s=2))
        await within(5, lambda: utility.says(f"{sent['event']} is over"))
        sent = await send(lambda: utility.send(event="SIMPLE", level=3, for_s=600))
        await within(5, lambda: utility.says(f"VEN ven-17 answers {sent['event']}: optIn"))
        assert not utility.says("Traceback")
        # One that leaves gets no events, and comes back by the id that was agreed on.
        await field.ven.cancel_registration()
        await within(5, lambda: utility.says("VEN ven-17 leaves"))
        assert not (await send(lambda: utility.send(event="SIMPLE", level=1, for_s=20)))["ok"]
        await anyio.sleep(1.5)
        field.ven.join()
        await within(10, lambda: registered(field))
        assert field.ven_id == "ven-17"
        status = await send(lambda: utility.send(status=True))

    assert [one["ven_id"] for one in status["registrations"]] == ["ven-17", "ven-17"]
    assert {one["opt"] for one in status["opts"]} == {"optIn"}
    assert {one["point"] for one in status["samples"]} == {"site-power", "evse-power"}


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"event": "LOAD_DISPATCH"}, "event: found 'LOAD_DISPATCH'; expected SIMPLE"),
        ({"event": "SIMPLE", "level": 4, "for_s": 5}, "level: found 4; expected 1, 2 or 3"),
        ({"event": "SIMPLE", "level": True, "for_s": 5}, "level: found True"),
        ({"event": "SIMPLE", "level": 1, "for_s": 0}, "for_s: found 0; expected 1 to 86400 s"),
        ({"cancel": "x"}, "cancel: found 'x'; expected one of no event"),
    ],
)
def test_what_it_does_not_understand_it_refuses(asked: dict[str, Any], problem: str, authority: Authority) -> None:
    from derms_agent.twin import vtn  # noqa: PLC0415 - openleadr takes a second to import

    directory = authority.directory
    settings = vtn.Settings(
        vtn_id="v", port=1, poll_s=1, certificate=directory / "vtn.crt", key=directory / "vtn.key",
        authorities=authority.path,
    )  # fmt: skip
    answer = vtn.Utility(settings, print, "http://utility.example/shed", {}).answer(json.dumps(asked))
    assert not answer["ok"]
    assert answer["problems"][0].startswith(problem)


def test_a_depot_without_a_utility_has_none(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "depot.yml").write_text(DEPOT, encoding="utf-8")
    words = ["vtn", str(tmp_path / "depot.yml"), "--control", str(tmp_path / "s")]
    assert cli.main([*words, "--certificates", str(authority.directory)]) == 1
    assert "found no vtn, expected one with its url" in capsys.readouterr().err
    (tmp_path / "depot.yml").write_text(DEPOT + VTN.replace(":PORT", ""), encoding="utf-8")
    assert cli.main([*words, "--certificates", str(tmp_path)]) == 1
    assert "expected vtn.crt, vtn.key, ca.crt and ven.crt" in capsys.readouterr().err
