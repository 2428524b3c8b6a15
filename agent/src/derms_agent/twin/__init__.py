# SPDX-License-Identifier: Apache-2.0
"""A depot to rehearse against: devices that speak their profile's registers, vehicles, circuits, meters, and faults.

`Twin` serves one in real time over Modbus/TCP, `Rehearsal` is the same in one process under virtual time.
"""

from derms_agent.twin.faults import Fault, FaultKind
from derms_agent.twin.pdu import Refusal
from derms_agent.twin.physics import VehicleType
from derms_agent.twin.rehearsal import Rehearsal, Silence, Write
from derms_agent.twin.scenario import Arrivals, Scenario, ScenarioError, Settings
from derms_agent.twin.server import CannotListen, Twin

__all__ = [
    "Arrivals",
    "CannotListen",
    "Fault",
    "FaultKind",
    "Refusal",
    "Rehearsal",
    "Scenario",
    "ScenarioError",
    "Settings",
    "Silence",
    "Twin",
    "VehicleType",
    "Write",
]
