# SPDX-License-Identifier: Apache-2.0
"""What the gateway takes from the openleadr package: the OpenADR 2.0b schema and the message templates, as files.

The package itself is never imported: that would start from its client, its scheduler and a parser which a DOCTYPE
crashes (docs/openadr.md).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, TypeAlias

from lxml import etree

Element: TypeAlias = Any
"""An element of lxml, which carries no types."""

NAMESPACES = {
    "oadr": "http://openadr.org/oadr-2.0b/2012/07",
    "ei": "http://docs.oasis-open.org/ns/energyinterop/201110",
    "pyld": "http://docs.oasis-open.org/ns/energyinterop/201110/payloads",
    "emix": "http://docs.oasis-open.org/ns/emix/2011/06",
    "power": "http://docs.oasis-open.org/ns/emix/2011/06/power",
    "scale": "http://docs.oasis-open.org/ns/emix/2011/06/siscale",
    "xcal": "urn:ietf:params:xml:ns:icalendar-2.0",
    "strm": "urn:ietf:params:xml:ns:icalendar-2.0:stream",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
}


def openleadr_directory() -> Path:
    """Return where the package's files are. Raises RuntimeError where it is not installed."""
    found = importlib.util.find_spec("openleadr")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the package openleadr is not installed: it is in the agent's extra grid_gateway")
    return Path(next(iter(found.submodule_search_locations)))


@functools.cache
def schema() -> Any:
    """Return the schema of OpenADR 2.0b; nothing is fetched for it."""
    parser = etree.XMLParser(no_network=True, resolve_entities=False, load_dtd=False)
    return etree.XMLSchema(etree.parse(openleadr_directory() / "schema" / "oadr_20b.xsd", parser))


def schema_problem(tree: Element) -> str | None:
    """Return the first thing about a message that the schema does not admit, or None where it admits it."""
    known = schema()
    if known.validate(tree):
        return None
    first = known.error_log[0]
    return f"line {first.line}: {first.message}"
