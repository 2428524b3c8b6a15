# SPDX-License-Identifier: Apache-2.0
"""What became of devices: one status each, and what each of their settings was and is. As plain data for modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from derms_agent.drivers.errors import BadReply, BusError, Refused
from derms_agent.drivers.settings import Outcome, Registers, SettingResult
from derms_agent.model import Value


class Status(str, Enum):
    """What became of a device. In check mode `CHANGED` is what would be."""

    OK = "ok"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    VERIFY_FAILED = "verify_failed"
    INDETERMINATE = "indeterminate"
    UNKNOWN = "unknown"


WORST_FIRST = (
    (Outcome.INDETERMINATE, Status.INDETERMINATE),
    (Outcome.VERIFY_FAILED, Status.VERIFY_FAILED),
    (Outcome.REFUSED, Status.REFUSED),
    (Outcome.UNKNOWN, Status.UNKNOWN),
    (Outcome.CHANGED, Status.CHANGED),
    (Outcome.WOULD_CHANGE, Status.CHANGED),
)
CHANGED = frozenset({Outcome.CHANGED, Outcome.WOULD_CHANGE})


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """What became of one device; `detail` says what no setting says, `note` what blocks nothing."""

    name: str
    status: Status
    settings: tuple[SettingResult, ...] = ()
    detail: str = ""
    note: str = ""

    @property
    def changed(self) -> bool:
        """Whether something in it was changed, or would be, whatever became of the rest."""
        return any(setting.outcome in CHANGED for setting in self.settings)

    def held(self) -> dict[str, Value]:
        """Return what the device is known to hold now, by setting: what was predicted is not held yet."""
        known = {
            one.name: one.before if one.after is None or one.outcome is Outcome.WOULD_CHANGE else one.after
            for one in self.settings
        }
        return {name: value for name, value in known.items() if value is not None}


def of_settings(name: str, settings: Iterable[SettingResult]) -> DeviceResult:
    """Return a device's result: the worst of its settings', but for those of which a device can never show anything."""
    found = tuple(settings)
    outcomes = {setting.outcome for setting in found if not _blind(setting)}
    status = next((status for outcome, status in WORST_FIRST if outcome in outcomes), Status.OK)
    details = dict.fromkeys(
        f"{setting.name}: {setting.detail}" for setting in found if setting.detail and not _blind(setting)
    )
    return DeviceResult(name, status, found, "; ".join(details))


def _blind(setting: SettingResult) -> bool:
    return setting.outcome is Outcome.UNKNOWN and not setting.shown


def of_failure(name: str, failure: BusError) -> DeviceResult:
    """Return the result of a device that could not be read; nothing was written to it."""
    status = Status.REFUSED if isinstance(failure, Refused | BadReply) else Status.UNREACHABLE
    return DeviceResult(name, status, detail=str(failure))


def of_unknown(name: str, why: str) -> DeviceResult:
    """Return the result of a device that was not asked."""
    return DeviceResult(name, Status.UNKNOWN, detail=why)


def merged(before: DeviceResult, after: DeviceResult) -> DeviceResult:
    """Return the result of a run that comes after another: what was first found, and what holds now."""
    first = {setting.name: setting for setting in before.settings}
    return replace(
        after,
        note=before.note,
        settings=tuple(
            replace(setting, before=first[setting.name].before, registers_before=first[setting.name].registers_before)
            if setting.outcome is Outcome.CHANGED and setting.name in first
            else setting
            for setting in after.settings
        ),
    )


def plain(result: DeviceResult) -> dict[str, Any]:
    """Return a result as data of JSON's types."""
    return {
        "name": result.name,
        "status": result.status.value,
        "changed": result.changed,
        "before": {one.name: one.before for one in result.settings if one.before is not None},
        "after": {one.name: one.after for one in result.settings if one.after is not None},
        "settings": [_setting(one) for one in result.settings],
        "not_shown": [one.name for one in result.settings if not one.shown],
        "detail": result.detail,
        "note": result.note,
    }


def in_brief(result: DeviceResult) -> dict[str, Any]:
    """Return a result as data, but no more than that it is so of a device all of whose settings are as declared.

    What a thousand devices hold takes longer to be handed on, and gone through by Ansible, than to be read.
    """
    if result.status is Status.OK and not result.note and all(one.outcome is Outcome.OK for one in result.settings):
        return {"name": result.name, "status": result.status.value, "changed": False}
    return plain(result)


def _setting(one: SettingResult) -> dict[str, Any]:
    return {
        "name": one.name,
        "outcome": one.outcome.value,
        "unit": one.unit,
        "wanted": one.wanted,
        "before": one.before,
        "after": one.after,
        "registers_before": _registers(one.registers_before),
        "registers_wanted": _registers(one.registers_wanted),
        "detail": one.detail,
    }


def _registers(found: Registers | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"table": found.table.value, "address": found.address, "words": list(found.words)}
