# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images: built once for each recipe, shared read-only by every host of the platform."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.errors import HostsError
from tests.hosts.programs import step
from tests.hosts.recipes.platform import Platform, recipe_hash
from tests.hosts.settings import Settings

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Base:
    """A platform's base image as its recipe is now; it may not have been built yet."""

    directory: Path

    @property
    def root(self) -> Path:
        """The root that hosts are overlays on."""
        return self.directory / "root"

    @property
    def packages(self) -> Path:
        """The offline repository that hosts see at /srv/packages."""
        return self.directory / "packages"


def base_of(settings: Settings, platform: Platform) -> Base:
    """Return the platform's base as its recipe is now."""
    return Base(settings.directory / "bases" / f"{platform.name}-{recipe_hash(platform.sources)}")


def require_built(settings: Settings, platform: Platform) -> Base:
    """Return the platform's base, which must have been built."""
    base = base_of(settings, platform)
    if not base.directory.is_dir():
        raise HostsError(
            f"{platform.name} has no base, or its recipe changed: run `python3 -m tests.hosts setup {platform.name}`"
        )
    return base


def build(settings: Settings, platform: Platform) -> Base:
    """Build the base unless its recipe has been built before. A base appears under its name only once it is whole."""
    base = base_of(settings, platform)
    if base.directory.is_dir():
        print(f"{platform.name}: the base is up to date")
        return base
    unfinished = Base(base.directory.with_name(base.directory.name + UNFINISHED))
    shutil.rmtree(unfinished.directory, ignore_errors=True)
    unfinished.root.mkdir(parents=True)
    unfinished.packages.mkdir()
    with step(f"{platform.name}: building the base and its package repository"):
        platform.build(unfinished.root, unfinished.packages)
    unfinished.directory.rename(base.directory)
    return base


def remove_outdated(settings: Settings, platform: Platform, in_use: Collection[Path]) -> None:
    """Remove what older recipes and interrupted builds left, except what a running host still stands on."""
    current = base_of(settings, platform).directory
    for directory in current.parent.glob(f"{platform.name}-*"):
        if directory != current and directory not in in_use:
            shutil.rmtree(directory)
