# SPDX-License-Identifier: Apache-2.0
"""Control: pure functions from readings to limits and setpoints. No I/O, no clock of their own."""
