# SPDX-License-Identifier: Apache-2.0
"""Keeps Python's collector of cyclic garbage out of the control cycle's way.

A cycle replaces what is known of each EVSE, so many thousands of tuples live for just one cycle; none is in a circle of
references, and all are freed without the collector. By its own settings it would look through the young ones dozens of
times a cycle with a thousand EVSEs, and now and then through all that there is.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""How many objects may be new before the collector looks at them: about as many as a thousand EVSEs' cycle makes."""


def settle() -> None:
    """Let the collector leave alone for ever what is there now, and look less often at what comes."""
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
