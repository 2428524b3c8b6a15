# SPDX-License-Identifier: GPL-3.0-or-later
"""openadr_ven against the services of a gateway as processes, and openleadr's VTN: dry runs first, then in earnest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.derms.edge.plugins.modules import openadr_ven

from agent.tests.grid_gateway.test_grid_service import START_S, Gateway, within

if TYPE_CHECKING:
    from tests.unit.openadr.conftest import Play

ALL = ["TELEMETRY_STATUS", "TELEMETRY_USAGE"]


def seen(gateway: Gateway) -> tuple[int, list[str], int]:
    """Return what the VTN was told: registrations, opts, and reports that were offered."""
    found = gateway.vtn.do("seen")
    return len(found["registrations"]), found["schedules"], found["requests"].count("EiReport")


def converge(play: Play, gateway: Gateway, **options: Any) -> dict[str, Any]:
    """Run the module in check mode, in earnest and once more; return what changed, which the dry run has said."""
    given = {"socket": str(gateway.directory / "g.sock"), "timeout_s": 20, **options}
    before = seen(gateway)
    foreseen = play(openadr_ven, check=True, **given)
    assert seen(gateway) == before
    result = play(openadr_ven, **given)
    assert "failed" not in result, result["msg"]
    names = ("changed", "before", "after", "sent", "drift")
    assert {name: foreseen[name] for name in names} == {name: result[name] for name in names}
    assert foreseen.get("diff") == result.get("diff")
    if any(words.startswith("oadrRegisterReport") for words in result["sent"]):
        # A VEN is registered just before it offers its reports.
        within(10, lambda: seen(gateway)[2] > before[2])
    told = seen(gateway)
    again = play(openadr_ven, **given)
    assert (again["changed"], again["sent"], again["drift"], "diff" in again) == (False, [], [], False)
    assert seen(gateway) == told
    return result


def test_what_is_declared_is_sent_once(play: Play, running: Gateway) -> None:
    url = f"https://localhost:{running.vtn.port}"
    as_it_is = converge(play, running, vtn_url=url)
    assert as_it_is["changed"] is False
    assert as_it_is["before"] == {
        "state": "registered", "reports": ALL, "market_contexts": [], "resources": {}, "opts": [],
    }  # fmt: skip

    # Reports.
    registrations, _, offers = seen(running)
    result = converge(play, running, reports=["TELEMETRY_USAGE"])
    assert result["sent"] == ["oadrRegisterReport METADATA_TELEMETRY_USAGE"]
    assert result["drift"] == [{"device": "VEN", "what": "reports", "is": str(ALL), "should_be": "['TELEMETRY_USAGE']"}]
    assert seen(running) == (registrations, [], offers + 1)

    # Market contexts and resources are the depot's own affair; and what is not declared is the depot file's again.
    contexts = ["http://utility.example/shed"]
    result = converge(play, running, market_contexts=contexts, resources={"R1": "main"})
    assert result["sent"] == ["oadrRegisterReport METADATA_TELEMETRY_STATUS, METADATA_TELEMETRY_USAGE"]
    assert [one["what"] for one in result["drift"]] == ["reports", "market_contexts", "resources"]
    ven_id = running.ask("g.sock", "status")["ven_id"]
    running.vtn.do("add", ven_id=ven_id, values=[1], event_id="ours", start=time.time(), length_s=600)
    within(10, lambda: running.asks() == [50_000.0])
    result = converge(play, running, market_contexts=["http://utility.example/other"], resources={"R1": "main"})
    assert result["sent"] == []
    running.vtn.do("add", ven_id=ven_id, values=[1], event_id="theirs", start=time.time() + 900, length_s=600)
    within(10, lambda: {one["event_id"]: one["opt"] for one in running.vtn.seen("opts")}.get("theirs") == "optOut")

    # Times, of which one is over.
    soon = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 7200))
    opts = [
        {"name": "works", "start": soon, "duration_s": 600},
        {"name": "over", "start": "2020-01-01T00:00:00Z", "duration_s": 60},
    ]
    result = converge(play, running, opts=opts)
    at = soon.replace("+00:00", "Z")
    assert result["sent"][-1] == f"oadrCreateOpt works: out from {at} for 600 s"
    assert [one["name"] for one in result["after"]["opts"]] == ["works"]
    assert converge(play, running)["after"]["opts"] == result["after"]["opts"]
    longer = converge(play, running, opts=[{**opts[0], "duration_s": 900, "market_context": contexts[0]}])
    assert [words.split(" ")[0] for words in longer["sent"]] == ["oadrCancelOpt", "oadrCreateOpt"]
    assert converge(play, running, opts=[])["sent"] == ["oadrCancelOpt works"]
    assert seen(running)[1] == ["Created", "Canceled", "Created", "Canceled"]

    # Away, over a restart, and back with other reports.
    converge(play, running, reports=["TELEMETRY_STATUS"])
    result = converge(play, running, state="absent")
    assert (result["sent"], result["after"]["state"]) == (["oadrCancelPartyRegistration"], "absent")
    running.end("grid-gateway")
    running.start("grid-gateway")
    within(START_S, lambda: running.answers("g.sock"))
    assert converge(play, running, state="absent")["changed"] is False
    assert running.ask("g.sock", "status")["terms"]["reports"] == ["TELEMETRY_STATUS"]
    result = converge(play, running, reports=["TELEMETRY_STATUS"])
    assert result["sent"] == [
        "oadrQueryRegistration", "oadrCreatePartyRegistration", "oadrRegisterReport METADATA_TELEMETRY_STATUS",
    ]  # fmt: skip
    assert result["after"]["state"] == "registered"


def refuses_what_cannot_be(play: Play, running: Gateway) -> None:
    given: dict[str, Any] = {"socket": str(running.directory / "g.sock"), "check": True}
    url = f"https://localhost:{running.vtn.port}"
    refused: dict[str, dict[str, Any]] = {
        f"vtn_url: found https://other, expected {url}, which VTN_URL of agent.conf names": {
            "vtn_url": "https://other"
        },
        "resources.R1: found mian, expected one of charger, main, site": {"resources": {"R1": "mian"}},
        "opts[0].start: found tomorrow, expected a time with its zone, as 2026-12-24T18:00:00Z": {
            "opts": [{"name": "a", "start": "tomorrow", "duration_s": 60}]
        },
        "opts[0].duration_s: found 0, expected 1 to 3.16224e+07": {
            "opts": [{"name": "a", "start": "2026-12-24T18:00:00Z", "duration_s": 0}]
        },
        "opts[0].name: found '', expected a printable text of 1 to 200 characters": {
            "opts": [{"name": "", "start": "2026-12-24T18:00:00Z", "duration_s": 60}]
        },
        "market_contexts[0]: found '', expected a printable text of 1 to 200 characters": {"market_contexts": [""]},
        "opts: found a twice, expected each name once": {
            "opts": [{"name": "a", "start": "2026-12-24T18:00:00Z", "duration_s": 60}] * 2
        },
        "reports: found with state=absent, expected with state=registered only": {"state": "absent", "reports": []},
    }
    for message, options in refused.items():
        assert play(openadr_ven, **given, **options)["msg"] == message


def test_what_cannot_be_and_a_vtn_that_is_down(play: Play, running: Gateway) -> None:
    refuses_what_cannot_be(play, running)
    given: dict[str, Any] = {"socket": str(running.directory / "g.sock"), "timeout_s": 2}
    running.vtn.kill()
    # It is registered as far as anybody knows, and a dry run asks nobody else.
    assert play(openadr_ven, check=True, **given)["changed"] is False
    result = play(openadr_ven, **given, state="absent")
    assert result["msg"].startswith("VEN: registration.cancel: Trouble: unreachable: ")
    assert (result["failed"], result["changed"], result["sent"]) == (True, False, [])
    assert result["after"] == result["before"]
    # A VEN that nobody knows yet: the service goes on trying.
    running.end("grid-gateway")
    (running.directory / "gateway" / "registration.json").unlink()
    running.start("grid-gateway")
    within(START_S, lambda: (running.answers("g.sock") or {}).get("trouble"))
    dry = play(openadr_ven, check=True, **given)
    assert (dry["changed"], dry["after"]["state"], dry["drift"]) == (False, "registering", [])
    assert dry["not_verified"][0].startswith("VEN: the VEN is not registered yet: VTN localhost: unreachable")
    result = play(openadr_ven, **given)
    assert result["msg"].startswith("VEN: state: found registering, expected registered: VTN localhost: unreachable")
    assert result["changed"] is False
    # It needs nobody's leave to stay away from a VTN that never knew it.
    result = play(openadr_ven, **given, state="absent")
    assert (result["changed"], result["sent"], result["after"]["state"]) == (True, [], "absent")
    running.vtn.start()


@pytest.mark.usefixtures("no_agent")
def test_a_bare_gateway(play: Play, tmp_path: Path) -> None:
    result = play(openadr_ven, check=True, agent_directory=str(tmp_path))
    assert (result["changed"], result["sent"]) == (False, [])
    assert "the agent is not on this gateway yet" in result["not_verified"][0]
    assert play(openadr_ven, agent_directory=str(tmp_path))["failed"]


def test_no_service(play: Play, tmp_path: Path) -> None:
    socket = str(tmp_path / "none.sock")
    result = play(openadr_ven, check=True, socket=socket)
    assert result["not_verified"][0].startswith(f"grid gateway unknown: {socket}: No such file")
    assert play(openadr_ven, socket=socket)["failed"]
