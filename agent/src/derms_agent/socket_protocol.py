# SPDX-License-Identifier: Apache-2.0
"""The protocol of the agent's sockets: one JSON object a line, and what both ends must agree on. docs/socket.md.

A request is `{"v": 1, "id": …, "verb": …, …}`, its answer `{"v": 1, "id": …, "ok": true, "result": …}` or `{…, "ok":
false, "error": {"code": …, "message": …}}`. Answers come in the order of the requests of a connection.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from derms_agent import finite_json

VERSION = 1
MOST_BYTES = 1 << 20
"""The longest line that either end takes."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class ProtocolError(Exception):
    """What was asked for cannot be done: a code for programs, and words that say what was found and expected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message of a line, in which every number is finite. Raises ProtocolError."""
    try:
        message = finite_json.loads(line)
    except ValueError as problem:
        raise ProtocolError("malformed", f"found no JSON: {problem}") from problem
    if not isinstance(message, dict):
        raise ProtocolError("malformed", "found no JSON object, expected one a line")
    if message.get("v") != VERSION:
        raise ProtocolError("version", f"found protocol version {shown(message.get('v'))}, expected {VERSION}")
    if not isinstance(message.get("id"), str | int | float | None):
        raise ProtocolError("malformed", f"id: found {shown(message['id'])}, expected a number or a text")
    return message


def shown(found: object) -> str:
    """Return something that was received as it may stand in a message: of bounded length, however deep it is."""
    return _SHORT.repr(found)


def answered(request_id: object, result: object) -> dict[str, Any]:
    """Return the answer to a request that was carried out."""
    return {"v": VERSION, "id": request_id, "ok": True, "result": result}


def refused(request_id: object, problem: ProtocolError) -> dict[str, Any]:
    """Return the answer to a request that was not."""
    return {"v": VERSION, "id": request_id, "ok": False, "error": {"code": problem.code, "message": str(problem)}}
