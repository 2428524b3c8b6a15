# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.mqtt import topics
from derms_agent.mqtt.publisher import MOST_RETRY_S, endpoint, retry_s
from derms_agent.mqtt.requests import MOST_BYTES, Refusal, Request, encoded, judged
from derms_agent.mqtt.topics import Kind, Topic, TopicError

names = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="/+#"), min_size=1, max_size=40)
ASKED = Topic("north", "charger", "charger-001", Kind.REQUEST)


@given(names, names, names, st.sampled_from(Kind))
def test_a_topic_is_read_as_it_was_written(depot: str, class_: str, name: str, kind: Kind) -> None:
    topic = Topic(depot, class_, name, kind)
    assert topics.parsed(str(topic)) == topic


@pytest.mark.parametrize("name", ["", "a/b", "+", "a#", "a\nb", "\0", "x" * 129, "\ud800"])
def test_a_name_that_mqtt_would_take_for_more_is_refused(name: str) -> None:
    with pytest.raises(TopicError, match="id: found"):
        Topic("north", "charger", name, Kind.STATE)
    with pytest.raises(TopicError, match="depot: found"):
        topics.requests_of(name)


@given(st.text(max_size=60) | st.sampled_from(["derms/v1/a/b/c", "derms/v2/a/b/c/state", "derms/v1/a/b/c/cmd"]))
def test_what_is_no_topic_of_ours_is_said_to_be_none(text: str) -> None:
    with pytest.raises(TopicError):
        topics.parsed(text)


def test_a_request_is_taken_and_expires() -> None:
    request = judged(ASKED, b'{"id": "7", "valid_for": 30, "limit_kw": 50}', retained=False, now_s=100.0)
    assert isinstance(request, Request)
    assert request.body["limit_kw"] == 50
    assert not request.expired(130.0)
    assert request.expired(130.1)


@pytest.mark.parametrize(
    ("payload", "reason", "named"),
    [
        (b"", "no JSON", False),
        (b"\xff\xfe", "no JSON", False),
        (b"[" * 60_000, "no JSON", False),
        (b'"x"', "expected an object", False),
        (b" " * (MOST_BYTES + 1), "at most 65536", False),
        (b'{"id": "7", "valid_for": NaN}', "NaN is no number", False),
        (b'{"valid_for": 30}', "id: expected", False),
        (b'{"id": 7, "valid_for": 30}', "id: expected", False),
        (b'{"id": "7"}', "valid_for: expected a number", True),
        (b'{"id": "7", "valid_for": true}', "valid_for: expected a number", True),
        (b'{"id": "7", "valid_for": 0}', "more than 0 s", True),
        (b'{"id": "7", "valid_for": 1e999}', "more than 0 s", True),
        (b'{"id": "7", "valid_for": 1' + b"0" * 400 + b"}", "more than 0 s", True),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(payload: bytes, reason: str, named: bool) -> None:
    refusal = judged(ASKED, payload, retained=False, now_s=0.0)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert refusal.id == ("7" if named else None)


def test_a_retained_request_is_refused() -> None:
    refusal = judged(ASKED, json.dumps({"id": "7", "valid_for": 30}).encode(), retained=True, now_s=0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("retained")


@given(st.binary(max_size=200), st.booleans())
def test_nothing_that_comes_raises(payload: bytes, retained: bool) -> None:
    assert isinstance(judged(ASKED, payload, retained=retained, now_s=0.0), (Request, Refusal))


@pytest.mark.parametrize("body", [{"power_w": float("nan")}, {"text": "x" * MOST_BYTES}])
def test_a_body_that_no_broker_takes_is_refused_before_it_waits(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"Out of range|expected at most 65536"):
        encoded(body)


@pytest.mark.parametrize(
    "url", ["mqtt://b", "b:8883", "mqtts://", "mqtts://b:x", "mqtts://b/p", "mqtts://u@b", "mqtts://b:99999"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected mqtts://HOST\[:PORT\]"):
        endpoint(url, with_tls=True)


def test_a_url_has_its_own_port_or_the_usual_one() -> None:
    assert endpoint("mqtts://broker", with_tls=True) == ("broker", 8883)
    assert endpoint("mqtt://[::1]:1884", with_tls=False) == ("::1", 1884)


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_anywhere_below_a_ceiling_that_doubles(attempt: int, draw: float) -> None:
    assert 0 <= retry_s(attempt, draw) < min(MOST_RETRY_S, 0.5 * 2.0 ** min(attempt, 16)) or draw == 0
