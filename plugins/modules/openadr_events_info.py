#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: openadr_events_info
short_description: The OpenADR events that a depot obeys or is about to
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Reads the events that are active or pending from the grid gateway on the host, with what it answered to the utility
    and what the depot is held to. The VTN is asked nothing, so nothing is taken away from the service.
  - What is over or cancelled is not returned.
  - A grid gateway that does not answer is a failure, and in check mode in RV(not_verified) alone.
extends_documentation_fragment:
  - derms.edge.only_reads
  - derms.edge.grid_gateway
  - derms.edge.grid_gateway.socket
seealso:
  - module: derms.edge.openadr_info
  - module: derms.edge.openadr_ven
"""

EXAMPLES = r"""
- name: See what the utility asks for
  derms.edge.openadr_events_info:
  register: grid

- name: Leave a depot alone while an event holds it
  ansible.builtin.meta: end_host
  when: grid.events | selectattr('state', 'eq', 'active') | rejectattr('test') | list | length > 0
"""

RETURN = r"""
events:
  description: The events, those that are active first, then by their start.
  type: list
  elements: dict
  returned: when the grid gateway answered; otherwise empty
  contains:
    id:
      description: The event's id, as the VTN gave it.
      type: str
      sample: shed-00123
    vtn_id:
      description: The id of the VTN that it is from.
      type: str
    modification_number:
      description: How often it was modified.
      type: int
    state:
      description: V(active) or V(pending).
      type: str
    status:
      description: The same as OpenADR has it, V(far), V(near) or V(active).
      type: str
    start:
      description: When it begins for this depot, in UTC, as it was drawn where the event leaves that open.
      type: str
      sample: "2026-11-26T17:00:00Z"
    end:
      description: When it ends, in UTC; none where it is open-ended.
      type: str
    duration_s:
      description: How long it lasts, in s; none where it is open-ended.
      type: float
    priority:
      description: 1 is the highest, 0 none.
      type: int
    test:
      description: Whether it is a test, which is answered and not obeyed.
      type: bool
    market_context:
      description: The programme that it belongs to.
      type: str
    signals:
      description: >-
        What it asks for. The field value is in unit, which is W for a power and none for levels and shares; duration_s
        is in s, 0 until the event ends.
      type: list
      elements: dict
      sample:
        - name: LOAD_DISPATCH
          type: setpoint
          unit: W
          intervals: [{start: "2026-11-26T17:00:00Z", duration_s: 3600.0, value: 40000.0}]
    opt:
      description: What was answered, V(optIn) or V(optOut).
      type: str
    why:
      description: Why it was opted out of.
      type: str
    baseline_w:
      description: What the depot drew before, in W; none where it is not known or not frozen yet.
      type: float
    limits:
      description: >-
        What the depot, a circuit or an EVSE may draw for it and when, as the orchestrator was told; high_w is in W.
      type: list
      elements: dict
      sample: [{target: site, high_w: 40000.0, start: "2026-11-26T17:00:00Z", end: "2026-11-26T18:00:00Z"}]
link:
  description: >-
    The link to the VTN, without which no news of events comes: its URL, whether the VEN is registered there or stays
    away as asked, its ids, poll_s and heard_s_ago in s, whether the link counts as lost, and what is wrong.
  type: dict
  returned: when the grid gateway answered; otherwise empty
  sample:
    vtn: https://vtn.example
    registered: true
    absent: false
    ven_id: ven-7
    vtn_id: utility-1
    poll_s: 10.0
    heard_s_ago: 3.1
    link_lost: false
    trouble: null
notes:
  description: What is wrong with the link.
  type: list
  elements: str
  returned: always
not_verified:
  description: Why nothing is known, where the task does not fail for that.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.device_state import NoAgent, ask
from ansible_collections.derms.edge.plugins.module_utils.grid_gateway import OPTIONS, end_unknown


def main() -> None:
    """Read the events."""
    module = AnsibleModule(argument_spec=dict(OPTIONS), supports_check_mode=True)
    result = {"changed": False, "events": [], "link": {}, "notes": [], "not_verified": []}
    try:
        found = ask(module, "ven_events", socket=module.params["socket"])
    except NoAgent as why:
        end_unknown(module, result, str(why))
    if "unanswered" in found:
        end_unknown(module, result, found["unanswered"])
    trouble = found["link"]["trouble"]
    module.exit_json(**{**result, **found, "notes": [trouble] if trouble else []})


if __name__ == "__main__":
    main()
