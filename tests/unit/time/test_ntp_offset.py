# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock's offset: the formula on its own, the module against servers on the loopback."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import ntp_offset
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = Callable[[bytes], bytes]

seconds = st.floats(min_value=0, max_value=4e9, allow_nan=False)
short_s = st.floats(min_value=0, max_value=5, allow_nan=False)


def stamp(unix_s: float) -> bytes:
    whole, fraction = divmod(unix_s + ntp_offset.NTP_TO_UNIX_S, 1)
    return struct.pack("!II", int(whole) % ntp_offset.ERA_S, int(fraction * ntp_offset.ERA_S))


def answer(
    query: bytes, offset_s: float = 0.0, first: int = 0x24, stratum: int = 1, reference: bytes = b"GNSS"
) -> bytes:
    now = stamp(time.time() + offset_s)
    return bytes([first, stratum, 6, 0xE9]) + bytes(8) + reference + now + query[40:48] + now + now


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Answer on 127.0.0.N, all on the same port, as real sources do; an empty reply is not sent."""
    servers: list[tuple[socket.socket, threading.Thread]] = []

    def start(host: str, port: int, reply: Answer) -> str:
        channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        channel.bind((host, port))

        def loop() -> None:
            while True:
                query, client = channel.recvfrom(512)
                if not query:
                    return
                if said := reply(query):
                    channel.sendto(said, client)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        servers.append((channel, thread))
        return host

    yield start
    for channel, thread in servers:
        with channel, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            # Closing it would not wake the thread that waits on it; no query is empty.
            stop.sendto(b"", channel.getsockname())
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(capsys: pytest.CaptureFixture[str], **params: Any) -> dict[str, Any]:
    with patch_module_args(params), pytest.raises(SystemExit):
        ntp_offset.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@given(sent_s=seconds, offset_s=st.floats(-1e9, 1e9), there_s=short_s, held_s=short_s)
def test_formula_finds_the_offset_of_a_symmetric_path(
    sent_s: float, offset_s: float, there_s: float, held_s: float
) -> None:
    received_s = sent_s + there_s + offset_s
    answered_s = received_s + held_s
    returned_s = sent_s + there_s + held_s + there_s
    found_s, delay_s = ntp_offset.offset_and_delay(sent_s, received_s, answered_s, returned_s)
    assert found_s == pytest.approx(offset_s, abs=1e-5)
    assert delay_s == pytest.approx(2 * there_s, abs=1e-5)


@pytest.mark.parametrize(
    ("unix_s", "near_s"),
    [
        (1_795_000_000.5, 1_795_000_001.0),
        (1_795_000_000.5, 0.0),  # the host's clock lost its battery
        (2_085_978_496.0 + 10, 2_085_978_490.0),  # the source is in era 1 already
        (2_085_978_490.0, 2_085_978_496.0 + 10),
    ],
)
def test_era_is_the_nearest(unix_s: float, near_s: float) -> None:
    whole, fraction = struct.unpack("!II", stamp(unix_s))
    assert ntp_offset.unix_s(whole, fraction, near_s) == pytest.approx(unix_s, abs=1e-6)


def test_request_tells_nothing_but_its_cookie() -> None:
    assert ntp_offset.request(b"12345678") == b"\x23" + bytes(39) + b"12345678"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packet: packet[:40], "answer of 40 bytes"),
        (lambda packet: packet[:24] + bytes(8) + packet[32:], "answer to another request"),
        (lambda packet: b"\x23" + packet[1:], "mode 3"),
        (lambda packet: packet[:1] + b"\0" + packet[2:12] + b"RATE" + packet[16:], r"refused by the source \(RATE\)"),
        (lambda packet: b"\xe4" + packet[1:], "not synchronised"),
        (lambda packet: packet[:1] + b"\x10" + packet[2:], "not synchronised"),
        (lambda packet: packet[:40] + bytes(8), "without a time"),
    ],
)
def test_a_packet_that_tells_no_time_is_named(change: Answer, message: str) -> None:
    packet = change(answer(ntp_offset.request(b"12345678")))
    with pytest.raises(ntp_offset.AnswerError, match=message):
        ntp_offset.read_answer(packet, b"12345678", time.time(), time.time())


@pytest.mark.parametrize(
    ("offsets_s", "middle_s", "agreeing"),
    [
        ([], None, False),
        ([5.0], 5.0, True),
        ([0.0, 0.1, 3600.0], 0.1, True),
        ([0.0, 3600.0], 1800.0, False),
        ([-10.0, 0.0, 10.0], 0.0, False),
    ],
)
def test_median_and_majority(offsets_s: list[float], middle_s: float | None, agreeing: bool) -> None:
    replies = [ntp_offset.Reply("ntp", True, offset_s, 0.0, 1) for offset_s in offsets_s]
    replies.append(ntp_offset.Reply("dead", error="no answer"))
    assert ntp_offset.overall_offset_s(replies) == middle_s
    assert ntp_offset.is_agreeing(replies, 1.0) is agreeing


def test_sources_are_asked_at_once_and_each_is_reported(
    capsys: pytest.CaptureFixture[str], serve: Callable[..., str], port: int
) -> None:
    serve("127.0.0.1", port, lambda query: answer(query, 90.0))
    serve("127.0.0.2", port, lambda query: answer(query, 90.2, stratum=2))
    serve("127.0.0.3", port, lambda _query: b"?")
    silent = [f"127.0.1.{n}" for n in range(1, 5)]
    for host in silent:
        serve(host, port, lambda _query: b"")
    began_s = time.monotonic()
    result = run(
        capsys,
        sources=["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", *silent],
        port=port,
        timeout_s=1,
        controller_epoch_s=time.time() + 7,
    )
    assert time.monotonic() - began_s < 2
    assert result["changed"] is False
    assert result["offset_s"] == pytest.approx(90.1, abs=0.05)
    assert result["controller_offset_s"] == pytest.approx(7, abs=0.5)
    first, second, broken, refusing = result["sources"][:4]
    assert (first["reachable"], first["stratum"], first["error"]) == (True, 1, None)
    assert first["offset_s"] == pytest.approx(90.0, abs=0.05)
    assert 0 <= first["delay_s"] < 1
    assert second["stratum"] == 2
    assert broken["error"] == "answer of 1 bytes"
    assert refusing["error"] == "Connection refused"
    assert {source["error"] for source in result["sources"][4:]} <= {"no answer", "no answer in time"}
    assert "notes" not in result
    assert "drift" not in result


def test_no_answer_is_a_note_with_the_stand_in(capsys: pytest.CaptureFixture[str], port: int) -> None:
    result = run(capsys, sources=["127.0.0.1"], port=port, timeout_s=1, controller_epoch_s=time.time() - 100)
    assert result["offset_s"] is None
    assert result["agreeing"] is False
    (note,) = result["notes"]
    assert "127.0.0.1: Connection refused" in note
    assert "about -100" in note


def test_an_unknown_name_is_an_error_of_its_source_alone(
    capsys: pytest.CaptureFixture[str], serve: Callable[..., str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def lookup(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ntp.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name == "slow.invalid":
            time.sleep(30)
        return resolve(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    serve("127.0.0.1", port, answer)
    began_s = time.monotonic()
    result = run(capsys, sources=["ntp.invalid", "slow.invalid", "127.0.0.1"], port=port, timeout_s=1)
    assert time.monotonic() - began_s < 2
    assert [source["error"] for source in result["sources"]] == [
        "Name or service not known",
        "no answer in time",
        None,
    ]
    assert abs(result["offset_s"]) < 0.05


@pytest.mark.parametrize("check_mode", [True, False])
def test_step_is_predicted_and_made(
    capsys: pytest.CaptureFixture[str],
    serve: Callable[..., str],
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    check_mode: bool,
) -> None:
    set_to_s: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda _clock, epoch_s: set_to_s.append(epoch_s))
    serve("127.0.0.1", port, lambda query: answer(query, 125.0))
    result = run(capsys, sources=["127.0.0.1"], port=port, step_above_s=60, _ansible_check_mode=check_mode)
    assert result["changed"] is True
    (drift,) = result["drift"]
    assert drift["what"] == "clock offset"
    assert drift["is"].startswith(("+124.9", "+125.0"))
    assert drift["should_be"] == "at most 60 s"
    if check_mode:
        assert set_to_s == []
    else:
        assert set_to_s == [pytest.approx(time.time() + 125.0, abs=0.5)]


def test_a_small_offset_is_left_to_the_daemon(
    capsys: pytest.CaptureFixture[str], serve: Callable[..., str], port: int
) -> None:
    serve("127.0.0.1", port, lambda query: answer(query, -59.0))
    result = run(capsys, sources=["127.0.0.1"], port=port, step_above_s=60)
    assert (result["changed"], result["drift"]) == (False, [])


def test_sources_that_disagree_move_nothing(
    capsys: pytest.CaptureFixture[str], serve: Callable[..., str], port: int
) -> None:
    serve("127.0.0.1", port, answer)
    serve("127.0.0.2", port, lambda query: answer(query, 3600.0))
    result = run(capsys, sources=["127.0.0.1", "127.0.0.2"], port=port, step_above_s=60)
    assert result["failed"] is True
    assert "disagree" in result["msg"]


def test_a_clock_that_may_not_be_set_is_said_so(
    capsys: pytest.CaptureFixture[str], serve: Callable[..., str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_clock: int, _epoch_s: float) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(time, "clock_settime", refuse)
    serve("127.0.0.1", port, lambda query: answer(query, 125.0))
    result = run(capsys, sources=["127.0.0.1"], port=port, step_above_s=60)
    assert result["failed"] is True
    assert "could not be set: Operation not permitted" in result["msg"]
