#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: modbus_registers_info
short_description: Reads raw Modbus registers, and whether devices answer with what is expected
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Reads registers of devices, whether a profile describes them or not. It writes nothing.
  - It is a liveness probe as well. C(modpoll -r 40001 -c 10) is O(address_base=one), O(registers[].address=40001) and
    ten registers, where a SunSpec device begins with C(SunS). What is expected there is an argument of its own.
options:
  devices:
    description: The devices. All of the O(registers) are read from every one of them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What results call it.
        type: str
        required: true
      bus:
        description: A bus of this gateway, as the depot file names it. Exclusive with O(devices[].host).
        type: str
      host:
        description:
          - Name or address of a Modbus/TCP device or gateway. Where a bus of the depot leads there, it is that bus.
        type: str
      port:
        description: Its port; V(502) if not given.
        type: int
      framer:
        description: How frames lie in the stream, V(tcp) if not given. Many serial servers want V(rtu_over_tcp).
        type: str
        choices: [tcp, rtu_over_tcp]
      unit_id:
        description: The unit's id.
        type: int
        default: 1
  registers:
    description: The registers. No two share a bit.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What results call it.
        type: str
        required: true
      table:
        description: The table; V(holding) if not given, or what the address names with O(address_base=modicon).
        type: str
        choices: [holding, input, coil, discrete]
      address:
        description: Its first address, counted as O(address_base) says.
        type: int
        required: true
      type:
        description:
          - How the value lies there. V(bits) is an unsigned field of O(registers[].length) registers, or of as many
            coils; a single coil, or a O(registers[].mask) of one bit, is V(true) or V(false).
        type: str
        required: true
        choices: [u16, i16, u32, i32, u64, i64, f32, f64, string, bits]
      length:
        description: Registers, or coils, of a V(string) or of V(bits). Other types have their own.
        type: int
      word_order:
        description: Which word comes first of a value of several.
        type: str
        choices: [big, little]
        default: big
      byte_order:
        description: Which byte comes first of a word.
        type: str
        choices: [big, little]
        default: big
      scale:
        description: What one step of the raw number is worth. The value is raw * scale + offset.
        type: float
        default: 1
      offset:
        description: The value of a raw 0.
        type: float
        default: 0
      unit:
        description: What the value is in.
        type: str
        default: ''
      mask:
        description: The adjacent bits that are the value.
        type: int
      expect:
        description:
          - What its registers begin with, as text or as words such as V(0x53756e53). A device that answers with
            something else is V(verify_failed).
        type: str
extends_documentation_fragment:
  - derms.edge.declared_registers
  - derms.edge.device_state
attributes:
  check_mode:
    description: It changes nothing, so check mode is as any other.
    support: full
  diff_mode:
    description: It changes nothing, so there is no difference.
    support: none
seealso:
  - module: derms.edge.modbus_registers
  - module: derms.edge.device_info
"""

EXAMPLES = r"""
- name: Does the inverter answer as a SunSpec device does (modpoll -r 40001 -c 10)
  derms.edge.modbus_registers_info:
    address_base: one
    devices: [{name: inverter, host: 10.20.1.50}]
    registers: [{name: mark, address: 40001, type: string, length: 10, expect: SunS}]

- name: What the heat pumps hold
  derms.edge.modbus_registers_info:
    address_base: modicon
    devices:
      - {name: heat-pump-1, host: 10.20.1.81}
      - {name: heat-pump-3, bus: hall, unit_id: 7}
    registers:
      - {name: flow, address: 30011, type: i16, scale: 0.1, unit: degC}
      - {name: serial, address: 40100, type: string, length: 8}
  register: heat_pumps
"""

RETURN = r"""
devices:
  description: What each device answered, in the order declared.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The device's name.
      type: str
    status:
      description: >-
        V(ok), V(unreachable), V(refused) where it refuses to show a register, V(verify_failed) where one is not as
        expected, or V(unknown) where it was not asked.
      type: str
    values:
      description: What was read, by register; what stands for no value is left out.
      type: dict
      sample: {flow: 41.5, serial: A1-00417}
    registers:
      description: >-
        Each register with its value, its words, its table and its address in the protocol, counted from zero.
      type: list
      elements: dict
    detail:
      description: Why, where something is not as it should be.
      type: str
not_verified:
  description: Which devices did not answer as they should and why, where the task does not fail for them.
  type: list
  elements: str
  returned: always
"""


from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.declared_registers import (
    BUS_OR_HOST,
    DEVICE_OPTIONS,
    OPTIONS,
    REGISTER_OPTIONS,
)
from ansible_collections.derms.edge.plugins.module_utils.device_state import NoAgent, ask, finish, unknown


def main() -> None:
    """Read registers."""
    module = AnsibleModule(
        argument_spec={
            "devices": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": DEVICE_OPTIONS,
                **BUS_OR_HOST,
            },
            "registers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {**REGISTER_OPTIONS, "expect": {"type": "str"}},
            },
            **OPTIONS,
        },
        supports_check_mode=True,
    )
    try:
        devices = ask(
            module,
            "registers_info",
            arguments=module.params,
            socket=module.params["socket"],
            state_directory=module.params["state_directory"],
            depot_file=module.params["depot_file"],
        )
    except NoAgent as why:
        devices = unknown([device["name"] for device in module.params["devices"]], str(why))
        finish(module, [{**device, "values": {}, "registers": []} for device in devices], asked=False)
    finish(module, devices)


if __name__ == "__main__":
    main()
