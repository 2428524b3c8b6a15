# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.derms.edge.plugins.module_utils.boot_parameters import (
    assignments,
    comparable,
    expanded_names,
    last_words,
    overriding,
    parameter_name,
    parameter_path,
    reading_order,
    rendered,
    without_lines,
)
from ansible_collections.derms.edge.plugins.modules import kernel_parameters
from ansible_collections.derms.edge.plugins.modules.kernel_parameters import (
    RefusalError,
    Running,
    boot_drift,
    overrides,
    refuse_contradictions,
    running_plan,
)
from hypothesis import given
from hypothesis import strategies as st

OURS = "/etc/sysctl.d/90-derms.conf"
LATER = "/etc/sysctl.d/99-sysctl.conf"
EARLIER = "/usr/lib/sysctl.d/50-default.conf"
COOKIES = "net.ipv4.tcp_syncookies"
FILTER = "net.ipv4.conf.*.rp_filter"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.core.rmem_max", "net/core/rmem_max"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_the_first_separator_decides(name: str, path: str) -> None:
    assert parameter_path(name) == path
    assert parameter_path(parameter_name(path)) == path


@given(
    st.sampled_from(["net", "kernel"]),
    st.lists(st.text(alphabet="abc_*.0", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_paths_have_names_and_back(first: str, others: list[str]) -> None:
    path = "/".join([first, *others])
    assert parameter_path(path) == path
    assert parameter_name(parameter_name(path)) == path


@pytest.mark.parametrize(
    ("one", "other"),
    [("4096\t131072\t6291456", "4096 131072  6291456"), ("1\n", " 01"), ("cubic", "cubic "), ("-1", "-1")],
)
def test_values_that_mean_the_same_are_equal(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


@given(st.text(alphabet="0123456789 \t-ab", max_size=12))
def test_comparing_is_settled_after_one_step(value: str) -> None:
    assert comparable(comparable(value)) == comparable(value)


def test_lines_of_sysctl_d_are_read_as_systemd_reads_them() -> None:
    text = "# a = 1\n; b = 1\n\n-net.core.rmem_max=1\n net/ipv4/tcp_syncookies =  0 \n-net.ipv4.conf.all.rp_filter\n"
    assert [(one.name, one.value, one.number) for one in assignments("/x", text)] == [
        ("net.core.rmem_max", "1", 4),
        (COOKIES, "0", 5),
    ]


def test_files_are_read_by_name_and_etc_hides_its_namesakes() -> None:
    paths = [EARLIER, "/etc/sysctl.d/50-default.conf", "/run/sysctl.d/95-x.conf", OURS]
    assert reading_order(paths) == ["/etc/sysctl.d/50-default.conf", OURS, "/run/sysctl.d/95-x.conf"]


def test_the_last_word_counts() -> None:
    texts = {EARLIER: f"{COOKIES} = 0\n", OURS: f"{COOKIES} = 1\n", LATER: "x.y = 1\n"}
    assert last_words(texts)[COOKIES].path == OURS
    assert overriding(COOKIES, "1", OURS, texts) == []


def test_a_later_file_wins_and_is_named() -> None:
    texts = {OURS: f"{COOKIES} = 1\n", LATER: f"# x\n{COOKIES}=0\n"}
    (one,) = overriding(COOKIES, "1", OURS, texts)
    assert (one.path, one.number, one.value) == (LATER, 2, "0")
    assert boot_drift({COOKIES: "1"}, OURS, texts) == [
        {"what": f"{COOKIES} (boot)", "is": f"0 ({LATER}:2)", "should_be": "1"}
    ]


def test_a_later_file_that_agrees_is_left_alone() -> None:
    assert overriding(COOKIES, "1", OURS, {OURS: f"{COOKIES} = 1\n", LATER: f"{COOKIES}=01\n"}) == []


def test_a_plain_name_wins_over_a_pattern_wherever_it_stands() -> None:
    texts = {EARLIER: "net.ipv4.conf.eth0.rp_filter = 2\n", OURS: rendered([{"name": FILTER, "value": "1"}], "x")}
    (one,) = overriding(FILTER, "1", OURS, texts)
    assert one.path == EARLIER
    (named,) = boot_drift(dict.fromkeys(expanded_names(FILTER), "1"), OURS, texts)
    assert named["what"] == "net.ipv4.conf.eth0.rp_filter (boot)"


def test_a_pattern_is_written_with_the_names_that_distributions_set() -> None:
    assert expanded_names(FILTER) == ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter", FILTER]


def test_the_rendered_file_says_what_was_declared_and_why() -> None:
    text = rendered(
        [{"name": COOKIES, "value": "1", "reason": "floods\n  do not shut out", "source": "CIS"}], "heading"
    )
    assert text == f"# heading\n\n# floods do not shut out\n# CIS\n{COOKIES} = 1\n"
    assert {one.name: one.value for one in assignments(OURS, text)} == {COOKIES: "1"}


def test_an_overriding_line_becomes_a_comment() -> None:
    text = without_lines("a = 1\nb = 2\n", [2], "why")
    assert text == "a = 1\n# why: b = 2\n"
    assert [one.name for one in assignments("/x", text)] == ["a"]


def test_what_our_file_sets_beyond_the_declared_is_drift() -> None:
    texts = {OURS: f"{COOKIES} = 1\nkernel.sysrq = 1\n"}
    assert boot_drift({COOKIES: "1"}, OURS, texts) == [
        {"what": "kernel.sysrq (boot)", "is": "1", "should_be": "not set"}
    ]


def test_our_file_as_it_is_to_be_decides_what_still_overrides() -> None:
    wanted = {COOKIES: "1"}
    assert [one.path for one in overrides(wanted, OURS, {OURS: f"{COOKIES} = 1\n", LATER: f"{COOKIES} = 0\n"})] == [
        LATER
    ]


def running(value: str | None, *, writable: bool, skip: bool = False) -> Running:
    return Running(COOKIES, "1", value, writable, skip)


def test_a_running_value_that_can_be_written_is_drift() -> None:
    plan = running_plan([running("0", writable=True)], container=True)
    assert plan.drift == [{"what": f"{COOKIES} (running)", "is": "0", "should_be": "1"}]
    assert not plan.held_by_host


@pytest.mark.parametrize(("value", "said"), [("0", "0"), (None, "not known")])
def test_what_a_container_cannot_write_is_the_hosts_and_no_drift(value: str | None, said: str) -> None:
    plan = running_plan([running(value, writable=False)], container=True)
    assert plan.held_by_host == [{"name": COOKIES, "is": said, "should_be": "1"}]
    assert not plan.drift
    assert not plan.impossible
    assert len(plan.notes()) == 1


@pytest.mark.parametrize("value", ["0", None])
def test_on_a_kernel_of_its_own_the_same_is_a_failure(value: str | None) -> None:
    plan = running_plan([running(value, writable=False)], container=False)
    assert len(plan.impossible) == 1


def test_what_may_be_missing_is_a_note() -> None:
    plan = running_plan([running(None, writable=False, skip=True)], container=False)
    assert (plan.impossible, plan.drift, len(plan.notes())) == ([], [], 1)


def test_what_is_as_declared_is_nothing_even_where_it_cannot_be_written() -> None:
    plan = running_plan([running("1", writable=False)], container=True)
    assert plan == kernel_parameters.Plan()


@pytest.mark.parametrize(
    ("names", "path"),
    [
        ([COOKIES, COOKIES], OURS),
        (["../etc/passwd"], OURS),
        ([COOKIES], "/etc/derms.conf"),
        ([COOKIES], "/etc/sysctl.d/derms"),
    ],
)
def test_contradictions_are_refused(names: list[str], path: str) -> None:
    with pytest.raises(RefusalError):
        refuse_contradictions([{"name": name} for name in names], path)
