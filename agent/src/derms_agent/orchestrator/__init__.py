# SPDX-License-Identifier: Apache-2.0
"""The service that owns every bus: polls, works limits out, shares power out, writes setpoints and proves them."""
