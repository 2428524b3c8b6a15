# SPDX-License-Identifier: Apache-2.0
"""What others ask of a depot over MQTT, and why a message is no request. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from derms_agent.mqtt.topics import Kind, Topic

MOST_BYTES = 65_536
"""The largest payload that is sent or read; the broker's own limit is the same."""

MOST_VALID_S = 86_400
"""What holds for longer than a day is no request but a setting."""

MOST_ID_CHARACTERS = 128

Json: TypeAlias = Mapping[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class Request:
    """Something that an FMS or a BMS asks for. Its `id` is the sender's, and stands for this one request."""

    topic: Topic
    id: str
    valid_for_s: float
    """How long it may be acted upon, in s from its arrival."""
    body: Json
    arrived_s: float
    """On the monotonic clock."""

    def expired(self, now_s: float) -> bool:
        """Tell whether it came too long ago, by the monotonic clock."""
        return now_s - self.arrived_s > self.valid_for_s


@dataclass(frozen=True)
class Refusal:
    """Why a message is no request, and the `id` to say so to, where it has one."""

    reason: str
    id: str | None = None


def judged(topic: Topic, payload: bytes, *, retained: bool, now_s: float) -> Request | Refusal:
    """Return the request that a message is, or why it is none; `now_s` is the monotonic clock.

    A retained one is refused: the broker would hand it out again to whoever comes, long after it was meant.
    """
    body = _object(payload)
    if isinstance(body, str):
        return Refusal(body)
    found_id, valid_for = body.get("id"), body.get("valid_for")
    if not isinstance(found_id, str) or not 0 < len(found_id) <= MOST_ID_CHARACTERS:
        return Refusal(f"id: expected a text of 1 to {MOST_ID_CHARACTERS} characters")
    if retained:
        return Refusal("retained: a request is for now, and must not be kept by the broker", found_id)
    if isinstance(valid_for, bool) or not isinstance(valid_for, (int, float)):
        return Refusal("valid_for: expected a number of seconds", found_id)
    if not 0 < valid_for <= MOST_VALID_S:
        return Refusal(f"valid_for: expected more than 0 s and at most {MOST_VALID_S}", found_id)
    return Request(topic, found_id, float(valid_for), body, now_s)


def _object(payload: bytes) -> dict[str, Any] | str:
    """Return the JSON object that a payload is, or what is wrong with it."""
    if len(payload) > MOST_BYTES:
        return f"payload: found {len(payload)} bytes, expected at most {MOST_BYTES}"
    try:
        body = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        return f"payload: no JSON ({problem})"
    return body if isinstance(body, dict) else f"payload: found a JSON {type(body).__name__}, expected an object"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def answer_topic(topic: Topic) -> Topic:
    """Return where a request to a topic is answered."""
    return Topic(topic.depot, topic.class_, topic.id, Kind.ACK)


def encoded(body: Json) -> bytes:
    """Return a body as JSON.

    Raises TypeError for what JSON has no word for, and ValueError for NaN, infinity, and more than the broker takes: it
    would hang up on whoever sends that, each time anew.
    """
    payload = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    if len(payload) > MOST_BYTES:
        raise ValueError(f"found a body of {len(payload)} bytes, expected at most {MOST_BYTES}")
    return payload
