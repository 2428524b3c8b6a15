# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the tree importable as the collection derms.edge, as Ansible sees it, and its tools by their own names.

A processor that is busy with other parts of the tests breaks no property: no example has a deadline. Examples are the
same in every run, so that a change is judged by what it changes; `make explore` draws new ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]

settings.register_profile("derms", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("derms")
