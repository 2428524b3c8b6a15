# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: drift
type: aggregate
short_description: Names every drift of a run, or says that no changes are required
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Ends a run with a table of what differs, host by host, or with the line C(No Changes Required).
  - That line appears only where it is known to be true. A task that was skipped because it does not support check mode,
    a failed task, an unreachable host, or a run that executed nothing is reported as C(Not verified) with the reason.
  - A task's own RV(ignore:drift) is used as it is; otherwise the differences are taken from its RV(ignore:diff), and
    otherwise from its module's name and arguments.
  - The same as JSON, for programs. Its fields are described in C(docs/drift.md).
requirements:
  - C(derms.edge.drift) in C(callbacks_enabled)
options:
  json_path:
    description:
      - File that receives the report as JSON, readable by its owner only.
      - It is written when the run starts, as not verified, and replaced when the run ends.
    type: path
    env:
      - name: DERMS_DRIFT_JSON
    ini:
      - section: callback_drift
        key: json_path
"""

import difflib
import json
import os
import re
import shutil
import tempfile
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional, TypedDict

from ansible import context
from ansible.inventory.manager import split_host_pattern
from ansible.playbook.handler import Handler
from ansible.plugins.callback import CallbackBase
from ansible.utils.color import stringc

# "is" is a keyword, so that these two cannot be written as classes.
Drift = TypedDict("Drift", {"device": str, "what": str, "is": str, "should_be": str})
Entry = TypedDict(
    "Entry",
    {
        "device": str,
        "what": str,
        "is": str,
        "should_be": str,
        "task": str,
        "role": str,
        "delegated_to": Optional[str],
        "rolled_back": bool,
    },
)


class Hidden(TypedDict):
    """Changes of a no_log task: counted, never shown."""

    host: str
    role: str
    task: str
    changes: int


class Report(TypedDict):
    """What the JSON file holds."""

    status: str
    dry_run: bool
    scope: str
    hosts: dict[str, list[Entry]]
    notes: dict[str, list[str]]
    hidden: list[Hidden]
    not_verified: list[str]


Paint = Callable[[str, str], str]

LINES_SHOWN = 8
CHARACTERS_SHOWN = 160
REASON_CHARACTERS_SHOWN = 400
NARROWEST_COLUMN = 10
UNFINISHED = "the run did not reach its end"
ROLLED_BACK = "as before: rolled back"

# A skip is by design for these reasons; for any other, what the task would have done is unknown.
NEUTRAL_SKIPS = (
    "Conditional result was False",
    "conditional evaluated to False",
    "No items in the list",
    "Verbosity threshold not met",
    "skipped, since ",
    "matching creates option",
    "matching removes option",
)
# What these change lives in the controller's memory only.
IN_MEMORY_ACTIONS = frozenset({"add_host", "group_by"})
# These run whatever was asked for, and verify nothing by themselves.
PRELUDE_ACTIONS = frozenset(
    {"setup", "gather_facts", "meta", "include_tasks", "include_role", "import_tasks", "import_role"}
)
PACKAGE_ACTIONS = frozenset({"package", "apt", "dnf", "dnf5", "yum", "pip"})
SERVICE_ACTIONS = frozenset({"service", "systemd", "systemd_service", "sysvinit"})
SUBJECT_ARGUMENTS = ("path", "dest", "name", "key", "src", "url", "id")
SPECIAL_TAGS = frozenset({"all", "tagged", "untagged", "always", "never"})


# --- from a task's result to drifts -------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Return printable text: what a host answers must not steer the operator's terminal."""
    characters = str(text).expandtabs(4)
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in characters)


def bounded(lines: Iterable[object]) -> str:
    """Return the first lines, each cut to a readable length, and how many more there are."""
    every = [plain(line).rstrip() for line in lines]
    shown = [f"{line[:CHARACTERS_SHOWN]}…" if len(line) > CHARACTERS_SHOWN else line for line in every[:LINES_SHOWN]]
    if len(every) > LINES_SHOWN:
        shown.append(f"… {len(every) - LINES_SHOWN} more lines")
    return "\n".join(shown)


def drift(what: object, is_now: object, should_be: object, device: object = "") -> Drift:
    """Return one drift as the report holds it; `device` is what differs where that is not the host itself."""
    return {"device": plain(device), "what": plain(what), "is": plain(is_now), "should_be": plain(should_be)}


def derive(
    result: Mapping[str, Any], action: str = "", args: Mapping[str, Any] | None = None, task: str = ""
) -> list[Drift]:
    """Return what a changed result changes: at least one drift, whatever the module tells."""
    invocation = result.get("invocation")
    arguments = (invocation.get("module_args") if isinstance(invocation, dict) else None) or args or {}
    module = action.rpartition(".")[2]
    return (
        own_drift(result.get("drift"))
        or package_drift(module, arguments, result)
        or service_drift(module, arguments, result)
        or diff_drift(result.get("diff"), subject(module, arguments, result, task))
        or [drift(subject(module, arguments, result, task), "not as declared", arguments.get("state") or "as declared")]
    )


def own_drift(declared: object) -> list[Drift]:
    """Return the drifts a module names itself."""
    if not isinstance(declared, list):
        return []
    return [
        drift(d.get("what", ""), d.get("is", ""), d.get("should_be", ""), d.get("device", ""))
        for d in declared
        if isinstance(d, dict)
    ]


def subject(module: str, args: Mapping[str, Any], result: Mapping[str, Any], task: str) -> str:
    """Return what a task is about: the file, else the module and the name it was given, else the task's own name."""
    for argument in SUBJECT_ARGUMENTS:
        value = result.get(argument) if argument in ("path", "dest") else None
        value = value or args.get(argument)
        if isinstance(value, str) and value:
            return value if value.startswith("/") else f"{module} {value}"
    return task or module


def names_of(args: Mapping[str, Any]) -> list[str]:
    """Return a package or service argument as a list of names."""
    names = args.get("name") or args.get("pkg") or []
    if isinstance(names, str):
        return [name.strip() for name in names.split(",")]
    return [str(name) for name in names] if isinstance(names, list) else []


def package_drift(module: str, args: Mapping[str, Any], result: Mapping[str, Any]) -> list[Drift]:
    """Return one drift for each package; where the package tool's words name some of them, for those only."""
    names = names_of(args) if module in PACKAGE_ACTIONS else []
    state = str(args.get("state") or "present")
    is_now = {"absent": "installed", "removed": "installed", "latest": "absent or outdated"}.get(state, "absent")
    diff = result.get("diff")
    prepared = diff.get("prepared") if isinstance(diff, dict) else None
    words = [str(line) for line in (prepared, result.get("results")) if line]
    named = [name for name in names if re.search(rf"(?<![\w.+-]){re.escape(bare(name))}(?!\w)", "\n".join(words))]
    return [drift(f"package {name}", is_now, state) for name in named or names]


def bare(package: str) -> str:
    """Return a package's name without the version it was asked in."""
    return re.split(r"[=<>~!\[]", package, maxsplit=1)[0].strip()


def service_drift(module: str, args: Mapping[str, Any], result: Mapping[str, Any]) -> list[Drift]:
    """Return what of a service differs: running, enabled, or both where the module does not tell."""
    if module not in SERVICE_ACTIONS or not names_of(args):
        return []
    name = names_of(args)[0]
    status = result.get("status")
    status = status if isinstance(status, dict) else {}
    active, enabled = str(status.get("ActiveState", "")), str(status.get("UnitFileState", ""))
    found = []
    state = str(args.get("state") or "")
    if state and {"started": "active", "stopped": "inactive"}.get(state) != active:
        found.append(drift(f"service {name}", active or "not as declared", state))
    wanted = {"True": "enabled", "False": "disabled"}.get(str(args.get("enabled")), enabled)
    if wanted != enabled:
        found.append(drift(f"service {name} at boot", enabled or "not as declared", wanted))
    return found


def diff_drift(diff: object, about: str) -> list[Drift]:
    """Return the drifts that a result's diff shows."""
    parts = diff if isinstance(diff, list) else [diff]
    return [found for part in parts if isinstance(part, dict) for found in part_drift(part, about)]


def part_drift(part: Mapping[str, Any], about: str) -> list[Drift]:
    """Return the drifts of one part of a diff."""
    before, after = part.get("before"), part.get("after")
    header = str(part.get("before_header") or "")
    about = re.sub(r" \((content|file attributes)\)$", "", header) or about
    if isinstance(before, dict) or isinstance(after, dict):
        return attribute_drift(
            before if isinstance(before, dict) else {}, after if isinstance(after, dict) else {}, about
        )
    if any(key in part for key in ("dst_binary", "src_binary", "dst_larger", "src_larger")):
        return [drift(about, "other content, binary or too large to show", "the declared content")]
    found = []
    if before != after:
        found.append(text_drift(text_of(before), text_of(after), about))
    if part.get("prepared"):
        found.append(prepared_drift(str(part["prepared"]), about))
    return found


def text_of(value: object) -> str:
    """Return a diff's side as text, structures as one line for each of their parts."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True, default=str)


def text_drift(before: str, after: str, about: str) -> Drift:
    """Return the lines that differ."""
    delta = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    if not delta:
        return drift(about, "other line ends", "the declared line ends")
    removed = [line[1:] for line in delta if line.startswith("-")]
    added = [line[1:] for line in delta if line.startswith("+")]
    return drift(
        about,
        bounded(removed) if removed else "lines missing" if before else "absent or empty",
        bounded(added) if added else "these lines absent" if after else "absent or empty",
    )


def prepared_drift(prepared: str, about: str) -> Drift:
    """Return what a diff that the module has rendered itself says."""
    lines = [line for line in prepared.splitlines() if line.strip()]
    removed = [line[1:] for line in lines if line.startswith("-") and not line.startswith("---")]
    added = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    if not removed and not added:
        return drift(about, "not as declared", bounded(lines))
    return drift(about, bounded(removed) or "lines missing", bounded(added) or "these lines absent")


def attribute_drift(before: Mapping[str, Any], after: Mapping[str, Any], about: str) -> list[Drift]:
    """Return a drift for each attribute that differs; what comes or goes as a whole is one drift."""
    path = after.get("path") or before.get("path")
    about = path if isinstance(path, str) else about
    states = (before.get("state"), after.get("state"))
    if states[0] != states[1] and "absent" in states:
        return [drift(about, *states)]
    return [
        drift(f"{about} {key}", attribute_text(before.get(key)), attribute_text(after.get(key)))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def attribute_text(value: object) -> str:
    """Return an attribute's value on as few lines as it has."""
    if value is None:
        return "unset"
    return bounded((value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)).splitlines())


def why_skipped(result: Mapping[str, Any], conditional: bool) -> str | None:
    """Return why a skip leaves something unverified, or None where the skip is by design.

    A no_log result does not tell its reason: it counts as by design where the task has a condition.
    """
    if "censored" in result and conditional:
        return None
    reason = str(result.get("skip_reason") or result.get("skipped_reason") or result.get("msg") or "")
    if any(neutral in reason for neutral in NEUTRAL_SKIPS):
        return None
    return f"skipped, it does not support check mode{f' ({one_line(reason)})' if reason else ''}"


def why_failed(result: Mapping[str, Any]) -> str:
    """Return a failed task's own words."""
    if "censored" in result:
        return "its message is hidden by no_log"
    said = [result[key] for key in ("msg", "module_stderr", "stderr", "module_stdout", "stdout") if result.get(key)]
    return one_line(": ".join(map(str, said[:2]))) if said else "no message"


def one_line(text: object) -> str:
    """Return text on one line of bounded length."""
    line = " ".join(plain(text).split())
    return f"{line[:REASON_CHARACTERS_SHOWN]}…" if len(line) > REASON_CHARACTERS_SHOWN else line


# --- from a run's results to its report ---------------------------------------------------------------------------


class Source(NamedTuple):
    """The task that a result is from, and the host it is about."""

    host: str
    task: str
    role: str = ""
    delegated_to: str | None = None

    def __str__(self) -> str:
        """Return how reasons name it."""
        return f"{self.host}: {self.role} : {self.task}" if self.role else f"{self.host}: {self.task}"


@dataclass
class Run:
    """What a run has shown so far."""

    dry_run: bool
    scope: str = ""
    only_tags: frozenset[str] = frozenset()
    only_hosts: frozenset[str] = frozenset()
    executed: bool = False
    left_as_is: bool = False
    tags_met: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    # For each play: the hosts that it is for, and those that it came to.
    addressed: dict[str, set[str]] = field(default_factory=dict)
    met: dict[str, set[str]] = field(default_factory=dict)
    named_by_plays: set[str] = field(default_factory=set)
    hosts: dict[str, list[Entry]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    hidden: Counter[Source] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)

    def selected_by_tags(self, tags: Iterable[str]) -> bool:
        """Tell whether a task runs because of the tags asked for, not because it always does."""
        own = set(tags)
        self.tags_met |= own
        return (
            not self.only_tags
            or "all" in self.only_tags
            or bool(own & self.only_tags)
            or ("tagged" in self.only_tags and bool(own))
            or ("untagged" in self.only_tags and not own)
        )

    def changed(self, source: Source, drifts: Iterable[Drift], applied: bool) -> None:
        """Record drifts, or changes that were applied."""
        self.left_as_is = self.left_as_is or not applied
        self.hosts.setdefault(source.host, []).extend(
            {
                "device": found["device"],
                "what": found["what"],
                "is": found["is"],
                "should_be": found["should_be"],
                "task": source.task,
                "role": source.role,
                "delegated_to": source.delegated_to,
                "rolled_back": False,
            }
            for found in drifts
        )

    def rolled_back(self, host: str, names: object) -> None:
        """Record that a failure took changes back: those of this name, or of an attribute of it."""
        for name in names if isinstance(names, list) else []:
            for entry in self.hosts.get(host, []):
                if entry["what"] == name or entry["what"].startswith(f"{name} "):
                    entry["rolled_back"] = True

    def changed_hidden(self, source: Source, applied: bool) -> None:
        """Record a change whose content no_log hides."""
        self.left_as_is = self.left_as_is or not applied
        self.hosts.setdefault(source.host, [])
        self.hidden[source] += 1

    def noted(self, host: str, notes: object) -> None:
        """Record what a module reports beside drift."""
        if isinstance(notes, list):
            self.notes[host] = list(dict.fromkeys([*self.notes.get(host, []), *map(plain, notes)]))

    def scoped(self, scope: object) -> None:
        """Record that a module looked at a part only of what it could have."""
        if isinstance(scope, str) and scope not in self.scope:
            self.scope = plain(f"{self.scope} {scope}".strip())

    def unverified(self, reason: str) -> None:
        """Record why part of the declaration was not compared."""
        self.reasons.setdefault(reason)

    def report(self, stopped: Iterable[str] = ()) -> Report:
        """Return the report; stopped are the hosts on which the run failed or which it could not reach."""
        stopped = sorted(stopped)
        reasons = [*self.reasons, *self.gaps(stopped)]
        unseen = {*stopped, *self.not_reached(stopped)}
        changes = any(self.hosts.values()) or bool(self.hidden)
        if stopped and not self.dry_run:
            status = "failed"
        elif reasons:
            status = "not_verified"
        elif not changes:
            status = "in_sync"
        else:
            status = "drift" if self.left_as_is else "changed"
        return {
            "status": status,
            "dry_run": self.dry_run,
            "scope": self.scope,
            # A host that was not looked at to its end must not read as one that is in sync.
            "hosts": {host: found for host, found in sorted(self.hosts.items()) if found or host not in unseen},
            "notes": {host: notes for host, notes in sorted(self.notes.items()) if notes},
            "hidden": [
                {"host": source.host, "role": source.role, "task": source.task, "changes": count}
                for source, count in sorted(self.hidden.items(), key=str)
            ],
            "not_verified": reasons,
        }

    def gaps(self, stopped: list[str]) -> list[str]:
        """Return what the run should have met and did not."""
        met = self.only_tags & (self.tags_met | SPECIAL_TAGS)
        found = [f"no task with the tag {tag} was run" for tag in sorted(self.only_tags - met)]
        found += [
            f"--limit {name}: no such host or group in these plays"
            for name in sorted(self.only_hosts - self.groups - self.named_by_plays)
        ]
        if not self.executed and not self.reasons:
            found.append("nothing was executed")
        explained = [reason.partition(":")[0] for reason in self.reasons]
        found += [f"{host}: the run stopped there" for host in stopped if host not in explained]
        found += [f"{host}: not reached, the run ended before" for host in sorted(self.not_reached(stopped))]
        return found

    def not_reached(self, stopped: list[str]) -> set[str]:
        """Return the hosts that a play was for and did not come to, because the run stopped on others."""
        if not stopped:
            return set()
        left_out = {host for play, hosts in self.addressed.items() for host in hosts - self.met[play]}
        return left_out - set(stopped)


# --- from a report to what people read ----------------------------------------------------------------------------


def unpainted(text: str, _colour: str) -> str:
    """Paint nothing."""
    return text


def recap(report: Report, width: int, paint: Paint = unpainted, applied_rows: int | None = None) -> str:
    """Return the report for a terminal of this width.

    Where a real run applied more changes than applied_rows, they are counted instead of listed; a dry run lists all.
    """
    rows = sum(map(len, report["hosts"].values()))
    listed = report["dry_run"] or applied_rows is None or rows <= applied_rows
    blocks = [table(report, width, paint) if listed else counts(report), remarks(report, width)]
    verdict = "\n".join(paint(line, colour) for line, colour in verdicts(report))
    return "\n\n".join([block for block in blocks if block] + [verdict])


def counts(report: Report) -> str:
    """Return how many changes each role made on each host: what a person can read after a host's first run."""
    lines = []
    for host, entries in report["hosts"].items():
        roles = dict.fromkeys(entry["role"] or entry["task"] for entry in entries)
        found = (
            of_role(role, [entry for entry in entries if (entry["role"] or entry["task"]) == role]) for role in roles
        )
        if entries:
            lines.append(f"{host}: {', '.join(found)}")
    return "\n".join(lines)


def of_role(role: str, entries: list[Entry]) -> str:
    """Return how many changes a role made on a host, and how many of them were taken back."""
    rolled_back = sum(entry["rolled_back"] for entry in entries)
    return f"{role} {len(entries)}{f' ({rolled_back} rolled back)' if rolled_back else ''}"


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verdicts(report: Report) -> list[tuple[str, str]]:
    """Return the lines that say how the run ended, and their colours."""
    every = [(host, entry) for host, entries in report["hosts"].items() for entry in entries]
    kept = [host for host, entry in every if not entry["rolled_back"]]
    rolled_back = [host for host, entry in every if entry["rolled_back"]]
    count = len(kept) + sum(hidden["changes"] for hidden in report["hidden"])
    affected = {*kept} | {h["host"] for h in report["hidden"]}
    scope = f" (only {report['scope']})" if report["scope"] else ""
    if report["status"] == "in_sync":
        return [(f"No Changes Required{scope}", "green")]
    lines = []
    if count:
        verb = "required" if report["dry_run"] or report["status"] == "drift" else "applied"
        hosts = f"{len(affected)} of {counted(len(report['hosts']), 'host')}"
        devices = {entry["device"] for _host, entry in every if entry["device"]}
        if devices:
            hosts += f", {counted(len(devices), 'device')}"
        lines.append((f"{counted(count, 'change')} {verb} on {hosts}{scope}", "yellow"))
    if rolled_back:
        names = ", ".join(dict.fromkeys(rolled_back))
        lines.append((f"{counted(len(rolled_back), 'change')} rolled back on {names}{scope}", "yellow"))
    prefix = "Failed" if report["status"] == "failed" else "Not verified"
    lines += [(f"{prefix}: {reason}{scope}", "red") for reason in report["not_verified"]]
    return lines


def went_back(report: Report, host: str) -> bool:
    """Tell whether changes were taken back on a host."""
    return any(entry["rolled_back"] for entry in report["hosts"].get(host, []))


def remarks(report: Report, width: int) -> str:
    """Return the notes and the hidden changes."""
    lines = [f"{host}: {note}" for host, notes in report["notes"].items() for note in notes]
    lines += [
        f"{hidden['host']}: {counted(hidden['changes'], 'hidden change')} in {hidden['task']}"
        f"{', perhaps rolled back as well' if went_back(report, hidden['host']) else ''}"
        for hidden in report["hidden"]
    ]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in lines)


def table(report: Report, width: int, paint: Paint) -> str:
    """Return host, what, is and should be as aligned, wrapped columns."""
    rows: list[list[str]] = []
    previous = ""
    for host, entries in report["hosts"].items():
        for entry in entries:
            label = entry["device"] or (f"{host} → {entry['delegated_to']}" if entry["delegated_to"] else host)
            became = ROLLED_BACK if entry["rolled_back"] else entry["should_be"]
            rows.append(["" if label == previous else label, entry["what"], entry["is"], became])
            previous = label
    if not rows:
        return ""
    devices = any(entry["device"] for entries in report["hosts"].values() for entry in entries)
    first = "host or device" if devices else "host"
    header = [first, "what", *(("is", "should be") if report["dry_run"] else ("was", "is now"))]
    widths = column_widths([header, *rows], width)
    colours = ("cyan", "normal", "red", "green")
    lines = ["  ".join(paint(f"{title:<{size}}", "bright gray") for title, size in zip(header, widths)).rstrip()]
    for row in rows:
        cells = [wrapped(cell, size) for cell, size in zip(row, widths)]
        for line in range(max(map(len, cells))):
            texts = [cell[line] if line < len(cell) else "" for cell in cells]
            painted = (
                paint(text, colour) + " " * (size - len(text)) for text, size, colour in zip(texts, widths, colours)
            )
            lines.append("  ".join(painted).rstrip())
    return "\n".join(lines)


def column_widths(rows: list[list[str]], width: int) -> list[int]:
    """Return each column's width: its widest line, the widest columns made narrower until all fit."""
    widths = [max(len(line) for cell in column for line in (cell.split("\n") or [""])) for column in zip(*rows)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > NARROWEST_COLUMN:
        widths[widths.index(max(widths))] -= 1
    return widths


def wrapped(cell: str, size: int) -> list[str]:
    """Return a cell's lines, none wider than its column."""
    return [part for line in cell.split("\n") for part in textwrap.wrap(line, size, drop_whitespace=False) or [""]]


# --- Ansible's side -----------------------------------------------------------------------------------------------


def terminal_columns() -> int:
    """Return how wide the recap may be."""
    return shutil.get_terminal_size(fallback=(120, 24)).columns


def coloured(text: str, colour: str) -> str:
    """Paint text as Ansible does: only where its output is a terminal, or colour is forced."""
    return str(stringc(text, colour)) if text else text


def scope_of(options: Mapping[str, Any]) -> str:
    """Return the options that make a run partial, as they were given."""
    named = {
        "--limit": options.get("subset"),
        "--tags": ",".join(sorted(set(options.get("tags") or ()) - {"all"})),
        "--skip-tags": ",".join(sorted(options.get("skip_tags") or ())),
        "--start-at-task": options.get("start_at_task"),
        "--step": "as chosen" if options.get("step") else None,
    }
    return plain(" ".join(f"{option} {value}" for option, value in named.items() if value))


def host_names(limit: str | None) -> frozenset[str]:
    """Return the plain names in a limit; patterns may match nothing and mean it."""
    return frozenset(name for name in split_host_pattern(limit or "") if name and not set(name) & set("*?[]!&~@"))


def write_report(path: Path, report: Report) -> None:
    """Write the report in one step, for its owner only."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
            file.write("\n")
        Path(unfinished).replace(path)
    except OSError:
        Path(unfinished).unlink()
        raise


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Listens to a run and reports what differs."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "derms.edge.drift"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        options = context.CLIARGS
        self.run = Run(
            dry_run=bool(options.get("check")),
            scope=scope_of(options),
            only_tags=frozenset(options.get("tags") or ()) - {"all"},
            only_hosts=host_names(options.get("subset")),
        )
        self.play = ""
        self.play_hosts: frozenset[str] = frozenset()

    def v2_playbook_on_start(self, playbook: Any) -> None:  # noqa: ARG002
        """Leave no earlier report behind: a run that is killed has verified nothing."""
        report = self.run.report()
        report["status"], report["not_verified"] = "not_verified", [UNFINISHED]
        self.save(report)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note whom the play is for; each of its batches starts it anew."""
        self.play = play._uuid  # noqa: SLF001 (its name need not be its own)
        variables = play.get_variable_manager().get_vars(play=play)
        self.play_hosts = frozenset(variables.get("ansible_play_hosts_all", ()))
        self.run.named_by_plays |= self.play_hosts
        self.run.groups |= set(variables.get("groups", ()))

    def v2_runner_on_ok(self, result: Any) -> None:
        """Record a task's result; a loop's items were recorded one by one."""
        if self.is_loop(result):
            self.meet(result)
        else:
            self.v2_runner_item_on_ok(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Record what was changed, or would be."""
        if not self.meet(result, executed=True) or not result.is_changed():
            return
        task, answer, source = result.task, result.result, self.source(result)
        applied = not (self.run.dry_run or task.check_mode)
        if "censored" in answer:
            self.run.changed_hidden(source, applied)
            return
        if task.diff is False:
            answer = {key: value for key, value in answer.items() if key != "diff"}
        self.run.changed(source, derive(answer, task.action, task.args, source.task), applied)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Record a skipped task, unless it is a loop whose items were recorded."""
        if self.is_loop(result):
            self.meet(result)
        else:
            self.v2_runner_item_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Record a skip that leaves something unverified."""
        reason = why_skipped(result.result, conditional=bool(result.task.when))
        if self.meet(result) and reason:
            self.run.unverified(f"{self.source(result)}: {reason}")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Record a failure, ignored or rescued as well; a loop's items were recorded one by one."""
        if self.is_loop(result):
            self.meet(result)
        else:
            self.fail(result, " (ignored)" if ignore_errors else "")

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Record a loop item's failure."""
        self.fail(result, "")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Record a host that could not be reached."""
        self.meet(result)
        self.run.unverified(f"{result.host.get_name()}: unreachable: {why_failed(result.result)}")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the recap and write the report."""
        report = self.run.report(stopped={*stats.failures, *stats.dark})
        self._display.display(f"\n{recap(report, terminal_columns(), coloured)}")
        self.save(report)

    def save(self, report: Report) -> None:
        """Write the report where the options want it."""
        path = self.get_option("json_path")
        if not path:
            return
        try:
            write_report(Path(path), report)
        except OSError as error:
            self._display.error(f"The drift report could not be written: {error}")

    def fail(self, result: Any, remark: str) -> None:
        """Record a failure, its reason, and what it took back."""
        counts = self.meet(result, executed=True)
        if counts and result.result.get("changed"):
            # What was done before it failed, or beside: other devices of the same task, say.
            applied = not (self.run.dry_run or result.task.check_mode)
            self.run.changed(self.source(result), own_drift(result.result.get("drift")), applied)
        self.run.rolled_back(result.host.get_name(), result.result.get("rolled_back"))
        self.run.unverified(f"{self.source(result)}: failed{remark}: {why_failed(result.result)}")

    def meet(self, result: Any, executed: bool = False) -> bool:
        """Record that a host met a task; tell whether the task counts for drift."""
        task, host = result.task, result.host.get_name()
        module = task.action.rpartition(".")[2]
        self.run.hosts.setdefault(host, [])
        self.run.noted(host, result.result.get("notes"))
        self.run.scoped(result.result.get("scope"))
        for reason in result.result.get("not_verified") or ():
            self.run.unverified(f"{host}: {one_line(reason)}")
        self.run.met.setdefault(self.play, set()).add(host)
        if not task.run_once:
            self.run.addressed.setdefault(self.play, set()).update(self.play_hosts)
        if self.run.selected_by_tags(task.tags) and executed and module not in PRELUDE_ACTIONS:
            self.run.executed = True
        # What a handler would do follows from a drift that is reported already.
        return not (task.check_mode and isinstance(task, Handler)) and module not in IN_MEMORY_ACTIONS

    @staticmethod
    def is_loop(result: Any) -> bool:
        """Tell whether this result sums up a loop."""
        return bool(result.task.loop) and "results" in result.result

    @staticmethod
    def source(result: Any) -> Source:
        """Return where a result is from."""
        task, host = result.task, result.host.get_name()
        own_name = task.name or task.action
        role = task.get_name().removesuffix(own_name).removesuffix(" : ")
        delegated_to = task.delegate_to if task.delegate_to != host else None
        return Source(host, plain(own_name), role, delegated_to)
