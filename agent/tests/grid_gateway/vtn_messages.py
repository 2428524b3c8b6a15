# SPDX-License-Identifier: Apache-2.0
"""What a VTN sends, written out: small documents whose parts a test puts in other words."""

from __future__ import annotations

from collections.abc import Iterable

NAMESPACES = (
    'xmlns:oadr="http://openadr.org/oadr-2.0b/2012/07" '
    'xmlns:ei="http://docs.oasis-open.org/ns/energyinterop/201110" '
    'xmlns:pyld="http://docs.oasis-open.org/ns/energyinterop/201110/payloads" '
    'xmlns:emix="http://docs.oasis-open.org/ns/emix/2011/06" '
    'xmlns:power="http://docs.oasis-open.org/ns/emix/2011/06/power" '
    'xmlns:scale="http://docs.oasis-open.org/ns/emix/2011/06/siscale" '
    'xmlns:xcal="urn:ietf:params:xml:ns:icalendar-2.0" '
    'xmlns:strm="urn:ietf:params:xml:ns:icalendar-2.0:stream"'
)
KILOWATTS = (
    "<power:powerReal><power:itemDescription>RealPower</power:itemDescription><power:itemUnits>W</power:itemUnits>"
    "<scale:siScaleCode>k</scale:siScaleCode><power:powerAttributes><power:hertz>50</power:hertz>"
    "<power:voltage>230</power:voltage><power:ac>true</power:ac></power:powerAttributes></power:powerReal>"
)


def payload(message: str) -> str:
    return f"<oadr:oadrPayload {NAMESPACES}><oadr:oadrSignedObject>{message}</oadr:oadrSignedObject></oadr:oadrPayload>"


def eiresponse(code: int = 200, request_id: str = "r1") -> str:
    return (
        f"<ei:eiResponse><ei:responseCode>{code}</ei:responseCode><pyld:requestID>{request_id}</pyld:requestID>"
        "</ei:eiResponse>"
    )


def interval(value: object, duration: str | None = "PT1H", dtstart: str | None = None) -> str:
    start = "" if dtstart is None else f"<xcal:dtstart><xcal:date-time>{dtstart}</xcal:date-time></xcal:dtstart>"
    length = "" if duration is None else f"<xcal:duration><xcal:duration>{duration}</xcal:duration></xcal:duration>"
    return (
        f"<ei:interval>{start}{length}<ei:signalPayload><ei:payloadFloat><ei:value>{value}</ei:value>"
        "</ei:payloadFloat></ei:signalPayload></ei:interval>"
    )


def signal(
    intervals: Iterable[str] | None = None,
    name: str = "SIMPLE",
    kind: str = "level",
    unit: str = "",
    id: str = "s1",  # noqa: A002
) -> str:
    inner = "".join([interval(1)] if intervals is None else intervals)
    return (
        f"<ei:eiEventSignal><strm:intervals>{inner}</strm:intervals><ei:signalName>{name}</ei:signalName>"
        f"<ei:signalType>{kind}</ei:signalType><ei:signalID>{id}</ei:signalID>{unit}</ei:eiEventSignal>"
    )


def event(
    id: str = "e1",  # noqa: A002
    *,
    modification: object = 0,
    status: str = "far",
    start: str = "2026-11-26T18:00:00Z",
    duration: str = "PT1H",
    priority: str = "",
    context: str = "http://utility.example/shed",
    test: str = "",
    tolerance: str = "",
    periods: str = "",
    signals: str | None = None,
    targets: str = "<ei:venID>ven-1</ei:venID>",
    response_required: str = "always",
) -> str:
    return (
        f"<oadr:oadrEvent><ei:eiEvent><ei:eventDescriptor><ei:eventID>{id}</ei:eventID>"
        f"<ei:modificationNumber>{modification}</ei:modificationNumber>{priority}<ei:eiMarketContext>"
        f"<emix:marketContext>{context}</emix:marketContext></ei:eiMarketContext>"
        f"<ei:createdDateTime>2026-11-26T12:00:00Z</ei:createdDateTime><ei:eventStatus>{status}</ei:eventStatus>{test}"
        f"</ei:eventDescriptor><ei:eiActivePeriod><xcal:properties><xcal:dtstart><xcal:date-time>{start}</xcal:date-time>"
        f"</xcal:dtstart><xcal:duration><xcal:duration>{duration}</xcal:duration></xcal:duration>{tolerance}{periods}"
        "</xcal:properties><xcal:components/></ei:eiActivePeriod>"
        f"<ei:eiEventSignals>{signal() if signals is None else signals}</ei:eiEventSignals>"
        f"<ei:eiTarget>{targets}</ei:eiTarget></ei:eiEvent>"
        f"<oadr:oadrResponseRequired>{response_required}</oadr:oadrResponseRequired></oadr:oadrEvent>"
    )


def distribute(*events: str, vtn_id: str = "vtn-1", request_id: str = "r1", response: str = "") -> bytes:
    return payload(
        f"<oadr:oadrDistributeEvent>{response}<pyld:requestID>{request_id}</pyld:requestID>"
        f"<ei:vtnID>{vtn_id}</ei:vtnID>{''.join(events)}</oadr:oadrDistributeEvent>"
    ).encode()


def create_report(
    id: str,  # noqa: A002
    specifier: str = "telemetry-status",
    data_point: str = "site-status",
    every: str = "PT0S",
) -> str:
    lasts = f"<xcal:duration>{every}</xcal:duration>"
    return payload(
        "<oadr:oadrCreateReport><pyld:requestID>r</pyld:requestID><oadr:oadrReportRequest><ei:reportRequestID>"
        f"{id}</ei:reportRequestID><ei:reportSpecifier><ei:reportSpecifierID>{specifier}</ei:reportSpecifierID>"
        f"<xcal:granularity>{lasts}</xcal:granularity><ei:reportBackDuration>{lasts}</ei:reportBackDuration>"
        f"<ei:specifierPayload><ei:rID>{data_point}</ei:rID>"
        "<ei:readingType>x-notApplicable</ei:readingType></ei:specifierPayload></ei:reportSpecifier>"
        "</oadr:oadrReportRequest></oadr:oadrCreateReport>"
    )


def cancel_report(*ids: str, to_follow: bool) -> str:
    named = "".join(f"<ei:reportRequestID>{one}</ei:reportRequestID>" for one in ids)
    return payload(
        f"<oadr:oadrCancelReport><pyld:requestID>r</pyld:requestID>{named}"
        f"<pyld:reportToFollow>{str(to_follow).lower()}</pyld:reportToFollow></oadr:oadrCancelReport>"
    )
