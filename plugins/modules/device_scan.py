#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: device_scan
short_description: What answers on a depot's buses, declared or not, and a first depot file of it
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Asks a number of unit ids on each of a gateway's buses, finds the profile that fits what answers, and reads its
    settings. It writes nothing to any device.
  - SunSpec devices are known by their mark and models, others by what they show where a profile has its points. Several
    profiles that fit, and devices that none fits, are named with what speaks for it and left to a person.
  - What is declared is read by its declaration. What a device cannot show, such as the circuit that feeds it, is left
    out and named, unless O(circuit) or O(rating_a) say it.
  - A bus is asked at the lowest priority, and for no more than half of the time. A unit that does not answer holds it
    up for its time-out, twice; with chargers in use, name the unit ids that are wired.
  - The playbook C(derms.edge.adopt) runs it on all gateways of a depot and writes one file.
options:
  depot:
    description:
      - The whole depot, as the inventory plugin P(derms.edge.depot#inventory) gives it in C(derms_depot_document); it
        needs no devices.
    type: dict
    required: true
  gateway:
    description: The gateway that this runs on; its buses are scanned.
    type: str
    required: true
  unit_ids:
    description:
      - Numbers, and ranges such as V(1..32), to try on each bus; those that are declared are tried as well.
      - If empty, 1 to 32 on serial lines, and 1, 2 and 255 at endpoints of their own.
    type: list
    elements: str
    default: []
  circuit:
    description: The circuit that feeds what is found; if not given, the only one, where the depot has one circuit.
    type: str
  rating_a:
    description: What each EVSE that is found can draw, in A per conductor, where the charger does not say it.
    type: float
  deadline_s:
    description: After how many seconds no further unit is asked; the bus is then V(unknown).
    type: float
    default: 1800
extends_documentation_fragment:
  - derms.edge.only_reads
  - derms.edge.device_state
seealso:
  - module: derms.edge.device_info
"""

EXAMPLES = r"""
- name: See what answers on this gateway's buses
  derms.edge.device_scan:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
    unit_ids: ["1..12", "50"]
    max_failures: 100%
  register: found

- name: Show it as a depot file
  ansible.builtin.debug:
    msg: "{{ found.gathered }}"
"""

RETURN = r"""
buses:
  description: What became of each bus.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The bus's name.
      type: str
    status:
      description: V(ok), V(unreachable) or V(unknown). O(max_failures) counts buses.
      type: str
    detail:
      description: Why, where it could not be scanned, and where nothing answered on it.
      type: str
    units:
      description: How many units are told of.
      type: int
units:
  description: Each unit that answered, and each that is declared.
  type: list
  elements: dict
  returned: always
  contains:
    bus:
      description: The bus that it is on.
      type: str
    unit_id:
      description: Its number on that bus.
      type: int
    name:
      description: Its name in the depot file, or the one that it gets there.
      type: str
    outcome:
      description: >-
        V(declared), V(found) (one profile fits beyond doubt), V(ambiguous), V(unidentified), or V(silent) for a
        declared one that does not answer.
      type: str
    profile:
      description: The profile that it is declared with, or that fits.
      type: str
    candidates:
      description: The profiles that may fit, best first, each with its score from 0 to 1 and its evidence.
      type: list
      elements: dict
    identity:
      description: Manufacturer, model_name, serial_number and firmware, as far as it shows them.
      type: dict
    settings:
      description: All settings that it shows, in the setting's unit.
      type: dict
    declared:
      description: Its declaration for the depot file, by its name; empty where none can be made.
      type: dict
    remarks:
      description: What speaks for it, what it lacks, and what could not be declared as it was read.
      type: list
      elements: str
gathered:
  description: A depot file, as YAML, with what this gateway's buses hold.
  type: str
  returned: always
notes:
  description: Buses on which nothing answers.
  type: list
  elements: str
  returned: always
not_verified:
  description: Which buses could not be scanned and why, where the task does not fail for them.
  type: list
  elements: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.device_state import (
    AGENT_OPTIONS,
    NoAgent,
    ask,
    end,
)


def main() -> None:
    """Scan a gateway's buses."""
    module = AnsibleModule(
        argument_spec={
            "depot": {"type": "dict", "required": True},
            "gateway": {"type": "str", "required": True},
            "unit_ids": {"type": "list", "elements": "str", "default": []},
            "circuit": {"type": "str"},
            "rating_a": {"type": "float"},
            **AGENT_OPTIONS,
            "deadline_s": {"type": "float", "default": 1800.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        found = ask(
            module,
            "scan",
            document=options["depot"],
            gateway=options["gateway"],
            unit_ids=options["unit_ids"],
            circuit=options["circuit"],
            rating_a=options["rating_a"],
            deadline_s=options["deadline_s"],
            socket=options["socket"],
            state_directory=options["state_directory"],
        )
    except NoAgent as why:
        buses = [
            {"name": name, "status": "unknown", "detail": str(why), "units": 0}
            for name, bus in options["depot"].get("buses", {}).items()
            if bus.get("gateway") == options["gateway"]
        ]
        ended(module, {"buses": buses, "units": [], "gathered": ""}, asked=False)
    ended(module, found, asked=True)


def ended(module: AnsibleModule, found: dict[str, Any], asked: bool) -> None:
    """End the module with what was found."""
    notes = [f"{bus['name']}: {bus['detail']}" for bus in found["buses"] if bus["status"] == "ok" and bus["detail"]]
    end(module, {"changed": False, **found, "notes": notes}, found["buses"], asked, of="buses")


if __name__ == "__main__":
    main()
