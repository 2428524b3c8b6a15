# SPDX-License-Identifier: Apache-2.0
"""Device profiles: what each kind of device looks like, as data, and the loader that refuses contradictions."""

from derms_agent.profiles.loader import ProfileError, load, load_all, names, parse, read
from derms_agent.profiles.point import Contradiction, OutOfRange, Point
from derms_agent.profiles.profile import Profile, SunSpecPoint

__all__ = [
    "Contradiction",
    "OutOfRange",
    "Point",
    "Profile",
    "ProfileError",
    "SunSpecPoint",
    "load",
    "load_all",
    "names",
    "parse",
    "read",
]
