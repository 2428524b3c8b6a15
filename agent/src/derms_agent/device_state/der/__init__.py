# SPDX-License-Identifier: Apache-2.0
"""The settings of IEEE 1547-2018 over SunSpec's models 702 to 712: declared, validated, adopted and verified."""

from derms_agent.device_state.der.capability import Capability, capability_of
from derms_agent.device_state.der.converge import Pace, converge, converge_all
from derms_agent.device_state.der.functions import DerProfile
from derms_agent.device_state.der.parse import ProfileProblem, parse
from derms_agent.device_state.der.results import DerResult, FunctionResult

__all__ = [
    "Capability",
    "DerProfile",
    "DerResult",
    "FunctionResult",
    "Pace",
    "ProfileProblem",
    "capability_of",
    "converge",
    "converge_all",
    "parse",
]
