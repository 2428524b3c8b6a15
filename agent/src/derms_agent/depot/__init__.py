# SPDX-License-Identifier: Apache-2.0
"""The depot file: one YAML file declares a depot; here it is read, expanded and checked.

`load` and `read` take a file. `examine` takes its text, for whoever reads files by other means. `check` is pure and
takes what the YAML holds. See docs/depot-file.md for the file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from derms_agent import profiles as built_in
from derms_agent.depot import document
from derms_agent.depot.checks import check
from derms_agent.depot.document import Data
from derms_agent.depot.plain import PLUGIN
from derms_agent.depot.problem import Located, Problem, Severity, Vaulted
from derms_agent.model import Depot, Device
from derms_agent.profiles import Profile

__all__ = [
    "Data",
    "DepotError",
    "Examined",
    "Located",
    "NoDepotFile",
    "Problem",
    "Severity",
    "Vaulted",
    "check",
    "examine",
    "files",
    "load",
    "read",
]


class NoDepotFile(ValueError):
    """There is no depot file where one was expected. Its text says where."""


class DepotError(ValueError):
    """A depot file that cannot be used. Its text has a line for each problem, in the order of the file."""

    def __init__(self, problems: tuple[Located, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Examined:
    """What a text declares: the depot, or None where there is an error; problems in the order of the text."""

    data: Data
    depot: Depot | None
    problems: tuple[Located, ...]

    @property
    def errors(self) -> tuple[Located, ...]:
        """The problems for which there is no depot."""
        return tuple(one for one in self.problems if one.problem.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Located, ...]:
        """The problems with which there is one all the same."""
        return tuple(one for one in self.problems if one.problem.severity is Severity.WARNING)


def files(path: Path) -> tuple[Path, ...]:
    """Return the depot files of an inventory directory in the order of their names, or the file itself.

    :raises NoDepotFile: there is none
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise NoDepotFile(f"{path}: found nothing, expected a depot file or an inventory directory")
    candidates = sorted(one for one in path.iterdir() if one.suffix in {".yml", ".yaml"} and one.is_file())
    found = tuple(filter(_names_the_plugin, candidates))
    if not found:
        raise NoDepotFile(f"{path}: found no depot file, expected one with the line `plugin: {PLUGIN}`")
    return found


def _names_the_plugin(path: Path) -> bool:
    """Tell whether a file says that it is a depot file; what is no YAML is left to whoever it belongs to."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    keys = root.value if isinstance(root, yaml.MappingNode) else []
    return any(key.value == "plugin" and value.value == PLUGIN for key, value in keys)


def examine(text: str, file: str, profiles: Mapping[str, Profile] | None = None) -> Examined:
    """Return what a depot file's text declares; encrypted values stay in it as `Vaulted`.

    :param file: what problems call the file
    :param profiles: what its devices may be; None: the built-in profiles
    """
    written = document.parse(text, file)
    if written.root is None and written.problems:
        return Examined(None, None, written.problems)
    depot, problems = check(written.data, built_in.load_all() if profiles is None else profiles)
    located = [*written.problems, *map(written.locate, problems)]
    located.sort(key=lambda one: (one.line, one.column))
    return Examined(written.data, None if written.problems else depot, tuple(located))


def read(path: Path, profiles: Mapping[str, Profile] | None = None) -> tuple[Depot, tuple[Located, ...]]:
    """Return the depot that a file declares, and what to be warned of.

    What is encrypted with `!vault` only Ansible can open: it is left out here, and each is a warning.

    :raises DepotError: the file has errors
    :raises OSError: the file cannot be read
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = Problem((), f"bytes that are no UTF-8 at {error.start}", "a text in UTF-8")
        raise DepotError((Located(problem, str(path), 1, 1),)) from None
    examined = examine(text, str(path), profiles)
    if examined.depot is None:
        raise DepotError(examined.errors)
    written = document.parse(text, str(path))
    left_out = [
        written.locate(
            Problem(where, "an encrypted value", "Ansible to open it; left out here", None, Severity.WARNING)
        )
        for where in _vaulted(examined.data)
    ]
    warnings = sorted((*examined.warnings, *left_out), key=lambda one: (one.line, one.column))
    return (_without_secrets(examined.depot) if left_out else examined.depot), tuple(warnings)


def load(path: Path, profiles: Mapping[str, Profile] | None = None) -> Depot:
    """Return the depot that a file declares; see `read`, which tells warnings as well."""
    return read(path, profiles)[0]


def _vaulted(data: Data, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(data, Vaulted):
        return [path]
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [inner for key, value in items for inner in _vaulted(value, (*path, str(key)))]


def _without_secrets(depot: Depot) -> Depot:
    def opened(device: Device) -> Device:
        plain = {name: value for name, value in device.settings.items() if not isinstance(value, Vaulted)}
        return replace(device, settings=plain)

    vtn = depot.vtn
    if vtn is not None and isinstance(vtn.client_id, Vaulted):
        vtn = replace(vtn, client_id=None)
    return replace(depot, vtn=vtn, devices={name: opened(device) for name, device in depot.devices.items()})
