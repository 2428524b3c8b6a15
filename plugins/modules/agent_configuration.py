#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: agent_configuration
short_description: The agent's configuration, judged on the control node by the agent that is to be deployed
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Lets C(derms-agent check-config) of the source that a release is made of judge the files that a gateway is to get.
  - It runs on the control node and needs no connection, so a mistake shows in a dry run on a bare host as well.
options:
  source:
    description: The directory of the agent's source, or of the archive of it that a built collection has.
    type: path
    required: true
  agent_conf:
    description: The text of agent.conf.
    type: str
    required: true
  limits_conf:
    description: The text of limits.conf.
    type: str
    required: true
  depot:
    description: The text of the depot file.
    type: str
    required: true
attributes:
  action:
    description: Runs on the control node.
    support: full
  check_mode:
    description: Changes nothing in either mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Check the agent's configuration
  derms.edge.agent_configuration:
    source: agent
    agent_conf: "{{ lookup('ansible.builtin.template', 'agent.conf.j2') }}"
    limits_conf: "{{ lookup('ansible.builtin.template', 'limits.conf.j2') }}"
    depot: "{{ lookup('ansible.builtin.template', 'depot.yml.j2') }}"
"""

RETURN = r"""
summary:
  description: What the files say, in one line.
  type: str
  returned: success
"""
