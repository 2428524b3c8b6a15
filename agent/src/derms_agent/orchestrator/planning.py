# SPDX-License-Identifier: Apache-2.0
"""What a plan is made from, as something that another process can be handed, and the making. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from derms_agent.control import allocate
from derms_agent.control.cycle import Bounds
from derms_agent.control.network import Network
from derms_agent.control.plan import Need, Outlook, Plan, plan
from derms_agent.model import Circuit, Evse, Session

if TYPE_CHECKING:  # the planner's process needs no more of the agent than what is above
    from derms_agent.orchestrator.controller import Controller

__all__ = ["Plan", "Question", "answer", "question"]


@dataclass(frozen=True, slots=True)
class Question:
    """The sessions as they are, and the bounds that are taken to last."""

    circuits: Mapping[str, Circuit]
    evses: tuple[Evse, ...]
    sessions: Mapping[str, Session]
    bounds: Bounds
    needs: tuple[Need, ...]
    params: allocate.Params
    now_s: float


def question(controller: Controller, needs: tuple[Need, ...], now_s: float) -> Question:
    """Return what to plan for now."""
    bounds: Bounds = {} if controller.outcome is None else controller.outcome.bounds
    return Question(
        dict(controller.site.depot.circuits),
        controller.site.evses,
        dict(controller.sessions),
        dict(bounds),
        needs,
        controller.params,
        now_s,
    )


def answer(asked: Question) -> Plan | None:
    """Return the plan, or None where none could be made in time."""
    network = Network(asked.circuits, asked.evses)
    reserved = allocate.reserved_a(asked.evses, asked.sessions, asked.bounds, network, asked.params)
    limits = allocate.circuit_limits(network, asked.bounds)
    return plan(network, asked.needs, limits, reserved, now_s=asked.now_s, outlook=Outlook())
