# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture that the README begins with."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tools.terminal_picture import drawn

SHOWN = "$ derms-agent status\nLIMITED: root: demo\ncharger-001  a & b <c>\n\nNo Changes Required\n"
SPACE = "\N{NO-BREAK SPACE}"


def test_all_that_was_shown_is_in_the_picture() -> None:
    picture = ElementTree.fromstring(drawn(SHOWN, "make demo"))  # noqa: S314 - our own
    texts = ["".join(one.itertext()) for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    words = "\n".join(texts).replace(SPACE, " ")
    assert all(line in words for line in SHOWN.splitlines())
    assert "make demo" in words


def test_a_picture_loads_nothing_and_is_the_same_each_time() -> None:
    picture = drawn(SHOWN, "make demo")
    assert not re.search(r"@font-face|href|src|url\((?!#)", picture)
    assert drawn(SHOWN, "make demo") == picture
