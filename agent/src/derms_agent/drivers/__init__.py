# SPDX-License-Identifier: Apache-2.0
"""Drivers: how devices are read, written and kept alive."""
