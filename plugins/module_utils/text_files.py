# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text files as declared and as found: what differs, in words that name each difference, and how one is replaced."""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Drift = Dict[str, str]

ABSENT = "absent"
# Beyond this a list of lines is harder to read than the diff that is printed with it.
MOST_LINES_NAMED = 20


def drift(what: str, found: str, wanted: str) -> Drift:
    """Return one difference as the drift recap prints it."""
    return {"what": what, "is": found, "should_be": wanted}


def drift_diff(differences: list[Drift]) -> dict[str, str]:
    """Return before and after in the form that Ansible's --diff prints, where there is no text to compare."""
    return {
        "before": "".join(f"{one['what']}: {one['is']}\n" for one in differences),
        "after": "".join(f"{one['what']}: {one['should_be']}\n" for one in differences),
    }


@dataclass(frozen=True)
class Attributes:
    """Who owns a file or directory, and who may use it."""

    owner: str
    group: str
    mode: int


@dataclass(frozen=True)
class WantedFile:
    """One file as declared; content None means that there is to be no such file."""

    path: str
    content: Optional[bytes]
    attributes: Attributes
    content_hidden: bool = False


@dataclass(frozen=True)
class WantedDirectory:
    """One directory as declared."""

    path: str
    attributes: Attributes
    present: bool = True


@dataclass(frozen=True)
class Found:
    """What stands at a path now; content only of a regular file, link_to only of a symbolic link."""

    attributes: Attributes
    content: Optional[bytes] = None
    link_to: Optional[str] = None


def octal_mode(text: str) -> int:
    """Return the mode that a string such as '0640' means; anything else is refused."""
    if not re.fullmatch(r"0?[0-7]{3,4}", text):
        raise ValueError(f"mode {text!r} is not octal: write it as a string such as '0640'")
    return int(text, 8)


def file_bytes(text: str) -> bytes:
    """Return a declared text as it stands in a file: the last line ends like every other one."""
    return (text if not text or text.endswith("\n") else text + "\n").encode()


def owner_name(uid: int) -> str:
    """Return the user's name, or the number where nobody has it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the group's name, or the number where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def owner_id(name: str) -> Optional[int]:
    """Return the user's number; None while there is no such user."""
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def group_id(name: str) -> Optional[int]:
    """Return the group's number; None while there is no such group."""
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def look_at(path: str) -> Optional[Found]:
    """Return what stands at a path, without following a link there; None when nothing does."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    attributes = Attributes(owner_name(status.st_uid), group_name(status.st_gid), stat.S_IMODE(status.st_mode))
    if stat.S_ISLNK(status.st_mode):
        return Found(attributes, link_to=str(Path(path).readlink()))
    if stat.S_ISREG(status.st_mode):
        return Found(attributes, content=Path(path).read_bytes())
    return Found(attributes)


def attribute_drift(path: str, found: Attributes, wanted: Attributes) -> list[Drift]:
    """Name each of owner, group and mode that differs."""
    pairs = (
        ("owner", found.owner, wanted.owner),
        ("group", found.group, wanted.group),
        ("mode", f"{found.mode:04o}", f"{wanted.mode:04o}"),
    )
    return [drift(f"{path} {which}", has, should) for which, has, should in pairs if has != should]


def setting_name(line: str) -> str:
    """Return the word that a configuration line begins with: what it sets."""
    return re.split(r"[\s=:]", line.strip(), maxsplit=1)[0].lower()


def paired_lines(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[Optional[str], Optional[str]]]:
    """Pair each replaced line with the one that sets the same thing, then the others in their order."""
    left = list(old)
    unpaired = []
    for line in new:
        twin = next((other for other in left if setting_name(other) == setting_name(line)), None)
        if twin is None:
            unpaired.append(line)
        else:
            left.remove(twin)
            yield twin, line
    shared = min(len(left), len(unpaired))
    yield from zip(left[:shared], unpaired[:shared])
    yield from ((line, None) for line in left[shared:])
    yield from ((None, line) for line in unpaired[shared:])


def _line_in_words(line: Optional[str]) -> str:
    if line is None:
        return ABSENT
    return line.strip() or "empty line"


def line_drift(path: str, found: str, wanted: str) -> list[Drift]:
    """Name every line that differs between two texts."""
    old, new = found.splitlines(), wanted.splitlines()
    lines: List[Drift] = []
    for tag, old_from, old_to, new_from, new_to in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if tag == "equal":
            continue
        for has, should in paired_lines(old[old_from:old_to], new[new_from:new_to]):
            words = _line_in_words(has), _line_in_words(should)
            if words[0] == words[1]:
                words = f"{words[0]} (other white space)", words[1]
            lines.append(drift(path, *words))
    if found != wanted and not lines:
        return [drift(path, "other line ends", "lines that end in one line feed")]
    if len(lines) > MOST_LINES_NAMED:
        return [drift(path, f"{len(lines)} lines differ", "the declared content")]
    return lines


def _text(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace")


def content_drift(path: str, found: bytes, wanted: bytes, *, hidden: bool) -> list[Drift]:
    """Name what differs between a regular file's content as found and as declared."""
    if found == wanted:
        return []
    if hidden:
        return [drift(path, "other content (hidden)", "the declared content (hidden)")]
    return line_drift(path, _text(found), _text(wanted))


def file_drift(wanted: WantedFile, found: Optional[Found]) -> list[Drift]:
    """Name everything that differs between a file as found and as declared."""
    path = wanted.path
    if wanted.content is None:
        return [] if found is None else [drift(path, "present", ABSENT)]
    if found is None:
        return [drift(path, ABSENT, "present")]
    if found.content is None:
        return [drift(path, f"a link to {found.link_to}" if found.link_to else "not a regular file", "a file")]
    differences = content_drift(path, found.content, wanted.content, hidden=wanted.content_hidden)
    return differences + attribute_drift(path, found.attributes, wanted.attributes)


def directory_drift(wanted: WantedDirectory, found: Optional[Found]) -> list[Drift]:
    """Name everything that differs between a directory as found and as declared."""
    if found is None:
        return [drift(wanted.path, ABSENT, "a directory")] if wanted.present else []
    if not wanted.present:
        return [drift(wanted.path, "present", ABSENT)]
    if found.link_to is not None:
        return [drift(wanted.path, f"a link to {found.link_to}", "a directory")]
    if found.content is not None:
        return [drift(wanted.path, "a file", "a directory")]
    return attribute_drift(wanted.path, found.attributes, wanted.attributes)


def file_diff(wanted: WantedFile, found: Optional[Found]) -> Dict[str, str]:
    """Return before and after in the form that Ansible's --diff prints."""

    def shown(content: Optional[bytes]) -> str:
        if content is None:
            return ""
        return "(content hidden)\n" if wanted.content_hidden else _text(content)

    def described(attributes: Optional[Attributes]) -> str:
        if attributes is None:
            return f"{wanted.path} ({ABSENT})"
        return f"{wanted.path} ({attributes.owner}:{attributes.group} {attributes.mode:04o})"

    before = shown(found.content if found else None)
    after = shown(wanted.content)
    if wanted.content_hidden and before == after and found and found.content != wanted.content:
        after = "(content hidden, changed)\n"
    return {
        "before_header": described(found.attributes if found else None),
        "after_header": described(None if wanted.content is None else wanted.attributes),
        "before": before,
        "after": after,
    }


def replace_file(path: str, content: bytes, *, owner: int, group: int, mode: int, label: Callable[[str], None]) -> None:
    """Put a complete file in place in one step; at no moment can anybody read it who may not read the result.

    `label` gives the new file its SELinux type before it becomes visible under its name.
    """
    descriptor, candidate = tempfile.mkstemp(prefix=f".{Path(path).name}.", dir=Path(path).parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchown(stream.fileno(), owner, group)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        label(candidate)
        Path(candidate).replace(path)
    except OSError:
        Path(candidate).unlink()
        raise
