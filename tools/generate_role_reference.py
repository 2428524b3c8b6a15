#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write each role's defaults/main.yml and docs/roles.md from the roles' meta/argument_specs.yml.

The argument spec is the one source: what a variable is called, what it may hold, why its default is what it is. With
--check nothing is written, and a file that is not what would be written ends the run with status 1.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# REUSE-IgnoreStart
LICENSE = "# SPDX-License-Identifier: GPL-3.0-or-later\n"
# REUSE-IgnoreEnd
WRITTEN_BY = "# Written by `make generate` from meta/argument_specs.yml, the one source: change it there.\n"
WIDTH = 118
SHORT_DEFAULT_LENGTH = 60


class IndentedDumper(yaml.SafeDumper):
    """Indents lists below their key, as ansible-lint asks for."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (PyYAML's own signature)
        """Never leave a list at its key's own column."""
        super().increase_indent(flow, False)


def yaml_text(value: object, *, width: int = WIDTH, flow: bool = False) -> str:
    """Return a value as YAML, in the order in which it was written."""
    text: str = yaml.dump(
        value, Dumper=IndentedDumper, sort_keys=False, width=width, default_flow_style=flow, allow_unicode=True
    )
    return text


def entry_point(role: Path) -> Mapping[str, Any]:
    """Return the `main` entry point of a role's argument spec."""
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    main: Mapping[str, Any] = spec["argument_specs"]["main"]
    return main


def paragraphs(description: str | list[str]) -> list[str]:
    """Return a description as a list of paragraphs, whichever of its two forms it was written in."""
    return [description.strip()] if isinstance(description, str) else [item.strip() for item in description]


def defaults_text(main: Mapping[str, Any]) -> str:
    """Return defaults/main.yml: each variable that has a default, below its description."""
    parts = [f"---\n{LICENSE}{WRITTEN_BY}"]
    for name, option in main.get("options", {}).items():
        if "default" not in option:
            continue
        comment = [
            line
            for paragraph in paragraphs(option["description"])
            for line in textwrap.wrap(paragraph, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        ]
        parts.append("\n" + "".join(f"# {line}\n" for line in comment) + yaml_text({name: option["default"]}))
    return "".join(parts)


def kind(option: Mapping[str, Any]) -> str:
    """Return an option's type in words: `list of dict`, `str: a, b or c`."""
    name = option.get("type", "str")
    if name == "list" and "elements" in option:
        name = f"list of {option['elements']}"
    if choices := option.get("choices"):
        name += ": " + ", ".join(str(choice) for choice in choices)
    return str(name)


def cell(text: str) -> str:
    """Return text as it may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def short_default(option: Mapping[str, Any]) -> str:
    """Return what a table says of an option's default: itself if it is short, its size if it is long."""
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return "not set"
    value = option["default"]
    text = yaml_text(value, width=10_000, flow=True).replace("\n...\n", "").strip()
    return f"`{cell(text)}`" if len(text) <= SHORT_DEFAULT_LENGTH else f"{len(value)} entries, in defaults/main.yml"


def rows(options: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield a table row for each option, its suboptions below it."""
    for name, option in options.items():
        label = "&nbsp;&nbsp;" * depth + f"`{name}`"
        description = cell(" ".join(paragraphs(option["description"])))
        yield f"| {label} | {cell(kind(option))} | {short_default(option)} | {description} |\n"
        yield from rows(option.get("options", {}), depth + 1)


def role_text(name: str, main: Mapping[str, Any]) -> str:
    """Return a role's section of docs/roles.md."""
    text = (
        "\n\n".join([f"\n## {name}", main["short_description"] + ".", *paragraphs(main.get("description", []))]) + "\n"
    )
    if options := main.get("options"):
        text += "\n| variable | type | default | what it is, and why |\n| --- | --- | --- | --- |\n"
        text += "".join(rows(options))
    return text


def outputs(root: Path) -> dict[Path, str]:
    """Return every generated file and the text it must hold."""
    roles = sorted(path.parents[1] for path in (root / "roles").glob("*/meta/argument_specs.yml"))
    texts: dict[Path, str] = {}
    reference = (
        "# The roles and their variables\n\n"
        "Written by `make generate` from `roles/*/meta/argument_specs.yml`. Variables that several roles share are\n"
        "under [preflight](#preflight), which also refuses misspelt ones before anything is changed.\n"
    )
    for role in roles:
        main = entry_point(role)
        reference += role_text(role.name, main)
        if any("default" in option for option in main.get("options", {}).values()):
            texts[role / "defaults" / "main.yml"] = defaults_text(main)
    texts[root / "docs" / "roles.md"] = reference
    return texts


def main() -> int:
    """Write the files, or with --check name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    arguments = parser.parse_args()
    stale = 0
    for path, text in outputs(ROOT).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if arguments.check:
            print(f"{path.relative_to(ROOT)}: not what its argument spec says; run `make generate`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
