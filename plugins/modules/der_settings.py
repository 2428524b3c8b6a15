#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: der_settings
short_description: IEEE 1547-2018 settings of inverters, over SunSpec models 702 to 712
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Sees to it that distributed energy resources hold the settings that a profile of IEEE 1547-2018 declares for them.
    One task does it for all of a gateway's devices.
  - What is compared and written is what a device can hold, in steps of its own scale factors. A value that is too far
    from such a step, a curve that is not monotonic or has more points than the device takes, and a setting that the
    device does not have are refused before anything is written to that device.
  - A curve goes into a stored set that is not in force, with everything else that is in force beside it. The device is
    asked once to adopt that set. It is done when the set in force holds what was asked, whatever the device says of the
    adoption. Enabling a function comes after that, and permission to enter service last of all.
  - A device that shows another serial number than the depot file declares is V(refused), and nothing is written to it.
  - A function whose settings are in force already is not written. What was not asked for is not changed.
  - A write that was not answered may have happened. It is read back and never sent again.
  - C(docs/der-settings.md) tells how each function is declared, in which units, and what becomes of faults.
options:
  depot:
    description:
      - The whole depot, as the inventory plugin P(derms.edge.depot#inventory) gives it in C(derms_depot_document).
    type: dict
    required: true
  gateway:
    description: The gateway that this runs on; the devices are on its buses.
    type: str
    required: true
  devices:
    description:
      - The devices, and what each must hold.
      - Left out, they are those of the gateway that the depot file declares C(der_settings) for.
    type: list
    elements: dict
    suboptions:
      name:
        description: The device's name in the depot file. Its profile there is one that speaks SunSpec.
        type: str
        required: true
      profile:
        description:
          - What it must hold, function by function; without any function the device is only looked at.
          - Functions are V(limits), V(low_voltage_trip), V(high_voltage_trip), V(low_frequency_trip),
            V(high_frequency_trip), V(frequency_droop), V(volt_var), V(volt_watt), V(watt_var),
            V(constant_power_factor), V(constant_reactive_power), V(active_power_limit) and V(enter_service).
          - V(category), a mapping of V(normal) to V(A) or V(B) and of V(abnormal) to V(I), V(II) or V(III), brings the
            standard's defaults. What is declared beside it goes before them, and a function that is V(null) is left
            out. The defaults were not checked against the standard's text; C(categories.yml) in the agent says where
            each is from.
          - Power that is injected is positive here, as in the standard.
          - What only control writes is refused, such as V(active_power_limit) of a device with the profile
            V(sunspec_der).
        type: dict
        default: {}
  only:
    description: Names of devices, or patterns such as V(icu-*); all of them if empty.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - derms.edge.device_state
seealso:
  - module: derms.edge.device_settings
"""

EXAMPLES = r"""
- name: What the depot file declares
  derms.edge.der_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"

- name: A volt-var curve, and nothing else
  derms.edge.der_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
    devices:
      - name: icu-1
        profile:
          volt_var:
            enabled: true
            dept_ref: va_max_pct
            response_s: 5
            points: [[92, 44], [98, 0], [102, 0], [108, -44]]

- name: The defaults of category B and III, with a watt-var curve left alone and a slower start
  derms.edge.der_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
    devices:
      - name: icu-1
        profile:
          category: {normal: B, abnormal: III}
          watt_var:
          enter_service: {delay_s: 600, ramp_s: 300, permitted: true}
      - name: icu-2
        profile:
          low_voltage_trip:
            enabled: true
            must_trip: [[0, 2], [50, 2], [50, 21], [88, 21], [88, 1000]]

- name: Which controllers cannot do IEEE 1547-2018
  derms.edge.der_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
    devices: [{name: icu-1}, {name: icu-2}]
  check_mode: true
  register: ders
"""

RETURN = r"""
devices:
  description: What became of each device, in the order given.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The device's name.
      type: str
    status:
      description: >-
        V(ok), V(changed), V(unreachable), V(refused), V(verify_failed), V(indeterminate) or V(unknown). In check mode
        V(changed) is what would be.
      type: str
    changed:
      description: Whether a setting in force was changed, or would be.
      type: bool
    before:
      description: What was in force, by function and setting, of what was asked for.
      type: dict
      sample: {volt_var: {enabled: false, points: [[92, 44], [98, 0]]}}
    after:
      description: What was read back, by function and setting; in check mode, what would be.
      type: dict
    functions:
      description: Each function, its SunSpec model, its status, and why where it is not as it should be.
      returned: where the agent was asked
      type: list
      elements: dict
    settings:
      description: >-
        Each register value that is not as was asked for, or was not, with its outcome, unit, and the registers before
        and after.
      type: list
      elements: dict
    models:
      description: Which of the SunSpec models 701 to 712 the controller has.
      returned: where the agent was asked
      type: list
      elements: int
    missing_models:
      description: Which of them it has not.
      returned: where the agent was asked
      type: list
      elements: int
    ieee_1547_2018:
      description: Whether it has all of them, and so can do IEEE 1547-2018; V(null) where it could not be read.
      returned: where the agent was asked
      type: bool
    incapable:
      description: What it lacks, in words. Such a controller is named in a warning as well.
      returned: where the agent was asked
      type: str
    detail:
      description: Why, where something is not as it should be.
      type: str
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - device: riverside icu-1
      what: volt_var.points[1].V
      is: 92 percent of nominal voltage (holding 40502 = 920)
      should_be: 93 percent of nominal voltage (holding 40502 = 930)
notes:
  description: Always empty; every setting of a DER can be read.
  type: list
  elements: str
  returned: always
not_verified:
  description: Which devices could not be verified and why, where the task does not fail for them.
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
    finish,
    on_gateway,
    unknown,
)


def main() -> None:
    """Converge the IEEE 1547-2018 settings of a gateway's devices."""
    module = AnsibleModule(
        argument_spec={
            "depot": {"type": "dict", "required": True},
            "gateway": {"type": "str", "required": True},
            "devices": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "profile": {"type": "dict", "default": {}},
                },
            },
            "only": {"type": "list", "elements": "str", "default": []},
            **AGENT_OPTIONS,
        },
        supports_check_mode=True,
    )
    depot, gateway, devices = module.params["depot"], module.params["gateway"], module.params["devices"]
    name = depot.get("depot", "")
    try:
        found = ask(
            module,
            "der_settings",
            document=depot,
            gateway=gateway,
            devices=devices,
            only=module.params["only"],
            check=module.check_mode,
            deadline_s=module.params["deadline_s"],
            socket=module.params["socket"],
            state_directory=module.params["state_directory"],
        )
    except NoAgent as why:
        finish(module, unknown(named(depot, gateway, devices), str(why)), name, asked=False)
    for device in found:
        if device["incapable"]:
            module.warn(f"{device['name']} {device['incapable']}")
    finish(module, found, name)


def named(depot: dict[str, Any], gateway: str, devices: list[dict[str, Any]] | None) -> list[str]:
    """Return the devices that were given, or else declared, as far as can be told without the agent."""
    if devices is not None:
        return [device["name"] for device in devices]
    return [name for name, device in on_gateway(depot, gateway).items() if device.get("der_settings") is not None]


if __name__ == "__main__":
    main()
