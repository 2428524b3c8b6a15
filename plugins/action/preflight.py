# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

# Where a value was written is known to Ansible's error messages only: it has no public name (core 2.19 to 2.21).
from ansible._internal._datatag._tags import Origin, VaultedValue
from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.parsing.vault import EncryptedString, is_encrypted
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.derms.edge.plugins.plugin_utils.role_variables import (
    Problem,
    Provenance,
    Spot,
    missing,
    report,
    undeclared_problems,
    value_problems,
)

SPEC_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ROLES = Path(__file__).parents[2] / "roles"
# Variables that Ansible itself adds; some hold every other host.
MAGIC = frozenset({"hostvars", "groups", "vars", "environment", "omit", "playbook_dir", "role_path", "role_name"})
# Shorter secrets would black out half of every message, and a text that short gives nothing away in it.
SHORTEST_SECRET = 4


def shown_path(path: str) -> str:
    """Return a path as the person at the prompt would write it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def place(value: object) -> str:
    """Return where a value was written, or "" where Ansible does not know."""
    origin = Origin.get_tag(value)
    if origin is None:
        return ""
    if origin.path is None:
        return str(origin.description)
    return ":".join([shown_path(origin.path), *(str(number) for number in (origin.line_num, origin.col_num) if number)])


def trusted(value: Any) -> Any:
    """Return a default of a spec as Ansible takes one from a role: templates in it are meant as such."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: trusted(inner) for key, inner in value.items()}
    return [trusted(inner) for inner in value] if isinstance(value, list) else value


def declared_in(path: Path) -> dict[str, Any]:
    """Return the variables that a role's argument spec declares."""
    # Every host reads every spec, and Ansible's own loader, which remembers each word's place, is six times slower.
    spec = yaml.load(path.read_text(encoding="utf-8"), Loader=SPEC_LOADER)  # noqa: S506 (it is the safe one)
    declared: dict[str, Any] = spec["argument_specs"]["main"].get("options", {})
    return declared


def written_at(name: str, value: object) -> str:
    """Return where a variable got its value.

    true, false and null carry no origin, and of a name that is written in several files Ansible keeps the first, which
    may hold another value: so the line is looked at.
    """
    if (found := place(value)) or not isinstance(value, (bool, type(None))):
        return found
    origin = Origin.get_tag(name)
    if origin is None or origin.path is None or not origin.line_num:
        return place(name)
    lines = Path(origin.path).read_text(encoding="utf-8").splitlines()
    try:
        same = yaml.safe_load("".join(lines[origin.line_num - 1 : origin.line_num])) == {str(name): value}
    except yaml.YAMLError:
        same = False
    return place(name) if same else ""


def leaves(value: object) -> Iterator[object]:
    """Yield every text and number inside a value, encrypted ones included."""
    if isinstance(value, (str, int, float, EncryptedString)):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from leaves(inner)


def holds_secret(value: object, secrets: Sequence[str]) -> bool:
    """Say whether a value is a secret, or a text with one in it."""
    return VaultedValue.is_tagged_on(value) or (
        isinstance(value, (str, int, float)) and any(secret in str(value) for secret in secrets)
    )


def redacted(text: str, secrets: Sequence[str]) -> str:
    """Return a text without the secrets in it."""
    for secret in secrets:
        text = text.replace(secret, "********")
    return text


def refers_to_facts(value: object, variables: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Say whether a template needs facts, itself or through another variable."""
    words = {word for text in leaves(value) if isinstance(text, str) for word in re.findall(r"\w+", text)}
    if "ansible_facts" in words:
        return True
    others = {word for word in words if word in variables and word not in seen}
    return any(refers_to_facts(variables[name], variables, seen | others) for name in others)


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible's classes carry no types
    """Check a host's variables on the control node."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what is wrong with the host's variables."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = dict(task_vars or {})
        _validation, options = self.validate_argument_spec(
            {"included_roles": {"type": "list", "elements": "str", "default": []}}
        )
        specs = {path.parents[1].name: declared_in(path) for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))}
        declared = {
            name: {**option, "required": option.get("required", False) and role not in options["included_roles"]}
            for role, spec in specs.items()
            for name, option in spec.items()
        }
        written = {
            name: value for name, value in variables.items() if name not in MAGIC and not name.startswith("ansible_")
        }
        places = {name: written_at(name, value) for name, value in written.items()}
        problems = [
            *self._declared_problems(declared, variables, self._secrets(written)),
            *undeclared_problems(places, declared, specs),
        ]
        result.update(changed=False, problems=[asdict(problem) for problem in problems])
        if problems:
            result.update(failed=True, msg=report(str(variables["inventory_hostname"]), problems))
        return result

    def _declared_problems(
        self, declared: Mapping[str, Any], variables: Mapping[str, Any], secrets: Sequence[str]
    ) -> Iterator[Problem]:
        """Yield what is wrong with the variables that the roles declare."""
        defaults = {name: trusted(option["default"]) for name, option in declared.items() if "default" in option}
        everything = {**defaults, **variables}
        templar = self._templar.copy_with_new_env(available_variables=everything)
        known = Provenance(place, lambda value: holds_secret(value, secrets))
        written_as = {name: name for name in variables}
        for name, option in declared.items():
            if name not in variables:
                if option.get("required"):
                    yield missing(name, option)
                continue
            raw = variables[name]
            if (origin := Origin.get_tag(raw)) and origin.path and Path(origin.path).is_relative_to(ROLES):
                continue  # a role's own default
            spot = Spot(name, written_at(written_as[name], raw), option.get("no_log", False))
            try:
                value = templar.template(raw)
            except AnsibleUndefinedVariable as error:
                if not refers_to_facts(raw, everything):
                    yield Problem(
                        name,
                        f"cannot be worked out: {redacted(str(error), secrets)}",
                        "variables that exist",
                        spot.place,
                    )
            except AnsibleError as error:
                yield Problem(name, f"cannot be worked out: {redacted(str(error), secrets)}", "a value", spot.place)
            else:
                spot = replace(spot, place=place(value) or spot.place, secret=spot.secret or known.is_secret(value))
                yield from value_problems(spot, option, value, known)

    def _secrets(self, written: Mapping[str, Any]) -> list[str]:
        """Return every text and number that came out of a vault, longest first."""
        encrypted_files: dict[str, bool] = {}
        secrets: set[str] = set()
        for leaf in leaves(list(written.values())):
            if isinstance(leaf, EncryptedString):
                try:
                    secrets.add(str(self._templar.template(leaf)))
                except AnsibleError:  # what cannot be decrypted cannot be shown
                    continue
            elif (origin := Origin.get_tag(leaf)) and origin.path:
                if origin.path not in encrypted_files:
                    path = Path(origin.path)
                    encrypted_files[origin.path] = path.is_file() and is_encrypted(path.read_bytes())
                if encrypted_files[origin.path]:
                    secrets.add(str(leaf))
        return sorted((secret for secret in secrets if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)
