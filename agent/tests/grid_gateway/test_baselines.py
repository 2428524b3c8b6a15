# SPDX-License-Identifier: Apache-2.0
"""An event that asks for something relative to what the site draws, before that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agent.tests.grid_gateway.scripted_vtn import VTN_ID
from agent.tests.grid_gateway.test_promises import Play, an_event
from agent.tests.grid_gateway.vtn_messages import interval, signal

from derms_agent.grid_gateway.control_link import NoControl, NotReady
from derms_agent.grid_gateway.reports import power_w

pytestmark = pytest.mark.anyio
PART = {"state": "normal", "site": {"power_w": None, "metered": True, "evse_power_w": 30_000.0}}
HALF = signal([interval(0.5, "PT3600S")], name="LOAD_DISPATCH", kind="multiplier")


@pytest.fixture
def play(tmp_path: Path) -> Play:
    made = Play(tmp_path)
    made.depot.least_w = 10_000.0  # of base load, of which nothing can be shed
    return made


@pytest.mark.parametrize("start_s", [0, 600])
async def test_an_event_before_the_first_report_of_power_is_judged_by_what_the_site_draws(
    play: Play, start_s: float
) -> None:
    assert await play.take(an_event("half", 2, start_s, 3600, signals=HALF)) == {"half": (200, "optIn")}
    assert {one.high_w for one in play.depot.bounds.values()} == {40_000.0}
    await play.until(900)
    assert play.held_to() == [("half", 40_000.0)]


@pytest.mark.parametrize("start_s", [0, 600])
@pytest.mark.parametrize("restart", [False, True])
async def test_an_event_that_nothing_is_known_for_is_opted_out_of_with_why_and_judged_again(
    play: Play, start_s: float, restart: bool
) -> None:
    status = play.depot.status

    async def not_ready() -> dict[str, Any]:
        raise NoControl("the first cycle is not over yet")

    play.depot.status = not_ready  # type: ignore[method-assign]
    listed = an_event("half", 2, start_s, 3600, signals=HALF)
    assert await play.take(listed) == {"half": (469, "optOut")}
    refusal = play.ven.state.events[VTN_ID, "half"].refusal
    assert refusal is not None
    assert "the baseline is not known" in refusal.why
    assert play.depot.bounds == {}
    # To list it once more bounds nobody, not for a moment either.
    put_before = len(play.depot.put_at)
    assert await play.take(listed) == {"half": (469, "optOut")}
    assert len(play.depot.put_at) == put_before

    if restart:
        play.renew()
    play.depot.status = status  # type: ignore[method-assign]
    await play.until(10)
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optIn" in answer
    assert {one.high_w for one in play.depot.bounds.values()} == {40_000.0}
    assert await play.take(listed) == {"half": (200, "optIn")}


async def test_an_event_that_needs_no_baseline_asks_for_none(play: Play) -> None:
    async def not_asked() -> dict[str, Any]:
        raise AssertionError

    play.depot.status = not_asked  # type: ignore[method-assign]
    assert await play.take(an_event("mild", 1, 0, 3600)) == {"mild": (200, "optIn")}


async def test_what_the_site_draws_is_known_also_where_the_link_cannot_be_stored(play: Play) -> None:
    async def not_stored(valid_for_s: float) -> None:
        raise NotReady(f"grid.link: not stored ({valid_for_s})")

    play.depot.link = not_stored  # type: ignore[method-assign]
    await play.until(20)
    assert power_w(play.ven._report) == play.ven._baseline() == 80_000.0
    play.depot.down = True
    await play.until(30)
    assert play.ven._report is None


@pytest.mark.parametrize(
    ("site", "evses", "drawn_w"),
    [
        ({"power_w": 5.0, "evse_power_w": 0.0}, [{"power_w": None}], 5.0),
        ({"power_w": None, "evse_power_w": 0.0}, [{"power_w": None}], None),
        ({"power_w": None, "evse_power_w": 7.0}, [{"power_w": 7.0}], 7.0),
        ({"power_w": None, "evse_power_w": 7.0}, [{"power_w": 7.0}, {"power_w": None}], None),
        ({"power_w": None, "evse_power_w": 7.0}, [{"power_w": 7.0}, {"power_w": None, "silent_s": 900.0}], None),
        ({"power_w": None, "evse_power_w": 7.0}, [{"power_w": 7.0}, {"power_w": None, "silent_s": 901.0}], 7.0),
        ({"power_w": None, "evse_power_w": 0.0}, [{"power_w": None, "silent_s": 901.0}], None),
        ({"power_w": None, "metered": True, "evse_power_w": 7.0}, [{"power_w": 7.0}], None),
        ({"power_w": 9.0, "metered": True, "evse_power_w": 7.0}, [{"power_w": 7.0}, {"power_w": None}], 9.0),
        ({"power_w": None, "evse_power_w": None}, [], None),
    ],
)
def test_what_is_known_but_in_part_is_no_power(
    site: dict[str, Any], evses: list[dict[str, Any]], drawn_w: float | None
) -> None:
    assert power_w({"site": site, "evses": evses}) == drawn_w


async def test_a_meter_that_falls_silent_takes_no_part_of_a_baseline_with_it(play: Play) -> None:
    """The EVSEs' sum, which lacks the base load, is another quantity: mixed in, it would prove a shed that was none."""
    status = play.depot.status

    async def stale() -> dict[str, Any]:
        return {**PART, "asks": (await status())["asks"]}

    await play.until(300)
    play.depot.status = stale  # type: ignore[method-assign]
    await play.until(600)
    assert play.ven._baseline() == 80_000.0
    await play.until(1300)  # without an event; what was known is too long ago
    assert play.ven._baseline() is None
    assert await play.take(an_event("half", 2, 0, 3600, signals=HALF)) == {"half": (469, "optOut")}
