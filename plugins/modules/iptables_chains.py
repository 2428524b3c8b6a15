#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: iptables_chains
short_description: Own chains of iptables and ip6tables, exactly as declared, beside those of others
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Holds chains of IPv4 and IPv6 as declared, loaded and saved for the next boot. Chains and rules of others, such as
    those of fail2ban and of containers, are left as they are.
  - Rules are compared in the form that iptables itself prints. For that they are first loaded into a network namespace
    that exists for this alone, in check mode as well; a rule that iptables refuses changes nothing.
  - A chain is in force only if its hook jumps to it before any other rule decides. What stands in its way is named, and
    the jump is put first again; the rule itself stays, for it is somebody else's.
  - There is one C(iptables-restore --noflush) for each family that differs, so a packet sees the old rules or the new.
options:
  chains:
    description: The chains.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The chain's name.
        type: str
        required: true
      table:
        description: The table that it is in.
        type: str
        choices: [filter, mangle, nat, raw, security]
        default: filter
      hook:
        description: The built-in chain that jumps to it. Without one, only rules of other chains do.
        type: str
      families:
        description: The families that it exists in.
        type: list
        elements: str
        choices: [ipv4, ipv6]
        default: [ipv4, ipv6]
      rules:
        description: Its rules, in order.
        type: list
        elements: dict
        required: true
        suboptions:
          rule:
            description: The rule as iptables takes it, without C(-A) and the chain.
            type: str
            required: true
          from_blocks:
            description:
              - Stands for one rule for each of these IP blocks, with the block as source, in the block's own family.
              - With an empty list there is no rule.
            type: list
            elements: str
          families:
            description: The families that the rule is for.
            type: list
            elements: str
            choices: [ipv4, ipv6]
            default: [ipv4, ipv6]
          reason:
            description: What the rule is for; not used otherwise.
            type: str
          source:
            description: Who says so; not used otherwise.
            type: str
  foreign_chains:
    description:
      - Patterns of chains of others that see a packet before ours do, such as V(f2b-*).
      - Where one of them is behind ours it would see nothing any more, so its jump is moved in front.
    type: list
    elements: str
    default: []
  save_to:
    description: An existing or new directory for C(ipv4.rules) and C(ipv6.rules), which are loaded at boot.
    type: path
    required: true
  rollback:
    description:
      - Arm a roll-back in the same step as the change, so that nothing between the two can prevent it.
      - It is disarmed by M(derms.edge.rollback) once a new connection has been made.
    type: dict
    suboptions:
      name:
        description: The roll-back's name.
        type: str
        required: true
      after_s:
        description: After how many seconds the old rules come back.
        type: int
        default: 45
  connection_blocks:
    description:
      - The blocks that the rules let in for SSH. If the SSH connection that this runs over comes from none of them,
        nothing is changed and the task fails.
      - With an empty list this is not looked at.
    type: list
    elements: str
    default: []
  refused_beside:
    description:
      - Units of other firewalls. If one of them is active, nothing is changed and the task fails.
      - C(ufw.service) only counts if ufw is switched on.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Predicts the change. Before iptables is installed every chain counts as absent.
    support: full
  diff_mode:
    description: Returns one entry for each family, loaded and saved, that differs.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Only the depot's own block reaches Modbus
  derms.edge.iptables_chains:
    save_to: /etc/derms/firewall
    foreign_chains: [f2b-*]
    rollback:
      name: firewall
    chains:
      - name: DERMS-INPUT
        hook: INPUT
        rules:
          - rule: -p tcp --dport 502 -j ACCEPT
            from_blocks: [10.20.0.0/16, "2001:db8:20::/48"]
          - rule: -p tcp --dport 502 -j DROP
"""

RETURN = r"""
drift:
  description: Every difference between what is declared and what was found, one for each rule.
  type: list
  elements: dict
  returned: always
  sample:
    - what: "ipv4 filter INPUT: -p tcp -m tcp --dport 502 -j ACCEPT (running)"
      is: before -j DERMS-INPUT
      should_be: after -j DERMS-INPUT
notes:
  description: What could not be looked at on this host, and why.
  type: list
  elements: str
  returned: always
  sample: [ipv6 is switched off in this kernel, so there are no rules for it]
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.connection_source import connection_source, is_inside
from ansible_collections.derms.edge.plugins.module_utils.iptables import (
    FAMILIES,
    Chain,
    Rule,
    block_fault,
    change_input,
    parse_save,
    restore_input,
    rule_fault,
    rules_of,
    running_drift,
    saved_drift,
    saved_text,
    shown,
    undo_commands,
)
from ansible_collections.derms.edge.plugins.module_utils.rollback import arm, fire, is_pending
from ansible_collections.derms.edge.plugins.module_utils.text_files import (
    Attributes,
    attribute_drift,
    drift,
    look_at,
    replace_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Optional

    from ansible_collections.derms.edge.plugins.module_utils.iptables import Ruleset
    from ansible_collections.derms.edge.plugins.module_utils.text_files import Drift

PROGRAMS = {"ipv4": "iptables", "ipv6": "ip6tables"}
IPV6_INTERFACES = Path("/proc/net/if_inet6")
UFW_CONFIGURATION = Path("/etc/ufw/ufw.conf")
# Others, fail2ban above all, may change their rules between our look and our restore; then the plan is made anew.
ATTEMPTS = 5
SAVED = Attributes("root", "root", 0o600)


@dataclass(frozen=True)
class Family:
    """What is declared and what was found for one family."""

    name: str
    chains: tuple[Chain, ...]
    live: Ruleset
    path: str
    saved: Optional[str]
    attributes: Optional[Attributes]

    @property
    def program(self) -> str:
        """The program of this family."""
        return PROGRAMS[self.name]

    def drift(self, foreign: Sequence[str]) -> list[Drift]:
        """Name every difference, loaded and saved."""
        found = running_drift(self.name, self.chains, self.live, foreign)
        found += saved_drift(self.name, self.path, self.chains, self.saved)
        return found + ([] if self.attributes is None else attribute_drift(self.path, self.attributes, SAVED))

    def diff(self, foreign: Sequence[str]) -> list[dict[str, str]]:
        """Return before and after in the form that Ansible's --diff prints."""
        texts = (
            (
                f"{self.name} (running)",
                shown(self.chains, self.live, foreign, repaired=False),
                shown(self.chains, self.live, foreign, repaired=True),
            ),
            (self.path, self.saved or "", saved_text(self.chains)),
        )
        return [
            {"before_header": header, "after_header": header, "before": before, "after": after}
            for header, before, after in texts
            if before != after
        ]


def declared_rule(entry: dict[str, Any]) -> Rule:
    """Return one rule as declared; raises ValueError with the rule and what is wrong with it."""
    blocks = entry["from_blocks"]
    faults = [rule_fault(entry["rule"]), *map(block_fault, blocks or [])]
    for fault in faults:
        if fault:
            raise ValueError(f"rule '{entry['rule']}': {fault}")
    return Rule(entry["rule"], tuple(entry["families"]), None if blocks is None else tuple(blocks))


def declared_chains(entries: Iterable[dict[str, Any]], family: str) -> list[Chain]:
    """Return the chains that are declared for a family, with their rules as declared."""
    chains: list[Chain] = []
    for entry in entries:
        if family not in entry["families"]:
            continue
        rules = tuple(text for rule in entry["rules"] for text in rules_of(declared_rule(rule), family))
        chains.append(Chain(entry["table"], entry["name"], rules, entry["hook"]))
    for index, chain in enumerate(chains):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,28}", chain.name):
            raise ValueError(f"{chain.name!r} is no name for a chain")
        for other in chains[:index]:
            if (other.table, other.name) == (chain.table, chain.name):
                raise ValueError(f"chain {chain.name} of table {chain.table} is declared twice")
            if chain.hook and (other.table, other.hook) == (chain.table, chain.hook):
                raise ValueError(
                    f"{other.name} and {chain.name} cannot both come first in {chain.hook} of {chain.table}"
                )
    return chains


def ufw_is_on(configuration: str) -> bool:
    """Tell from ufw.conf whether ufw is switched on: its unit is active on every Ubuntu, with or without rules."""
    values = re.findall(r"^\s*ENABLED\s*=\s*['\"]?(\w+)", configuration, re.MULTILINE)
    return bool(values) and values[-1].lower() == "yes"


def active_units(shown_properties: str) -> list[str]:
    """Return the units that are active from what `systemctl show --property=Id,ActiveState` prints."""
    units = [dict(line.partition("=")[::2] for line in part.splitlines()) for part in shown_properties.split("\n\n")]
    return [unit["Id"] for unit in units if unit.get("ActiveState") in ("active", "reloading", "activating")]


class Tables:
    """The rules that this host has loaded, read and changed through the programs that are installed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def installed(self, family: str) -> bool:
        """Tell whether the family's programs are there; only a dry run of a new host may do without."""
        program = self.module.get_bin_path(f"{PROGRAMS[family]}-restore", required=not self.module.check_mode)
        return program is not None

    def live(self, family: str) -> Ruleset:
        """Return the rules that are loaded."""
        status, out, error = self.module.run_command([f"{PROGRAMS[family]}-save"])
        if status != 0:
            self.module.fail_json(msg=f"{PROGRAMS[family]}-save failed: {error.strip()}")
        return parse_save(out)

    def _tried(self, family: str, chains: Sequence[Chain]) -> tuple[int, str, str]:
        program = PROGRAMS[family]
        script = f"{program}-restore --wait=30 && {program}-save"
        command = ["unshare", "--net", "--", "/bin/sh", "-c", script]
        status, out, error = self.module.run_command(command, data=restore_input(chains))
        return status, out, error

    def canonical(self, family: str, chains: Sequence[Chain]) -> tuple[Chain, ...]:
        """Return the chains with their rules as iptables prints them; a rule that it refuses is named."""
        status, out, error = self._tried(family, chains)
        if status != 0:
            self.module.fail_json(msg=self._culprit(family, chains) or f"{PROGRAMS[family]}-restore: {error.strip()}")
        printed = parse_save(out)
        return tuple(
            Chain(chain.table, chain.name, tuple(printed[chain.table][chain.name]), chain.hook) for chain in chains
        )

    def _culprit(self, family: str, chains: Sequence[Chain]) -> Optional[str]:
        """Name the rule that is refused even on its own, among chains that are all there and empty."""
        empty = [Chain(chain.table, chain.name, ()) for chain in chains]
        for index, chain in enumerate(chains):
            for rule in chain.rules:
                alone = [*empty[:index], Chain(chain.table, chain.name, (rule,)), *empty[index + 1 :]]
                status, _out, error = self._tried(family, alone)
                if status != 0:
                    words = " ".join(line for line in error.splitlines() if not line.startswith(("Try ", "Error occ")))
                    return f"{family} {chain.table} {chain.name}: the rule '{rule}' is refused: {words}"
        return None

    def change(self, family: Family, foreign: Sequence[str]) -> Optional[str]:
        """Make what is loaded as declared; returns what iptables said where it could not be done."""
        error = ""
        for _attempt in range(ATTEMPTS):
            wanted = change_input(family.chains, self.live(family.name), foreign)
            if not wanted:
                return None
            command = [f"{family.program}-restore", "--noflush", "--wait=30"]
            status, _out, error = self.module.run_command(command, data=wanted)
            if status == 0:
                error = "other programs keep changing the same hooks"
        return error.strip()


def refuse_other_firewalls(module: AnsibleModule, units: Sequence[str]) -> None:
    """Fail where another firewall is active: two that decide about the same packets cannot be judged by one."""
    if not units:
        return
    show = ["systemctl", "show", "--property=Id,ActiveState", "--", *units]
    status, out, error = module.run_command(show)
    if status != 0:
        module.fail_json(msg=f"systemctl show failed: {error.strip()}")
    active = active_units(out)
    if "ufw.service" in active and not (UFW_CONFIGURATION.exists() and ufw_is_on(UFW_CONFIGURATION.read_text())):
        active.remove("ufw.service")
    if active:
        module.fail_json(
            msg=f"Another firewall is active: {', '.join(active)}. Nothing was changed: its rules may let in what is "
            "to be kept out, and shut out what is to be let in. Look at its rules, carry over those that are still "
            "needed, and switch it off; or let the firewall role do that (firewall_other_firewall: disable)."
        )


def refuse_to_shut_out(module: AnsibleModule, blocks: Sequence[str]) -> None:
    """Fail where the rules would not let the present author in again."""
    if not blocks:
        return
    faults = [fault for fault in map(block_fault, blocks) if fault]
    if faults:
        module.fail_json(msg=f"connection_blocks: {faults[0]}")
    source = connection_source()
    if source is not None and not is_inside(source, blocks):
        module.fail_json(
            msg=f"This connection comes from {source}, and none of the blocks that may use SSH holds that address: "
            f"{', '.join(blocks)}. The rules would shut it out, so nothing was changed. Add its block to "
            "derms_management_blocks."
        )


def looked_at(tables: Tables, params: dict[str, Any], name: str) -> Optional[Family]:
    """Return what is declared and what is found for a family; nothing where nothing is declared."""
    chains = declared_chains(params["chains"], name)
    if not chains:
        return None
    path = str(Path(params["save_to"]) / f"{name}.rules")
    found = look_at(path)
    saved = None if found is None or found.content is None else found.content.decode("utf-8", "backslashreplace")
    installed = tables.installed(name)
    return Family(
        name,
        tables.canonical(name, chains) if installed else tuple(chains),
        tables.live(name) if installed else {},
        path,
        saved,
        None if found is None else found.attributes,
    )


def save(module: AnsibleModule, family: Family) -> None:
    """Write the file that is loaded at boot."""
    Path(family.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def label(candidate: str) -> None:
        if module.selinux_enabled():
            module.set_context_if_different(candidate, module.selinux_default_context(family.path), False)

    text = saved_text(family.chains).encode()
    replace_file(family.path, text, owner=0, group=0, mode=SAVED.mode, label=label)


def apply(module: AnsibleModule, tables: Tables, families: Sequence[Family]) -> None:
    """Arm the roll-back, load what differs, and save it."""
    foreign = module.params["foreign_chains"]
    rollback = module.params["rollback"]
    if rollback:
        undo = [
            command
            for family in families
            for command in undo_commands(family.program, family.chains, family.live, foreign)
        ]
        arm(module, rollback["name"], rollback["after_s"], [family.path for family in families], undo)
    for family in families:
        error = tables.change(family, foreign)
        if error:
            if rollback:
                fire(module, rollback["name"])
            module.fail_json(msg=f"{family.program}-restore failed: {error}", undone=bool(rollback))
        if saved_drift(family.name, family.path, family.chains, family.saved) or family.attributes != SAVED:
            save(module, family)


def main() -> None:
    """Compare the chains with what is declared, and make them so."""
    module = AnsibleModule(
        argument_spec={
            "chains": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "table": {
                        "type": "str",
                        "choices": ["filter", "mangle", "nat", "raw", "security"],
                        "default": "filter",
                    },
                    "hook": {"type": "str"},
                    "families": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["ipv4", "ipv6"],
                        "default": ["ipv4", "ipv6"],
                    },
                    "rules": {
                        "type": "list",
                        "elements": "dict",
                        "required": True,
                        "options": {
                            "rule": {"type": "str", "required": True},
                            "from_blocks": {"type": "list", "elements": "str"},
                            "families": {
                                "type": "list",
                                "elements": "str",
                                "choices": ["ipv4", "ipv6"],
                                "default": ["ipv4", "ipv6"],
                            },
                            "reason": {"type": "str"},
                            "source": {"type": "str"},
                        },
                    },
                },
            },
            "foreign_chains": {"type": "list", "elements": "str", "default": []},
            "save_to": {"type": "path", "required": True},
            "rollback": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "after_s": {"type": "int", "default": 45},
                },
            },
            "connection_blocks": {"type": "list", "elements": "str", "default": []},
            "refused_beside": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    # The programs are in sbin, which an unprivileged user's path, kept by sudo, may lack.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    foreign = module.params["foreign_chains"]
    tables = Tables(module)
    notes = []
    names = list(FAMILIES)
    if not IPV6_INTERFACES.exists():
        names.remove("ipv6")
        notes.append("ipv6 is switched off in this kernel, so there are no rules for it")
    try:
        looked = [looked_at(tables, module.params, name) for name in names]
    except ValueError as error:
        module.fail_json(msg=str(error))
    families = [family for family in looked if family is not None]
    refuse_to_shut_out(module, module.params["connection_blocks"])
    refuse_other_firewalls(module, module.params["refused_beside"])

    differences = [difference for family in families for difference in family.drift(foreign)]
    diff = [entry for family in families for entry in family.diff(foreign)]
    rollback = module.params["rollback"]
    if rollback and is_pending(rollback["name"]):
        # A run was cut off before it could confirm, and what it changed would be undone after this run has seen it.
        differences.append(drift(f"roll-back {rollback['name']}", "armed", "disarmed"))
    if differences and not module.check_mode:
        apply(module, tables, families)
    module.exit_json(changed=bool(differences), diff=diff, drift=differences, notes=notes)


if __name__ == "__main__":
    main()
