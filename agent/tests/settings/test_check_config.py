# SPDX-License-Identifier: Apache-2.0
"""`derms-agent check-config`: its exit status and what it prints where."""

from __future__ import annotations

from pathlib import Path

import pytest

from derms_agent.cli import main

DEMO = Path(__file__).parents[3] / "inventories" / "demo" / "depot.yml"


def arguments(directory: Path, agent: str, limits: str) -> list[str]:
    (directory / "agent.conf").write_text(agent, encoding="utf-8")
    (directory / "limits.conf").write_text(limits, encoding="utf-8")
    files = ["--agent-conf", str(directory / "agent.conf"), "--limits-conf", str(directory / "limits.conf")]
    return ["check-config", *files, "--depot", str(DEMO)]


def test_sound_files_are_summed_up_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = "GATEWAY=gateway-1\nMQTT_URL=mqtts://[fd42::1]\n"
    assert main(arguments(tmp_path, agent, "SITE_LIMIT_KVA=150.5\nDROOP=on\n")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
        "gateway gateway-1 of depot demo: 15 devices, 14 EVSEs; site limit 150.5 kVA, default limit 40 kW, demand cap "
        "none, SoC reserve 20 %, droop on; VTN none, broker mqtts://[fd42::1]:8883\n"
    )


def test_each_mistake_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "GATEWAY=gateway-1\nTLS_MINIMUM=1\n", "DROOP_K=5\nDROOP_K=5\n")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f'{tmp_path}/agent.conf:2: TLS_MINIMUM: found "1", expected 1.2 or 1.3\n'
        f'{tmp_path}/limits.conf:1: DROOP_K: found "5", expected a number from 0.02 to 0.05\n'
        f"{tmp_path}/limits.conf:2: DROOP_K: found it again after line 1, expected each key once\n"
    )


def test_warnings_of_the_depot_file_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DEMO.read_text(encoding="utf-8")
    assert "client_id: ven-demo" in text
    depot = tmp_path / "depot.yml"
    depot.write_text(text.replace("client_id: ven-demo", "client_id: !vault 'x'"), encoding="utf-8")
    assert main([*arguments(tmp_path, "GATEWAY=gateway-1\n", "")[:-1], str(depot)]) == 0
    printed = capsys.readouterr()
    assert "warning: vtn.client_id: found an encrypted value" in printed.err
    assert len(printed.out.splitlines()) == 1


def test_wrong_options_are_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check-config", "--limit-conf", "/x", "more"])
    assert ended.value.code == 2
    assert "usage: derms-agent" in capsys.readouterr().err
