#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fail2ban_jails
short_description: Jails that fail2ban is running now
version_added: 0.1.0
description:
  - Compares the declared jails with those that the running fail2ban has, by one question for all of them.
  - A jail that was stopped by hand is started again, without a touch on the other jails and their bans.
  - Bans that come and go are no difference. A fail2ban that does not run is the concern of M(derms.edge.services).
author: DERMS Edge developers (@derms-edge)
attributes:
  check_mode:
    support: full
    description: Predicts the jails that would be started.
  diff_mode:
    support: full
    description: Returns the running jails before and after.
  platform:
    support: full
    platforms: posix
    description: Any system with fail2ban 0.10 or later.
options:
  jails:
    description: Names of the jails that are to run. Others are left alone.
    type: list
    elements: str
    required: true
  restart_notified:
    description:
      - Whether an earlier task would change the configuration, and notified the restart.
      - In check mode a jail that is missing then says nothing that the earlier task has not said, and is left out.
    type: bool
    default: false
  settle_s:
    description:
      - How long to wait, outside check mode, for jails that a start of fail2ban is still bringing up.
    type: float
    default: 5.0
"""

EXAMPLES = r"""
- name: Run the declared jails
  derms.edge.fail2ban_jails:
    jails: [sshd, recidive]
"""

RETURN = r"""
running:
  description: The jails that run, sorted; in check mode those that run now.
  returned: always
  type: list
  elements: str
  sample: [recidive, sshd]
drift:
  description: Every declared jail that was not running.
  returned: always
  type: list
  elements: dict
  sample:
    - what: fail2ban jail sshd
      is: stopped
      should_be: running
"""

import re
import time
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule

POLL_S = 0.5


def jails_of(status: str) -> list[str]:
    """Read the jails from the answer to C(fail2ban-client status)."""
    found = re.search(r"Jail list:[ \t]*(.*)", status)
    return sorted(name for name in re.split(r"[,\s]+", found.group(1)) if name) if found else []


def drift_of(stopped: list[str]) -> list[dict[str, str]]:
    """Name each jail that should run."""
    return [{"what": f"fail2ban jail {name}", "is": "stopped", "should_be": "running"} for name in stopped]


class Jails:
    """The jails of the fail2ban on this host."""

    def __init__(self, module: AnsibleModule, client: str, wanted: list[str]) -> None:
        self.module = module
        self.client = client
        self.wanted = wanted

    def running(self) -> Optional[list[str]]:
        """Ask which jails run; None where fail2ban does not answer."""
        status, answer, _error = self.module.run_command([self.client, "status"])
        return jails_of(answer) if status == 0 else None

    def stopped(self, running: Optional[list[str]]) -> list[str]:
        """Give the wanted jails that do not run."""
        return [name for name in self.wanted if name not in (running or [])]

    def settled(self, within_s: float) -> Optional[list[str]]:
        """Ask again while jails are missing that a start may still bring up."""
        deadline_s = time.monotonic() + within_s
        running = self.running()
        while self.stopped(running) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            running = self.running()
        return running

    def start(self, name: str) -> None:
        """Read one jail's configuration again, which starts it where it was stopped."""
        status, answer, error = self.module.run_command([self.client, "reload", "--if-exists", name])
        if status != 0:
            words = error.strip() or answer.strip()
            self.module.fail_json(msg=f"The jail {name} could not be started: {words}")


def main() -> None:
    """Compare, and start what is missing."""
    module = AnsibleModule(
        argument_spec={
            "jails": {"type": "list", "elements": "str", "required": True},
            "restart_notified": {"type": "bool", "default": False},
            "settle_s": {"type": "float", "default": 5.0},
        },
        supports_check_mode=True,
    )
    unchanged: dict[str, Any] = {"changed": False, "running": [], "drift": []}
    client = module.get_bin_path("fail2ban-client")
    if client is None or (module.check_mode and module.params["restart_notified"]):
        module.exit_json(**unchanged)
    jails = Jails(module, client, module.params["jails"])
    before = jails.running() if module.check_mode else jails.settled(module.params["settle_s"])
    if before is None and not module.check_mode:
        module.fail_json(msg="fail2ban does not answer.", **unchanged)
    if before is None:
        module.exit_json(**unchanged)
    converge(module, jails, before or [])


def converge(module: AnsibleModule, jails: Jails, before: list[str]) -> None:
    """Start what is missing, and report."""
    stopped = jails.stopped(before)
    after = sorted({*before, *stopped})
    if stopped and not module.check_mode:
        for name in stopped:
            jails.start(name)
        still = jails.stopped(jails.running())
        if still:
            module.fail_json(
                msg=f"Not running although fail2ban accepted their configuration: {', '.join(still)}. "
                "Another file under /etc/fail2ban switches them off.",
                drift=drift_of(stopped),
            )
    module.exit_json(
        changed=bool(stopped),
        running=before if module.check_mode else after,
        drift=drift_of(stopped),
        diff={"before": "\n".join([*before, ""]), "after": "\n".join([*after, ""])},
    )


if __name__ == "__main__":
    main()
