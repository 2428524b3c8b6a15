# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What all modules for OpenADR have in common."""

    DOCUMENTATION = r"""
options:
  agent_directory:
    description:
      - Where the agent's releases are. The module starts on the gateway's own Python, and has the interpreter of the
        release that is in service do what needs the agent's code.
      - Where there is none yet, or one of another interface version, what needs it is V(unknown). In check mode that is
        no failure.
    type: path
    default: /opt/derms
attributes:
  platform:
    description: Where it works.
    support: full
    platforms: linux
"""

    SOCKET = r"""
options:
  socket:
    description: The socket of the grid gateway, C(derms-grid-gateway.service), which is asked.
    type: path
    default: /run/derms/grid-gateway/ven.sock
"""
