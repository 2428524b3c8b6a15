# SPDX-License-Identifier: Apache-2.0
"""`derms-agent`: picks the verb; each verb's module brings its own options and does the work."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from derms_agent import __version__, check_config, probe, settings, status

INTERRUPTED = 130
TURN_S = 0.0005
"""For how long a thread of a service goes on while another wants to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit status. argparse itself exits with 2 on options that it does not know."""
    parser = argparse.ArgumentParser(prog="derms-agent", description="Runs an EV depot's devices.")
    parser.add_argument("--version", action="version", version=f"derms-agent {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    probe.add_parser(verbs)
    check_config.add_parser(verbs)
    status.add_parsers(verbs)
    _add_service(verbs, "orchestrator", "run the service that controls the depot")
    _add_service(verbs, "grid_gateway", "run the service that speaks OpenADR with the utility")
    options = parser.parse_args(arguments)
    try:
        ended: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    return ended


def _add_service(verbs: argparse._SubParsersAction[argparse.ArgumentParser], package: str, about: str) -> None:
    parser = verbs.add_parser(package.replace("_", "-"), help=about)
    parser.add_argument("--agent-conf", type=Path, default=settings.AGENT_CONF, metavar="F", help="%(default)s")
    parser.add_argument("--limits-conf", type=Path, default=settings.LIMITS_CONF, metavar="F", help="%(default)s")
    parser.set_defaults(run=_serve, package=package)


def _serve(options: argparse.Namespace) -> int:
    # The matrices here are small: more threads cost more than they save, and the processors are others' too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A thread that is back from the disk has its turn then, not after 5 ms; what waits for it is an acknowledgement.
    sys.setswitchinterval(TURN_S)
    # A service's packages are not there where only devices are asked, and take a second to import.
    service = importlib.import_module(f"derms_agent.{options.package}.service")
    ended: int = service.run(options)
    return ended


if __name__ == "__main__":
    sys.exit(main())
