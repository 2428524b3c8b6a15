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
positional: _input, depots, size
options:
  _input:
    description: The play's hosts, in the order in which they run.
    type: list
    elements: str
    required: true
  depots:
    description: The depot of each host. A host that is missing here counts as a depot of its own.
    type: dict
    required: true
  size:
    description: The most hosts in a batch; at least 1.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Converge gateways
  hosts: derms_gateways
  serial: "{{ ansible_play_hosts_all | derms.edge.batches({'a1': 'a', 'a2': 'a', 'b1': 'b'}, 2) }}"
"""

RETURN = r"""
_value:
  description: The sizes of the batches. They add up to the number of hosts; one batch of 1 where there are none.
  type: list
  elements: int
"""

from typing import Any, Callable, Dict, List

from ansible.errors import AnsibleFilterError


def batches(hosts: List[str], depots: Dict[str, str], size: int) -> List[int]:
    """Return the sizes of the batches.

    :param hosts: the play's hosts in order
    :param depots: host -> depot
    :param size: the most hosts in a batch
    :raises AnsibleFilterError: the size is no whole number of at least 1
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise AnsibleFilterError(f"derms_serial must be a whole number of at least 1, not {size!r}")
    sizes: List[int] = []
    present: List[str] = []
    for host in hosts:
        depot = depots.get(host, host)
        if not sizes or sizes[-1] >= size or depot in present:
            sizes.append(0)
            present = []
        sizes[-1] += 1
        present.append(depot)
    return sizes or [1]


class FilterModule:
    """What Ansible asks a file in plugins/filter for."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"batches": batches}
