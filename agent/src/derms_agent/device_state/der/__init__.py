# SPDX-License-Identifier: Apache-2.0
"""The settings of IEEE 1547-2018 over SunSpec's models 702 to 712: declared, validated, adopted and verified."""
