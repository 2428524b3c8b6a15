# SPDX-License-Identifier: Apache-2.0
"""What a depot says over MQTT, and what it is asked: topics, requests, and the client with its queue on disk.

Telemetry is QoS 0, at `derms/v1/<depot>/<class>/<id>/telemetry`. Events are QoS 1, each with an `id`. A `state` is
QoS 1 and retained; a service's own is at `derms/v1/<depot>/service/<its name>/state`, with `offline` as its last will.
A `request` is QoS 1, with `id` and `valid_for` in s, and never retained; it is answered at `ack`. All are JSON objects.
"""

from derms_agent.mqtt.anew import begun_anew, side_by_side, unsendable_said
from derms_agent.mqtt.outbox import Outbox
from derms_agent.mqtt.publisher import Publisher, TlsFiles
from derms_agent.mqtt.requests import Request
from derms_agent.mqtt.store import StoreError
from derms_agent.mqtt.topics import Kind, Topic, TopicError

__all__ = [
    "Kind",
    "Outbox",
    "Publisher",
    "Request",
    "StoreError",
    "TlsFiles",
    "Topic",
    "TopicError",
    "begun_anew",
    "side_by_side",
    "unsendable_said",
]
