# SPDX-License-Identifier: Apache-2.0
"""The built-in profiles against bytes that did not come from our codec.

Each row is a Modbus request and its reply as PDUs in hexadecimal, typed from the source in the comment above it: from
logs of the real devices where there are any, else from the vendor's own examples, else a figure of the register list
written as IEEE 754 or two's complement by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from derms_agent.model import Value
from derms_agent.profiles import load, load_all
from derms_agent.profiles.point import Point, Table
from derms_agent.profiles.profile import Protocol

READ_FUNCTION = {Table.HOLDING: 0x03, Table.INPUT: 0x04}


@dataclass(frozen=True)
class Read:
    profile: str
    point: str
    request: str
    reply: str
    value: Value | None
    connector: int = 1
    readback: bool = False


@dataclass(frozen=True)
class Write:
    profile: str
    point: str
    request: str
    value: Value
    connector: int = 1


READS = (
    # KEBA, Modbus TCP Programmers Guide V1.02: the examples at 3.6, 3.7, 3.8, 3.9, 3.10; states after V1.04.
    Read("keba_p30", "state", "03 03E8 0002", "03 04 00000003", "charging"),
    Read("keba_p30", "current_l1", "03 03F0 0002", "03 04 00000285", 0.645),
    Read("keba_p30", "current_l2", "03 03F2 0002", "03 04 000003F3", 1.011),
    Read("keba_p30", "serial_number", "03 03F6 0002", "03 04 011904D6", 18416854),
    Read("keba_p30", "product", "03 03F8 0002", "03 04 0004A3EF", 304111),
    Read("keba_p30", "firmware", "03 03FA 0002", "03 04 030A0D00", 50990336),
    Read("keba_p30", "active_power", "03 03FC 0002", "03 04 00018165", 98.661),
    Read("keba_p30", "voltage_l1", "03 0410 0002", "03 04 000000E6", 230),
    # A log of a real P30, evcc#17712.
    Read("keba_p30", "energy", "03 040C 0002", "03 04 014A3944", 2164154.0),
    # 1100, 1600 and 1602 as u32: 32 A, 6 A and 30 s.
    Read("keba_p30", "current_limit", "03 044C 0002", "03 04 00007D00", 32, readback=True),
    Read("keba_p30", "failsafe_current", "03 0640 0002", "03 04 00001770", 6, readback=True),
    Read("keba_p30", "failsafe_timeout", "03 0642 0002", "03 04 0000001E", 30, readback=True),
    # A log of a real Alfen Eve, evcc#22934: 3503 W; 8.82, 8.67 and 8.53 A.
    Read("alfen_ng9", "active_power", "03 0158 0002", "03 04 455AF4CD", 3503.30004882812),
    Read("alfen_ng9", "current_l1", "03 0140 0006", "03 0C 410D26EA 410AB43A 41086A7F", 8.82200050354004),
    Read("alfen_ng9", "current_l3", "03 0140 0006", "03 0C 410D26EA 410AB43A 41086A7F", 8.52600002288818),
    # Logs of others, evcc#18877 (302806 Wh, state B1) and evcc#4575 (a phase that is not there).
    Read("alfen_ng9", "energy", "03 0176 0004", "03 08 41127B5800000000", 302806.0),
    Read("alfen_ng9", "state", "03 04B1 0005", "03 0A 42310000000000000000", "B1"),
    Read("alfen_ng9", "current_l2", "03 0142 0002", "03 04 FFFFFFFF", None),
    # 2.3, 3.4: 1208 is a u32 in s, 50 left in the example of 1.3.1; 1212 is a float, 6 A; 0xFFFF is not there.
    Read("alfen_ng9", "fallback_in", "03 04B8 0002", "03 04 00000032", 50),
    Read("alfen_ng9", "failsafe_current", "03 04BC 0002", "03 04 40C00000", 6.0),
    Read("alfen_ng9", "phases", "03 04BF 0001", "03 02 FFFF", None),
    # evcc abb.go, GrugBus: the third byte is the state; mA, 0.1 V, W, Wh, s.
    Read("abb_terra_ac", "state", "03 400C 0002", "03 04 00000400", "charging"),
    Read("abb_terra_ac", "state", "03 400C 0002", "03 04 00008200", "vehicle, ready"),
    Read("abb_terra_ac", "active_power", "03 401C 0002", "03 04 00002B20", 11040),
    Read("abb_terra_ac", "session_energy", "03 401E 0002", "03 04 00002328", 9000),
    Read("abb_terra_ac", "current_l1", "03 4010 0006", "03 0C 00003E80 00003E80 00003E80", 16.0),
    Read("abb_terra_ac", "voltage_l3", "03 4016 0006", "03 0C 000008FC 000008FC 00000900", 230.4),
    Read("abb_terra_ac", "current_limit", "03 400E 0002", "03 04 00003E80", 16.0, readback=True),
    Read("abb_terra_ac", "failsafe_timeout", "03 4020 0001", "03 02 04B0", 1200, readback=True),
    Read("abb_terra_ac", "cable", "03 400A 0002", "03 04 00000111", "in station and vehicle, locked"),
    # A total of evcc#11068, which printed these four bytes as the whole number 1161664184: 3033.42 kWh.
    Read("mennekes_compact", "energy", "03 1000 0002", "03 04 453D96B8", 3033419.921875),
    # The register list: f32 with the high word first; 11040 W = 1.34765625 * 2^13, 16 A = 2^4, 41.5 degC.
    Read("mennekes_compact", "state", "03 0100 0001", "03 02 0005", "charging"),
    Read("mennekes_compact", "active_power", "03 0512 0002", "03 04 462C8000", 11040.0),
    Read("mennekes_compact", "current_l2", "03 0502 0002", "03 04 41800000", 16.0),
    Read("mennekes_compact", "temperature", "03 0900 0002", "03 04 42260000", 41.5),
    Read("mennekes_compact", "failsafe_current", "03 073A 0001", "03 02 0006", 6),
    Read("mennekes_compact", "released", "03 0D05 0001", "03 02 0001", "released"),
    # A log of a real Energy Control, evcc#9582: 51.5 kWh, 239 241 240 V, state 2, watchdog 15 s untouched.
    Read("heidelberg_energy_control", "energy", "04 0011 0002", "04 04 0000C94A", 51530),
    Read("heidelberg_energy_control", "voltage_l1", "04 000A 0003", "04 06 00EF 00F1 00F0", 239),
    Read("heidelberg_energy_control", "voltage_l2", "04 000A 0003", "04 06 00EF 00F1 00F0", 241),
    Read("heidelberg_energy_control", "state", "04 0005 0001", "04 02 0002", "no vehicle, not allowed"),
    Read("heidelberg_energy_control", "failsafe_timeout", "03 0101 0001", "03 02 3A98", 15.0),
    Read("heidelberg_energy_control", "current_limit", "03 0105 0001", "03 02 0000", 0.0),
    # The vendor's examples in the table: 325 = 32.5 degC, -145 = -14.5 degC, 1000 = 1 kVA, 100 = 10 A;
    # high word 10 and low word 100 are 655460 VAh.
    Read("heidelberg_energy_control", "temperature", "04 0009 0001", "04 02 0145", 32.5),
    Read("heidelberg_energy_control", "temperature", "04 0009 0001", "04 02 FF6F", -14.5),
    Read("heidelberg_energy_control", "active_power", "04 000E 0001", "04 02 03E8", 1000),
    Read("heidelberg_energy_control", "energy", "04 0011 0002", "04 04 000A 0064", 655460),
    Read("heidelberg_energy_control", "failsafe_current", "03 0106 0001", "03 02 0064", 10.0),
    # Logs of real hyperchargers, evcc#24812 and evcc#28493.
    Read("alpitronic_hyc", "energy", "04 0084 0004", "04 08 00000000001D6A04", 1927684),
    Read("alpitronic_hyc", "state", "04 0064 0001", "04 02 0001", "authorised, waiting for a vehicle"),
    Read("alpitronic_hyc", "power_limit", "03 00C8 0002", "03 04 00024630", 149040, connector=2),
    Read("alpitronic_hyc", "active_power", "04 00CC 0002", "04 04 00000000", 0, connector=2),
    Read("alpitronic_hyc", "active_power", "04 0068 0002", "04 04 0000C350", 50000),
    # The register list: 0.01 %, 10 Wh, 0.01 V; two's complement is of no matter below 2^15.
    Read("alpitronic_hyc", "soc", "04 006C 0001", "04 02 1B58", 70.0),
    Read("alpitronic_hyc", "session_energy", "04 006B 0001", "04 02 09C4", 25000),
    # aiophoenixcontactcharx: C2 is 4332h; 230000 mV, 16000 mA, 11000000 mW, -1 mA for an unknown phase, 65535 s is off.
    Read("phoenix_charx", "state", "03 0513 0001", "03 02 4332", "C2"),
    Read("phoenix_charx", "state", "03 08FB 0001", "03 02 4131", "A1", connector=2),
    Read("phoenix_charx", "active_power", "03 04DC 0002", "03 04 00A7D8C0", 11000.0),
    Read("phoenix_charx", "energy", "03 04E2 0004", "03 08 0000000000BC614E", 12345678),
    Read("phoenix_charx", "voltage_l1", "03 04D0 0002", "03 04 00038270", 230.0),
    Read("phoenix_charx", "current_l1", "03 04D6 0002", "03 04 00003E80", 16.0),
    Read("phoenix_charx", "current_l2", "03 04D8 0002", "03 04 FFFFFFFF", None),
    Read("phoenix_charx", "failsafe_current", "03 051A 0001", "03 02 0010", 16),
    Read("phoenix_charx", "failsafe_timeout", "03 051B 0001", "03 02 FFFF", None),
)

WRITES = (
    # KEBA V1.02, 4.1: 8000 is 8 A; by single writes.
    Write("keba_p30", "current_limit", "06 138C 1F40", 8),
    Write("keba_p30", "failsafe_current", "06 1398 1770", 6),
    Write("keba_p30", "failsafe_timeout", "06 139A 001E", 30),
    Write("keba_p30", "failsafe_persist", "06 139C 0001", "kept"),
    Write("keba_p30", "enabled", "06 1396 0000", "disabled"),
    # evcc#22934: 8 A to a real Alfen.
    Write("alfen_ng9", "current_limit", "10 04BA 0002 04 41000000", 8),
    Write("abb_terra_ac", "current_limit", "10 4100 0002 04 00003E80", 16),
    Write("abb_terra_ac", "failsafe_timeout", "10 4106 0001 02 04B0", 1200),
    # 55AAh and 1 as evcc writes them; 16 A = 2^4.
    Write("mennekes_compact", "heartbeat", "06 0D00 55AA", 21930),
    Write("mennekes_compact", "current_limit", "10 0302 0002 04 41800000", 16),
    Write("mennekes_compact", "released", "06 0D05 0000", "blocked"),
    Write("mennekes_compact", "failsafe_current", "06 073A 0006", 6),
    # evcc#9582: standby off to a real Energy Control; wbec: 130 is 13 A, 15000 is 15 s.
    Write("heidelberg_energy_control", "standby", "10 0102 0001 02 0004", "prevented"),
    Write("heidelberg_energy_control", "current_limit", "06 0105 0082", 13),
    Write("heidelberg_energy_control", "failsafe_current", "06 0106 003C", 6),
    Write("heidelberg_energy_control", "failsafe_timeout", "06 0101 3A98", 15),
    # evcc#28493: 4140 W to connector 1; evcc#24812: 0 W to connector 2.
    Write("alpitronic_hyc", "power_limit", "10 0064 0002 04 0000102C", 4140),
    Write("alpitronic_hyc", "power_limit", "10 00C8 0002 04 00000000", 0, connector=2),
    Write("phoenix_charx", "current_limit", "06 0515 0010", 16),
    Write("phoenix_charx", "current_limit", "06 300D 0006", 6, connector=12),
    Write("phoenix_charx", "failsafe_timeout", "06 051B 001E", 30),
)


def find(profile: str, name: str, *, readback: bool = False) -> Point:
    point = load(profile).points[name]
    found = point.readback if readback else point
    assert found is not None
    return found


@pytest.mark.parametrize("row", READS, ids=lambda row: f"{row.profile}-{row.point}")
def test_a_reply_reads_as_its_source_says(row: Read) -> None:
    point = find(row.profile, row.point, readback=row.readback)
    request, reply = bytes.fromhex(row.request), bytes.fromhex(row.reply)
    start, count = int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")
    assert request[0] == READ_FUNCTION[point.table] == reply[0]
    assert reply[1] == 2 * count == len(reply) - 2
    words = [int.from_bytes(reply[i : i + 2], "big") for i in range(2, len(reply), 2)]
    offset = point.address_of(row.connector) - start
    value = point.decode(words[offset : offset + point.length])
    if isinstance(row.value, float):
        assert value == pytest.approx(row.value, rel=1e-12)
    else:
        assert value == row.value


@pytest.mark.parametrize("row", WRITES, ids=lambda row: f"{row.profile}-{row.point}")
def test_a_value_is_written_as_its_source_says(row: Write) -> None:
    point = find(row.profile, row.point)
    request = bytes.fromhex(row.request)
    data = request[3:] if request[0] == 0x06 else request[6:]
    assert request[0] in {0x06, 0x10}
    assert load(row.profile).wire.write_function in {None, request[0]}
    assert point.address_of(row.connector) == int.from_bytes(request[1:3], "big")
    assert point.encode(row.value) == tuple(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))


@pytest.mark.parametrize("name", [name for name in load_all() if load(name).protocol is Protocol.MODBUS])
def test_each_profile_has_golden_power_energy_state_and_limit(name: str) -> None:
    read = {row.point for row in READS if row.profile == name}
    assert {"active_power", "state"} <= read
    assert read & {"energy", "session_energy"}
    control = load(name).control
    assert control is not None
    assert control.point in {row.point for row in WRITES if row.profile == name}
    fallback = load(name).fallback
    assert fallback is not None
    for setting in (fallback.current, fallback.power, fallback.timeout):
        assert setting is None or setting in read
