#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: services
short_description: systemd units that run, start at boot, and run with the configuration that is on disk
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Holds a list of units as declared, by one question to systemd for all of them.
  - A unit that was started before its configuration was last written is restarted. So the restart that a killed run
    still owed is made up for by the next one.
  - A unit whose own unit file changed on disk is loaded again first.
options:
  services:
    description: The units.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The unit's name; without a suffix it is a service.
        type: str
        required: true
      enabled:
        description: Whether it starts at boot. A unit that cannot be enabled, such as a static one, is left as it is.
        type: bool
        default: true
      state:
        description:
          - Whether it runs now. A one-shot unit counts as started once it has run to its end since boot.
          - With V(kept) it is left running or stopped as it is, but not running with an older configuration.
        type: str
        choices: [started, stopped, kept]
        default: started
      config:
        description:
          - Files, directories or patterns that it reads at its start. Of a directory its own time counts, which changes
            when an entry comes or goes.
          - Its unit files under C(/etc) count without being named.
        type: list
        elements: str
        default: []
      reload:
        description:
          - Files that it takes up when it is reloaded. One that was written since its last start or reload
            has it reloaded.
        type: list
        elements: str
        default: []
      restart_notified:
        description:
          - Whether an earlier task changed the configuration, in check mode would change it, and notified the restart.
          - In check mode its age then says nothing that the earlier task has not said, and is left out.
        type: bool
        default: false
      optional:
        description: Whether it may be missing from the host.
        type: bool
        default: false
attributes:
  check_mode:
    description: Predicts the change; a unit that is not installed yet is predicted to be started.
    support: full
  diff_mode:
    description: Returns one entry for all units.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: The clock is kept, with the configuration on disk
  derms.edge.services:
    services:
      - name: chronyd
        config: [/etc/chrony.conf, /etc/chrony.d/*.conf]
        restart_notified: "{{ chrony_configuration is changed }}"
      - name: avahi-daemon
        enabled: false
        state: stopped
        optional: true
"""

RETURN = r"""
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - what: chronyd.service
      is: stopped
      should_be: started
"""

import re
import time
from calendar import timegm
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.text_files import Drift, drift, drift_diff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

PROPERTIES = (
    "Id",
    "Names",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "Type",
    "RemainAfterExit",
    "ActiveEnterTimestamp",
    "ActiveEnterTimestampMonotonic",
    "ExecMainStartTimestamp",
    "ExecMainStartTimestampMonotonic",
    "StateChangeTimestamp",
    "StateChangeTimestampMonotonic",
)
SUFFIXES = ("service", "socket", "timer", "path", "mount", "automount", "swap", "target", "slice", "scope", "device")
# A unit in one of these states starts at boot without, or cannot be given, an [Install] link.
NOT_ENABLED_BY_LINK = ("static", "generated", "alias", "indirect", "transient", "")
# The verbs in the order in which they are said.
VERBS = ("daemon-reload", "unmask", "disable", "stop", "enable", "start", "restart", "reload")


@dataclass(frozen=True)
class WantedService:
    """One unit as declared."""

    unit: str
    enabled: bool
    state: str
    config: tuple[str, ...] = ()
    restart_due: bool = False
    optional: bool = False
    reload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clocks:
    """The two clocks, read together: systemd's stamps are of the one and files' times of the other."""

    wall_s: float
    monotonic_s: float


def unit_name(name: str) -> str:
    """Return a unit's full name; a template without an instance cannot run and is refused."""
    full = name if name.rpartition(".")[2] in SUFFIXES and "." in name else f"{name}.service"
    if "@." in full:
        raise ValueError(f"{name}: a template needs an instance, such as {full.replace('@.', '@instance.')}")
    return full


def shown_units(words: str) -> list[dict[str, str]]:
    """Return the properties of each unit that `systemctl show` describes, in its order."""
    blocks = (block for block in re.split(r"\n\s*\n", words) if block.strip())
    return [dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line) for block in blocks]


def printed_second(stamp: str) -> int | None:
    """Return the UTC second of a stamp as systemd prints it, such as `Mon 2026-11-23 01:19:01 UTC`."""
    found = re.search(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)", stamp)
    return timegm((*(int(part) for part in found.groups()), 0, 0, 0)) if found else None


def wall_time_s(stamp: str, monotonic_us: str, clocks: Clocks) -> float | None:
    """Return when a stamp was taken, on the wall clock of that moment; None when it was never taken.

    systemd prints whole seconds of the wall clock, and microseconds since boot. The second is as the clock stood then,
    which is what files' times of then are comparable with, however often the clock was set since. The microseconds
    refine it.
    """
    second = printed_second(stamp)
    if second is None or monotonic_us in ("", "0"):
        return None
    refined = clocks.wall_s - (clocks.monotonic_s - int(monotonic_us) / 1e6)
    return min(max(refined, float(second)), second + 0.999999)


def is_oneshot(unit: dict[str, str]) -> bool:
    """Tell a unit that runs to its end and is then inactive."""
    return unit.get("Type") == "oneshot" and unit.get("RemainAfterExit") == "no"


def start_s(unit: dict[str, str], clocks: Clocks) -> float | None:
    """Return when a unit last started; None when it has not since boot."""
    stamp = "ExecMainStartTimestamp" if is_oneshot(unit) else "ActiveEnterTimestamp"
    return wall_time_s(unit.get(stamp, ""), unit.get(f"{stamp}Monotonic", ""), clocks)


def runs(unit: dict[str, str], clocks: Clocks) -> bool:
    """Tell whether a unit counts as started."""
    if unit["ActiveState"] in ("active", "reloading"):
        return True
    return is_oneshot(unit) and unit.get("Result") == "success" and start_s(unit, clocks) is not None


def own_unit_files(unit: dict[str, str]) -> list[str]:
    """Return the unit's files that belong to this host: those of packages are restarted by their package."""
    paths = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
    return [path for path in paths if path.startswith("/etc/")]


def newest(times_s: dict[str, float], now_s: float) -> tuple[str, float] | None:
    """Return the path that was written last. A time still to come was written under a wrong clock and says nothing."""
    past = {path: time_s for path, time_s in times_s.items() if time_s <= now_s}
    if not past:
        return None
    path = max(past, key=lambda one: past[one])
    return path, past[path]


def boot_drift(wanted: WantedService, unit: dict[str, str]) -> tuple[list[Drift], list[str]]:
    """Return what differs about the unit's start at boot, and the verbs that mend it."""
    has = unit["UnitFileState"]
    what = f"{wanted.unit} at boot"
    if wanted.enabled:
        if unit["LoadState"] == "masked" or has.startswith("masked"):
            return [drift(what, "masked", "enabled")], ["unmask", "enable"]
        if has in NOT_ENABLED_BY_LINK or has == "enabled":
            return [], []
        return [drift(what, has, "enabled")], ["enable"]
    if has.startswith(("enabled", "linked")):
        return [drift(what, has, "disabled")], ["disable"]
    return [], []


def run_drift(
    wanted: WantedService, unit: dict[str, str], times_s: dict[str, float], clocks: Clocks
) -> tuple[list[Drift], list[str]]:
    """Return what differs about the unit's running now, and the verbs that mend it."""
    running = runs(unit, clocks)
    if wanted.state == "stopped":
        stopped = unit["ActiveState"] in ("inactive", "failed")
        return ([], []) if stopped else ([drift(wanted.unit, "started", "stopped")], ["stop"])
    if not running and wanted.state == "kept":
        return [], []
    if not running:
        has = "failed" if unit["ActiveState"] == "failed" else "stopped"
        return [drift(wanted.unit, has, "started")], ["start"]
    return ([], []) if wanted.restart_due else outdated(wanted, unit, times_s, clocks)


def outdated(
    wanted: WantedService, unit: dict[str, str], times_s: dict[str, float], clocks: Clocks
) -> tuple[list[Drift], list[str]]:
    """Return whether a running unit lacks what is on the disk by now, and the verb that mends it."""
    started_s, last = start_s(unit, clocks), newest(times_s, clocks.wall_s)
    if started_s is not None and last is not None and started_s < last[1]:
        return [drift(wanted.unit, f"started before {last[0]} was last changed", "restarted since")], ["restart"]
    # A running unit changes its state when it is reloaded.
    changed_s = wall_time_s(unit.get("StateChangeTimestamp", ""), unit.get("StateChangeTimestampMonotonic", ""), clocks)
    taken_up = newest(config_times_s(wanted.reload), clocks.wall_s)
    if changed_s is not None and taken_up is not None and changed_s < taken_up[1]:
        return [drift(wanted.unit, f"loaded before {taken_up[0]} was last changed", "reloaded since")], ["reload"]
    return [], []


def service_drift(
    wanted: WantedService, unit: dict[str, str], times_s: dict[str, float], clocks: Clocks
) -> tuple[list[Drift], list[str]]:
    """Return everything that differs about a unit that is on the host, and the verbs that mend it."""
    boot, boot_verbs = boot_drift(wanted, unit)
    now, now_verbs = run_drift(wanted, unit, times_s, clocks)
    reload: list[Drift] = []
    verbs = boot_verbs + now_verbs
    if unit["NeedDaemonReload"] == "yes" and unit["LoadState"] == "loaded" and not wanted.restart_due:
        # A restart for a newer unit file under /etc names the same difference.
        if "restart" not in now_verbs:
            reload = [drift(f"{wanted.unit} unit file", "changed on disk since it was loaded", "loaded")]
        verbs.append("daemon-reload")
    return reload + boot + now, verbs


def missing_drift(wanted: WantedService) -> list[Drift]:
    """Return what differs about a unit that the host does not know."""
    wishes = (("enabled", wanted.enabled), ("started", wanted.state == "started"))
    state = " and ".join(word for word, holds in wishes if holds)
    if wanted.optional or not state:
        return []
    return [drift(wanted.unit, "not installed", state)]


def config_times_s(patterns: Iterable[str]) -> dict[str, float]:
    """Return when each path that the patterns match was last written."""
    paths = [path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/")) if path.exists()]
    return {str(path): path.stat().st_mtime for path in paths}


class Units:
    """The units of this host, asked of and told through systemctl."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        # The stamps are printed in the zone of the asking process.
        self.environment = {"TZ": "UTC", "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}

    def _systemctl(self, *words: str) -> str:
        status, out, error = self.module.run_command(
            [self.module.get_bin_path("systemctl", required=True), *words], environ_update=self.environment
        )
        if status != 0:
            self.module.fail_json(msg=f"systemctl {' '.join(words)}: {error.strip() or out.strip()}")
        return str(out)

    def show(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return each unit's properties by the name it was asked for."""
        if not names:
            return {}
        units = shown_units(self._systemctl("show", f"--property={','.join(PROPERTIES)}", "--", *names))
        if len(units) != len(names):
            self.module.fail_json(msg=f"systemctl show answered for {len(units)} of {len(names)} units")
        return dict(zip(names, units))

    def say(self, verbs: dict[str, list[str]]) -> None:
        """Say each verb once, for all units it is meant for."""
        for verb in VERBS:
            if verb not in verbs:
                continue
            if verb == "daemon-reload":
                self._systemctl(verb)
            else:
                self._systemctl(verb, "--", *verbs[verb])


def wanted_services(declared: list[dict[str, Any]], *, check_mode: bool) -> list[WantedService]:
    """Return the declared units."""
    return [
        WantedService(
            unit_name(entry["name"]),
            entry["enabled"],
            entry["state"],
            tuple(entry["config"]),
            check_mode and entry["restart_notified"],
            entry["optional"],
            tuple(entry["reload"]),
        )
        for entry in declared
    ]


def compared(units: Units, wanted: list[WantedService]) -> tuple[list[Drift], dict[str, list[str]], list[str]]:
    """Return what differs, the verbs that mend it with their units, and the units that the host lacks."""
    clocks = Clocks(time.time(), time.clock_gettime(time.CLOCK_MONOTONIC))
    shown = units.show([one.unit for one in wanted])
    differences: list[Drift] = []
    verbs: dict[str, list[str]] = {}
    missing = []
    for one in wanted:
        unit = shown[one.unit]
        if unit["LoadState"] == "not-found":
            lacking = missing_drift(one)
            differences += lacking
            missing += [one.unit for _each in lacking]
            continue
        if unit["LoadState"] in ("error", "bad-setting"):
            units.module.fail_json(msg=f"{one.unit}: systemd cannot load it ({unit['LoadState']}); systemctl status")
        found, mending = service_drift(one, unit, config_times_s([*one.config, *own_unit_files(unit)]), clocks)
        differences += found
        for verb in mending:
            verbs.setdefault(verb, []).append(one.unit)
    return differences, verbs, missing


def main() -> None:
    """Compare the units with what is declared, and mend what differs."""
    module = AnsibleModule(
        argument_spec={
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "enabled": {"type": "bool", "default": True},
                    "state": {"type": "str", "choices": ["started", "stopped", "kept"], "default": "started"},
                    "config": {"type": "list", "elements": "str", "default": []},
                    "reload": {"type": "list", "elements": "str", "default": []},
                    "restart_notified": {"type": "bool", "default": False},
                    "optional": {"type": "bool", "default": False},
                },
            }
        },
        supports_check_mode=True,
    )
    try:
        wanted = wanted_services(module.params["services"], check_mode=module.check_mode)
    except ValueError as error:
        module.fail_json(msg=str(error))
    units = Units(module)
    differences, verbs, missing = compared(units, wanted)
    if not module.check_mode:
        if missing:
            module.fail_json(msg=f"not installed: {', '.join(missing)}", drift=differences)
        units.say(verbs)
        left = compared(units, wanted)[0] if verbs else []
        if left:
            words = "; ".join(f"{one['what']} is {one['is']}, should be {one['should_be']}" for one in left)
            module.fail_json(msg=f"still not as declared after {', '.join(verbs)}: {words}", drift=left)
    module.exit_json(
        changed=bool(differences),
        drift=differences,
        diff=drift_diff(differences),
    )


if __name__ == "__main__":
    main()
