# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What all modules for devices have in common."""

    DOCUMENTATION = r"""
options:
  agent_directory:
    description:
      - Where the agent's releases are. The module starts on the gateway's own Python and goes on with the interpreter
        of the release that is in service, whose drivers and profiles it uses.
      - Where there is none yet, or one of another interface version, every device is V(unknown). In check mode that is
        no failure.
    type: path
    default: /opt/derms
  socket:
    description:
      - The agent's socket. While it answers, every request goes through the agent's own scheduler, after its sheds,
        watchdogs and polls.
    type: path
    default: /run/derms/orchestrator.sock
  state_directory:
    description:
      - Where the agent keeps its state. While it does not run, devices are asked directly, under a lock on this
        directory that the agent takes as well.
    type: path
    default: /var/lib/derms/orchestrator
  max_failures:
    description:
      - How many devices may fail before the task does, as a number, or as a percentage such as V(5%).
      - All devices are tried first, and all results are returned, whichever way the task ends. Those that failed are in
        RV(ignore:not_verified) and so keep the recap from saying that no changes are required.
      - A device that was written and does not show it, or whose write is in doubt, is always a failure.
    type: str
    default: "0"
  deadline_s:
    description: After how many seconds no further device is asked; the rest is V(unknown).
    type: float
    default: 120
attributes:
  check_mode:
    description: Reads all that it would read, writes nothing, and predicts what each device would then show.
    support: full
  diff_mode:
    description: Returns one entry for each device, with each setting in its unit and as it lies in registers.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: linux
"""
