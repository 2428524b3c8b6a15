# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.derms.edge.plugins.filter.batches import batches
from hypothesis import given
from hypothesis import strategies as st


def depots(size: int = 1, **depot_of_host: str) -> dict[str, dict[str, Any]]:
    return {host: {"derms_depot": depot, "derms_serial": size} for host, depot in depot_of_host.items()}


def test_both_gateways_of_a_depot_are_never_together() -> None:
    assert batches(["a1", "a2", "b1", "b2"], depots(2, a1="a", a2="a", b1="b", b2="b")) == [1, 2, 1]


def test_a_limited_run_is_cut_anew() -> None:
    assert batches(["c1", "c2"], depots(2, a1="a", c1="c", c2="c")) == [1, 1]


def test_one_at_a_time_unless_told_otherwise() -> None:
    assert batches(["a1", "b1"], {"a1": {"derms_depot": "a"}, "b1": {"derms_depot": "b"}}) == [1, 1]


def test_the_smallest_batch_counts_where_hosts_differ() -> None:
    assert batches(["a1", "b1"], {**depots(5, a1="a"), **depots(1, b1="b")}) == [1, 1]


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 8))
def test_every_host_runs_once_and_no_depot_twice_in_a_batch(depot_of_host: list[str], size: int) -> None:
    hosts = [f"gateway-{index}" for index in range(len(depot_of_host))]
    sizes = batches(hosts, depots(size, **dict(zip(hosts, depot_of_host, strict=True))))
    assert sum(sizes) == max(len(hosts), 1)
    start = 0
    for batch in sizes:
        together = depot_of_host[start : start + batch]
        assert 1 <= batch <= size
        assert len(set(together)) == len(together)
        start += batch


@pytest.mark.parametrize("size", [0, -1, "2", True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(AnsibleFilterError, match="derms_serial"):
        batches(["a"], {"a": {"derms_serial": size}})
