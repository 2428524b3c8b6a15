# SPDX-License-Identifier: Apache-2.0
"""`derms-agent check-config`: what the agent would say of its files if it were started now. It only reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from derms_agent import settings
from derms_agent.settings import Configuration, Mistakes

SOUND, WRONG = 0, 1


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `check-config`."""
    parser = verbs.add_parser(
        "check-config",
        help="check agent.conf, limits.conf and the depot file",
        description="Reads the agent's files as its start does and says what is wrong with them, one line a mistake.",
        epilog="Exit status: 0 they can be used, 1 they cannot, 2 the options are wrong.",
    )
    parser.add_argument(
        "--agent-conf", type=Path, default=settings.AGENT_CONF, metavar="F", help="%(default)s if not given"
    )
    parser.add_argument(
        "--limits-conf", type=Path, default=settings.LIMITS_CONF, metavar="F", help="%(default)s if not given"
    )
    parser.add_argument("--depot", type=Path, metavar="F", help="DEPOT of agent.conf if not given")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the files that the options name; print what was read, or to standard error each warning and mistake."""
    try:
        configuration = settings.load(options.agent_conf, options.limits_conf, options.depot)
    except Mistakes as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return WRONG
    sys.stderr.writelines(f"{warning}\n" for warning in configuration.warnings)
    sys.stdout.write(f"{summary(configuration)}\n")
    return SOUND


def summary(configuration: Configuration) -> str:
    """Return in one line what the files say."""
    depot, agent, limits = configuration.depot, configuration.agent, configuration.limits
    site = depot.site
    default = "none" if site.default_limit_w is None else f"{site.default_limit_w / 1000:g} kW"
    cap = "none" if limits.demand_cap_w is None else f"{limits.demand_cap_w / 1000:g} kW"
    return (
        f"gateway {agent.gateway} of depot {depot.name}: {len(depot.devices)} devices, {len(depot.evses())} EVSEs; "
        f"site limit {site.limit_va / 1000:g} kVA, default limit {default}, demand cap {cap}, "
        f"SoC reserve {site.soc_reserve_percent:g} %, droop {'on' if limits.droop else 'off'}; "
        f"VTN {agent.vtn_url or 'none'}, broker {agent.mqtt or 'none'}"
    )
