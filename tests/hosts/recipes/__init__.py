# SPDX-License-Identifier: GPL-3.0-or-later
"""The platforms that there are test hosts of."""

from __future__ import annotations

from tests.hosts.recipes import rhel9, ubuntu2204
from tests.hosts.recipes.platform import Platform

PLATFORMS: dict[str, Platform] = {recipe.PLATFORM.name: recipe.PLATFORM for recipe in (ubuntu2204, rhel9)}
