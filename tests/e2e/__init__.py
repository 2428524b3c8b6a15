# SPDX-License-Identifier: GPL-3.0-or-later
"""What takes a whole host, and cannot be said as a molecule scenario."""
