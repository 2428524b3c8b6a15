# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What a module supports that changes nothing."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: It only reads, and does the same in check mode.
    support: full
  diff_mode:
    description: It changes nothing that a diff could show.
    support: none
"""
