# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: batches
short_description: Sizes of a play's batches, never two gateways of one depot in a batch
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Cuts a play's hosts, in their order, into batches for the keyword C(serial).
  - A batch ends when it is full, or when the next host belongs to a depot that the batch already holds, so that a
    change which breaks a gateway leaves the depot its other one.
positional: _input, variables
options:
  _input:
    description: The play's hosts, in the order in which they run.
    type: list
    elements: str
    required: true
  variables:
    description:
      - Each host's variables, that is C(hostvars).
      - C(derms_depot) is the host's depot; a host without one counts as a depot of its own.
      - C(derms_serial) is the most hosts in a batch, 1 where it is not set; the smallest counts where hosts differ.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Converge gateways
  hosts: derms_gateways
  serial: "{{ ansible_play_hosts_all | derms.edge.batches(hostvars) }}"
"""

RETURN = r"""
_value:
  description: The sizes of the batches. They add up to the number of hosts; one batch of 1 where there are none.
  type: list
  elements: int
"""

from typing import Any, Callable, Dict, List, Mapping

from ansible.errors import AnsibleFilterError


def batches(hosts: List[str], variables: Mapping[str, Mapping[str, Any]]) -> List[int]:
    """Return the sizes of the batches.

    :param hosts: the play's hosts in order
    :param variables: host -> its variables
    :raises AnsibleFilterError: derms_serial is no whole number of at least 1
    """
    size = min((_serial(variables[host]) for host in hosts if host in variables), default=1)
    sizes: List[int] = []
    present: List[str] = []
    for host in hosts:
        depot = variables[host].get("derms_depot", host) if host in variables else host
        if not sizes or sizes[-1] >= size or depot in present:
            sizes.append(0)
            present = []
        sizes[-1] += 1
        present.append(depot)
    return sizes or [1]


def _serial(variables: Mapping[str, Any]) -> int:
    size = variables.get("derms_serial", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise AnsibleFilterError(f"derms_serial must be a whole number of at least 1, not {size!r}")
    return size


class FilterModule:
    """What Ansible asks a file in plugins/filter for."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"batches": batches}
