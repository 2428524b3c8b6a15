# SPDX-License-Identifier: Apache-2.0
"""What the VEN was told to go by instead of the depot file: reports, market contexts, resources. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derms_agent.grid_gateway import reports
from derms_agent.grid_gateway.messages import Offer
from derms_agent.grid_gateway.signals import Rules

REPORTS = (reports.USAGE, reports.STATUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Terms of the VEN; None: as the depot file has it, and all reports. `resources`: as in the depot file."""

    reports: tuple[str, ...] | None = None
    market_contexts: tuple[str, ...] | None = None
    resources: Mapping[str, str] | None = None

    def offers(self, by_file: Rules) -> tuple[Offer, ...]:
        """Return the reports that the VTN is offered."""
        every = reports.offers(sorted(self.applied(by_file).resources))
        return tuple(offer for offer in every if self.reports is None or offer.name in self.reports)

    def applied(self, rules: Rules) -> Rules:
        """Return the depot file's rules with what these terms say instead."""
        contexts = rules.market_contexts if self.market_contexts is None else frozenset(self.market_contexts)
        resources = rules.resources if self.resources is None else self.resources
        return dataclasses.replace(rules, market_contexts=contexts, resources=resources)


def shown(terms: Terms, by_file: Rules) -> dict[str, Any]:
    """Return what these terms come to, as plain JSON."""
    rules = terms.applied(by_file)
    return {
        "reports": [offer.name for offer in terms.offers(by_file)],
        "market_contexts": sorted(rules.market_contexts),
        "resources": dict(rules.resources),
    }


def to_json(terms: Terms) -> dict[str, Any]:
    """Return terms as plain JSON."""
    return {"version": 1, **dataclasses.asdict(terms)}


def from_json(document: Mapping[str, Any]) -> Terms:
    """Return what `to_json` gave. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    lists = {
        name: None if document[name] is None else tuple(str(one) for one in document[name])
        for name in ("reports", "market_contexts")
    }
    resources = document["resources"]
    return Terms(**lists, resources=None if resources is None else {str(k): str(v) for k, v in resources.items()})
