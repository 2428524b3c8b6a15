# SPDX-License-Identifier: Apache-2.0
"""The Grid Gateway: an OpenADR 2.0b VEN. docs/openadr.md."""
