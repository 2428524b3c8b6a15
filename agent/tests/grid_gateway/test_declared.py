# SPDX-License-Identifier: Apache-2.0
"""What the grid gateway is asked for, for any declaration and any VEN: carried out, it makes the one of the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from derms_agent.grid_gateway.declared import Declared, OptTime, Step, Ven, found, planned, wanted
from derms_agent.grid_gateway.signals import Rules
from derms_agent.grid_gateway.terms import REPORTS, Terms, shown

NOW = 1_800_000_000.0
CONTEXTS = ("http://a", "http://b")
BY_FILE = {"reports": list(REPORTS), "market_contexts": ["http://a"], "resources": {"R1": "main"}}

lists = st.lists(st.sampled_from(CONTEXTS), unique=True).map(tuple)
offers = st.lists(st.sampled_from(REPORTS), unique=True).map(tuple)
places = st.dictionaries(st.sampled_from(["R1", "R2"]), st.sampled_from(["main", "site"]))
times = st.builds(
    OptTime,
    name=st.sampled_from("abc"),
    opt=st.sampled_from(["in", "out"]),
    start_unix_s=st.integers(-4000, 4000).map(lambda s: NOW + s),
    duration_s=st.sampled_from([60.0, 3600.0]),
    market_context=st.none() | st.sampled_from(CONTEXTS),
)
schedules = st.lists(times, unique_by=lambda one: one.name).map(tuple)
declarations = st.builds(
    Declared,
    state=st.sampled_from(["registered", "absent"]),
    reports=st.none() | offers,
    market_contexts=st.none() | lists,
    resources=st.none() | places,
    opts=st.none() | schedules,
)


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    """Return what the grid gateway says of a VEN in any state."""
    registered = draw(st.booleans())
    return {
        "registered": registered,
        "absent": not registered and draw(st.booleans()),
        "terms_by_file": BY_FILE,
        "terms": {
            "reports": list(draw(offers)), "market_contexts": list(draw(lists)), "resources": draw(places)
        },
        "opts": [
            {
                "name": one.name,
                "opt": f"opt{one.opt.title()}",
                "times": [{"start_unix_s": one.start_unix_s, "duration_s": one.duration_s}],
                "market_context": one.market_context,
            }
            for one in draw(schedules)
        ],
    }  # fmt: skip


def carried_out(status: dict[str, Any], step: Step) -> dict[str, Any]:
    """Return the status as the grid gateway has it after a verb."""
    opts = [one for one in status["opts"] if one["name"] != step.arguments.get("name")]
    if step.verb == "registration.cancel":
        return {**status, "registered": False, "absent": True}
    if step.verb == "registration.create":
        return {**status, "registered": True, "absent": False}
    if step.verb == "terms.put":
        return {**status, "terms": {**BY_FILE, **step.arguments}}
    assert step.verb in {"opt.cancel", "opt.create"}
    # An id that the VTN has already is not given once more.
    assert (len(opts) < len(status["opts"])) == (step.verb == "opt.cancel")
    if step.verb == "opt.cancel":
        return {**status, "opts": opts}
    made = OptTime(**_read(step.arguments))
    window = {"start_unix_s": made.start_unix_s, "duration_s": made.duration_s}
    told = {
        "name": made.name,
        "opt": f"opt{made.opt.title()}",
        "times": [window],
        "market_context": made.market_context,
    }
    return {**status, "opts": [*opts, told]}


def _read(arguments: Any) -> dict[str, Any]:
    start = datetime.fromisoformat(arguments["start"].replace("Z", "+00:00")).timestamp()
    return {**{k: v for k, v in arguments.items() if k != "start"}, "start_unix_s": start}


def registered(status: dict[str, Any]) -> dict[str, Any]:
    """Return the status once the service has registered by itself, as it does where nobody said otherwise."""
    return status if status["absent"] else {**status, "registered": True}


@given(declarations, statuses())
def test_what_is_planned_makes_of_a_ven_what_is_declared(declared: Declared, status: dict[str, Any]) -> None:
    is_now = found(status, NOW)
    to_be = wanted(declared, is_now, status, NOW)
    steps = tuple(planned(declared, is_now, to_be))
    over = {one["name"] for one in status["opts"]} - {one.name for one in is_now.opts}
    status = {**status, "opts": [one for one in status["opts"] if one["name"] not in over]}
    for step in steps:
        status = carried_out(status, step)
    if declared.state == "registered":
        status = registered(status)
    after = found(status, NOW)
    assert after.json() == to_be.json()
    # And that is all: nothing is asked for twice.
    assert not [*planned(declared, after, wanted(declared, after, status, NOW))]


@given(declarations, statuses())
def test_what_needs_nothing_is_asked_for_nothing(declared: Declared, status: dict[str, Any]) -> None:
    is_now = found(status, NOW)
    if declared.state == is_now.state == "registered":
        as_it_is = replace(
            declared,
            **{name: is_now.terms[name] for name in ("reports", "market_contexts", "resources")},
            opts=is_now.opts,
        )
        assert not [*planned(as_it_is, is_now, wanted(as_it_is, is_now, status, NOW))]


@example(REPORTS, {"R1": "main", "R2": "main"}, REPORTS, {"R2": "main", "R1": "main"})
@given(offers, places, offers, places)
def test_reports_are_said_to_be_offered_where_they_are(
    reports: tuple[str, ...], resources: dict[str, str], after: tuple[str, ...], then: dict[str, str]
) -> None:
    by_file = Rules(ven_id="v", vtn_id="u", site_limit_w=1.0)
    now, new = Terms(reports=reports, resources=resources), Terms(reports=after, resources=then)
    is_now, to_be = (Ven("registered", shown(one, by_file), ()) for one in (now, new))
    declared = Declared(state="registered", reports=after, resources=then)
    said = [message for step in planned(declared, is_now, to_be) for message in step.messages]

    assert any("oadrRegisterReport" in message for message in said) is (now.offers(by_file) != new.offers(by_file))


def test_a_changed_name_leaves_no_gap() -> None:
    before = OptTime(name="a", opt="out", start_unix_s=NOW, duration_s=60.0)
    ven = Ven("registered", {**BY_FILE}, (before,))
    steps = planned(Declared(state="registered"), ven, replace(ven, opts=(replace(before, name="b"),)))
    assert [step.verb for step in steps] == ["opt.create", "opt.cancel"]
