# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules for devices share: the agent that they run on, and how its results become Ansible's."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

INTERFACE = 2
"""The version of `derms_agent.device_state` that these modules call."""
CALLED = "derms_agent.device_state"

AGENT_OPTIONS = {
    "agent_directory": {"type": "path", "default": "/opt/derms"},
    "socket": {"type": "path", "default": "/run/derms/orchestrator.sock"},
    "state_directory": {"type": "path", "default": "/var/lib/derms/orchestrator"},
    "max_failures": {"type": "str", "default": "0"},
    "deadline_s": {"type": "float", "default": 120.0},
}

FAILURES = ("unreachable", "refused", "verify_failed", "indeterminate", "unknown")
NEVER_EXCUSED = ("verify_failed", "indeterminate")
NAMES_SHOWN = 5


class NoAgent(Exception):
    """The agent's own code cannot be asked here; the text says why."""


def ask(module: AnsibleModule, call: str, **arguments: Any) -> Any:
    """Return what the agent's own code returns for a call (`derms_agent.device_state.calls`).

    It runs on the interpreter that has it: this one or the release's in service. What it refuses is the module's
    failure.

    :raises NoAgent: it is not there, or of another interface version; nothing was asked then
    """
    request = {"interface": INTERFACE, "call": call, "arguments": arguments}
    try:
        from derms_agent.device_state.calls import answered  # noqa: PLC0415 - only there on some interpreters
    except ImportError:
        answer = elsewhere(module, request)
    else:
        answer = answered(request)
    if answer["interface"] != INTERFACE:
        raise NoAgent(f"the agent's interface is version {answer['interface']}, the collection's {INTERFACE}")
    if "unusable" in answer:
        module.fail_json(msg=answer["unusable"], invocation=invocation(module))
    return answer["result"]


def elsewhere(module: AnsibleModule, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of the agent's own code, asked in a process of the release that is in service.

    Ansible's own C(respawn_module) would compile the module and what it imports of Ansible anew, which takes longer
    than a dry run of a hundred devices; and it writes all arguments to a pipe before anybody reads from it, so that
    with the 64 KiB that a pipe holds a depot of some hundred and fifty devices would wait for ever.

    :raises NoAgent: it is not there
    """
    interpreter = Path(module.params["agent_directory"], "current", "bin", "python")
    if not interpreter.exists():
        raise NoAgent(f"the agent is not on this gateway yet: there is no {interpreter}")
    # -I: what lies in the working directory, or in PYTHONPATH, is not imported by who runs this.
    command = [str(interpreter), "-I", "-m", CALLED]
    done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        if re.search("No module named '?derms_agent", said):
            raise NoAgent(f"the agent in service at {interpreter} is too old: it has no {CALLED}")
        last = said.strip().rpartition("\n")[2]
        module.fail_json(msg=f"{CALLED} failed: {last}", exception=said, invocation=invocation(module))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def failures_allowed(module: AnsibleModule, devices: int) -> int:
    """Return how many devices may fail before the task does, from a number or a percentage."""
    text = module.params["max_failures"]
    if not re.fullmatch(r"\d+%?", text):
        problem = f"max_failures: found {text}, expected a number or a percentage, such as 2 or 5%"
        module.fail_json(msg=problem, invocation=invocation(module))
    return devices * int(text[:-1]) // 100 if text.endswith("%") else int(text)


def on_gateway(depot: Mapping[str, Any], gateway: str) -> dict[str, Mapping[str, Any]]:
    """Return the devices on a gateway's buses as they are declared, as far as can be told without the agent."""
    buses = {name for name, bus in depot.get("buses", {}).items() if bus.get("gateway") == gateway}
    shared = depot.get("profile_defaults", {})
    return {
        name: {**shared.get(device.get("profile"), {}), **device}
        for name, device in depot.get("devices", {}).items()
        if device.get("bus") in buses
    }


def invocation(module: AnsibleModule) -> dict[str, Any]:
    """Return how a module was called, without the depot: it is long, and may hold what nobody should read."""
    return {"module_args": {name: value for name, value in module.params.items() if name != "depot"}}


def unknown(names: Iterable[str], why: str) -> list[dict[str, Any]]:
    """Return the results of devices that were not asked."""
    return [
        {
            "name": name,
            "status": "unknown",
            "changed": False,
            "before": {},
            "after": {},
            "settings": [],
            "not_shown": [],
            "detail": why,
            "note": "",
        }
        for name in names
    ]


def finish(module: AnsibleModule, devices: list[dict[str, Any]], depot: str = "", asked: bool = True) -> None:
    """End the module with the results of devices: changed as a whole, a diff and a drift for each, failures by name.

    What could not be verified and is no failure of the task is in `not_verified`, for the recap. `asked` is false
    where no device could be: in check mode, that is no failure. A device of which no more is told than its name and
    status is as declared.
    """
    result = {
        "changed": any(device["changed"] for device in devices),
        "devices": [not_as_declared(device) for device in devices],
        "drift": [entry for device in devices for entry in drift(device, depot)],
        "diff": [diff(device) for device in devices if device["changed"]],
        "notes": [*not_shown(devices), *noted(devices)],
    }
    end(module, result, devices, asked)


def end(
    module: AnsibleModule,
    result: dict[str, Any],
    devices: list[dict[str, Any]],
    asked: bool = True,
    of: str = "devices",
) -> None:
    """End the module with a result, as the statuses of its devices, or what else they are `of`, allow; see `finish`."""
    result |= {"not_verified": [], "invocation": invocation(module)}
    if module.params.get("only"):
        result["scope"] = f"devices {', '.join(module.params['only'])}"
    failed = [device for device in devices if device["status"] in FAILURES]
    if failed:
        words = reasons(failed)
        too_many = len(failed) > failures_allowed(module, len(devices))
        serious = any(device["status"] in NEVER_EXCUSED for device in failed)
        if (asked or not module.check_mode) and (too_many or serious):
            module.fail_json(msg=f"{len(failed)} of {len(devices)} {of}: {'; '.join(words)}", **result)
        result["not_verified"] = words
    module.exit_json(**result)


def not_as_declared(device: dict[str, Any]) -> dict[str, Any]:
    """Return a device's result with those settings alone of which there is something to say.

    Ansible walks through every value of a result several times: ten settings of a thousand devices took it ten seconds.
    """
    if "settings" not in device:
        return device
    return {**device, "settings": [one for one in device["settings"] if one["outcome"] != "ok"]}


def reasons(failed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what became of devices and why, those of one kind and reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for device in failed:
        groups.setdefault((device["status"], device["detail"]), []).append(device["name"])
    return [f"{listed(names)} {status}{f': {why}' if why else ''}" for (status, why), names in groups.items()]


def not_shown(devices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return which settings no device can show, and so nobody can verify."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        for setting in device.get("not_shown", ()):
            groups.setdefault(setting, []).append(device["name"])
    return [
        f"{listed(names)}: {setting} cannot be read; it is written whenever another setting is"
        for setting, names in groups.items()
    ]


def noted(devices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what devices are to be known for and is no failure, those with the same note together."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        if device.get("note"):
            groups.setdefault(device["note"], []).append(device["name"])
    return [f"{listed(names)}: {note}" for note, names in groups.items()]


def listed(names: list[str]) -> str:
    """Return names, the first few of many."""
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: NAMES_SHOWN - 1])} and {len(names) - NAMES_SHOWN + 1} more"


def drift(device: Mapping[str, Any], depot: str) -> list[dict[str, str]]:
    """Return what of a device differs, setting by setting."""
    about = {"device": f"{depot} {device['name']}".strip()}
    return [
        {
            **about,
            "what": setting["name"],
            "is": in_words(setting, "before"),
            "should_be": in_words(setting, "wanted"),
        }
        for setting in device.get("settings", ())
        if setting["outcome"] in ("changed", "would_change")
    ]


def diff(device: Mapping[str, Any]) -> dict[str, str]:
    """Return a device's difference as text: each setting in engineering units, and as it lies in registers."""
    changed = [one for one in device["settings"] if one["outcome"] in ("changed", "would_change")]

    def lines(which: str) -> str:
        return "".join(f"{one['name']}: {in_words(one, which)}\n" for one in changed)

    return {
        "before_header": device["name"],
        "after_header": device["name"],
        "before": lines("before"),
        "after": lines("wanted"),
    }


def in_words(setting: Mapping[str, Any], which: str) -> str:
    """Return what a setting held (C(before)) or should (C(wanted)), such as C(6 A (holding 262 = 60))."""
    value, registers = setting[which], setting[f"registers_{which}"]
    if value is None and registers is None:
        # What is wanted of a secret is nowhere either; that it differs is all there is to say.
        return "hidden" if setting["wanted"] is None else "not shown"
    number = f"{value:g}" if isinstance(value, float) else str(value)
    shown = "no value" if value is None else f"{number} {setting['unit']}".strip()
    if registers is None:
        return shown
    words = " ".join(str(word) for word in registers["words"])
    return f"{shown} ({registers['table']} {registers['address']} = {words})"
