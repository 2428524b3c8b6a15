# SPDX-License-Identifier: Apache-2.0
"""The module openadr_ven: from what the VEN is declared to be, and what it is, to what the grid gateway is asked for.

What is to be done is worked out first, and the same way in check mode; only then is it asked for, one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from derms_agent.device_state.calls import Unusable
from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.reports import STATUS
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError

REGISTERED, REGISTERING, ABSENT = "registered", "registering", "absent"
TERMS = ("reports", "market_contexts", "resources")
ANSWER_S = 60.0
"""A verb waits for the VTN, which may take its time."""
_LOOK_S = 0.2
_SAME_S = 0.001
_LONGEST_S = 366 * 86400.0
_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OptTime:
    """A time in which the depot takes part, or does not."""

    name: str
    opt: str
    start_unix_s: float
    duration_s: float
    market_context: str | None = None

    def same(self, other: OptTime | None) -> bool:
        """Whether the VTN would be told the same of both."""
        return (
            other is not None
            and (self.opt, self.market_context) == (other.opt, other.market_context)
            and abs(self.start_unix_s - other.start_unix_s) < _SAME_S
            and self.duration_s == other.duration_s
        )

    def __str__(self) -> str:
        """Return it in words."""
        context = "" if self.market_context is None else f" for {self.market_context}"
        return f"{self.name}: {self.opt} from {iso8601.time_text(self.start_unix_s)} for {self.duration_s:g} s{context}"

    def json(self) -> dict[str, Any]:
        """Return it as the module's option has it."""
        return {
            "name": self.name,
            "opt": self.opt,
            "start": iso8601.time_text(self.start_unix_s),
            "duration_s": self.duration_s,
            "market_context": self.market_context,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the VEN is to be. A term that is None is the depot file's; `opts` None: left as they are."""

    state: str
    reports: tuple[str, ...] | None = None
    market_contexts: tuple[str, ...] | None = None
    resources: Mapping[str, str] | None = None
    opts: tuple[OptTime, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A verb of the grid gateway's socket, and the messages that it sends to the VTN, in words."""

    verb: str
    arguments: Mapping[str, Any]
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ven:
    """What the VEN is, or is to be."""

    state: str
    terms: Mapping[str, Any]
    opts: tuple[OptTime, ...]

    def json(self) -> dict[str, Any]:
        """Return it as the module does."""
        return {"state": self.state, **self.terms, "opts": [one.json() for one in self.opts]}


# Pure


def found(status: Mapping[str, Any], now_unix_s: float) -> Ven:
    """Return what the VEN is, from the grid gateway's status; times that are over are none."""
    away = ABSENT if status["absent"] else REGISTERING
    opts = tuple(
        OptTime(
            name=one["name"],
            opt=one["opt"].removeprefix("opt").lower(),
            start_unix_s=window["start_unix_s"],
            duration_s=window["duration_s"],
            market_context=one["market_context"],
        )
        for one in status["opts"]
        for window in one["times"]
        if window["start_unix_s"] + window["duration_s"] > now_unix_s
    )
    return Ven(REGISTERED if status["registered"] else away, _sorted(status["terms"]), _by_name(opts))


def wanted(declared: Declared, is_now: Ven, status: Mapping[str, Any], now_unix_s: float) -> Ven:
    """Return what the VEN is to be; whoever is to be absent is declared nothing else of."""
    if declared.state == ABSENT:
        return Ven(ABSENT, is_now.terms, is_now.opts)
    said = {name: getattr(declared, name) for name in TERMS}
    terms = {name: status["terms_by_file"][name] if value is None else value for name, value in said.items()}
    opts = is_now.opts
    if declared.opts is not None:
        opts = tuple(one for one in declared.opts if one.start_unix_s + one.duration_s > now_unix_s)
    return Ven(REGISTERED, _sorted(terms), _by_name(opts))


def planned(declared: Declared, is_now: Ven, to_be: Ven) -> Iterator[Step]:
    """Yield what the grid gateway is to be asked for, in this order."""
    if to_be.state == ABSENT:
        if is_now.state != ABSENT:
            known = is_now.state == REGISTERED
            yield Step("registration.cancel", {}, ("oadrCancelPartyRegistration",) if known else ())
        return
    if is_now.terms != to_be.terms:
        said = {name: getattr(declared, name) for name in TERMS}
        offered = is_now.state == REGISTERED and _reported(is_now.terms) != _reported(to_be.terms)
        yield Step("terms.put", {k: v for k, v in said.items() if v is not None}, _offer(to_be) if offered else ())
    if is_now.state == ABSENT:
        asked = ("oadrQueryRegistration", "oadrCreatePartyRegistration")
        yield Step("registration.create", {}, (*asked, *_offer(to_be)))
    yield from _opt_steps({one.name: one for one in is_now.opts}, {one.name: one for one in to_be.opts})


def _opt_steps(before: Mapping[str, OptTime], after: Mapping[str, OptTime]) -> Iterator[Step]:
    for name, one in after.items():
        if one.same(before.get(name)):
            continue
        if name in before:
            yield _cancelled(name)
        arguments = {key: value for key, value in one.json().items() if value is not None}
        yield Step("opt.create", arguments, (f"oadrCreateOpt {one}",))
    # Last, so that a time which only got another name is opted for throughout.
    for name in [one for one in before if one not in after]:
        yield _cancelled(name)


def _cancelled(name: str) -> Step:
    return Step("opt.cancel", {"name": name}, (f"oadrCancelOpt {name}",))


def _reported(terms: Mapping[str, Any]) -> set[str]:
    """Return what the VTN is offered: the reports, and in that of statuses one of each resource."""
    return {*terms["reports"], *(terms["resources"] if STATUS in terms["reports"] else ())}


def _offer(to_be: Ven) -> tuple[str, ...]:
    names = ", ".join(f"METADATA_{name}" for name in to_be.terms["reports"])
    return (f"oadrRegisterReport {names or 'with none'}",)


def _sorted(terms: Mapping[str, Any]) -> dict[str, Any]:
    lists = {name: sorted(terms[name]) for name in ("reports", "market_contexts")}
    return {**lists, "resources": dict(sorted(terms["resources"].items()))}


def _by_name(opts: Sequence[OptTime]) -> tuple[OptTime, ...]:
    return tuple(sorted(opts, key=lambda one: one.name))


# The shell


def converged(
    *,
    socket: Path,
    state: str,
    check: bool,
    timeout_s: float,
    vtn_url: str | None = None,
    reports: Sequence[str] | None = None,
    market_contexts: Sequence[str] | None = None,
    resources: Mapping[str, str] | None = None,
    opts: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Bring the VEN to what it is declared to be, and return what it was, is and what was sent, as plain JSON.

    `unanswered` says why nothing was done; `problem` what went wrong after a part of it, or could not be seen to.

    :param check: do nothing, and return what would be
    :param timeout_s: for how long the registration is waited for
    :raises Unusable: what is declared cannot be; nothing was sent
    """
    declared = Declared(
        state=state,
        reports=None if reports is None else tuple(dict.fromkeys(reports)),
        market_contexts=_contexts(market_contexts),
        resources=resources,
        opts=None if opts is None else tuple(_opt_time(number, one) for number, one in enumerate(opts)),
    )
    _distinct(declared.opts or ())
    try:
        with Client(socket, ANSWER_S) as client:
            return _converge(client, declared, vtn_url, timeout_s, check=check)
    except NoService as why:
        return {"unanswered": str(why)}
    except ProtocolError as refusal:
        raise Unusable(f"the grid gateway: {refusal}") from refusal


def _converge(
    client: Client, declared: Declared, vtn_url: str | None, timeout_s: float, *, check: bool
) -> dict[str, Any]:
    status = client.ask("status")
    if vtn_url is not None and vtn_url.rstrip("/") != status["vtn"].rstrip("/"):
        raise Unusable(f"vtn_url: found {vtn_url}, expected {status['vtn']}, which VTN_URL of agent.conf names")
    for resource, place in (declared.resources or {}).items():
        if place not in status["places"]:
            expected = ", ".join(status["places"])
            raise Unusable(f"resources.{resource}: found {place}, expected one of {expected}")
    now_unix_s = time.time()
    is_now = found(status, now_unix_s)
    to_be = wanted(declared, is_now, status, now_unix_s)
    steps = tuple(planned(declared, is_now, to_be))
    result: dict[str, Any] = {
        "changed": check and bool(steps),
        "before": is_now.json(),
        "after": to_be.json(),
        "sent": [],
        "problem": "",
    }
    if check:
        result["sent"] = [words for step in steps for words in step.messages]
        if is_now.state == REGISTERING and to_be.state == REGISTERED:
            result["after"]["state"] = REGISTERING  # It does so by itself, or does not.
            result["problem"] = f"the VEN is not registered yet: {status['trouble'] or 'no answer so far'}"
        return result
    for step in steps if is_now.state != REGISTERING else _registered_first(client, steps, timeout_s):
        try:
            client.ask(step.verb, **step.arguments)
        except (ProtocolError, NoService) as why:
            return _ended(client, result, f"{step.verb}: {why}")
        result["changed"] = True
        result["sent"] += step.messages
        if step.verb == "registration.create":
            _await_registration(client, timeout_s)
    return _ended(client, result, "")


def _registered_first(client: Client, steps: Sequence[Step], timeout_s: float) -> Iterator[Step]:
    """Yield what is to be asked for once the VEN is registered, which the service is about to do by itself."""
    for step in steps:
        if step.verb.startswith("opt."):
            _await_registration(client, timeout_s)
        yield step
    if not any(step.verb == "registration.cancel" for step in steps):
        _await_registration(client, timeout_s)


def _await_registration(client: Client, timeout_s: float) -> None:
    """Wait until the VEN is registered, or in vain: what it then is, is looked at in the end."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s and not client.ask("status")["registered"]:
        time.sleep(_LOOK_S)


def _ended(client: Client, result: dict[str, Any], problem: str) -> dict[str, Any]:
    """Return the result with what the VEN is in the end."""
    to_be = result["after"]
    status = client.ask("status")
    result["after"] = found(status, time.time()).json()
    differing = [name for name in to_be if result["after"][name] != to_be[name]]
    if not problem and differing:
        name = differing[0]
        problem = f"{name}: found {result['after'][name]}, expected {to_be[name]}"
        problem += f": {status['trouble']}" if status["trouble"] else ""
    return {**result, "problem": problem}


def _contexts(said: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return each market context once. Raises Unusable."""
    if said is None:
        return None
    return tuple(dict.fromkeys(_text(f"market_contexts[{number}]", one) for number, one in enumerate(said)))


def _opt_time(number: int, said: Mapping[str, Any]) -> OptTime:
    """Return a time that is declared. Raises Unusable."""
    where = f"opts[{number}]"
    try:
        start = datetime.fromisoformat(str(said["start"]).replace("Z", "+00:00"))
    except ValueError:
        start = None
    if start is None or start.tzinfo is None or not 0.0 <= start.timestamp() <= iso8601.LATEST_UNIX_S:
        raise Unusable(f"{where}.start: found {said['start']}, expected a time with its zone, as 2026-12-24T18:00:00Z")
    duration_s, context = float(said["duration_s"]), said.get("market_context")
    if not 1.0 <= duration_s <= _LONGEST_S:
        raise Unusable(f"{where}.duration_s: found {duration_s:g}, expected 1 to {_LONGEST_S:g}")
    return OptTime(
        name=_text(f"{where}.name", said["name"]),
        opt=said["opt"],
        start_unix_s=start.timestamp(),
        duration_s=duration_s,
        market_context=None if context is None else _text(f"{where}.market_context", context),
    )


def _text(where: str, found: str) -> str:
    """Return a text as the socket takes them. Raises Unusable."""
    if not found or len(found) > _LONGEST_TEXT or not found.isprintable():
        raise Unusable(f"{where}: found {found!r}, expected a printable text of 1 to {_LONGEST_TEXT} characters")
    return found


def _distinct(opts: Sequence[OptTime]) -> None:
    names = [one.name for one in opts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Unusable(f"opts: found {twice} twice, expected each name once")
