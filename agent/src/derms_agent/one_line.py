# SPDX-License-Identifier: Apache-2.0
"""Texts from elsewhere, made fit for a line of a log or of a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""Return a text with what is not printable escaped (`\n`, `\x1b`, `\u2028`): one line, whatever is in it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
