#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: modbus_registers
short_description: Raw Modbus registers, declared with the values that they are to hold
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Sees to it that registers of devices that no profile describes hold what is declared. One task does it for all of a
    gateway's devices. Where there is a profile, M(derms.edge.device_settings) does the same by names.
  - A value is compared as the device would hold it, in the register's own resolution; one between two steps becomes the
    one nearer to zero. Only what differs is written, and every write is read back.
  - The whole declaration is validated before anything is asked of a device, and all of one device's registers before
    the first of them is written.
  - A value of several registers goes out in one request. Of a register that is shared, through O(registers[].mask), the
    other bits are read right before the write and written as they are.
  - A write that was not answered may have happened. It is read back and never sent again. Until the device shows the
    value it is V(indeterminate), and nothing more is written to that device.
  - What control writes to a device of the depot, and the fallbacks that M(derms.edge.device_settings) keeps within the
    ratings of circuits, is refused.
options:
  devices:
    description: The devices. Every one of them has all of the O(registers).
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
      values:
        description: Values of this device, by register, in place of the O(registers[].value) of all.
        type: dict
        default: {}
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
        description: What the value is in, for people who read the diff.
        type: str
        default: ''
      mask:
        description: The adjacent bits that are the value; the others are left as they are.
        type: int
      value:
        description: What it is to hold. Required unless each device has its own, or it is O(registers[].volatile).
        type: raw
      min:
        description: The least value that may be written.
        type: float
      max:
        description: The largest value that may be written.
        type: float
      tolerance:
        description:
          - How far what it holds may be off and still be as declared. A float may always be off by 1e-6 of itself.
        type: float
        default: 0
      verify:
        description:
          - With V(none) a write is not read back, for a device that shows it only after a restart, say. One that was
            not answered is read back all the same.
        type: str
        choices: [readback, none]
        default: readback
      readback_address:
        description:
          - Where the device shows what it holds, if not where it is written. It is compared there, before and after.
        type: int
      readback_table:
        description: The table of O(registers[].readback_address); V(holding) if not given.
        type: str
        choices: [holding, input]
      readback_type:
        description: How the value lies at O(registers[].readback_address), if not as it is written.
        type: str
        choices: [u16, i16, u32, i32, u64, i64, f32, f64]
      readback_scale:
        description: The scale at O(registers[].readback_address), if it is another.
        type: float
      volatile:
        description:
          - Whether it changes by itself. It is read, and its value is told beside the declared one. A difference is no
            drift and is never written.
        type: bool
        default: false
      write_only:
        description:
          - Whether it cannot be read. With no O(registers[].readback_address) what it holds stays V(unknown) and never
            counts as changed. It is written as O(blind) says.
        type: bool
        default: false
      write_fc:
        description:
          - The function that writes it. V(auto) takes 6 (5 for a coil) for one register and 16 (15) for more.
        type: str
        choices: [auto, '5', '6', '15', '16']
        default: auto
  blind:
    description:
      - Registers that a device never shows are written whenever another of the device is. With V(true) they are written
        where no other is, too, and so in every run.
    type: bool
    default: false
extends_documentation_fragment:
  - derms.edge.declared_registers
  - derms.edge.device_state
seealso:
  - module: derms.edge.modbus_registers_info
  - module: derms.edge.device_settings
"""

EXAMPLES = r"""
- name: The three heat pumps stop at 55 degrees and their remote control is on
  derms.edge.modbus_registers:
    address_base: one
    devices:
      - {name: heat-pump-1, host: 10.20.1.81}
      - {name: heat-pump-2, host: 10.20.1.82}
      - {name: heat-pump-3, bus: hall, unit_id: 7, values: {flow_maximum: 48}}
    registers:
      - {name: flow_maximum, address: 10021, type: i16, scale: 0.1, unit: degC, value: 55, min: 20, max: 60}
      - {name: remote, address: 10040, type: bits, length: 1, mask: 0x0004, value: true}

- name: Written in one place, shown in another
  derms.edge.modbus_registers:
    address_base: zero
    devices: [{name: pump, host: 10.20.1.90, framer: rtu_over_tcp, unit_id: 3}]
    registers:
      - {name: speed, address: 5004, type: u16, unit: rpm, value: 900, readback_address: 1100, readback_type: u32}
"""

RETURN = r"""
devices:
  description: What became of each device, in the order declared.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The device's name.
      type: str
    status:
      description: >-
        The worst of its registers: V(ok), V(changed), V(unreachable), V(refused), V(verify_failed), V(indeterminate) or
        V(unknown). In check mode V(changed) is what would be.
      type: str
    changed:
      description: Whether a register was changed, or would be.
      type: bool
    before:
      description: What was read, by register.
      type: dict
    after:
      description: What was read back, by register; in check mode, what would be.
      type: dict
    settings:
      description: >-
        Each register that is not as declared, or was not, with its outcome, unit, the value wanted in the register's
        resolution, the words that were read, and those that were written or would be.
        Addresses are those of the protocol, counted from zero.
      type: list
      elements: dict
    not_shown:
      description: The registers that the device never shows, so that nobody can tell what they hold.
      type: list
      elements: str
    detail:
      description: Why, where something is not as it should be.
      type: str
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - device: heat-pump-1
      what: flow_maximum
      is: 60 degC (holding 10020 = 600)
      should_be: 55 degC (holding 10020 = 550)
not_verified:
  description: Which devices could not be verified and why, where the task does not fail for them.
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
    TYPES,
)
from ansible_collections.derms.edge.plugins.module_utils.device_state import NoAgent, ask, finish, unknown

READBACK_TYPES = [kind for kind in TYPES if kind not in ("string", "bits")]


def main() -> None:
    """Converge registers."""
    module = AnsibleModule(
        argument_spec={
            "devices": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {**DEVICE_OPTIONS, "values": {"type": "dict", "default": {}}},
                **BUS_OR_HOST,
            },
            "registers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    **REGISTER_OPTIONS,
                    "value": {"type": "raw"},
                    "min": {"type": "float"},
                    "max": {"type": "float"},
                    "tolerance": {"type": "float", "default": 0},
                    "verify": {"type": "str", "choices": ["readback", "none"], "default": "readback"},
                    "readback_address": {"type": "int"},
                    "readback_table": {"type": "str", "choices": ["holding", "input"]},
                    "readback_type": {"type": "str", "choices": READBACK_TYPES},
                    "readback_scale": {"type": "float"},
                    "volatile": {"type": "bool", "default": False},
                    "write_only": {"type": "bool", "default": False},
                    "write_fc": {"type": "str", "choices": ["auto", "5", "6", "15", "16"], "default": "auto"},
                },
            },
            "blind": {"type": "bool", "default": False},
            **OPTIONS,
        },
        supports_check_mode=True,
    )
    try:
        devices = ask(
            module,
            "registers",
            arguments=module.params,
            check=module.check_mode,
            socket=module.params["socket"],
            state_directory=module.params["state_directory"],
            depot_file=module.params["depot_file"],
        )
    except NoAgent as why:
        finish(module, unknown([device["name"] for device in module.params["devices"]], str(why)), asked=False)
    finish(module, devices)


if __name__ == "__main__":
    main()
