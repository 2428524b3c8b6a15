# SPDX-License-Identifier: Apache-2.0
"""How a transaction with a device can end other than well."""

from __future__ import annotations


class BusError(Exception):
    """A transaction did not end well.

    `may_have_happened`: the device may have executed the request all the same, so a write is neither done nor undone
    until it is read back; it is never sent again blindly.
    """

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        super().__init__(message)
        self.may_have_happened = may_have_happened


class Unreachable(BusError):
    """No connection stands, and nothing was sent."""


class ConnectionLost(BusError):
    """The connection ended between request and reply."""


class NoAnswer(BusError):
    """No reply came in time."""


class BadReply(BusError):
    """What came back is no reply to what was asked: another unit, function, length, address or value."""


class Refused(BusError):
    """The device answered with a Modbus exception (MODBUS Application Protocol V1.1b3, clause 7)."""

    def __init__(self, message: str, exception_code: int, *, may_have_happened: bool = False) -> None:
        super().__init__(message, may_have_happened=may_have_happened)
        self.exception_code = exception_code


class DeadlinePassed(BusError):
    """The job's deadline passed while it waited; nothing was sent."""


class Withdrawn(BusError):
    """Whoever asked has taken the job back while it waited; nothing was sent."""


class Overloaded(BusError):
    """The bus's queue is full; nothing was sent."""


class InvalidRequest(BusError, ValueError):
    """What was asked for is more than one request can carry, or outside the table; nothing was sent."""


class NotAllowed(BusError):
    """Whoever owns the bus does not carry this request out; nothing was sent."""
