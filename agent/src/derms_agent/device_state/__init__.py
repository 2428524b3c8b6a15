# SPDX-License-Identifier: Apache-2.0
"""Device state as Ansible sees it: what devices hold, what they should hold, and how the one becomes the other.

The modules of the collection are thin shells on this package. They run it with the interpreter of the release that is
in service, so what they may expect of it is versioned.
"""

INTERFACE = 2
"""Changes with what a module may call here or gets back; a module that knows another one reports `unknown`."""
