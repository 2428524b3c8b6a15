# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the tree importable as the collection derms.edge, as Ansible itself sees it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "collections"))
