# SPDX-License-Identifier: Apache-2.0
"""What the grid gateway says where it cannot start: in the journal, and in engine.log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = (sys.executable, "-c", "import sys; from derms_agent.cli import main; sys.exit(main())", "grid-gateway")
DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {limit_kva: 60}
gateways: {gateway-1: {address: 127.0.0.1}}
circuits: {main: {voltage_v: 400, rating_a: 100, base_load_a: 1, allocator: gateway-1}}
buses: {bus: {gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: 1}}
devices: {charger: {bus: bus, unit_id: 255, profile: keba_p30, circuit: main, evses: {rating_a: 16}}}
"""


def refused(directory: Path, *lines: str, status: int) -> tuple[str, str]:
    """Have it refuse to start; return what the journal and engine.log have of that."""
    depot, conf, limits = (directory / name for name in ("depot.yml", "agent.conf", "limits.conf"))
    depot.write_text(DEPOT, encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    first = ("GATEWAY=gateway-1", f"DEPOT={depot}", f"GRID_STATE_DIRECTORY={directory}")
    log = directory / "engine.log"
    conf.write_text("\n".join((*first, f"ENGINE_LOG={log}", *lines)) + "\n", encoding="utf-8")
    done = subprocess.run(
        [*AGENT, "--agent-conf", conf, "--limits-conf", limits], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    return done.stderr, log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("VTN_URL=http://vtn.example", 'agent.conf:5: VTN_URL: found "http://vtn.example", expected an https:// URL'),
        ("TLS_MINIMUM=1.1", 'agent.conf:5: TLS_MINIMUM: found "1.1", expected 1.2 or 1.3'),
        ("XML_SIGNATURES=yes", 'agent.conf:5: XML_SIGNATURES: found "yes", expected none or sign or require'),
        (
            "VTN_URL=https://vtn.example\nXML_SIGNATURES=sign",
            "agent.conf: XML_SIGNATURES: found no CERT_PATH and KEY_PATH to sign with, expected them",
        ),
        ("# no VTN", "agent.conf: VTN_URL: found no such line, expected the utility's OpenADR server"),
    ],
)
def test_a_mistake_is_named_in_the_journal_and_in_engine_log(tmp_path: Path, line: str, words: str) -> None:
    said, logged = refused(tmp_path, line, status=os.EX_CONFIG)
    assert f"Refused to start: {'' if words.startswith('agent.conf: ') else f'{tmp_path}/'}{words}" in said
    assert f"ERROR {said.splitlines()[-1].removeprefix('ERROR ')}" in logged


def test_samples_that_cannot_be_kept_are_named_as_well(tmp_path: Path) -> None:
    (tmp_path / "samples.sqlite").mkdir()
    for text in refused(tmp_path, "VTN_URL=https://vtn.example", status=1):
        assert text.splitlines()[-1].endswith("Refused to start: unable to open database file")
