#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: device_info
short_description: What chargers, inverters and meters are and hold, also as text for the depot file
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Reads the identity, the state and all settings of every device on a gateway's buses, and writes nothing. One task
    does it for all devices of a gateway.
  - RV(gathered) has what was read in the depot file's own form, to be pasted into it. Settings are in engineering
    units, by the profile's names; of a DER with SunSpec's models 702 to 712 its settings by IEEE 1547-2018 are there
    as C(der_settings), so that a dry run of M(derms.edge.der_settings) finds no drift. What cannot be declared as it
    was read is in comments, with the reason; so are limits that the DER's circuit does not bear.
  - A device that shows another serial number than the depot file declares is V(refused). Another firmware, and a
    controller that lacks a SunSpec model which IEEE 1547-2018 needs, are in RV(notes).
  - Settings that hold secrets are not read.
options:
  depot:
    description:
      - The whole depot, as the inventory plugin P(derms.edge.depot#inventory) gives it in C(derms_depot_document).
    type: dict
    required: true
  gateway:
    description: The gateway that this runs on; its buses' devices are read.
    type: str
    required: true
  only:
    description: Names of devices, or patterns such as V(charger-01*); all of them if empty.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - derms.edge.only_reads
  - derms.edge.device_state
seealso:
  - module: derms.edge.device_settings
  - module: derms.edge.der_settings
  - module: derms.edge.device_scan
"""

EXAMPLES = r"""
- name: Read all devices of this gateway
  derms.edge.device_info:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
  register: found

- name: Show them as a depot file declares them
  ansible.builtin.debug:
    msg: "{{ found.gathered }}"

- name: Name the controllers that cannot do IEEE 1547-2018
  ansible.builtin.debug:
    msg: "{{ found.devices | rejectattr('ieee1547', 'none') | rejectattr('ieee1547.capable') | map(attribute='name') }}"
"""

RETURN = r"""
devices:
  description: What was read from each device, in the order of the depot file.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The device's name.
      type: str
    status:
      description: V(ok), V(unreachable), V(refused) or V(unknown).
      type: str
    changed:
      description: Always false.
      type: bool
    bus:
      description: The bus that it is on.
      type: str
    unit_id:
      description: Its number on that bus.
      type: int
    profile:
      description: What kind of device it is.
      type: str
    identity:
      description: Manufacturer, model_name, serial_number and firmware, as far as it shows them.
      type: dict
      sample: {serial_number: 17041, firmware: 52296}
    state:
      description: What control polls, by point, in the point's unit.
      type: dict
      sample: {state: charging, active_power: 7360.0, current_limit: 16.0}
    settings:
      description: All settings that it shows, in the setting's unit; with several connectors, by C(name/connector).
      type: dict
      sample: {failsafe_current: 6.0, failsafe_timeout: 30}
    der_settings:
      description: >-
        What a DER holds by IEEE 1547-2018, by function, as M(derms.edge.der_settings) takes it: what can be declared of
        it, without what only control writes. Empty for anything else.
      type: dict
      sample: {volt_var: {dept_ref: va_max_pct, response_s: 5.0, points: [[92, 44], [108, -44]], enabled: true}}
    ieee1547:
      description: >-
        For a DER controller, whether it is C(capable) of IEEE 1547-2018, and the C(missing) SunSpec models of 701 to
        712; otherwise none.
      type: dict
      sample: {capable: false, missing: [711, 712]}
    gathered:
      description: The device as the depot file declares it, by its name; empty where it was not read.
      type: dict
    detail:
      description: Why, where it was not read or is not what is declared.
      type: str
    note:
      description: What differs and blocks nothing.
      type: str
gathered:
  description: The section C(devices) of a depot file with what was read, as YAML.
  type: str
  returned: always
  sample: |
    devices:
      hall-07:
        bus: line
        unit_id: 7
        profile: heidelberg_energy_control
        circuit: main
        settings: {failsafe_timeout: 30, failsafe_current: 6, standby: prevented, remote_lock: unlocked}
        evses:
          '1':
            rating_a: 16.0
            phases: [L1, L2, L3]
            circuit: main
notes:
  description: What differs and blocks nothing, with the devices that it is about.
  type: list
  elements: str
  returned: always
  sample: ["front-1: found firmware 1.13.2, expected 1.14.*"]
not_verified:
  description: Which devices could not be read and why, where the task does not fail for them.
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
    noted,
    on_gateway,
)


def main() -> None:
    """Read a gateway's devices."""
    module = AnsibleModule(
        argument_spec={
            "depot": {"type": "dict", "required": True},
            "gateway": {"type": "str", "required": True},
            "only": {"type": "list", "elements": "str", "default": []},
            **AGENT_OPTIONS,
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        found = ask(
            module,
            "info",
            document=options["depot"],
            gateway=options["gateway"],
            only=options["only"],
            deadline_s=options["deadline_s"],
            socket=options["socket"],
            state_directory=options["state_directory"],
        )
    except NoAgent as why:
        ended(module, unread(options["depot"], options["gateway"], str(why)), asked=False)
    ended(module, found, asked=True)


def unread(depot: dict[str, Any], gateway: str, why: str) -> dict[str, Any]:
    """Return what is known of a gateway's devices where they cannot be asked."""
    devices: list[dict[str, Any]] = [
        {
            "name": name,
            "status": "unknown",
            "changed": False,
            **{key: device.get(key) for key in ("bus", "unit_id", "profile")},
            **{key: {} for key in ("identity", "state", "settings", "der_settings", "gathered")},
            "ieee1547": None,
            "detail": why,
            "note": "",
        }
        for name, device in on_gateway(depot, gateway).items()
    ]
    return {"devices": devices, "gathered": ""}


def ended(module: AnsibleModule, found: dict[str, Any], asked: bool) -> None:
    """End the module with what was found."""
    end(module, {"changed": False, **found, "notes": noted(found["devices"])}, found["devices"], asked)


if __name__ == "__main__":
    main()
