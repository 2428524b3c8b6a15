# SPDX-License-Identifier: Apache-2.0
"""`derms-agent`: picks the verb; each verb's module brings its own options and does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from derms_agent import __version__, check_config, probe

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit status. argparse itself exits with 2 on options that it does not know."""
    parser = argparse.ArgumentParser(prog="derms-agent", description="Runs an EV depot's devices.")
    parser.add_argument("--version", action="version", version=f"derms-agent {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    probe.add_parser(verbs)
    check_config.add_parser(verbs)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
