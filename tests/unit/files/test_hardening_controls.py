# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/hardening-controls.yml says what the roles do: each control that was taken is what a role holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CONTROLS: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "hardening-controls.yml").read_text())
FIELDS = {"id", "title", "source", "decision", "why", "where", "verified_by", "on"}


def defaults(role: str) -> dict[str, Any]:
    spec = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    return {name: option.get("default") for name, option in spec["argument_specs"]["main"]["options"].items()}


def held() -> dict[tuple[str, str], str]:
    """Return what the roles hold by default: the kind and name of each value, and the value."""
    kernel, ssh = defaults("kernel_parameters"), defaults("baseline")
    parameters = kernel["kernel_parameters_settings"] + kernel["kernel_parameters_no_forwarding"]
    options = ssh["baseline_sshd_options"] + ssh["baseline_sshd_algorithms"]
    return {
        **{("kernel_parameter", one["name"]): str(one["value"]) for one in parameters},
        **{("sshd_option", one["option"]): str(one["value"]) for one in options},
    }


def verified() -> dict[tuple[str, str], str]:
    return {
        (kind, check[kind]): check["value"]
        for control in CONTROLS
        for check in control.get("verified_by", [])
        for kind in ("kernel_parameter", "sshd_option")
        if kind in check
    }


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: str(control["id"]))
def test_every_control_says_what_was_decided_and_why(control: dict[str, Any]) -> None:
    assert set(control) <= FIELDS
    assert control["decision"] in ("taken", "not taken")
    assert control["title"]
    assert control["why"]
    assert control["source"]
    assert ("verified_by" in control) == ("where" in control) == (control["decision"] == "taken")


def test_no_control_is_listed_twice() -> None:
    names = [control["id"] for control in CONTROLS]
    assert len(names) == len(set(names))


def test_what_is_verified_is_what_the_roles_hold() -> None:
    assert verified().items() <= held().items()


def test_what_the_roles_hold_is_in_the_list_or_in_the_manual() -> None:
    """Telemetry's parameters follow from the reference manual; every other hardened value is a control's."""
    kernel = defaults("kernel_parameters")["kernel_parameters_settings"]
    of_the_manual = {("kernel_parameter", one["name"]) for one in kernel if "reference manual" in one["source"].lower()}
    assert held().keys() - verified().keys() == of_the_manual


def test_the_manuals_buffers_are_held() -> None:
    assert held()["kernel_parameter", "net.core.rmem_max"] == "26214400"
    assert held()["kernel_parameter", "net.core.wmem_max"] == "26214400"


@pytest.mark.parametrize(
    ("role", "variable"),
    [
        ("kernel_parameters", "kernel_parameters_settings"),
        ("kernel_parameters", "kernel_parameters_no_forwarding"),
        ("baseline", "baseline_sshd_options"),
        ("baseline", "baseline_sshd_algorithms"),
    ],
)
def test_every_hardened_value_has_its_reason_and_source(role: str, variable: str) -> None:
    assert all(one["reason"] and one["source"] for one in defaults(role)[variable])
