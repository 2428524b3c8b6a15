# SPDX-License-Identifier: Apache-2.0
"""A VTN that is a table of answers, with no socket and no library: the same for openleadr's client and for ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.tests.grid_gateway.vtn_messages import distribute, eiresponse, payload

VEN_ID, VTN_ID = "ven-1", "VTN-1"
_KIND = re.compile(r"<oadr:(oadr(?!Payload|SignedObject)\w+)")
NOTHING_NEW = payload(f"<oadr:oadrResponse>{eiresponse()}<ei:venID>{VEN_ID}</ei:venID></oadr:oadrResponse>")
REREGISTER = payload(f"<oadr:oadrRequestReregistration><ei:venID>{VEN_ID}</ei:venID></oadr:oadrRequestReregistration>")
UPDATED = payload(f"<oadr:oadrUpdatedReport>{eiresponse()}<ei:venID>{VEN_ID}</ei:venID></oadr:oadrUpdatedReport>")


def registered(registration_id: str = "reg-1", ven_id: str = VEN_ID, code: int = 200) -> str:
    """Return the answer to a registration; without ids it is refused, as openleadr's VTN does it."""
    return payload(
        f"<oadr:oadrCreatedPartyRegistration>{eiresponse(code)}<ei:registrationID>{registration_id}</ei:registrationID>"
        f"<ei:venID>{ven_id}</ei:venID><ei:vtnID>{VTN_ID}</ei:vtnID><oadr:oadrProfiles><oadr:oadrProfile>"
        "<oadr:oadrProfileName>2.0b</oadr:oadrProfileName><oadr:oadrTransports><oadr:oadrTransport>"
        "<oadr:oadrTransportName>simpleHttp</oadr:oadrTransportName></oadr:oadrTransport></oadr:oadrTransports>"
        "</oadr:oadrProfile></oadr:oadrProfiles><oadr:oadrRequestedOadrPollFreq><xcal:duration>PT1S</xcal:duration>"
        "</oadr:oadrRequestedOadrPollFreq></oadr:oadrCreatedPartyRegistration>"
    )


def sent(*events: str) -> str:
    """Return a list of events."""
    return distribute(*events, vtn_id=VTN_ID).decode()


def report_request(name: str, specifier: str, point: str, every: str = "PT10S", back: str = "PT10S") -> str:
    """Return the part of a message that asks for a report of a data point."""
    return (
        f"<oadr:oadrReportRequest><ei:reportRequestID>{name}</ei:reportRequestID><ei:reportSpecifier>"
        f"<ei:reportSpecifierID>{specifier}</ei:reportSpecifierID><xcal:granularity><xcal:duration>{every}"
        f"</xcal:duration></xcal:granularity><ei:reportBackDuration><xcal:duration>{back}</xcal:duration>"
        f"</ei:reportBackDuration><ei:specifierPayload><ei:rID>{point}</ei:rID><ei:readingType>Direct Read"
        "</ei:readingType></ei:specifierPayload></ei:reportSpecifier></oadr:oadrReportRequest>"
    )


def create_report(*requests: str) -> str:
    """Return a message that asks for reports."""
    return payload(
        f"<oadr:oadrCreateReport><pyld:requestID>r1</pyld:requestID>{''.join(requests)}<ei:venID>{VEN_ID}</ei:venID>"
        "</oadr:oadrCreateReport>"
    )


def registered_report(*requests: str) -> str:
    """Return the answer to what reports a VEN offers, which asks for some of them."""
    return payload(
        f"<oadr:oadrRegisteredReport>{eiresponse()}{''.join(requests)}<ei:venID>{VEN_ID}</ei:venID>"
        "</oadr:oadrRegisteredReport>"
    )


def cancel_report(name: str) -> str:
    """Return the message, or the part of one, that ends a report."""
    return (
        f"<oadr:oadrCancelReport><pyld:requestID>r2</pyld:requestID><ei:reportRequestID>{name}</ei:reportRequestID>"
        "<pyld:reportToFollow>false</pyld:reportToFollow></oadr:oadrCancelReport>"
    )


@dataclass
class ScriptedVtn:
    """Answers `script`, each of it once, and then `standing`; None is an answer that is lost on its way."""

    script: dict[str, list[str | None]] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        usual = {
            "oadrQueryRegistration": registered(),
            "oadrCreatePartyRegistration": registered(),
            "oadrRequestEvent": sent(),
            "oadrRegisterReport": registered_report(),
            "oadrUpdateReport": UPDATED,
        }
        self.standing = usual | self.standing

    def answer(self, message: str) -> str | None:
        """Return the answer to a message."""
        found = _KIND.search(message)
        assert found is not None, message
        kind = found.group(1)
        self.asked.append((kind, message))
        next_ = self.script.get(kind)
        return next_.pop(0) if next_ else self.standing.get(kind, NOTHING_NEW)

    def messages(self, kind: str, since: int = 0) -> list[str]:
        """Return what has come of a kind."""
        return [message for found, message in self.asked[since:] if found == kind]

    def count(self, kind: str) -> int:
        """Return how many have come of a kind."""
        return len(self.messages(kind))

    def kinds(self, since: int = 0) -> set[str]:
        """Return which kinds have come."""
        return {kind for kind, _ in self.asked[since:]}
