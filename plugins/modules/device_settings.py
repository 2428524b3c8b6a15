#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: device_settings
short_description: Settings of chargers, inverters and meters, by profile and name, in engineering units
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Sees to it that every device on a gateway's buses holds the settings that the depot file declares for it, whatever
    registers they lie in. One task does it for all devices of a gateway.
  - A value is compared as the device would hold it, in the device's own resolution. Only what differs is written, and
    every write is read back. Every change of every device is validated before the first write.
  - A write that was not answered may have happened. It is read back and never sent again.
  - What a charger does on its own is written decreases first. A fallback is only raised where, with the values that
    were read back, no circuit would be overloaded should control end at any moment in between.
  - A device that shows another serial number than the depot file declares is V(refused), and nothing is written to it.
    Firmware that differs from what is declared, and a controller that lacks a SunSpec model which IEEE 1547-2018 needs,
    are in RV(notes), and block nothing.
  - What control writes itself, such as the limit of an EVSE, is no setting and is never touched.
options:
  depot:
    description:
      - The whole depot, as the inventory plugin P(derms.edge.depot#inventory) gives it in C(derms_depot_document).
      - Settings that hold secrets come from vault; give the task C(no_log) where a depot has any.
    type: dict
    required: true
  gateway:
    description: The gateway that this runs on; its buses' devices are converged.
    type: str
    required: true
  only:
    description: Names of devices, or patterns such as V(charger-01*); all of them if empty.
    type: list
    elements: str
    default: []
  blind:
    description:
      - What a device cannot show is written whenever another of its settings is. V(true) writes it in every run, for a
        first run on devices that hold everything else already.
    type: bool
    default: false
extends_documentation_fragment:
  - derms.edge.device_state
seealso:
  - module: derms.edge.device_info
  - module: derms.edge.modbus_registers
"""

EXAMPLES = r"""
# inventories/depot.yml declares: settings: {failsafe_current: 6, failsafe_timeout: 30}
- name: Hold what the depot file declares for its devices
  derms.edge.device_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
  no_log: "{{ derms_depot_holds_secrets }}"

- name: One row of chargers only
  derms.edge.device_settings:
    depot: "{{ derms_depot_document }}"
    gateway: "{{ inventory_hostname }}"
    only: ["hall-0*"]
    max_failures: 5%
"""

RETURN = r"""
devices:
  description:
    - What became of each device, in the order of the depot file.
    - Of a device all of whose settings were found as declared there is no more than RV(devices[].name),
      RV(devices[].status) and RV(devices[].changed); M(derms.edge.device_info) returns all that devices hold.
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
      description: Whether a setting was changed, or would be.
      type: bool
    before:
      description: What was read, by setting, in the setting's unit.
      returned: where not all was found as declared
      type: dict
    after:
      description: What was read back, by setting; in check mode, what would be.
      returned: where not all was found as declared
      type: dict
    settings:
      description: >-
        Each setting that is not as declared, or was not, with its outcome, unit, what was wanted, and the registers
        that held it and would.
      returned: where not all was found as declared
      type: list
      elements: dict
    detail:
      description: Why, where something is not as it should be.
      returned: where not all was found as declared
      type: str
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - device: riverside hall-07
      what: failsafe_current
      is: 10 A (holding 262 = 100)
      should_be: 6 A (holding 262 = 60)
notes:
  description: Settings that no device can show, other firmware, and controllers that cannot do IEEE 1547-2018.
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
    """Converge the settings of a gateway's devices."""
    module = AnsibleModule(
        argument_spec={
            "depot": {"type": "dict", "required": True},
            "gateway": {"type": "str", "required": True},
            "only": {"type": "list", "elements": "str", "default": []},
            "blind": {"type": "bool", "default": False},
            **AGENT_OPTIONS,
        },
        supports_check_mode=True,
    )
    depot, gateway = module.params["depot"], module.params["gateway"]
    name = depot.get("depot", "")
    try:
        devices = ask(
            module,
            "settings",
            document=depot,
            gateway=gateway,
            only=module.params["only"],
            check=module.check_mode,
            deadline_s=module.params["deadline_s"],
            blind=module.params["blind"],
            socket=module.params["socket"],
            state_directory=module.params["state_directory"],
        )
    except NoAgent as why:
        finish(module, unknown(declared(depot, gateway), str(why)), name, asked=False)
    finish(module, devices, name)


def declared(depot: dict[str, Any], gateway: str) -> list[str]:
    """Return the devices of a gateway that something is declared of, as far as can be told without the agent."""
    said = ("settings", "serial_number", "firmware")
    return [name for name, device in on_gateway(depot, gateway).items() if any(device.get(key) for key in said)]


if __name__ == "__main__":
    main()
