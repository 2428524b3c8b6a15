# SPDX-License-Identifier: GPL-3.0-or-later
"""chrony's answers, as chrony 4.3 gave them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import chrony_sources

if TYPE_CHECKING:
    from collections.abc import Callable

FOLLOWING = (
    "0AD50001,10.213.0.1,2,1795397410.093796774,0.350056797,0.000003885,0.000006835,"
    "-2.044,0.093,8.666,0.000164472,0.000263522,1.0,Normal\n"
)
NEVER = (
    "00000000,,0,0.000000000,0.000000000,0.000000000,0.000000000,"
    "0.000,0.000,0.000,1.000000000,1.000000000,0.0,Not synchronised\n"
)
ONE_OF_TWO = (
    "^,*,10.213.0.1,1,0,377,1,0.000005510,0.000009395,0.000326518\n"
    "^,?,10.213.0.99,0,6,0,4294967295,0.000000000,0.000000000,0.000000000\n"
)
LOST = "^,?,10.213.0.1,1,1,0,26,0.000000181,0.000000730,0.000329883\n"


def test_sources() -> None:
    followed, silent = chrony_sources.sources_of(ONE_OF_TWO)
    assert followed == chrony_sources.Source("10.213.0.1", "selected", 1, 8, 1, 0.000009395)
    assert silent == chrony_sources.Source("10.213.0.99", "unusable", 0, 0, None, 0.0)
    assert chrony_sources.sources_of("") == []


def test_tracking() -> None:
    tracking = chrony_sources.tracking_of(FOLLOWING, 1795397412.5)
    assert tracking == chrony_sources.Tracking("10.213.0.1", 2.4, 0.350056797)
    assert chrony_sources.tracking_of(FOLLOWING, 1795397409.9).selected_age_s == 0
    assert chrony_sources.tracking_of(NEVER, 1795397412.5) == chrony_sources.Tracking()


@pytest.mark.parametrize(
    ("tracking", "sources", "later_s", "note"),
    [
        (
            FOLLOWING,
            ONE_OF_TWO,
            3,
            "chrony follows 10.213.0.1, last update 3 s ago, offset +0.350057 s; 1 of 2 sources answer",
        ),
        (
            FOLLOWING,
            LOST,
            7200,
            (
                "chrony follows no source; it last followed 10.213.0.1 2.0 h ago, offset +0.350057 s; "
                "0 of 1 sources answer"
            ),
        ),
        (NEVER, "", 0, "chrony has not selected a source since it was started; 0 of 0 sources answer"),
    ],
)
def test_note(tracking: str, sources: str, later_s: float, note: str) -> None:
    found = chrony_sources.tracking_of(tracking, 1795397410.1 + later_s)
    assert chrony_sources.note_of(found, chrony_sources.sources_of(sources)) == note


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(program: str | None, *answers: tuple[int, str, str]) -> dict[str, Any]:
        replies = iter(answers)
        monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, _name: program)
        monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, _argv: next(replies))
        with patch_module_args({"_ansible_check_mode": True}), pytest.raises(SystemExit):
            chrony_sources.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def test_bare_host(run: Callable[..., dict[str, Any]]) -> None:
    result = run(None)
    assert (result["running"], result["selected"], result["sources"]) == (False, None, [])
    assert "notes" not in result


def test_stopped(run: Callable[..., dict[str, Any]]) -> None:
    result = run("/usr/bin/chronyc", (1, "506 Cannot talk to daemon\n", ""))
    assert result["running"] is False
    assert result["notes"] == ["chrony does not answer: 506 Cannot talk to daemon"]


def test_running(run: Callable[..., dict[str, Any]]) -> None:
    result = run("/usr/bin/chronyc", (0, FOLLOWING, ""), (0, ONE_OF_TWO, ""))
    assert (result["changed"], result["running"], result["selected"]) == (False, True, "10.213.0.1")
    assert [source["reach"] for source in result["sources"]] == [8, 0]
    assert len(result["notes"]) == 1
