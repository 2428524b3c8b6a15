# SPDX-License-Identifier: Apache-2.0
"""What each message's topic is: `derms/v1/<depot>/<class>/<id>/<kind>`. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PREFIX = ("derms", "v1")
SERVICE_CLASS = "service"
"""The class of the services themselves, whose `state` is `online` or `offline`."""

MOST_CHARACTERS = 128
"""The longest level that is taken for a name; MQTT itself allows 65,535 bytes for all levels together."""


class Kind(str, Enum):
    """What a message is; the last level of its topic."""

    TELEMETRY = "telemetry"
    STATE = "state"
    EVENT = "event"
    REQUEST = "request"
    ACK = "ack"


class TopicError(ValueError):
    """What was found is no topic of ours, or no name that one can be made of."""


@dataclass(frozen=True)
class Topic:
    """One thing of one depot, and the kind of messages about it. Raises TopicError for a name that no level can be."""

    depot: str
    class_: str
    id: str
    kind: Kind

    def __post_init__(self) -> None:
        for what, level in (("depot", self.depot), ("class", self.class_), ("id", self.id)):
            _refuse_unusable(what, level)

    def __str__(self) -> str:
        return "/".join((*PREFIX, self.depot, self.class_, self.id, self.kind.value))


def _refuse_unusable(what: str, level: str) -> None:
    """Refuse what MQTT would take for several levels or for a pattern (5.0, 4.7.1), and what nobody can read."""
    usable = 0 < len(level) <= MOST_CHARACTERS and level.isprintable() and not set(level) & set("/+#")
    if not usable:
        raise TopicError(
            f"{what}: found {level!r}, expected 1 to {MOST_CHARACTERS} printable characters without / + and #"
        )


def parsed(text: str) -> Topic:
    """Return the topic that a text is. Raises TopicError."""
    levels = text.split("/")
    kinds = {kind.value: kind for kind in Kind}
    if tuple(levels[:2]) != PREFIX or len(levels) != len(PREFIX) + 4 or levels[-1] not in kinds:
        raise TopicError(f"found {text!r}, expected {'/'.join(PREFIX)}/<depot>/<class>/<id>/{{{','.join(kinds)}}}")
    depot, class_, name, kind = levels[2:]
    return Topic(depot, class_, name, kinds[kind])


def requests_of(depot: str) -> str:
    """Return the pattern that every request to a depot matches. Raises TopicError."""
    _refuse_unusable("depot", depot)
    return "/".join((*PREFIX, depot, "+", "+", Kind.REQUEST.value))


def service_state(depot: str, service: str) -> Topic:
    """Return where a service says that it is there, and its last will that it no longer is. Raises TopicError."""
    return Topic(depot, SERVICE_CLASS, service, Kind.STATE)
