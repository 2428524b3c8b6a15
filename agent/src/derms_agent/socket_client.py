# SPDX-License-Identifier: Apache-2.0
"""Asks one of the agent's sockets, in plain blocking calls: what command-line verbs and Ansible modules need."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from derms_agent.socket_protocol import MOST_BYTES, VERSION, ProtocolError, decode, encode

SOCKET = Path("/run/derms/orchestrator.sock")
GRID_SOCKET = Path("/run/derms/grid-gateway/ven.sock")


class NoService(Exception):
    """The service does not answer; the text says what that may come from."""


class Client:
    """One connection. Every call raises NoService where nothing answers in time, and ProtocolError for a refusal."""

    def __init__(self, path: Path = SOCKET, timeout_s: float = 5.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._received = bytearray()
        self._next_id = 1
        try:
            self._socket.connect(str(path))
        except PermissionError as problem:
            self._socket.close()
            raise NoService(f"{path}: not allowed: be root, or in the group derms-operators") from problem
        except OSError as problem:
            self._socket.close()
            service = "grid-gateway" if path == GRID_SOCKET else "orchestrator"
            raise NoService(f"{path}: {problem.strerror}: is derms-{service}.service running?") from problem

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Return the result of a verb."""
        request_id = self._next_id
        self._next_id += 1
        try:
            self._socket.sendall(encode({"v": VERSION, "id": request_id, "verb": verb, **arguments}))
            answer = decode(self._line())
        except TimeoutError as problem:
            raise NoService("the service did not answer in time") from problem
        except OSError as problem:
            raise NoService(f"the connection broke: {problem}") from problem
        if answer.get("ok"):
            return answer.get("result")
        error = answer.get("error") or {}
        raise ProtocolError(str(error.get("code", "unknown")), str(error.get("message", "no reason was given")))

    def _line(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > MOST_BYTES:
                raise ProtocolError("malformed", f"found a line of over {MOST_BYTES} bytes")
            found = self._socket.recv(65536)
            if not found:
                raise NoService("the service closed the connection")
            self._received += found
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line
