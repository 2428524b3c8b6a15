# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.derms.edge.plugins.filter.batches import batches
from hypothesis import given
from hypothesis import strategies as st


def test_both_gateways_of_a_depot_are_never_together() -> None:
    depots = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    assert batches(["a1", "a2", "b1", "b2"], depots, 2) == [1, 2, 1]


def test_a_limited_run_is_cut_anew() -> None:
    assert batches(["c1", "c2"], {"c1": "c", "c2": "c", "a1": "a"}, 2) == [1, 1]


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 8))
def test_every_host_runs_once_and_no_depot_twice_in_a_batch(depot_of_host: list[str], size: int) -> None:
    hosts = [f"gateway-{index}" for index in range(len(depot_of_host))]
    sizes = batches(hosts, dict(zip(hosts, depot_of_host, strict=True)), size)
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
        batches(["a"], {}, size)  # type: ignore[arg-type]
