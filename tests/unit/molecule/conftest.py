# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the scenarios' own program importable, as it is when it runs from the root of the tree."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
