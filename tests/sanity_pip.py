# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts pip into ansible-test's virtual environments from Python's own ensurepip.

ansible-test otherwise downloads a script for this from its makers, which a machine that reaches only package registries
cannot. tests/sanity lays this file where ansible-test looks for that script first.
"""

from __future__ import annotations

import runpy
import subprocess
import sys

# In a process of its own: ensurepip turns pip's configuration off for whoever runs after it.
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *wanted]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
