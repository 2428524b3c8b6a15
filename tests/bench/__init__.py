# SPDX-License-Identifier: GPL-3.0-or-later
"""What the project must reach, measured: `make bench [ONLY=prefix]`."""
