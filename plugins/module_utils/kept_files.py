# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the agent's configuration and units, kept from before a change until it is seen to be well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class KeptFiles:
    """Copies of files as they were, to go back to together with the release that they belong to.

    They are there from before the first change until the release is seen to be well, or is taken back.
    """

    def __init__(self, files: list[str], kept: Path) -> None:
        self.files = [Path(file) for file in files]
        self.kept = kept
        self.link = kept / "current"
        # Which files were looked at: one that is named there and has no copy was not there.
        self.names = kept / "files"
        # Copies that are not all there: what has none in a whole set was not there either, and would be removed.
        self.partial = kept.with_name(f".{kept.name}")

    def are_there(self) -> bool:
        """Tell whether there are copies."""
        return self.kept.is_dir()

    def differ(self) -> bool:
        """Tell whether a file is not as its copy."""
        return any(self._content(path) != self._content(self._copy(path)) for path in self._known())

    def _known(self) -> list[Path]:
        """Return the files of which the copies tell what was there before.

        An older collection kept copies of fewer files, and no list of them: of what it has no copy, it knows nothing.
        """
        if self.names.is_file():
            names = self.names.read_text(encoding="utf-8").splitlines()
            return [path for path in self.files if str(path) in names]
        return [path for path in self.files if self._copy(path).is_file()]

    @staticmethod
    def _content(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() else None

    def of(self) -> str:
        """Return where the link to the release in service led as the copies were made; empty where there are none."""
        return str(self.link.readlink()) if self.link.is_symlink() else ""

    def _copy(self, path: Path) -> Path:
        return self.kept / str(path).lstrip("/")

    def keep(self, current: Path) -> None:
        """Copy what there is, unless copies are there: those are from a run that was cut off after it changed files.

        :param current: the link to the release in service; without one there is nothing to go back to
        """
        if self.kept.is_dir() or not current.is_symlink():
            return
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(mode=0o700)
        (self.partial / self.link.name).symlink_to(current.readlink())
        (self.partial / self.names.name).write_text("".join(f"{path}\n" for path in self.files), encoding="utf-8")
        for path in self.files:
            if path.is_file():
                self._duplicate(path, self.partial / str(path).lstrip("/"))
        # After a power cut all of it is there, or nothing: a list that is empty would say that no file was looked at.
        _settle(self.partial / self.names.name)
        for directory, _directories, _files in os.walk(self.partial):
            _settle(Path(directory))
        self.partial.rename(self.kept)
        _settle(self.kept.parent)

    def put_back(self) -> list[str]:
        """Make the files what the copies are; what had no copy was not there. Return which are as they were."""
        if not self.kept.is_dir():
            return []
        known = self._known()
        for path in known:
            copy = self._copy(path)
            if copy.is_file():
                beside = path.with_name(f".{path.name}.before")
                self._duplicate(copy, beside)
                beside.replace(path)
            elif path.is_file():
                path.unlink()
        return [str(path) for path in known]

    def forget(self) -> None:
        """Remove the copies, in one step as far as anybody sees."""
        if self.partial.exists():
            shutil.rmtree(self.partial)
        if self.kept.is_dir():
            self.kept.rename(self.partial)
            shutil.rmtree(self.partial)

    @staticmethod
    def _duplicate(path: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        # What it holds is nobody else's to read at any instant; it gets its own mode with the rest.
        place.unlink(missing_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        shutil.copy2(path, place)
        _settle(place)
        status = path.stat()
        os.chown(place, status.st_uid, status.st_gid)


def _settle(path: Path) -> None:
    """Have a file's content, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
