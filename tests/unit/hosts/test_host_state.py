# SPDX-License-Identifier: GPL-3.0-or-later
"""What `up` does about a host, from what is known of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hosts.addresses import address_of
from tests.hosts.host import Options, Record, Step, Wanted, next_step, with_names
from tests.hosts.settings import settings_from
from tests.hosts.ssh import known_host_lines

BASE = "/bases/rhel9-0123456789ab"
WANTED = Wanted(platform="rhel9", base=BASE, options=Options(), fresh=False)
RECORD = Record(
    platform="rhel9",
    base=BASE,
    options=Options(),
    boot_id="b",
    pid=7,
    started_ticks=9,
    groups=("/sys/fs/cgroup/derms-gw1",),
)
GW1, GW2 = address_of(settings_from({}), 11), address_of(settings_from({}), 12)


def test_a_host_that_answers_is_left_alone() -> None:
    assert next_step(WANTED, RECORD, alive=True, answers=True) is Step.KEEP


def test_a_host_that_never_was_is_made() -> None:
    assert next_step(WANTED, None, alive=False, answers=False) is Step.REPLACE


@pytest.mark.parametrize("alive", [True, False], ids=["locked everybody out", "killed, or the machine rebooted"])
def test_a_host_that_does_not_answer_is_started_again_on_its_disk(alive: bool) -> None:
    assert next_step(WANTED, RECORD, alive=alive, answers=False) is Step.RESTART


def test_a_disk_is_thrown_away_on_demand() -> None:
    assert next_step(replace(WANTED, fresh=True), RECORD, alive=True, answers=True) is Step.REPLACE


@pytest.mark.parametrize(
    "record",
    [replace(RECORD, platform="ubuntu2204"), replace(RECORD, base="/bases/rhel9-ba9876543210")],
    ids=["another platform", "an older recipe"],
)
def test_a_disk_is_of_no_use_on_another_base(record: Record) -> None:
    assert next_step(WANTED, record, alive=True, answers=True) is Step.REPLACE


def test_a_host_that_shall_be_otherwise_is_started_again() -> None:
    wanted = replace(WANTED, options=Options(udev=True))
    assert next_step(wanted, RECORD, alive=True, answers=True) is Step.RESTART


def test_names_are_added_to_hosts_once_and_nothing_else_is_touched() -> None:
    before = "127.0.0.1 localhost # gw2\n10.213.8.11 gw1\n"
    after = with_names(before, {"gw1": GW1, "gw2": GW2})
    assert after == before + "10.213.8.12 gw2\nfd42:213:8::12 gw2\n"
    assert with_names(after, {"gw1": GW1, "gw2": GW2}) == after


def test_known_hosts_names_the_host_by_name_and_by_both_addresses() -> None:
    line = known_host_lines("gw1", GW1, "ssh-ed25519 AAAA root@nowhere\n")
    assert line == "gw1,10.213.8.11,fd42:213:8::11 ssh-ed25519 AAAA\n"
