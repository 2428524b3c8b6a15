# SPDX-License-Identifier: Apache-2.0
"""The bundled agent: depot file, device profiles, drivers, control and services of an EV depot's gateway."""

__version__ = "0.1.0"
