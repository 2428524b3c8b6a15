# SPDX-License-Identifier: Apache-2.0
"""What a DER is to hold by IEEE 1547-2018: the functions, their settings, the categories' defaults. Pure.

A depot file declares it (`der_settings`), `derms_agent.device_state.der` sees to it that the device holds it.
"""

from derms_agent.grid_code.functions import DerProfile
from derms_agent.grid_code.parse import Mistake, ProfileProblem, parse

__all__ = ["DerProfile", "Mistake", "ProfileProblem", "parse"]
