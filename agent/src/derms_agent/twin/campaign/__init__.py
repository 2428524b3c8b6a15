# SPDX-License-Identifier: Apache-2.0
"""The fault campaign: control against the twin under virtual time, while things break.

An episode is a pure function of its seed.

`python -m derms_agent.twin.campaign --help` says how it is run.
"""
