# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: ledger, what was asked, sessions, what control remembers, cycles; one JSON file each.

The writes that leave between two ledgers are added to a journal, a line of JSON at a time, each on the disk before any
of its writes leaves: that takes a third of the time of a whole ledger. All asks have one as well: see `Latest`.
"""

from __future__ import annotations

LEDGER, ASKS, SESSIONS, MEMORY = "ledger.json", "asks.json", "sessions.json", "memory.json"
CYCLES = "cycles.json"
JOURNAL, ASKS_JOURNAL = "ledger.journal", "asks.journal"
