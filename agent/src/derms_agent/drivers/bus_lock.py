# SPDX-License-Identifier: Apache-2.0
"""Who has a gateway's buses: the agent while it runs, and while it does not whoever asks devices directly.

The lock is on the directory in which the agent keeps its state, which all who may have the buses know. The kernel lets
it go with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(Exception):
    """Somebody else has the buses."""


@contextmanager
def buses_locked(state_directory: Path) -> Iterator[None]:
    """Have the buses of the agent that keeps its state in a directory; where that is not there, none has ever run.

    Raises Locked, at once, and OSError.
    """
    try:
        descriptor = os.open(state_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise Locked(f"another program has the buses: {state_directory} is locked") from problem
        yield
    finally:
        os.close(descriptor)
