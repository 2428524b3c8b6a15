# SPDX-License-Identifier: Apache-2.0
"""What a VTN, or whoever is in its place, may send: every document becomes a message or a refusal, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from agent.tests.grid_gateway.vtn_messages import KILOWATTS, distribute, eiresponse, event, interval, payload, signal
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.incoming import (
    MOST_BYTES,
    BrokenEvent,
    CancelReport,
    Code,
    CreatedPartyRegistration,
    CreateReport,
    DistributeEvent,
    Event,
    Malformed,
    Response,
    Status,
    Targets,
    Unexpected,
    Unit,
    UpdatedReport,
    parse,
)

SIX = datetime(2026, 11, 26, 18, tzinfo=timezone.utc).timestamp()
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'


def one(body: bytes) -> Event:
    message = parse(body)
    assert isinstance(message, DistributeEvent)
    (found,) = message.events
    assert isinstance(found, Event), found
    return found


def broken(body: bytes) -> BrokenEvent:
    message = parse(body)
    assert isinstance(message, DistributeEvent)
    (found,) = message.events
    assert isinstance(found, BrokenEvent), found
    return found


# Defect 1: DOCTYPE


def doctypes() -> dict[str, bytes]:
    text = distribute(event()).decode()
    declared = '<?xml version="1.0" encoding="{}"?>'
    return {
        "plain": (BOMB + text).encode(),
        "one internal entity": (f'<!DOCTYPE a [<!ENTITY b "c">]>{text}').replace("vtn-1", "&b;").encode(),
        "external": f'<!DOCTYPE a SYSTEM "file:///etc/passwd">{text}'.encode(),
        "declared": (declared.format("utf-8") + BOMB + text).encode(),
        "utf-8 with a mark": (BOMB + text).encode("utf-8-sig"),
        "utf-16 with a mark": (declared.format("utf-16") + BOMB + text).encode("utf-16"),
        "utf-16 big-endian": b"\xfe\xff" + (BOMB + text).encode("utf-16-be"),
        "utf-16 without a mark": (declared.format("utf-16") + BOMB + text).encode("utf-16-le"),
        "utf-32": (BOMB + text).encode("utf-32"),
        "utf-7": (declared.format("utf-7") + text).replace("<oadr:oadrPayload", "+ADwAIQ-DOCTYPE", 1).encode(),
        "ebcdic": (declared.format("cp037") + BOMB + text).encode("cp037"),
        "declared as ebcdic": (declared.format("cp037") + BOMB + text).encode(),
        "late": text.replace("<oadr:oadrSignedObject>", f"{BOMB}<oadr:oadrSignedObject>").encode(),
        "entity without a doctype": text.replace("vtn-1", "&b;").encode(),
    }


@pytest.mark.parametrize("how", doctypes())
def test_a_doctype_is_refused_in_whatever_encoding(how: str) -> None:
    with pytest.raises(Malformed):
        parse(doctypes()[how])


def test_what_crashes_the_library_is_refused_before_a_parser_has_it() -> None:
    """In a process of its own, for the library's way of reading it ends with a segmentation fault (defect 1)."""
    program = (
        "import sys; from derms_agent.grid_gateway.incoming import parse, Malformed\n"
        "try: parse(sys.stdin.buffer.read())\n"
        "except Malformed as why: print(why)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=doctypes()["one internal entity"],
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert b"DOCTYPE" in ended.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_ordinary_document_is_read_in_its_encoding(encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{"utf-16" if "16" in encoding else "UTF-8"}"?>\n'

    assert one((declared + distribute(event("é-1")).decode()).encode(encoding)).id == "é-1"


# Limits


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"no XML",
        b"<a>",
        b"<a/>",
        b"<a/><b/>",
        b"\xff\xfe\x00",
        b"<a>" * 5000 + b"</a>" * 5000,
        payload("<a/>" * 100_000).encode(),
        b"<a>" + b"x" * MOST_BYTES + b"</a>",
        payload("").encode(),
        payload("<oadr:oadrPoll/>").encode(),
        distribute(*[event(f"e{number}") for number in range(501)]),
    ],
    ids=lambda body: f"{body[:12]!r}… {len(body)}",
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse(body)


@given(st.binary(max_size=400))
def test_no_bytes_do_anything_but_be_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse(body)


@given(st.data())
def test_a_message_that_was_damaged_is_a_message_or_refused(data: st.DataObject) -> None:
    body = bytearray(distribute(event("e1"), event("e2")))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        parse(bytes(body))
    except Malformed as why:
        assert len(str(why)) < 400  # noqa: PT017 - that it is raised or not are both right


# Identifiers: defect 8


@pytest.mark.parametrize("name", ["00123", "1.2.3", "1e5", "True", "2026-01-01", "P1D", " a ", "abc", "none"])
def test_an_identifier_is_the_text_that_was_sent(name: str) -> None:
    message = parse(distribute(event(name, targets=f"<ei:venID>{name}</ei:venID>"), vtn_id=name, request_id=name))

    assert isinstance(message, DistributeEvent)
    assert (message.vtn_id, message.request_id) == (name, name)
    (found,) = message.events
    assert isinstance(found, Event)
    assert (found.id, found.targets) == (name, Targets(vens=(name,)))


# Events


def test_an_event_is_all_that_was_said_of_it() -> None:
    periods = (
        "<ei:x-eiNotification><xcal:duration>PT2H</xcal:duration></ei:x-eiNotification>"
        "<ei:x-eiRampUp><xcal:duration>-PT15M</xcal:duration></ei:x-eiRampUp>"
        "<ei:x-eiRecovery><xcal:duration>PT5M</xcal:duration></ei:x-eiRecovery>"
    )
    found = one(
        distribute(
            event(
                modification=3,
                status="near",
                priority="<ei:priority>1</ei:priority>",
                tolerance="<xcal:tolerance><xcal:tolerate><xcal:startafter>PT10M</xcal:startafter></xcal:tolerate>"
                "</xcal:tolerance>",
                periods=periods,
                signals=signal([interval(40, "PT15M"), interval(20, "PT45M")], "LOAD_DISPATCH", "setpoint", KILOWATTS),
                targets="<power:meterAsset><power:mrid>m</power:mrid></power:meterAsset><ei:groupID>g</ei:groupID>"
                "<ei:resourceID>r</ei:resourceID><ei:venID>ven-1</ei:venID>",
                response_required="never",
            )
        )
    )

    assert (found.modification, found.status, found.priority, found.response_required) == (3, Status.NEAR, 1, False)
    assert (found.start_unix_s, found.duration_s, found.startafter_s) == (SIX, 3600.0, 600.0)
    assert (found.notification_s, found.ramp_up_s, found.recovery_s) == (7200.0, -900.0, 300.0)
    assert found.targets == Targets(vens=("ven-1",), resources=("r",), groups=("g",), others=1)
    (dispatch,) = found.signals
    assert dispatch.unit == Unit("powerReal", "W", 1000.0)
    assert [(one.start_unix_s - SIX, one.duration_s, one.value) for one in dispatch.intervals] == [
        (0.0, 900.0, 40.0),
        (900.0, 2700.0, 20.0),
    ]


@pytest.mark.parametrize(
    ("classes", "others"),
    [(["EVSE"], 0), (["Electric_Vehicle"], 0), (["Water_Heater", "EVSE"], 0), (["Water_Heater", "Pool_Pump"], 2)],
)
def test_chargers_and_vehicles_are_the_depots_own_class_of_devices(classes: list[str], others: int) -> None:
    named = "".join(f"<power:endDeviceAsset><power:mrid>{name}</power:mrid></power:endDeviceAsset>" for name in classes)
    found = one(distribute(event(targets=named)))

    assert found.targets == Targets(others=others)
    assert found.targets.all is (others == 0)


@pytest.mark.parametrize("start", ["2026-11-26T18:00:00Z", "2026-11-26T18:00:00", "2026-11-26T18:00:00.000Z"])
def test_a_time_without_a_zone_is_utc(start: str) -> None:  # defect 11
    assert one(distribute(event(start=start))).start_unix_s == SIX


def test_units_of_one_signal_are_none_of_the_next() -> None:  # defect 12
    signals = signal() + signal([interval(4)], "LOAD_DISPATCH", "setpoint", KILOWATTS, "s2")

    assert [found.unit for found in one(distribute(event(signals=signals))).signals] == [
        None,
        Unit("powerReal", "W", 1000.0),
    ]


@pytest.mark.parametrize(
    ("text", "test"),
    [("", False), ("<ei:testEvent>false</ei:testEvent>", False), ("<ei:testEvent>true</ei:testEvent>", True),
     ("<ei:testEvent>yes</ei:testEvent>", True), ("<ei:testEvent/>", True)],
)  # fmt: skip
def test_whatever_is_not_false_is_a_test(text: str, test: bool) -> None:
    assert one(distribute(event(test=text))).test is test


def test_an_open_end_is_0() -> None:
    found = one(distribute(event(duration="PT0S", signals=signal([interval(1, "PT30M"), interval(2, "PT0S")]))))

    assert found.duration_s == 0.0
    assert [each.duration_s for each in found.signals[0].intervals] == [1800.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        event(signals=signal([interval(1, "PT30M")])),
        event(signals=signal([interval(1, "PT2H")])),
        event(signals=signal([interval(1, "PT0S"), interval(1, "PT1H")])),
        event(signals=signal([interval(1, "PT1H", "2026-11-26T19:00:00Z")])),
        event(signals=signal([interval("INF")])),
        event(signals=signal([interval("NaN")])),
        # Finite until it is scaled.
        event(signals=signal([interval("1e308")], "LOAD_DISPATCH", "setpoint", KILOWATTS)),
        event(duration="-PT1H"),
        event(duration="P"),
        event(duration="P9999999Y"),
        event(start="0001-01-01T00:00:00Z"),
        event(start="2026-02-30T00:00:00Z"),
        event(start="2026-11-26T18:00:00+01:00"),
        event(status="imminent"),
        event(response_required="perhaps"),
        event(modification=-1),
        event(signals=""),
    ],
)
def test_an_event_that_cannot_be_used_has_a_code_and_harms_no_other(wrong: str) -> None:
    message = parse(distribute(event("e0"), wrong, event("e2")))

    assert isinstance(message, DistributeEvent)
    before, found, after = message.events
    assert isinstance(found, BrokenEvent)
    assert (found.id, found.code) == ("e1", Code.INVALID_DATA)
    assert isinstance(before, Event)
    assert isinstance(after, Event)
    assert (before.id, after.id) == ("e0", "e2")


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.COMPLETED])
@pytest.mark.parametrize("wrong", [{"duration": "PT30M"}, {"signals": ""}, {"start": "tomorrow"}])
def test_that_a_broken_event_ends_is_read_all_the_same(status: Status, wrong: dict[str, str]) -> None:
    found = broken(distribute(event(status=status.value, modification=2, **wrong)))

    assert (found.id, found.modification, found.status) == ("e1", 2, status)
    assert broken(distribute(event(status="active", **wrong))).status is Status.NONE


def test_a_broken_event_may_want_no_answer_as_well() -> None:
    assert not broken(distribute(event(signals="", response_required="never"))).response_required
    assert broken(distribute(event(signals=""))).response_required


def test_an_event_without_an_id_is_broken_and_has_none() -> None:
    found = broken(distribute(event().replace("<ei:eventID>e1</ei:eventID>", "")))

    assert found.id is None


# Durations and times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT0S", 0), ("PT90S", 90), ("PT1H30M", 5400), ("P1D", 86400), ("P1S", 1), ("P1DT1S", 86401),
     ("-PT15M", -900), ("+PT1M", 60),
     ("P1W", 604800), ("2W", 1209600), ("P1M", 28 * 86400), ("P1Y", 365 * 86400), ("P1M1D", 29 * 86400)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    february = iso8601.unix_s("2026-02-01T00:00:00Z")

    assert iso8601.duration_s(text, february) == seconds


@pytest.mark.parametrize("text", ["", "P", "PT", "1H", "P1", "PT1", "PT1D", "P-1D", "P1.5D", "é", "P" + "1" * 60 + "D"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="found"):
        iso8601.duration_s(text)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31)))
def test_a_time_that_is_written_is_read_as_the_same(at: datetime) -> None:
    at_unix_s = (at.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(seconds=1)

    assert iso8601.unix_s(iso8601.time_text(at_unix_s)) == pytest.approx(at_unix_s, abs=0.0006)


@given(st.integers(-(10**9), 10**9))
def test_a_duration_that_is_written_is_read_as_the_same(seconds: int) -> None:
    assert iso8601.duration_s(iso8601.duration_text(seconds)) == seconds


# Other messages


def test_an_answer() -> None:
    assert parse(payload(f"<oadr:oadrResponse>{eiresponse(463)}</oadr:oadrResponse>").encode()) == Response(
        463, "", "r1"
    )


def test_a_registration() -> None:
    message = parse(
        payload(
            f"<oadr:oadrCreatedPartyRegistration>{eiresponse()}<ei:registrationID>007</ei:registrationID>"
            "<ei:venID>1.0</ei:venID><ei:vtnID>0</ei:vtnID><oadr:oadrProfiles><oadr:oadrProfile><oadr:oadrProfileName>"
            "2.0b</oadr:oadrProfileName><oadr:oadrTransports><oadr:oadrTransport><oadr:oadrTransportName>simpleHttp"
            "</oadr:oadrTransportName></oadr:oadrTransport></oadr:oadrTransports></oadr:oadrProfile></oadr:oadrProfiles>"
            "<oadr:oadrRequestedOadrPollFreq><xcal:duration>PT10S</xcal:duration></oadr:oadrRequestedOadrPollFreq>"
            "</oadr:oadrCreatedPartyRegistration>"
        ).encode()
    )

    assert message == CreatedPartyRegistration(
        response=Response(200, "", "r1", "1.0"), vtn_id="0", registration_id="007", ven_id="1.0", poll_s=10.0,
        profiles=("2.0b",),
    )  # fmt: skip


def test_a_report_that_is_asked_for_without_how_often_to_send_it() -> None:  # defect 13: the library crashes on it
    text = (
        "<oadr:oadrCreateReport><pyld:requestID>r</pyld:requestID><oadr:oadrReportRequest><ei:reportRequestID>01"
        "</ei:reportRequestID><ei:reportSpecifier><ei:reportSpecifierID>usage</ei:reportSpecifierID><xcal:granularity>"
        "<xcal:duration>PT1M</xcal:duration></xcal:granularity>{}<ei:specifierPayload><ei:rID>p</ei:rID>"
        "<ei:readingType>Direct Read</ei:readingType></ei:specifierPayload></ei:reportSpecifier>"
        "</oadr:oadrReportRequest></oadr:oadrCreateReport>"
    )
    back = "<ei:reportBackDuration><xcal:duration>PT5M</xcal:duration></ei:reportBackDuration>"
    message = parse(payload(text.format(back)).encode())

    assert isinstance(message, CreateReport)
    (request,) = message.requests
    assert (request.id, request.granularity_s, request.report_back_s, request.data_points) == (
        "01",
        60.0,
        300.0,
        ("p",),
    )
    with pytest.raises(Malformed):
        parse(payload(text.format("")).encode())


def test_the_end_of_a_report_in_the_answer_to_another() -> None:  # defect 13: the library ignores it
    text = (
        f"<oadr:oadrUpdatedReport>{eiresponse()}<oadr:oadrCancelReport><pyld:requestID>r2</pyld:requestID>"
        "<ei:reportRequestID>01</ei:reportRequestID><pyld:reportToFollow>true</pyld:reportToFollow>"
        "</oadr:oadrCancelReport></oadr:oadrUpdatedReport>"
    )

    assert parse(payload(text).encode()) == UpdatedReport(Response(200, "", "r1"), CancelReport("r2", ("01",), True))


def test_what_no_vtn_sends_a_ven() -> None:
    assert parse(payload("<oadr:oadrPoll><ei:venID>v</ei:venID></oadr:oadrPoll>").encode()) == Unexpected("oadrPoll")


def test_json_is_no_xml() -> None:
    with pytest.raises(Malformed, match="no XML"):
        parse(json.dumps({"openadr": 3}).encode())
