# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a serial line, against figures that were worked out by hand."""

from __future__ import annotations

import pytest

from derms_agent.serial_line import Frames, read_frames, read_s, silence_s, transaction_s, write_frames, write_s


def test_frames() -> None:
    # Unit, function, address, quantity, checksum; unit, function, byte count, values, checksum.
    assert read_frames(10) == Frames(8, 25)
    assert write_frames(1) == Frames(8, 8)
    assert write_frames(2) == Frames(13, 8)


@pytest.mark.parametrize(("baud_rate", "milliseconds"), [(9600, 55.8), (19_200, 32.9), (115_200, 16.7)])
def test_ten_registers(baud_rate: int, milliseconds: float) -> None:
    assert round(1000 * read_s(baud_rate, 10), 1) == pytest.approx(milliseconds, abs=0.051)


@pytest.mark.parametrize(("baud_rate", "units"), [(9600, 8), (19_200, 15), (115_200, 29)])
def test_units_that_a_sweep_within_half_a_second_allows(baud_rate: int, units: int) -> None:
    assert int(0.5 / read_s(baud_rate, 10)) == pytest.approx(units, abs=1)


def test_silence() -> None:
    assert silence_s(9600) == pytest.approx(3.5 * 11 / 9600)
    assert silence_s(19_200) == pytest.approx(3.5 * 11 / 19_200)
    assert silence_s(38_400) == 0.00175


def test_a_write() -> None:
    assert write_s(19_200, 1) == pytest.approx(transaction_s(19_200, 8, 8))
    assert 1000 * write_s(19_200, 1) == pytest.approx(16 * 11 / 19.2 + 2 * 38.5 / 19.2 + 10)


def test_no_baud_rate() -> None:
    with pytest.raises(ValueError, match="found a baud rate of 0"):
        read_s(0, 1)
