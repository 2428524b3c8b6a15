#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: openadr_ven
short_description: What this depot's VEN is to the utility's VTN
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Declares whether the VEN of a gateway is registered with its VTN, and with which reports, market contexts, resources
    and times in which it takes part in events or does not.
  - The grid gateway on the host is asked for all of it, over its socket. It speaks to the VTN, and keeps what it was
    told over a restart. Which VTN that is, and who the VEN is there, C(agent.conf) says, which the role
    P(derms.edge.agent#role) writes.
  - RV(sent) has the messages that the VTN is sent for it, in check mode those that it would be.
  - A VEN that the VTN does not know yet, because it cannot be reached, is a failure once O(timeout_s) is over, and in
    check mode in RV(not_verified) alone.
options:
  state:
    description:
      - V(registered) has the VEN at the VTN. V(absent) takes it away, and it stays away, also after a restart, until it
        is declared V(registered) again. Events that it has taken before are obeyed to their end.
    type: str
    choices: [registered, absent]
    default: registered
  vtn_url:
    description: The VTN that is meant. Where C(VTN_URL) of C(agent.conf) names another, the module refuses.
    type: str
  reports:
    description:
      - The reports that the VTN is offered; all of them if this is not given. Where they change, the VTN has to ask for
        them anew.
    type: list
    elements: str
    choices: [TELEMETRY_USAGE, TELEMETRY_STATUS]
  market_contexts:
    description:
      - The programmes whose events the depot takes; an empty list is any. If this is not given, those of C(vtn) in the
        depot file.
    type: list
    elements: str
  resources:
    description:
      - What the utility's resource ids are here, C(site), a circuit or an EVSE. If this is not given, those of C(vtn)
        in the depot file.
    type: dict
  opts:
    description:
      - The times in which the depot takes part in events, or does not; any others that the VTN was told of are
        cancelled. Times that are over count as none. If this is not given, they stay as they are.
    type: list
    elements: dict
    suboptions:
      name:
        description: What it is called, which is its id at the VTN.
        type: str
        required: true
      opt:
        description: Whether the depot takes part.
        type: str
        choices: [in, out]
        default: out
      start:
        description: When it begins, with its zone, such as V(2026-12-24T18:00:00Z).
        type: str
        required: true
      duration_s:
        description: How long it lasts, in s.
        type: float
        required: true
      market_context:
        description: The programme that it is about; all if this is not given.
        type: str
  timeout_s:
    description: For how many seconds a registration is waited for.
    type: float
    default: 60
extends_documentation_fragment:
  - derms.edge.grid_gateway
  - derms.edge.grid_gateway.socket
attributes:
  check_mode:
    description: Asks the grid gateway what is, and predicts what the VTN would be sent.
    support: full
  diff_mode:
    description: Returns what the VEN is and what it is to be.
    support: full
notes:
  - The user who runs this has to be one of C(CONTROL_PEERS) of C(agent.conf); root is by default.
seealso:
  - module: derms.edge.openadr_info
  - module: derms.edge.openadr_events_info
"""

EXAMPLES = r"""
- name: Take part, and not on Christmas Eve
  derms.edge.openadr_ven:
    vtn_url: "{{ derms_vtn_url }}"
    market_contexts: ["http://utility.example/shed"]
    opts:
      - name: christmas-eve
        start: "2026-12-24T12:00:00+01:00"
        duration_s: 43200

- name: Leave the utility's programme
  derms.edge.openadr_ven:
    state: absent
"""

RETURN = r"""
before:
  description: What the VEN was. state is V(registering) where the service tries to register it by itself.
  type: dict
  returned: when the grid gateway answered
  sample:
    state: registered
    reports: [TELEMETRY_STATUS, TELEMETRY_USAGE]
    market_contexts: []
    resources: {}
    opts: []
after:
  description: What it is, as the grid gateway tells it; in check mode, what it would be.
  type: dict
  returned: when the grid gateway answered
sent:
  description: The messages that the VTN was sent for it, or would be.
  type: list
  elements: str
  returned: always
  sample: ["oadrCreateOpt christmas-eve: out from 2026-12-24T11:00:00Z for 43200 s"]
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample: [{device: VEN, what: state, is: absent, should_be: registered}]
not_verified:
  description: What could not be verified and why, where the task does not fail for that.
  type: list
  elements: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.device_state import NoAgent, ask
from ansible_collections.derms.edge.plugins.module_utils.grid_gateway import OPTIONS, end_unknown

REPORTS = ["TELEMETRY_USAGE", "TELEMETRY_STATUS"]
OPT = {
    "name": {"type": "str", "required": True},
    "opt": {"type": "str", "choices": ["in", "out"], "default": "out"},
    "start": {"type": "str", "required": True},
    "duration_s": {"type": "float", "required": True},
    "market_context": {"type": "str"},
}
OF_REGISTERED = ("reports", "market_contexts", "resources", "opts")


def main() -> None:
    """Converge the VEN."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["registered", "absent"], "default": "registered"},
            "vtn_url": {"type": "str"},
            "reports": {"type": "list", "elements": "str", "choices": REPORTS},
            "market_contexts": {"type": "list", "elements": "str"},
            "resources": {"type": "dict"},
            "opts": {"type": "list", "elements": "dict", "options": OPT},
            "timeout_s": {"type": "float", "default": 60.0},
            **OPTIONS,
        },
        supports_check_mode=True,
    )
    options = {name: value for name, value in module.params.items() if name != "agent_directory"}
    needless = [name for name in OF_REGISTERED if options[name] is not None]
    if options["state"] == "absent" and needless:
        module.fail_json(msg=f"{needless[0]}: found with state=absent, expected with state=registered only")
    result: dict[str, Any] = {"changed": False, "sent": [], "drift": [], "not_verified": []}
    try:
        found = ask(module, "ven_declared", check=module.check_mode, **options)
    except NoAgent as why:
        end_unknown(module, result, str(why))
    if "unanswered" in found:
        end_unknown(module, result, found["unanswered"])
    problem = found.pop("problem")
    result |= found
    if found["changed"]:
        result["drift"] = drift(found)
        result["diff"] = {name: found[name] for name in ("before", "after")}
    if problem and not module.check_mode:
        module.fail_json(msg=f"VEN: {problem}", **result)
    module.exit_json(**{**result, "not_verified": [f"VEN: {problem}"] if problem else []})


def drift(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what differs, name by name."""
    before, after = found["before"], found["after"]
    return [
        {"device": "VEN", "what": name, "is": str(before[name]), "should_be": str(after[name])}
        for name in before
        if before[name] != after[name]
    ]


if __name__ == "__main__":
    main()
