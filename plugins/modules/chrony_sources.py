#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: chrony_sources
short_description: Report the time sources of a running chrony
version_added: 0.1.0
description:
  - Reports which source the clock follows, when one was last followed, and what every source answers.
  - Reads only. A host without chrony, or where it does not run, is reported as such.
author: DERMS Edge developers (@derms-edge)
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed, so check mode is no different.
  diff_mode:
    support: none
    description: There is nothing to show.
  platform:
    support: full
    platforms: posix
    description: Any system with chrony.
options: {}
"""

EXAMPLES = r"""
- name: Report the time sources
  derms.edge.chrony_sources:
"""

RETURN = r"""
running:
  description: Whether chrony answered.
  returned: always
  type: bool
selected:
  description: The source that the clock followed last, or V(null) where it never followed one.
  returned: always
  type: str
  sample: 192.0.2.7
selected_age_s:
  description: Time since the clock was last set by a source, or V(null) where it never was.
  returned: always
  type: float
  sample: 12.4
offset_s:
  description: What chrony is still correcting; positive where the host's clock is slow.
  returned: always
  type: float
  sample: 0.000021
sources:
  description: Every source that chrony has.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description: Its address.
      type: str
    state:
      description: Whether it is selected, combined, or why it is neither.
      type: str
      choices: [selected, combined, not combined, unusable, falseticker, too variable]
    stratum:
      description: Hops between the source and its reference clock.
      type: int
    reach:
      description: Answers among the last eight polls.
      type: int
    last_answer_age_s:
      description: Time since its last answer, or V(null) where it never answered.
      type: int
    offset_s:
      description: The source's clock minus the host's, as last measured.
      type: float
notes:
  description: The same in a sentence, for the recap.
  returned: where chrony is installed
  type: list
  elements: str
"""

import csv
import time
from dataclasses import asdict, dataclass
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule

STATES = {
    "*": "selected",
    "+": "combined",
    "-": "not combined",
    "?": "unusable",
    "x": "falseticker",
    "~": "too variable",
}
NEVER_ANSWERED_S = (1 << 32) - 1
HOUR_S = 3600


@dataclass(frozen=True)
class Source:
    """What chrony knows of one source."""

    address: str
    state: str
    stratum: int
    reach: int
    last_answer_age_s: Optional[int]
    offset_s: float


@dataclass(frozen=True)
class Tracking:
    """What chrony knows of the clock."""

    selected: Optional[str] = None
    selected_age_s: Optional[float] = None
    offset_s: Optional[float] = None


def rows(answer: str) -> list[list[str]]:
    """Split the answer of C(chronyc -c) into its fields."""
    return [row for row in csv.reader(answer.splitlines()) if row]


def sources_of(answer: str) -> list[Source]:
    """Read the answer to C(chronyc -n -c sources)."""
    return [
        Source(
            address=address,
            state=STATES[state],
            stratum=int(stratum),
            reach=bin(int(reach, 8)).count("1"),
            last_answer_age_s=None if int(age_s) == NEVER_ANSWERED_S else int(age_s),
            offset_s=float(measured_s),
        )
        for _mode, state, address, stratum, _poll, reach, age_s, _adjusted_s, measured_s, *_error in rows(answer)
    ]


def tracking_of(answer: str, now_s: float) -> Tracking:
    """Read the answer to C(chronyc -n -c tracking)."""
    ((_id, address, _stratum, selected_s, offset_s, *_rest),) = rows(answer)
    if not address or float(selected_s) <= 0:
        return Tracking()
    # The reference time is in corrected time, so the host's own clock may be a little behind it.
    return Tracking(address, round(max(0.0, now_s - float(selected_s)), 1), float(offset_s))


def age(age_s: float) -> str:
    """Give a duration as people read it."""
    return f"{age_s:.0f} s" if age_s < HOUR_S else f"{age_s / HOUR_S:.1f} h"


def note_of(tracking: Tracking, sources: list[Source]) -> str:
    """Put the state of the clock into one sentence."""
    answering = f"{sum(source.reach > 0 for source in sources)} of {len(sources)} sources answer"
    if tracking.selected is None or tracking.selected_age_s is None:
        return f"chrony has not selected a source since it was started; {answering}"
    ago = f"{age(tracking.selected_age_s)} ago, offset {tracking.offset_s:+.6f} s"
    if any(source.state == "selected" for source in sources):
        return f"chrony follows {tracking.selected}, last update {ago}; {answering}"
    return f"chrony follows no source; it last followed {tracking.selected} {ago}; {answering}"


def main() -> None:
    """Ask chrony and report."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    program = module.get_bin_path("chronyc")
    if program is None:
        module.exit_json(changed=False, running=False, sources=[], **asdict(Tracking()))
    answers = []
    for question in ("tracking", "sources"):
        status, answer, _error = module.run_command([program, "-n", "-c", question])
        if status != 0:
            words = answer.strip() or f"exit status {status}"
            note = f"chrony does not answer: {words}"
            module.exit_json(changed=False, running=False, sources=[], notes=[note], **asdict(Tracking()))
        answers.append(answer)
    tracking, sources = tracking_of(answers[0], time.time()), sources_of(answers[1])
    result: dict[str, Any] = {**asdict(tracking), "sources": [asdict(source) for source in sources]}
    module.exit_json(changed=False, running=True, notes=[note_of(tracking, sources)], **result)


if __name__ == "__main__":
    main()
