# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo depot's devices, played by derms-twin, as derms-agent and as a stranger's program see them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import CANNOT_RUN, ROOT

BIN = Path(sys.prefix) / "bin"
NAMESPACE = "derms-e2e"
READY_WITHIN_S = 20


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Play the demo depot in a network namespace; yield its control socket."""
    if os.geteuid() != 0:
        pytest.exit("a network namespace needs root", returncode=CANNOT_RUN)
    directory = tmp_path_factory.mktemp("twin")
    socket = directory / "control.sock"
    log = directory / "twin.log"
    command = [str(BIN / "derms-twin"), "inventories/demo", "--namespace", NAMESPACE, "--control", str(socket)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while "\nready: " not in log.read_text(encoding="utf-8"):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            yield socket
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=10)
    assert NAMESPACE not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def probe(*words: str) -> subprocess.CompletedProcess[str]:
    """Run derms-agent probe."""
    return subprocess.run(
        [str(BIN / "derms-agent"), "probe", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def registers(mbpoll: str, host: str, unit_id: int, first: int, count: int) -> list[int]:
    """Read holding registers by mbpoll; `first` counts from one, as its own -r does."""
    options = ["-m", "tcp", "-a", str(unit_id), "-t", "4:hex", "-r", str(first), "-c", str(count), "-1"]
    done = subprocess.run([mbpoll, *options, host], capture_output=True, text=True, check=True, timeout=20)
    return [int(word, 16) for word in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]{4})", done.stdout, re.MULTILINE)]


@pytest.mark.usefixtures("twin")
def test_every_device_answers_as_its_profile_says() -> None:
    done = probe("inventories/demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == 15
    assert {answer["alive"] for answer in answers} == {True}


@pytest.mark.usefixtures("twin")
def test_the_manuals_liveness_check_agrees_with_mbpoll(mbpoll: str) -> None:
    done = probe(
        *("--host", "10.213.9.51", "--address", "40001", "--address-base", "one", "--count", "10", "--expect", "SunS"),
        "--json",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (answer,) = json.loads(done.stdout)
    assert answer["address"] == 40000
    words = registers(mbpoll, "10.213.9.51", 1, 40001, 10)
    assert b"".join(word.to_bytes(2, "big") for word in words)[:4] == b"SunS"
    assert answer["found"].startswith("SunS")


@pytest.mark.usefixtures("twin")
def test_mbpoll_reads_what_the_depot_file_declares(mbpoll: str) -> None:
    """KEBA's fail-safe current (register 1600, mA) and time-out (1602, s) are as inventories/demo/depot.yml says."""
    assert registers(mbpoll, "10.213.9.31", 255, 1601, 2) == [0, 6000]
    assert registers(mbpoll, "10.213.9.31", 255, 1603, 2) == [0, 30]


def test_a_silent_charger_is_found(twin: Path) -> None:
    def fault(kind: str) -> None:
        command = json.dumps({"fault": kind, "on": "charger-003"})
        subprocess.run([str(BIN / "derms-twin"), "send", str(twin), command], check=True, capture_output=True)

    fault("silent")
    try:
        done = probe("inventories/demo", "--json")
    finally:
        cleared = json.dumps({"clear": "charger-003"})
        subprocess.run([str(BIN / "derms-twin"), "send", str(twin), cleared], check=True, capture_output=True)
    assert done.returncode == 1
    assert [answer["name"] for answer in json.loads(done.stdout) if not answer["alive"]] == ["charger-003"]
