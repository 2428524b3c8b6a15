# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: adopted_depot
short_description: A first depot file of what was found on a depot's buses
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Puts together what M(derms.edge.device_scan) found on all gateways of a depot.
  - Secrets are left out, with a comment in their place.
requirements:
  - derms-agent (Python, on the control node)
positional: _input, units
options:
  _input:
    description: The depot as it is declared, that is C(derms_depot_document).
    type: dict
    required: true
  units:
    description: RV(derms.edge.device_scan#module:units) of the depot's gateways, one after the other.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show a depot file of what one gateway found
  ansible.builtin.debug:
    msg: "{{ (derms_depot_document | derms.edge.adopted_depot(found.units)).text }}"
"""

RETURN = r"""
_value:
  description: The file's C(text), and in C(lacks) what has to be said in it before it is a depot file.
  type: dict
"""

from typing import Any, Callable, Mapping

from ansible.errors import AnsibleFilterError
from ansible.module_utils.basic import missing_required_lib


def adopted_depot(document: Mapping[str, Any], units: list[Any]) -> dict[str, Any]:
    """Return a depot file's text and what it lacks.

    :raises AnsibleFilterError: derms-agent is not on this control node
    """
    try:
        from derms_agent.device_state.adopted import adopted  # noqa: PLC0415 - not on every control node
    except ImportError as problem:
        raise AnsibleFilterError(missing_required_lib("derms-agent")) from problem
    made = adopted(plain(document), plain(units))
    return {"text": made.text, "lacks": list(made.lacks)}


def plain(value: Any) -> Any:
    """Return a value without what Ansible adds to its types."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str(value)


class FilterModule:
    """What Ansible asks a file in plugins/filter for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"adopted_depot": adopted_depot}
