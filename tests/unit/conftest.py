# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the tree importable as the collection derms.edge, as Ansible sees it, and its tools by their own names."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]
