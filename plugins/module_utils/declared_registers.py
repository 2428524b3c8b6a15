# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that the modules for raw registers share."""

from __future__ import annotations

from ansible_collections.derms.edge.plugins.module_utils.device_state import AGENT_OPTIONS

TABLES = ["holding", "input", "coil", "discrete"]
TYPES = ["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "string", "bits"]
ORDERS = ["big", "little"]

DEVICE_OPTIONS = {
    "name": {"type": "str", "required": True},
    "bus": {"type": "str"},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "framer": {"type": "str", "choices": ["tcp", "rtu_over_tcp"]},
    "unit_id": {"type": "int", "default": 1},
}
BUS_OR_HOST = {
    "mutually_exclusive": [("bus", "host"), ("bus", "port"), ("bus", "framer")],
    "required_one_of": [("bus", "host")],
}
"""Either names a bus of the depot, or says how the device is reached."""

REGISTER_OPTIONS = {
    "name": {"type": "str", "required": True},
    "table": {"type": "str", "choices": TABLES},
    "address": {"type": "int", "required": True},
    "type": {"type": "str", "required": True, "choices": TYPES},
    "length": {"type": "int"},
    "word_order": {"type": "str", "choices": ORDERS, "default": "big"},
    "byte_order": {"type": "str", "choices": ORDERS, "default": "big"},
    "scale": {"type": "float", "default": 1},
    "offset": {"type": "float", "default": 0},
    "unit": {"type": "str", "default": ""},
    "mask": {"type": "int"},
}
"""Where a register is and how a value lies in it."""

OPTIONS = {
    "address_base": {"type": "str", "required": True, "choices": ["zero", "one", "modicon"]},
    "limits": {
        "type": "dict",
        "default": {},
        "options": {
            "max_read": {"type": "int", "default": 125},
            "max_write": {"type": "int", "default": 123},
            "max_gap": {"type": "int", "default": 0},
            "per_bus": {"type": "int", "default": 1},
            "global": {"type": "int", "default": 200},
            "timeout_s": {"type": "float", "default": 1},
            "verify_s": {"type": "float", "default": 3},
        },
    },
    "on_error": {"type": "str", "choices": ["continue", "fail"], "default": "continue"},
    "gateway": {"type": "str"},
    "depot_file": {"type": "path", "default": "/etc/derms/depot.yml"},
    **AGENT_OPTIONS,
}
