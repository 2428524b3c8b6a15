# SPDX-License-Identifier: Apache-2.0
"""Modbus over TCP, RTU over TCP and RTU on a serial adapter, under one strict transport.

`ModbusBus` is what drivers use. `connection` says what it does that pymodbus's own client does not, and why.
"""

from derms_agent.drivers.modbus.bus import ModbusBus
from derms_agent.drivers.modbus.connection import Connection
from derms_agent.drivers.modbus.unit import Unit

__all__ = ["Connection", "ModbusBus", "Unit"]
