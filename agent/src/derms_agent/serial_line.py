# SPDX-License-Identifier: Apache-2.0
"""The time that Modbus RTU takes on a serial line, by arithmetic alone.

From MODBUS over Serial Line V1.02: a character is 11 bits (clause 2.5.1, start, eight data bits, parity or a second
stop bit, stop), and 3.5 characters of silence stand between frames, 1.75 ms of it above 19,200 baud (clause 2.5.1.1).
Lengths of requests and replies are those of the MODBUS Application Protocol V1.1b3, clause 6, with a byte for the unit
and two for the checksum around each.
"""

from __future__ import annotations

from dataclasses import dataclass

BITS_PER_CHARACTER = 11
SILENT_CHARACTERS = 3.5
FIXED_SILENCE_S = 0.00175
FIXED_SILENCE_ABOVE_BAUD = 19_200
TURNAROUND_S = 0.010
"""What a unit is assumed to take between the request's end and its reply's start; vendors rarely say."""

_FRAME_BYTES = 3  # unit and checksum around a PDU
_FIXED_PDU_BYTES = 5  # function, address, quantity or value


@dataclass(frozen=True, slots=True)
class Frames:
    """How many bytes a request and its reply have as RTU frames."""

    request: int
    reply: int


def read_frames(registers: int) -> Frames:
    """Return the frames of a read of that many registers (functions 3 and 4)."""
    return Frames(_FRAME_BYTES + _FIXED_PDU_BYTES, _FRAME_BYTES + 2 + 2 * registers)


def write_frames(registers: int) -> Frames:
    """Return the frames of a write of that many registers: function 6 for one, 16 for more."""
    value = 0 if registers == 1 else 1 + 2 * registers
    return Frames(_FRAME_BYTES + _FIXED_PDU_BYTES + value, _FRAME_BYTES + _FIXED_PDU_BYTES)


def character_s(baud_rate: int) -> float:
    """Return how long one character takes, in s.

    :raises ValueError: the baud rate is not positive
    """
    if baud_rate <= 0:
        raise ValueError(f"found a baud rate of {baud_rate}, expected a positive one")
    return BITS_PER_CHARACTER / baud_rate


def silence_s(baud_rate: int) -> float:
    """Return the silence that ends a frame, in s."""
    if baud_rate > FIXED_SILENCE_ABOVE_BAUD:
        return FIXED_SILENCE_S
    return SILENT_CHARACTERS * character_s(baud_rate)


def transaction_s(baud_rate: int, request_bytes: int, reply_bytes: int, turnaround_s: float = TURNAROUND_S) -> float:
    """Return how long a request and its reply keep the line, in s, each with the silence that ends it.

    Ten registers take 55.8, 32.9 and 16.7 ms at 9,600, 19,200 and 115,200 baud.
    """
    characters = (request_bytes + reply_bytes) * character_s(baud_rate)
    return characters + 2 * silence_s(baud_rate) + turnaround_s


def read_s(baud_rate: int, registers: int, turnaround_s: float = TURNAROUND_S) -> float:
    """Return how long a read of that many registers keeps the line, in s."""
    frames = read_frames(registers)
    return transaction_s(baud_rate, frames.request, frames.reply, turnaround_s)


def write_s(baud_rate: int, registers: int, turnaround_s: float = TURNAROUND_S) -> float:
    """Return how long a write of that many registers keeps the line, in s."""
    frames = write_frames(registers)
    return transaction_s(baud_rate, frames.request, frames.reply, turnaround_s)
