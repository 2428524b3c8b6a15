# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Checks a host's variables against every role of the collection
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Checks the host's merged variables against C(meta/argument_specs.yml) of every role of this collection, runs on the
    control node, and needs no connection.
  - Names everything that is wrong at once, with what was found (never the value of a secret), what was expected, and
    the file and line where it was written.
  - Refuses each undeclared variable that begins with C(derms_), and each that looks like a declared one misspelt.
  - A value that depends on facts is left to the role, as long as they have not been gathered.
options:
  included_roles:
    description:
      - Roles that are included by others, which give them their variables; what they require need not be there yet.
    type: list
    elements: str
    default: []
attributes:
  action:
    description: Runs on the control node.
    support: full
  check_mode:
    description: Changes nothing, in check mode or not.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Check every variable before anything is changed
  hosts: derms_gateways
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Check every variable of every role
      derms.edge.preflight:
"""

RETURN = r"""
problems:
  description: What is wrong with the host's variables; the task fails if there is anything.
  returned: always
  type: list
  elements: dict
  contains:
    variable:
      description: The variable's full name.
      type: str
      sample: derms_internal_blocks[0]
    found:
      description: What it holds.
      type: str
      sample: found the text '10.0.0.1/8'
    expected:
      description: What it should hold.
      type: str
      sample: "a block without host bits: 10.0.0.0/8"
    where:
      description: Where it was written; empty where Ansible does not know.
      type: str
      sample: inventories/example/group_vars/all/main.yml:4:5
"""
