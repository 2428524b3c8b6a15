# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of molecule's own report, which passes scenarios that have tested nothing."""

from __future__ import annotations

from itertools import count

import pytest

from tests.molecule import SCENARIOS, Step, ended_steps, not_passed, sequence_of

OUTPUT = """\
INFO     [rhel9 > discovery] scenario test matrix: syntax, side_effect, verify
INFO     [rhel9 > syntax] Executing
PLAY [Converge] *****
INFO     [rhel9 > syntax] Executed: Successful
INFO     [rhel9 > side_effect] Executing
WARNING  [rhel9 > side_effect] Executed: Missing playbook (Remove from test_sequence to suppress)
INFO     [rhel9 > verify] Executing
ERROR    [rhel9 > verify] \x1b[31mExecuted: Failed\x1b[0m

DETAILS
rhel9 > syntax: Executed: Successful
"""


def test_each_step_is_told_once_with_its_time() -> None:
    steps = list(ended_steps(zip(count(), OUTPUT.splitlines())))
    assert [(step.name, step.seconds, step.passed) for step in steps] == [
        ("syntax", 2, True),
        ("side_effect", 1, False),
        ("verify", 1, False),
    ]
    assert steps[2].outcome == "Failed"


@pytest.mark.parametrize(
    ("outcomes", "missing"),
    [
        (["Successful", "Successful", "Successful"], []),
        (["Successful", "Missing playbook (…)", "Successful"], ["side_effect"]),
        (["Successful", "Skipped (…)", "Failed"], ["side_effect", "verify"]),
        (["Successful"], ["side_effect", "verify"]),
    ],
)
def test_a_step_that_did_nothing_has_not_passed(outcomes: list[str], missing: list[str]) -> None:
    names = ["converge", "side_effect", "verify"]
    steps = [Step(name, outcome, 1.0) for name, outcome in zip(names, outcomes)]
    assert not_passed(["converge", "side_effect ../shared/drift.yml", "verify"], steps) == missing


def test_a_step_that_comes_twice_has_to_pass_twice() -> None:
    once = [Step("side_effect", "Successful", 1.0)]
    assert not_passed(["side_effect a.yml", "side_effect"], once) == ["side_effect"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_scenario_leaves_a_step_of_the_whole_path_out(scenario: str) -> None:
    sequence = sequence_of(scenario)
    path = ["create", "side_effect ../shared/check_bare.yml", "converge", "idempotence",
            "side_effect ../shared/check_in_sync.yml", "side_effect", "verify", "destroy"]  # fmt: skip
    assert [step for step in sequence if step in path][-len(path) :] == path
