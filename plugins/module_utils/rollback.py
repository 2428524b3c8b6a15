# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that can shut its own author out is undone by the host itself, unless the author comes back and confirms it.

Armed before the change, a timer of the host's systemd runs a plain shell script: it puts the files back and runs the
commands that make services read them again. Nothing of the control node is needed for that.

A reboot ends the timer, so the same script is also a unit of the next boot. There it only puts the files back, before
the network and before any service has read them: after a reboot an unconfirmed change is always gone.

Who decides is settled by one rename: the script that fires makes the file `armed` into `fired`, the run that confirms
makes it into `confirmed`, and only one of them can.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

SNAPSHOTS = Path("/var/lib/derms/rollback")
UNITS = Path("/etc/systemd/system")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A roll-back that is running when the next change is armed: reloading a service can take this long, no more.
LONGEST_RESTORE_S = 60


class Snapshot(NamedTuple):
    """What a roll-back puts back: each path with its copy, None where there was no file, and the commands after it."""

    copies: dict[str, str | None]
    commands: list[list[str]]


def merged(earlier: Snapshot, later: Snapshot) -> Snapshot:
    """Join a roll-back nobody has confirmed yet with a newer one: the state before the earlier change wins.

    The later commands may describe the unconfirmed state, so the earlier ones run last.
    """
    return Snapshot(
        copies={**later.copies, **earlier.copies},
        commands=[command for command in later.commands if command not in earlier.commands] + earlier.commands,
    )


def unit_name(name: str) -> str:
    """Name the systemd service (and, with .timer, the timer) of a roll-back."""
    return f"derms-rollback-{name}"


def unit_text(name: str, script: Path) -> str:
    """Render the unit that the timer starts, and that the next boot starts before anything reads what it restores."""
    return f"""\
# Written when an unconfirmed change was armed; gone when the change is confirmed or undone.
[Unit]
Description=Undo the unconfirmed change "{name}"
DefaultDependencies=no
RequiresMountsFor={script.parent}
After=local-fs.target
Before=sysinit.target network-pre.target derms-firewall.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
TimeoutStartSec=120
ExecStart=/bin/sh {script}
"""


def restore_script(name: str, directory: Path, units: Path, boot_id: str, snapshot: Snapshot) -> str:
    """Render the script that undoes the change; it may be run again where a power cut stopped it half-way."""
    armed, fired = shlex.quote(str(directory / "armed")), shlex.quote(str(directory / "fired"))
    lines = [
        "#!/bin/sh",
        f"# Undoes the change {name!r}, because nobody has confirmed it over a new connection.",
        "# Only one can take this file: a confirmed change is left alone.",
        f"mv {armed} {fired} 2>/dev/null || [ -e {fired} ] || exit 0",
        f"echo {shlex.quote(f'change {name} was not confirmed in time: undoing it')}",
    ]
    for path, copy in snapshot.copies.items():
        target = shlex.quote(path)
        if copy is None:
            lines.append(f"rm -f {target}")
        else:
            # A name that no *.conf pattern picks up, in the same directory so that the rename is atomic.
            beside = shlex.quote(str(Path(path).with_name(f".{Path(path).name}.rollback")))
            lines.append(f"cp -a {shlex.quote(copy)} {beside} && mv -f {beside} {target}")
    if snapshot.commands:
        lines.append("# After a reboot nothing runs yet that has read the unconfirmed files.")
        lines.append(f'if [ "$(cat {BOOT_ID})" = {shlex.quote(boot_id)} ]; then')
        lines += ["  " + " ".join(shlex.quote(word) for word in command) for command in snapshot.commands]
        lines.append("fi")
    unit = f"{unit_name(name)}.service"
    for leftover in (units / "sysinit.target.wants" / unit, units / unit):
        lines.append(f"rm -f {shlex.quote(str(leftover))}")
    return "\n".join(lines) + "\n"


def is_pending(name: str) -> bool:
    """Tell whether a change by this name is neither confirmed nor undone: the run that made it was cut off."""
    return (SNAPSHOTS / name / "armed").exists()


def has_fired(name: str) -> bool:
    """Tell whether the last change by this name was undone."""
    return (SNAPSHOTS / name / "fired").exists()


def arm(module: AnsibleModule, name: str, after_s: int, paths: list[str], commands: list[list[str]]) -> None:
    """Have the host undo what is about to be changed after_s seconds from now, unless disarm() comes first.

    Call this before the change. Files among the paths are put back as they are now; commands follow in order, each of
    them whether or not the one before it succeeded. Where an earlier change by the same name is still unconfirmed, its
    older snapshot is kept and the time starts anew.
    """
    directory = SNAPSHOTS / name
    # From here on only a restore that is running already can still undo the earlier change.
    _command(module, ["systemctl", "stop", f"{unit_name(name)}.timer"], tolerate=True)
    _await_restore(module, name)
    earlier = _read_snapshot(directory) if is_pending(name) else None
    if earlier is None and directory.exists():
        shutil.rmtree(directory)
    SNAPSHOTS.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    SNAPSHOTS.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    taken = _take(module, directory, paths, earlier)
    snapshot = Snapshot(taken, commands) if earlier is None else merged(earlier, Snapshot(taken, commands))
    script = directory / "restore"
    _write(directory / "snapshot.json", json.dumps(snapshot._asdict(), indent=1), 0o600)
    _write(script, restore_script(name, directory, UNITS, BOOT_ID.read_text().strip(), snapshot), 0o700)
    unit, wanted = _unit_paths(name)
    _write(unit, unit_text(name, script), 0o644)
    wanted.parent.mkdir(mode=0o755, exist_ok=True)
    if not wanted.is_symlink():
        wanted.symlink_to(unit)
    (directory / "armed").touch()
    # The snapshot must outlive a power cut that comes right after the change.
    os.sync()
    _command(module, ["systemctl", "daemon-reload"])
    timer = ["systemd-run", f"--unit={unit.name}", f"--on-active={after_s}s", "--timer-property=AccuracySec=1s"]
    _command(module, timer)


def fire(module: AnsibleModule, name: str) -> None:
    """Undo the armed change now: it failed half-way, so there is nothing to wait for."""
    _command(module, ["systemctl", "start", f"{unit_name(name)}.service"])
    _command(module, ["systemctl", "stop", f"{unit_name(name)}.timer"], tolerate=True)


def disarm(module: AnsibleModule, name: str) -> bool:
    """Confirm the change and say whether there was one to confirm; fails where it has already been undone."""
    directory = SNAPSHOTS / name
    if not directory.exists():
        return False
    if is_pending(name):
        # Lost to the script where that has come first; the next question tells.
        with contextlib.suppress(FileNotFoundError):
            (directory / "armed").rename(directory / "confirmed")
    if has_fired(name):
        module.fail_json(
            msg=f"The roll-back {name!r} has already fired: the change was not confirmed in time, and the host has "
            f"undone it. 'journalctl --unit {unit_name(name)}.service' on the host tells when."
        )
    _command(module, ["systemctl", "stop", f"{unit_name(name)}.timer"], tolerate=True)
    for leftover in reversed(_unit_paths(name)):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(directory)
    _command(module, ["systemctl", "daemon-reload"])
    return True


def _unit_paths(name: str) -> tuple[Path, Path]:
    unit = f"{unit_name(name)}.service"
    return UNITS / unit, UNITS / "sysinit.target.wants" / unit


def _await_restore(module: AnsibleModule, name: str) -> None:
    deadline_s = time.monotonic() + LONGEST_RESTORE_S
    show = ["systemctl", "show", "--property=ActiveState", "--value", f"{unit_name(name)}.service"]
    while _command(module, show).strip() in ("activating", "deactivating"):
        if time.monotonic() > deadline_s:
            module.fail_json(msg=f"The roll-back {name!r} of an earlier change has been running for too long.")
        time.sleep(0.5)


def _read_snapshot(directory: Path) -> Snapshot:
    stored = json.loads((directory / "snapshot.json").read_text())
    return Snapshot(copies=stored["copies"], commands=stored["commands"])


def _take(module: AnsibleModule, directory: Path, paths: list[str], earlier: Snapshot | None) -> dict[str, str | None]:
    known = {} if earlier is None else earlier.copies
    copies: dict[str, str | None] = {}
    for path in paths:
        if path in known:
            continue
        if not os.path.lexists(path):
            copies[path] = None
            continue
        source = Path(path).lstat()
        if not (stat.S_ISREG(source.st_mode) or stat.S_ISLNK(source.st_mode)):
            module.fail_json(msg=f"{path} is neither a file nor a link, so a roll-back cannot put it back.")
        copy = str(directory / f"copy-{len(known) + len(copies)}")
        shutil.copy2(path, copy, follow_symlinks=False)
        os.chown(copy, source.st_uid, source.st_gid, follow_symlinks=False)
        copies[path] = copy
    return copies


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.replace(path)


def _command(module: AnsibleModule, argv: list[str], *, tolerate: bool = False) -> str:
    status, stdout, stderr = module.run_command(argv)
    if status != 0 and not tolerate:
        module.fail_json(msg=f"The roll-back cannot be set up: '{' '.join(argv)}' failed: {stderr.strip()}")
    return str(stdout)
