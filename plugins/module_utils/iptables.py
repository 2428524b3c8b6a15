# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of our own among those of others: what is wanted, what is loaded, and the one restore between the two.

Everything here is a pure function of the text that iptables-save prints. Rules are compared in the form in which
iptables itself prints them, so wanted rules have to be printed by it first (in a network namespace of their own).
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from .text_files import Drift, drift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Table, then chain, then its rules in order, each as it stands behind "-A CHAIN".
Ruleset = Dict[str, Dict[str, List[str]]]

FAMILIES = {"ipv4": 4, "ipv6": 6}
# The options of a rule whose value is a block; their arguments may be lists.
BLOCK_OPTIONS = ("-s", "--src", "--source", "-d", "--dst", "--destination")
JUMP_MARK = "# jump"


@dataclass(frozen=True)
class Rule:
    """One declared rule: for which families, and once for each block it lets in."""

    text: str
    families: Tuple[str, ...] = ("ipv4", "ipv6")
    from_blocks: Optional[Tuple[str, ...]] = None


@dataclass(frozen=True)
class Chain:
    """One chain of our own for one family, and the built-in chain that jumps to it, if one does."""

    table: str
    name: str
    rules: Tuple[str, ...]
    hook: Optional[str] = None

    @property
    def jump(self) -> str:
        """The rule that makes the hook use this chain, as iptables prints it."""
        return f"-j {self.name}"


@dataclass(frozen=True)
class Hook:
    """A built-in chain as it is, for one chain of ours: the foreign chains that come first, and what is in the way."""

    rules: Tuple[str, ...]
    jump: str
    foreign: Tuple[str, ...]

    @property
    def reached(self) -> Tuple[str, ...]:
        """The rules that see a packet before our chain does; all of them where nothing jumps to it."""
        return tuple(itertools.takewhile(lambda rule: rule != self.jump, self.rules))

    @property
    def intruders(self) -> List[str]:
        """Rules that decide about a packet before our chain sees it."""
        return [rule for rule in self.reached if not is_jump_to(rule, self.foreign)]

    @property
    def unreached(self) -> List[str]:
        """Foreign chains that never see what our chain has decided about: a ban would be without effect."""
        late = [rule for rule in self.rules[len(self.reached) :] if is_jump_to(rule, self.foreign)]
        return [rule for rule in dict.fromkeys(late) if rule not in self.reached]

    @property
    def copies(self) -> int:
        """How often the hook jumps to our chain."""
        return self.rules.count(self.jump)


def block_fault(block: str) -> Optional[str]:
    """Say what is wrong with a block, or nothing."""
    try:
        ipaddress.ip_network(block)
    except ValueError as error:
        return f"{block!r} is no IP block (such as 10.20.0.0/16 or 2001:db8::/48): {error}"
    return None


def rule_fault(text: str) -> Optional[str]:
    """Say what is wrong with a rule that iptables itself would not say, or nothing.

    iptables asks the resolver for a name in place of a block: the rule would hold what the answer was that day.
    """
    if "\n" in text:
        return "a rule is one line"
    try:
        words = shlex.split(text)
    except ValueError as error:
        return str(error)
    for option, value in zip(words, words[1:]):
        if option in BLOCK_OPTIONS:
            faults = [fault for fault in map(block_fault, value.split(",")) if fault]
            if faults:
                return faults[0]
    return None


def rules_of(rule: Rule, family: str) -> List[str]:
    """Return the rules that a declared rule stands for in one family: one for each of its blocks of that family."""
    if family not in rule.families:
        return []
    if rule.from_blocks is None:
        return [rule.text]
    blocks = [ipaddress.ip_network(block) for block in rule.from_blocks]
    return [f"-s {block} {rule.text}" for block in blocks if block.version == FAMILIES[family]]


def is_jump_to(rule: str, patterns: Sequence[str]) -> bool:
    """Tell whether all that a rule does is to hand packets to a chain whose name one of the patterns matches."""
    words = shlex.split(rule)
    # A match's own words come before the target, and a target's options after its name.
    jumps = [word for option, word in zip(words, words[1:]) if option in ("-j", "-g")]
    return bool(jumps) and any(fnmatchcase(jumps[-1], pattern) for pattern in patterns)


def parse_save(text: str) -> Ruleset:
    """Read what iptables-save prints; comments, counters and policies say nothing about rules."""
    ruleset: Ruleset = {}
    table: Dict[str, List[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = ruleset.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            table.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            _append, chain, *rule = line.split(" ", 2)
            table.setdefault(chain, []).append(rule[0].strip() if rule else "")
    return ruleset


def by_table(chains: Sequence[Chain]) -> Dict[str, List[Chain]]:
    """Sort chains into their tables, keeping their order."""
    tables: Dict[str, List[Chain]] = {}
    for chain in chains:
        tables.setdefault(chain.table, []).append(chain)
    return tables


def restore_input(chains: Sequence[Chain], hook_lines: Mapping[str, Sequence[str]] | None = None) -> str:
    """Render what iptables-restore --noflush reads: each chain is emptied and filled in one step, others are left."""
    hook_lines = hook_lines or {}
    lines: List[str] = []
    declared = by_table(chains)
    for table in dict.fromkeys([*declared, *(table for table, some in hook_lines.items() if some)]):
        members = declared.get(table, [])
        lines.append(f"*{table}")
        lines += [f":{chain.name} - [0:0]" for chain in members]
        lines += [f"-A {chain.name} {rule}" for chain in members for rule in chain.rules]
        lines += hook_lines.get(table, [])
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def saved_text(chains: Sequence[Chain]) -> str:
    """Render the file that is loaded at boot: what iptables-restore reads, and the jumps as comments.

    A jump cannot be part of it: iptables-restore would add one more each time it is loaded.
    """
    jumps = [f"{JUMP_MARK} {chain.table} {chain.hook} {chain.name}\n" for chain in chains if chain.hook]
    head = "# Loaded by derms-firewall.service before the network is up. Ansible writes this file over.\n"
    return head + "".join(jumps) + restore_input(chains)


def hook_of(chain: Chain, live: Ruleset, foreign: Sequence[str]) -> Hook:
    """Return the hook of a chain as it is."""
    rules = live.get(chain.table, {}).get(chain.hook or "", [])
    return Hook(tuple(rules), chain.jump, tuple(foreign))


def hook_drift(family: str, chain: Chain, hook: Hook) -> List[Drift]:
    """Name whatever keeps a chain from being the first to decide, foreign chains apart."""

    def what(rule: str) -> str:
        return f"{family} {chain.table} {chain.hook}: {rule} (running)"

    if not hook.copies:
        return [drift(what(hook.jump), "absent", "present")]
    found = [drift(what(rule), f"before {hook.jump}", f"after {hook.jump}") for rule in hook.intruders]
    found += [drift(what(rule), f"after {hook.jump}", f"before {hook.jump}") for rule in hook.unreached]
    if hook.copies > 1:
        found.append(drift(what(hook.jump), f"{hook.copies} times", "once"))
    return found


def repaired_hook(hook: Hook) -> Tuple[List[str], List[str]]:
    """Return the foreign chains that already come first, and those that have to be moved there."""
    others = [rule for rule in hook.rules if rule != hook.jump]
    first = list(itertools.takewhile(lambda rule: is_jump_to(rule, hook.foreign), others))
    late = [rule for rule in others[len(first) :] if is_jump_to(rule, hook.foreign)]
    return first, [rule for rule in dict.fromkeys(late) if rule not in first]


def hook_lines(name: str, hook: Hook) -> List[str]:
    """Render the lines that put foreign chains first and our chain right behind them; no rule of others is lost."""
    first, late = repaired_hook(hook)
    lines = [f"-D {name} {hook.jump}"] * hook.copies
    lines += [f"-D {name} {rule}" for rule in late]
    lines += [f"-I {name} {place} {rule}" for place, rule in enumerate([*late, hook.jump], start=len(first) + 1)]
    return lines


def chain_drift(family: str, chain: Chain, found: Optional[Sequence[str]], place: str) -> List[Drift]:
    """Name every rule that is missing, added or misplaced; a chain that is absent as a whole is one difference."""
    where = f"{family} {chain.table} {chain.name}"
    if found is None:
        return [drift(f"{where} ({place})", "absent", f"rules: {len(chain.rules)}")]
    extra: List[Tuple[int, str]] = []
    missing: List[Tuple[int, str]] = []
    for tag, from_a, to_a, from_b, to_b in difflib.SequenceMatcher(None, found, chain.rules, False).get_opcodes():
        if tag != "equal":
            extra += list(enumerate(found[from_a:to_a], start=from_a + 1))
            missing += list(enumerate(chain.rules[from_b:to_b], start=from_b + 1))
    differences = []
    moved = Counter(rule for _number, rule in extra) & Counter(rule for _number, rule in missing)
    destinations = {rule: [number for number, text in missing if text == rule] for rule in moved}
    for number, rule in extra:
        what = f"{where}: {rule} ({place})"
        if destinations.get(rule):
            differences.append(drift(what, f"rule {number}", f"rule {destinations[rule].pop(0)}"))
        else:
            differences.append(drift(what, f"rule {number}", "absent"))
    for number, rule in missing:
        if moved[rule]:
            moved[rule] -= 1
        else:
            differences.append(drift(f"{where}: {rule} ({place})", "absent", f"rule {number}"))
    return differences


def running_drift(family: str, chains: Sequence[Chain], live: Ruleset, foreign: Sequence[str]) -> List[Drift]:
    """Name every difference between our chains as declared and as loaded."""
    differences: List[Drift] = []
    for chain in chains:
        differences += chain_drift(family, chain, live.get(chain.table, {}).get(chain.name), "running")
        if chain.hook:
            differences += hook_drift(family, chain, hook_of(chain, live, foreign))
    return differences


def saved_drift(family: str, path: str, chains: Sequence[Chain], found: Optional[str]) -> List[Drift]:
    """Name every difference between our chains as declared and as they will be loaded at the next boot."""
    if found is None:
        return [drift(path, "absent", "present")]
    saved = parse_save(found)
    differences: List[Drift] = []
    for chain in chains:
        differences += chain_drift(family, chain, saved.get(chain.table, {}).get(chain.name), "saved")
    if found != saved_text(chains) and not differences:
        differences.append(drift(path, "other content beside the rules", "as declared"))
    return differences


def change_input(chains: Sequence[Chain], live: Ruleset, foreign: Sequence[str]) -> str:
    """Render the one restore that makes what is loaded as declared; nothing where it is."""
    changed = [chain for chain in chains if live.get(chain.table, {}).get(chain.name) != list(chain.rules)]
    jumps: Dict[str, List[str]] = {}
    for chain in chains:
        hook = hook_of(chain, live, foreign)
        if chain.hook and (hook.copies != 1 or hook.intruders or hook.unreached):
            jumps.setdefault(chain.table, []).extend(hook_lines(chain.hook, hook))
    return restore_input(changed, jumps)


def undo_commands(program: str, chains: Sequence[Chain], live: Ruleset, foreign: Sequence[str]) -> List[List[str]]:
    """Return the commands that bring our chains back to what is loaded now, whatever others do until then.

    A chain that is not there yet is emptied first: from then on it decides nothing, even if the rest should fail.
    """
    before = [
        Chain(chain.table, chain.name, tuple(live.get(chain.table, {}).get(chain.name, ())), chain.hook)
        for chain in chains
    ]
    # Through a pipe: a shell may put a here-document into a file that SELinux keeps from iptables.
    restore = f"printf %s {shlex.quote(restore_input(before))} | {program}-restore --noflush --wait=30"
    commands = [["/bin/sh", "-c", restore]]
    for chain in chains:
        iptables = [program, "--wait", "30", "--table", chain.table]
        hook = hook_of(chain, live, foreign)
        if chain.hook and (not hook.copies or hook.intruders):
            commands.append([*iptables, "--delete", chain.hook, "--jump", chain.name])
        if chain.hook and hook.copies and hook.intruders:
            # What stood before the jump decided first, so behind everything is where it was least in the way.
            commands.append([*iptables, "--append", chain.hook, "--jump", chain.name])
    commands += [
        [program, "--wait", "30", "--table", chain.table, "--delete-chain", chain.name]
        for chain in chains
        if chain.name not in live.get(chain.table, {})
    ]
    return commands


def shown(chains: Sequence[Chain], ruleset: Ruleset, foreign: Sequence[str], *, repaired: bool) -> str:
    """Print our chains, and each hook up to our jump, as iptables-save would: now, or as they are to be."""
    lines: List[str] = []
    for chain in chains:
        if chain.hook:
            hook = hook_of(chain, ruleset, foreign)
            ahead = list(hook.reached) if hook.copies else []
            jumps = ahead + [hook.jump] * hook.copies
            if repaired and (hook.copies != 1 or hook.intruders or hook.unreached):
                jumps = [rule for part in repaired_hook(hook) for rule in part] + [hook.jump]
            lines += [f"-A {chain.hook} {rule}" for rule in jumps]
        rules = chain.rules if repaired else ruleset.get(chain.table, {}).get(chain.name, ())
        lines += [f"-A {chain.name} {rule}" for rule in rules]
    return "".join(f"{line}\n" for line in lines)
