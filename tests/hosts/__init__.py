# SPDX-License-Identifier: GPL-3.0-or-later
"""Test hosts: systemd machines with an address and SSH of their own, for molecule and the demo."""
