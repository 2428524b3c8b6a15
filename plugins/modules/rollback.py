#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollback
short_description: Confirm a change that the host would otherwise undo
version_added: 0.1.0
description:
  - Modules that can shut their own author out, such as M(derms.edge.iptables_chains), arm a roll-back in the same
    execution as the change. The host undoes the change by itself unless this module disarms the roll-back in time.
  - Run it over a B(new) connection. An established one proves nothing, since it outlives the rules that let it in.
  - After a reboot an unconfirmed change is undone before the network is up.
  - It never counts as changed, for the change is the one that the task before it has reported.
options:
  name:
    description: Name of the roll-back, as given to the module that armed it.
    type: str
    required: true
  state:
    description: The change is confirmed, and nothing waits to undo it.
    type: str
    choices: [disarmed]
    default: disarmed
attributes:
  check_mode:
    description: Says whether a roll-back is armed.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  platform:
    description: Where it works.
    support: full
    platforms: posix
author:
  - DERMS Edge developers (@derms-edge)
"""

EXAMPLES = r"""
- name: Leave the connection that was made before the change
  ansible.builtin.meta: reset_connection

- name: Come back over a new one
  ansible.builtin.wait_for_connection:
    timeout: 25

- name: Confirm the change
  derms.edge.rollback:
    name: firewall
"""

RETURN = r"""
armed:
  description: Whether a roll-back by this name was armed.
  type: bool
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.rollback import disarm, has_fired, is_pending


def main() -> None:
    """Disarm one roll-back."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["disarmed"], "default": "disarmed"},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    armed = is_pending(name)
    if not module.check_mode and (armed or has_fired(name)):
        disarm(module, name)
    module.exit_json(changed=False, armed=armed)


if __name__ == "__main__":
    main()
