# SPDX-License-Identifier: Apache-2.0
"""The guide's example is a profile, and its table of keys is the loader's."""

import re
from pathlib import Path

from derms_agent.profiles import load_all, loader, read
from derms_agent.profiles.profile import CANONICAL_UNITS

GUIDE = (Path(__file__).parents[3] / "docs" / "add-a-profile.md").read_text(encoding="utf-8")


def example(tmp_path: Path) -> Path:
    (block,) = re.findall(r"```yaml\n(name: .*?)```", GUIDE, re.DOTALL)
    path = tmp_path / "acme_ac22.yml"
    path.write_text(block, encoding="utf-8")
    return path


def test_the_example_loads_and_means_what_the_guide_says(tmp_path: Path) -> None:
    acme = read(example(tmp_path))
    assert acme.points["current_limit"].encode(15.9996) == (159,)
    assert acme.points["current_limit"].encode(0) == (0,)
    assert acme.points["energy"].decode((0, 0, 0, 90)) == 9000
    assert acme.points["current_l2"].decode((0xFFFF,)) is None
    assert acme.points["led"].replace_bits((0xFF0F,), "bright") == (0xFF3F,)
    readback = acme.points["current_limit"].readback
    assert readback is not None
    assert readback.decode((60,)) == 6
    assert acme.watchdog_s({"failsafe_timeout": 30}) == 30
    assert acme.unattended_a({"failsafe_current": 6, "failsafe_timeout": 30}, 32, 400, 3) == 6


def test_the_example_stands_beside_the_built_in_ones(tmp_path: Path) -> None:
    example(tmp_path)
    assert "acme_ac22" in load_all(tmp_path)


def test_every_key_and_every_fixed_name_is_in_the_guide() -> None:
    keys = {*loader._POINT, "readback", *loader._SUNSPEC_POINT, *loader._PROFILE}
    missing = {key for key in keys if not re.search(rf"\b{key}\b", GUIDE)}
    assert not missing
    assert not {name for name in CANONICAL_UNITS if re.sub(r"_l[123]$", "_l1", name) not in GUIDE}
