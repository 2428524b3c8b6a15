# SPDX-License-Identifier: Apache-2.0
"""The reference's example, and the tree's own depots, with the built-in profiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from derms_agent.depot import examine, schema
from derms_agent.depot.schema import schema as loaded

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "depot-file.md"
INVENTORIES = sorted((ROOT / "inventories").glob("*/*.yml"))


def test_the_references_example_is_a_whole_depot_without_a_warning() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    examined = examine(example, "example")
    assert [str(one) for one in examined.problems] == []
    assert examined.depot is not None
    assert len(examined.depot.places()) == 11
    assert [one.name for one in examined.depot.evses() if one.stationary] == ["battery"]
    assert schema.problems(examined.data) == ()


def test_the_reference_names_every_key() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    constructed = {"strict", "use_extra_vars", "leading_separator", "plugin"}
    keys = set(loaded()["properties"]) - constructed
    for part in loaded()["$defs"].values():
        keys |= set(part.get("properties", {}))
    assert {key for key in keys if f"`{key}`" not in text and f"{key}:" not in text} == set()


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: path.stem)
def test_the_trees_own_depots_have_no_errors(path: Path) -> None:
    examined = examine(path.read_text(encoding="utf-8"), path.name)
    assert [str(one) for one in examined.errors] == []
    assert examined.depot is not None


def test_the_demo_has_the_devices_that_its_readers_expect() -> None:
    depot = examine((ROOT / "inventories" / "demo" / "depot.yml").read_text(encoding="utf-8"), "demo").depot
    assert depot is not None
    profiles = [device.profile for device in depot.devices.values()]
    assert {name: profiles.count(name) for name in profiles} == {
        "heidelberg_energy_control": 8,
        "keba_p30": 4,
        "alpitronic_hyc": 1,
        "sunspec_der": 1,
        "sunspec_meter": 1,
    }
    assert all(
        bus.host is not None and bus.host.startswith("10.213.9.") and bus.port == 502 for bus in depot.buses.values()
    )
