# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the modules for raw registers have in common."""

    DOCUMENTATION = r"""
options:
  address_base:
    description:
      - What addresses count from. There is no default, for the same number means three registers.
      - With V(zero) it is the address in the protocol's own request (PDU). V(one) is how C(modpoll -r) counts. With
        V(modicon) the leading digit of five or six names the table (V(40001) or V(400001) is holding register 0) and a
        O(registers[].table) that says otherwise is an error.
    type: str
    required: true
    choices: [zero, one, modicon]
  limits:
    description: What a device takes in one request, and how much is asked at once.
    type: dict
    default: {}
    suboptions:
      max_read:
        description: Most registers that one read takes.
        type: int
        default: 125
      max_write:
        description: Most registers that one write takes. A value is never split over two.
        type: int
        default: 123
      max_gap:
        description:
          - How many registers that nobody asked for a read may go through to join two. Some devices refuse them, or do
            something when they are read.
        type: int
        default: 0
      per_bus:
        description: Devices that are asked at once on one bus.
        type: int
        default: 1
      global:
        description: Devices that are asked at once.
        type: int
        default: 200
      timeout_s:
        description:
          - Seconds that a device has for an answer, where O(devices[].host) names it. A bus of the depot has its own.
        type: float
        default: 1
      verify_s:
        description: Seconds that a device has until it shows what was written.
        type: float
        default: 3
  depot_file:
    description:
      - The depot of this gateway, whose buses O(devices[].bus) names, and from which it is known which registers
        control and M(derms.edge.device_settings) answer for. Where there is none yet, a device on a bus is V(unknown).
    type: path
    default: /etc/derms/depot.yml
  gateway:
    description:
      - The gateway that this runs on, as the depot file names it. Required for a bus of a depot that has several, for a
        bus is asked by its own gateway only.
    type: str
  on_error:
    description:
      - With V(continue) every device is tried, whatever becomes of the others.
      - With V(fail) no further device is begun once more than O(max_failures) have failed. Those that were not begun
        are V(unknown).
    type: str
    choices: [continue, fail]
    default: continue
"""
