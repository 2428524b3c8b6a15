# SPDX-License-Identifier: GPL-3.0-or-later
"""A time source for hosts: this machine's clock plus an offset, served over NTP (RFC 5905) on one address."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.hosts import network
from tests.hosts.errors import HostsError
from tests.hosts.host import boot_id, started_ticks
from tests.hosts.settings import Settings

PORT = 123
UNIX_EPOCH_IN_NTP_S = 2_208_988_800
# Leap indicator, version and mode; stratum; poll; precision; root delay; root dispersion; reference identifier.
HEADER = struct.Struct("!BBbbII4s")
HEADER_AND_TIMESTAMPS_BYTES = 48
MODE_CLIENT, MODE_SERVER = 3, 4
TREE = Path(__file__).parents[2]


def timestamp(unix_s: float) -> bytes:
    """Return a time as NTP writes it: 32 bits of seconds since 1900, which wrap, and 32 of fraction."""
    ntp_s = unix_s + UNIX_EPOCH_IN_NTP_S
    return struct.pack("!II", int(ntp_s) & 0xFFFFFFFF, int(ntp_s % 1 * 2**32))


def answer(request: bytes, received_s: float, sent_s: float) -> bytes | None:
    """Return a stratum-one server's answer to a client's request, nothing to whatever else arrives."""
    if len(request) < HEADER_AND_TIMESTAMPS_BYTES or request[0] & 0b111 != MODE_CLIENT:
        return None
    version = request[0] >> 3 & 0b111
    poll = struct.unpack("!b", request[2:3])[0]
    header = HEADER.pack(version << 3 | MODE_SERVER, 1, poll, -20, 0, 16, b"GPS\0")
    client_transmitted = request[40:48]
    return header + timestamp(received_s - 1) + client_transmitted + timestamp(received_s) + timestamp(sent_s)


def serve(address: str, offset_s: float) -> None:
    """Answer until the process is ended."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind((address, PORT))
        except OSError as error:
            raise HostsError(f"NTP on {address}: {error.strerror}") from error
        while True:
            request, client = server.recvfrom(512)
            received_s = time.time()
            reply = answer(request, received_s + offset_s, time.time() + offset_s)
            if reply is not None:
                server.sendto(reply, client)


class TimeSource:
    """A server in the background, known by its address."""

    def __init__(self, settings: Settings, address: str) -> None:
        self._settings = settings
        self._address = address
        self._path = settings.directory / "ntp" / f"{address}.json"

    def running_offset_s(self) -> float | None:
        """Return the offset that is being served; nothing if no server runs."""
        if not self._path.exists():
            return None
        record = json.loads(self._path.read_text(encoding="utf-8"))
        if record["boot_id"] != boot_id() or started_ticks(record["pid"]) != record["started_ticks"]:
            return None
        return float(record["offset_s"])

    def start(self, offset_s: float) -> None:
        """Serve the offset from now on; a server that already does is left alone."""
        if self.running_offset_s() == offset_s:
            return
        self.stop()
        network.add_address(self._settings, self._address)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.hosts", "ntp", self._address, f"--offset-s={offset_s}"],
                cwd=TREE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        record = {
            "pid": server.pid,
            "started_ticks": started_ticks(server.pid),
            "boot_id": boot_id(),
            "offset_s": offset_s,
        }
        self._path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        self._await_answer(server)

    def _await_answer(self, server: subprocess.Popen[bytes]) -> None:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        request = bytes([4 << 3 | MODE_CLIENT]) + bytes(HEADER_AND_TIMESTAMPS_BYTES - 1)
        deadline_s = time.monotonic() + 5
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(0.1)
            while time.monotonic() < deadline_s and server.poll() is None:
                client.sendto(request, (self._address, PORT))
                try:
                    client.recv(512)
                except (TimeoutError, ConnectionRefusedError):
                    time.sleep(0.05)
                else:
                    return
        words = self._path.with_suffix(".log").read_text(encoding="utf-8").strip()
        raise HostsError(f"the time source on {self._address} does not answer: {words}")

    def stop(self) -> None:
        """End the server, if one runs."""
        if self.running_offset_s() is not None:
            pid = json.loads(self._path.read_text(encoding="utf-8"))["pid"]
            os.kill(pid, signal.SIGTERM)
            while started_ticks(pid) is not None:
                time.sleep(0.01)
        self._path.unlink(missing_ok=True)


def stop_all(settings: Settings) -> None:
    """End every server that runs in the background."""
    for path in (settings.directory / "ntp").glob("*.json"):
        TimeSource(settings, path.stem).stop()
