# SPDX-License-Identifier: Apache-2.0
"""What modules ask: a call by its name with its arguments in, its result out, all of it of JSON's types.

A request is `{"interface": N, "call": "settings", "arguments": {…}}`, and its answer `{"interface": N, "result": …}`,
`{"interface": N, "unusable": "…"}` where it cannot be done, or `{"interface": M}` alone from another version of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from derms_agent import device_state

# By name: what one call needs, another has no need to import.
CALLS = {
    "settings": ("derms_agent.device_state.run", "settings"),
    "info": ("derms_agent.device_state.looking", "info"),
    "scan": ("derms_agent.device_state.looking", "scan"),
    "der_settings": ("derms_agent.device_state.der.run", "der_settings"),
    "registers": ("derms_agent.device_state.registers", "converged"),
    "registers_info": ("derms_agent.device_state.registers", "gathered"),
    "ven_events": ("derms_agent.grid_gateway.looking", "events"),
    "ven_declared": ("derms_agent.grid_gateway.declared", "converged"),
    "vtn_reached": ("derms_agent.grid_gateway.reach", "reached"),
}
PATHS = frozenset({"socket", "state_directory", "depot_file"})


class Unusable(ValueError):
    """What was asked for cannot be done; nothing was written. The text says what was found and expected."""


def answered(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a module's request; one by another interface's rules is not carried out."""
    interface = device_state.INTERFACE
    if request["interface"] != interface:
        return {"interface": interface}
    module, name = CALLS[request["call"]]
    arguments = {key: Path(value) if key in PATHS else value for key, value in request["arguments"].items()}
    try:
        return {"interface": interface, "result": getattr(import_module(module), name)(**arguments)}
    except Unusable as problem:
        return {"interface": interface, "unusable": str(problem)}
