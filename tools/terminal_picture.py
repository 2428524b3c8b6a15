# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw what a terminal showed as SVG: tools/terminal_picture.py TITLE FILE.svg <TEXT."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

STYLES = {
    r"(?m)^\$ .*$": "bold",
    r"(?m)^(LIMITED|SHEDDING): .*$": "yellow",
    r"(?m)^\d+ changes? (required|applied) .*$": "yellow",
    r"(?m)^No Changes Required$": "bold green",
    # A value of a device's, with the registers that hold it: as it is, and in the last column as it should be.
    r"(?m)\S+ \S+ \(holding [^)]*\)(?=  )": "red",
    r"(?m)\S+ \S+ \(holding [^)]*\)$": "green",
}
# A picture loads nothing from anywhere; whoever has the font sees it, all others a monospaced one of their own.
FONTS_FROM_ELSEWHERE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def drawn(shown: str, title: str) -> str:
    """Return the SVG of what was shown, as wide as its widest line. The same text makes the same picture."""
    text = Text(shown.rstrip())
    for pattern, style in STYLES.items():
        text.highlight_regex(pattern, style)
    console = Console(record=True, width=max(map(len, shown.splitlines())), file=io.StringIO())
    console.print(text)
    return FONTS_FROM_ELSEWHERE.sub("", console.export_svg(title=title, unique_id="terminal"))


if __name__ == "__main__":
    title, path = sys.argv[1:]
    Path(path).write_text(drawn(sys.stdin.read(), title), encoding="utf-8")
