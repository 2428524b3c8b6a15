# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping

import pytest

from derms_agent.depot.bus_budget import Unit, budget, refresh_s
from derms_agent.model import Bus, Transport
from derms_agent.profiles import Profile


def line(baud_rate: int | None, **fields: float) -> Bus:
    timeout_s = fields.get("timeout_s", 1.0)
    delay_between_s = fields.get("delay_between_s", 0.0)
    return Bus(
        name="line",
        gateway="g",
        transport=Transport.RTU_OVER_TCP if baud_rate else Transport.TCP,
        host="h",
        baud_rate=baud_rate,
        timeout_s=timeout_s,
        delay_between_s=delay_between_s,
    )


@pytest.mark.parametrize(("baud_rate", "fitting"), [(9600, 8), (19200, 15), (115200, 29)])
def test_as_many_units_of_ten_registers_fit_as_were_measured(
    profiles: Mapping[str, Profile], baud_rate: int, fitting: int
) -> None:
    units = [Unit(profiles["wallbox"], 1)] * fitting
    enough = budget(line(baud_rate), units)
    assert enough is not None
    assert enough.sweep_s <= 0.495
    assert enough.fitting == fitting
    one_more = budget(line(baud_rate), [*units, units[0]])
    assert one_more is not None
    assert one_more.sweep_s > 0.495


def test_fifty_chargers_on_one_line_take_what_the_facts_say(profiles: Mapping[str, Profile]) -> None:
    taken = [budget(line(baud_rate), [Unit(profiles["wallbox"], 1)] * 50) for baud_rate in (9600, 19200, 115200)]
    assert [round(one.sweep_s, 2) for one in taken if one] == [2.79, 1.65, 0.83]


def test_a_shed_is_a_write_for_each_evse_and_the_read_before_it(profiles: Mapping[str, Profile]) -> None:
    taken = budget(line(19200), [Unit(profiles["wallbox"], 1)] * 8)
    assert taken is not None
    # A write of one register: 8 bytes there, 8 back, two silences of 3.5 characters, 10 ms; 23 * 11 / 19200 + 0.01.
    assert taken.shed_s == pytest.approx(0.0329 + 8 * (23 * 11 / 19200 + 0.010), abs=0.0002)


def test_a_pause_between_transactions_and_more_connectors_cost_time(profiles: Mapping[str, Profile]) -> None:
    plain = budget(line(19200), [Unit(profiles["wallbox"], 1)])
    slow = budget(line(19200, delay_between_s=0.1), [Unit(profiles["wallbox"], 1)])
    one, two = (budget(line(19200), [Unit(profiles["cabinet"], evses)]) for evses in (1, 2))
    assert plain
    assert slow
    assert one
    assert two
    assert slow.sweep_s == pytest.approx(plain.sweep_s + 0.1)
    assert two.sweep_s == pytest.approx(2 * one.sweep_s)


def test_a_bus_without_a_serial_line_has_no_budget(profiles: Mapping[str, Profile]) -> None:
    assert budget(line(None), [Unit(profiles["wallbox"], 1)] * 200) is None
    assert refresh_s(line(None, timeout_s=2), [Unit(profiles["wallbox"], 1)] * 200) == 3
    assert budget(line(9600), []) is None


def test_a_refresh_waits_for_all_others(profiles: Mapping[str, Profile]) -> None:
    one, many = (refresh_s(line(9600), [Unit(profiles["wallbox"], 1)] * count) for count in (1, 100))
    write_s = 23 * 11 / 9600 + 0.010
    assert many - one == pytest.approx(99 * write_s)
    # Where any request feeds the watchdog, a whole sweep may go before it.
    swept, alone = (refresh_s(line(9600), [Unit(profiles["cabinet"], 1)] * count) for count in (10, 1))
    taken = budget(line(9600), [Unit(profiles["cabinet"], 1)])
    assert taken
    assert swept - alone == pytest.approx(9 * taken.sweep_s)
