#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ntp_offset
short_description: Measure the clock's offset from time sources
version_added: 0.1.0
description:
  - Asks every source by one SNTP exchange, all at once, and reports how far the host's clock is off.
  - Needs nothing on the host but Python, so a clock that would make certificates fail is found before anything
    is installed or fetched over TLS.
  - Reads only, unless O(step_above_s) is set.
author: DERMS Edge developers (@derms-edge)
attributes:
  check_mode:
    support: full
    description: The measurement is made in check mode as well; a step is predicted, not made.
  diff_mode:
    support: full
    description: A step is shown as the offset before and after it.
  platform:
    support: full
    platforms: posix
    description: Any POSIX system with IPv4 or IPv6.
options:
  sources:
    description:
      - Host names or addresses to ask.
      - Of a name with several addresses, the first valid answer counts.
    type: list
    elements: str
    required: true
  timeout_s:
    description: How long to wait for all answers together, name lookups included.
    type: float
    default: 3.0
  port:
    description: UDP port of the sources.
    type: int
    default: 123
  controller_epoch_s:
    description:
      - The control node's clock when the task was sent, in seconds since 1970.
      - A coarse stand-in where no source answers. The time it took to reach the host is part of the result.
    type: float
  step_above_s:
    description:
      - Set the clock right where its offset is larger than this. Without it nothing is changed.
      - Only a majority of the sources that answered, agreeing within O(agreement_s), moves the clock; the control
        node's clock never does.
    type: float
  agreement_s:
    description: How far a source may be from the median and still agree with it.
    type: float
    default: 1.0
"""

EXAMPLES = r"""
- name: Measure the clock's offset
  derms.edge.ntp_offset:
    sources: [ntp1.depot.example, ntp2.depot.example]
    controller_epoch_s: "{{ now().timestamp() }}"
  register: clock

- name: Set a clock right that is more than a minute off
  derms.edge.ntp_offset:
    sources: [ntp1.depot.example, ntp2.depot.example, ntp3.depot.example]
    step_above_s: 60
"""

RETURN = r"""
offset_s:
  description:
    - Median of the answers; positive where the host's clock is slow.
    - What was measured, also where the clock was then set right; V(null) where no source answered.
  returned: always
  type: float
  sample: 0.0021
agreeing:
  description: Whether more than half of the sources that answered lie within O(agreement_s) of the median.
  returned: always
  type: bool
controller_offset_s:
  description: The control node's clock minus the host's, or V(null) without O(controller_epoch_s).
  returned: always
  type: float
  sample: -0.4
sources:
  description: What each source answered, in the order asked.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description: The source as it was given.
      type: str
    reachable:
      description: Whether a valid answer came.
      type: bool
    offset_s:
      description: The source's clock minus the host's.
      type: float
    delay_s:
      description: Round trip without the source's own processing.
      type: float
    stratum:
      description: Hops between the source and its reference clock; 1 is attached to it.
      type: int
    error:
      description: Why there is no answer, or V(null).
      type: str
drift:
  description: The offset as what, is and should_be, where it is larger than O(step_above_s).
  returned: when O(step_above_s) is set
  type: list
  elements: dict
notes:
  description: That no source answered, and what then stands in.
  returned: when no source answered
  type: list
  elements: str
"""

import os
import queue
import select
import socket
import struct
import threading
import time
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule

NTP_TO_UNIX_S = 2208988800  # 1900-01-01 to 1970-01-01
ERA_S = 1 << 32
PACKET = struct.Struct("!BBbb11I")  # RFC 5905, figure 8, without extensions
CLIENT_REQUEST = (4 << 3) | 3  # version 4, mode client
SERVER_MODE = 4
UNSYNCHRONISED_LEAP = 3
UNSYNCHRONISED_STRATUM = 16
ADDRESSES_PER_SOURCE = 4


@dataclass(frozen=True)
class Reply:
    """What a source answered, or why it did not."""

    address: str
    reachable: bool = False
    offset_s: Optional[float] = None
    delay_s: Optional[float] = None
    stratum: Optional[int] = None
    error: Optional[str] = None


class AnswerError(ValueError):
    """A packet that came but tells no time."""


def request(cookie: bytes) -> bytes:
    """Give a client's packet; its transmit time is a random cookie, so only who has seen it can answer."""
    return bytes([CLIENT_REQUEST]) + bytes(39) + cookie


def unix_s(seconds: int, fraction: int, near_s: float) -> float:
    """Give an NTP timestamp in Unix time, in the era nearest to the host's own clock (era 1 starts in 2036)."""
    stamp_s = seconds - NTP_TO_UNIX_S
    return float(stamp_s + round((near_s - stamp_s) / ERA_S) * ERA_S) + fraction / ERA_S


def offset_and_delay(sent_s: float, received_s: float, answered_s: float, returned_s: float) -> tuple[float, float]:
    """Give offset and round trip from the four times of an exchange (RFC 5905, section 8)."""
    offset_s = ((received_s - sent_s) + (answered_s - returned_s)) / 2
    delay_s = (returned_s - sent_s) - (answered_s - received_s)
    return offset_s, delay_s


def read_answer(packet: bytes, cookie: bytes, sent_s: float, returned_s: float) -> tuple[float, float, int]:
    """Give offset, delay and stratum of a server's packet, or say why it tells no time."""
    if len(packet) < PACKET.size:
        raise AnswerError(f"answer of {len(packet)} bytes")
    if packet[24:32] != cookie:
        raise AnswerError("answer to another request")
    flags, stratum, _poll, _precision, *words = PACKET.unpack(packet[: PACKET.size])
    if flags & 7 != SERVER_MODE:
        raise AnswerError(f"answer in mode {flags & 7}, not that of a server")
    if stratum == 0:
        code = packet[12:16].decode("ascii", "replace").rstrip("\0")
        raise AnswerError(f"refused by the source ({code})")
    if flags >> 6 == UNSYNCHRONISED_LEAP or stratum >= UNSYNCHRONISED_STRATUM:
        raise AnswerError("the source is itself not synchronised")
    if words[9:11] == [0, 0]:
        raise AnswerError("answer without a time")
    received_s = unix_s(words[7], words[8], sent_s)
    answered_s = unix_s(words[9], words[10], sent_s)
    offset_s, delay_s = offset_and_delay(sent_s, received_s, answered_s, returned_s)
    return offset_s, delay_s, stratum


def overall_offset_s(replies: list[Reply]) -> Optional[float]:
    """Give the median offset of the sources that answered."""
    offsets_s = [reply.offset_s for reply in replies if reply.offset_s is not None]
    return median(offsets_s) if offsets_s else None


def is_agreeing(replies: list[Reply], agreement_s: float) -> bool:
    """Say whether more than half of the sources that answered lie near their median."""
    middle_s = overall_offset_s(replies)
    if middle_s is None:
        return False
    near = [abs(reply.offset_s - middle_s) <= agreement_s for reply in replies if reply.offset_s is not None]
    return 2 * sum(near) > len(near)


def drift_of(offset_s: Optional[float], limit_s: float) -> list[dict[str, str]]:
    """Name the offset where it is larger than the limit."""
    if offset_s is None or abs(offset_s) <= limit_s:
        return []
    return [{"what": "clock offset", "is": f"{offset_s:+.3f} s", "should_be": f"at most {limit_s:g} s"}]


def notes_of(replies: list[Reply], controller_offset_s: Optional[float]) -> list[str]:
    """Say that no source answered, where none did."""
    if any(reply.reachable for reply in replies):
        return []
    reasons = "; ".join(f"{reply.address}: {reply.error}" for reply in replies) or "none is declared"
    stand_in = ""
    if controller_offset_s is not None:
        stand_in = f"; by the control node's clock the offset is about {controller_offset_s:+.1f} s"
    return [f"no time source answered ({reasons}){stand_in}"]


def open_sockets(address: str, port: int) -> list[socket.socket]:
    """Give a connected UDP socket for each address of a source that has a route."""
    sockets: list[socket.socket] = []
    refused: Optional[OSError] = None
    found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
    for family, kind, protocol, _name, target in found[:ADDRESSES_PER_SOURCE]:
        channel = socket.socket(family, kind, protocol)
        try:
            channel.connect(target)
        except OSError as error:  # no route in this family; another address may have one
            refused = error
            channel.close()
        else:
            sockets.append(channel)
    if not sockets and refused is not None:
        raise refused
    return sockets


def reply_on(channel: socket.socket, address: str, cookie: bytes, sent_s: float, started_s: float) -> Reply:
    """Read the packet that has come on a socket."""
    try:
        packet = channel.recv(512)
        # Elapsed time is read from the monotonic clock: the wall clock may be stepped in between.
        returned_s = sent_s + time.monotonic() - started_s
        return Reply(address, True, *read_answer(packet, cookie, sent_s, returned_s))
    except AnswerError as error:
        return Reply(address, error=str(error))
    except OSError as error:
        return Reply(address, error=error.strerror)


def exchange(address: str, port: int, deadline_s: float) -> Reply:
    """Ask one source and give the first valid answer of its addresses."""
    sockets = open_sockets(address, port)
    cookie = os.urandom(8)
    reply = Reply(address, error="no answer")
    try:
        sent_s, started_s = time.time(), time.monotonic()
        for channel in sockets:
            channel.send(request(cookie))
        waiting = list(sockets)
        while waiting and not reply.reachable and (left_s := deadline_s - time.monotonic()) > 0:
            for channel in select.select(waiting, [], [], left_s)[0]:
                reply = reply_on(channel, address, cookie, sent_s, started_s)
                if reply.reachable:
                    break
                waiting.remove(channel)
        return reply
    finally:
        for channel in sockets:
            channel.close()


def ask(index: int, address: str, port: int, deadline_s: float, replies: queue.Queue[tuple[int, Reply]]) -> None:
    """Put one source's reply, or what went wrong, into the queue."""
    try:
        reply = exchange(address, port, deadline_s)
    except OSError as error:
        reply = Reply(address, error=error.strerror or str(error))
    replies.put((index, reply))


def ask_all(addresses: list[str], port: int, timeout_s: float) -> list[Reply]:
    """Ask all sources at once; one that is still being looked up at the deadline has not answered."""
    deadline_s = time.monotonic() + timeout_s
    outcome = [Reply(address, error="no answer in time") for address in addresses]
    replies: queue.Queue[tuple[int, Reply]] = queue.Queue()
    for index, address in enumerate(addresses):
        # A name lookup cannot be cut short, but as a daemon its thread keeps nobody waiting.
        threading.Thread(target=ask, args=(index, address, port, deadline_s, replies), daemon=True).start()
    for _address in addresses:
        try:
            index, reply = replies.get(timeout=max(0.0, deadline_s + 0.1 - time.monotonic()))
        except queue.Empty:
            break
        outcome[index] = reply
    return outcome


def rounded(reply: Reply) -> dict[str, Any]:
    """Give a reply for the result; a microsecond is finer than one exchange can tell."""
    if reply.offset_s is None or reply.delay_s is None:
        return asdict(reply)
    return asdict(replace(reply, offset_s=round(reply.offset_s, 6), delay_s=round(reply.delay_s, 6)))


def step(module: AnsibleModule, offset_s: float) -> None:
    """Move the host's clock by the offset."""
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + offset_s)
    except OSError as error:
        module.fail_json(
            msg=f"The clock is {offset_s:+.3f} s off and could not be set: {error.strerror}.", offset_s=offset_s
        )


def main() -> None:
    """Measure, and step where that was asked for."""
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "list", "elements": "str", "required": True},
            "timeout_s": {"type": "float", "default": 3.0},
            "port": {"type": "int", "default": 123},
            "controller_epoch_s": {"type": "float"},
            "step_above_s": {"type": "float"},
            "agreement_s": {"type": "float", "default": 1.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    # First of all: what comes before it would count as offset.
    controller_offset_s = None
    if params["controller_epoch_s"] is not None:
        controller_offset_s = round(params["controller_epoch_s"] - time.time(), 3)

    replies = ask_all(params["sources"], params["port"], params["timeout_s"])
    offset_s = overall_offset_s(replies)
    agreeing = is_agreeing(replies, params["agreement_s"])
    result: dict[str, Any] = {
        "changed": False,
        "offset_s": None if offset_s is None else round(offset_s, 6),
        "agreeing": agreeing,
        "controller_offset_s": controller_offset_s,
        "sources": [rounded(reply) for reply in replies],
    }
    notes = notes_of(replies, controller_offset_s)
    if notes:
        result["notes"] = notes

    limit_s = params["step_above_s"]
    if limit_s is not None:
        result["drift"] = drift_of(offset_s, limit_s)
    if offset_s is not None and result.get("drift"):
        if not agreeing:
            module.fail_json(**{**result, "msg": "The time sources disagree; the clock is not set by any of them."})
        result["changed"] = True
        result["diff"] = {"before": f"offset {offset_s:+.3f} s\n", "after": "offset 0 s\n"}
        if not module.check_mode:
            step(module, offset_s)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
