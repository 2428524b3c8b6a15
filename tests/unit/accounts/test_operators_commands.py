# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever docs/operator.md tells an operator to type with sudo is what the gateway lets them do."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import yaml

REPOSITORY = Path(__file__).parents[3]
ROLE = REPOSITORY / "roles" / "service_accounts"


def allowed() -> set[str]:
    """Return the commands that sudo lets an operator run, with the role's own services."""
    services = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["service_accounts_users"]
    template = (ROLE / "templates" / "sudoers.j2").read_text(encoding="utf-8")
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - sudoers is no HTML
    rules = jinja.from_string(template).render(service_accounts_users=services)
    return {command.replace("\\=", "=") for command in re.findall(r"/usr/bin/(.*?)(?:, \\)?$", rules, re.MULTILINE)}


def test_operators_are_told_to_type_what_sudo_lets_them() -> None:
    told = re.findall(r"`sudo ([^`]+)`", (REPOSITORY / "docs" / "operator.md").read_text(encoding="utf-8"))
    assert told
    assert set(told) <= allowed()
