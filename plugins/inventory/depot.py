# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: depot
short_description: One file declares an EV depot
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Reads a depot file - its gateways, circuits, buses, chargers, inverters, meters and what they must hold - checks it
    as a whole, and yields its gateways as hosts. One file is one depot; an inventory directory may hold several.
  - All gateways are in the group C(derms_gateways), and in C(depot_<name>) below it; with a region or utility, in
    C(region_<name>) and C(utility_<name>) as well.
  - A gateway has C(derms_depot), C(derms_buses) (the buses that it owns) and C(derms_devices) (what is on them) as host
    variables, and, where the file gives them, C(ansible_host), C(derms_vtn_url), and the network's blocks as
    C(derms_management_blocks) and its like. Files in C(host_vars) go over them, files in C(group_vars) do not.
  - A depot's group has C(derms_circuits), C(derms_totals) (devices, evses, installed_kw), C(derms_depot_document) (the
    whole depot, its ranges written out) and C(derms_depot_holds_secrets); regions and utilities have C(derms_totals),
    too.
  - Every mistake in the file is named at once, with line, column, what was found and what was expected.
  - C(docs/depot-file.md) describes every key and every check.
requirements:
  - derms-agent (Python, on the control node)
extends_documentation_fragment:
  - ansible.builtin.constructed
options:
  plugin:
    description: What makes a file a depot file.
    required: true
    choices: [derms.edge.depot]
    type: str
  depot:
    description: The depot's name; small letters, digits and hyphens.
    required: true
    type: str
  region:
    description: The region that the depot belongs to.
    type: str
  utility:
    description: The utility that feeds it.
    type: str
  site:
    description: Its limits, C(limit_kva), C(default_limit_kw) and C(soc_reserve_percent).
    required: true
    type: dict
  network:
    description: CIDR blocks, as C(management_blocks), C(internal_blocks), C(web_blocks) and C(der_blocks).
    type: dict
  gateways:
    description: Its Linux hosts by name, each with its C(address) or nothing.
    required: true
    type: dict
  circuits:
    description: Its circuits by name, a tree.
    type: dict
  buses:
    description: The ways to its devices by name, each owned by one gateway.
    type: dict
  profile_defaults:
    description: What all devices of a profile share.
    type: dict
  devices:
    description: Its chargers, inverters and storage by name, with ranges such as C(charger-[001:012]).
    type: dict
  meters:
    description: Its meters by name.
    type: dict
  vehicles:
    description: The vehicles that are known to come, by name.
    type: dict
  vtn:
    description: The utility's OpenADR server.
    type: dict
"""

EXAMPLES = r"""
# inventories/demo/depot.yml
plugin: derms.edge.depot
depot: demo
site: {limit_kva: 60}
gateways:
  gateway-1: {address: 192.0.2.10}
circuits:
  main: {voltage_v: 400, rating_a: 125, base_load_a: 10}
buses:
  line-a: {gateway: gateway-1, transport: rtu_over_tcp, host: 192.0.2.20, baud_rate: 19200}
devices:
  charger-[01:06]:
    bus: line-a
    unit_id: 1..6
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 30}
    evses: {rating_a: 16}
"""

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleParserError
from ansible.module_utils.basic import missing_required_lib
from ansible.parsing.vault import EncryptedString
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable, to_safe_group_name
from ansible.template import trust_as_template

try:
    from derms_agent.depot import Vaulted, examine
    from derms_agent.depot.plain import buses_of, circuits_of, depot_document, devices_of, totals

    MISSING = ""
except ImportError:
    MISSING = traceback.format_exc()

if TYPE_CHECKING:
    from derms_agent.depot import Located
    from derms_agent.model import Depot

GATEWAYS = "derms_gateways"
EXTENSIONS = (".yml", ".yaml")
DECLARED = re.compile(
    r"""^(?:\{\s*)?["']?plugin["']?\s*:\s*["']?derms\.edge\.depot["']?\s*(?:[,}#].*)?$""", re.MULTILINE
)
CONSTRUCTED = ("compose", "groups", "keyed_groups")


class InventoryModule(BaseInventoryPlugin, Constructable):  # type: ignore[misc] # Ansible's classes carry no types
    """One depot file in, its gateways, groups and device lists out."""

    NAME = "derms.edge.depot"
    # As much as any inventory of Ansible's own; its texts are not marked as unsafe where an inventory is printed.
    trusted_by_default = True

    def verify_file(self, path: str) -> bool:
        """Say whether a file declares a depot."""
        if not super().verify_file(path) or not path.endswith(EXTENSIONS):
            return False
        return DECLARED.search(Path(path).read_text(encoding="utf-8", errors="replace")) is not None

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the depot of a file to the inventory.

        :raises AnsibleParserError: the file has mistakes, or names a depot or a gateway that another file has named
        """
        super().parse(inventory, loader, path, cache)
        if MISSING:
            raise AnsibleParserError(f"{missing_required_lib('derms-agent')}\n{MISSING}")
        examined = examine(Path(path).read_text(encoding="utf-8", errors="replace"), path)
        if examined.depot is None:
            raise self._mistakes(path, examined.errors)
        for warning in examined.warnings:
            self.display.warning(str(warning), formatted=True)
        self._add(path, examined.depot)
        if isinstance(examined.data, dict) and any(key in examined.data for key in CONSTRUCTED):
            self._construct(path, examined.depot)

    def _mistakes(self, path: str, errors: tuple[Located, ...]) -> AnsibleParserError:
        """Return the error that names every mistake; Ansible shows the line of the first."""
        count = "1 mistake" if len(errors) == 1 else f"{len(errors)} mistakes"
        lines = "".join(f"\n- {error}" for error in errors)
        return AnsibleParserError(f"{count} in the depot file:{lines}", obj=self._written(path, errors[0]))

    def _written(self, path: str, error: Located) -> Any:
        """Return the value that is wrong as Ansible's own loader gives it: it knows where it was written."""
        try:
            node = self.loader.load_from_file(path, cache="none")
        except AnsibleParserError as unreadable:
            return unreadable.obj
        written = node
        for part in error.problem.path:
            if isinstance(node, dict):
                key = next((key for key in node if str(key) == part), None)
                if key is None:
                    break
                node = node[key]
                # true, false and nothing carry no place, a mapping's own is the line below its key, and what is
                # encrypted would be decrypted on being looked at.
                placeless = (dict, bool, type(None), EncryptedString)
                written = key if error.problem.at_key or isinstance(node, placeless) else node
            elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = written = node[int(part)]
            else:
                break
        return written

    def _add(self, path: str, depot: Depot) -> None:
        group = to_safe_group_name(f"depot_{depot.name}")
        known = self.inventory.groups.get(group)
        if known is not None and "derms_totals" in known.vars:
            raise AnsibleParserError(f"the depot {depot.name} is declared by another file already", obj=path)
        parents = [GATEWAYS]
        if depot.region:
            parents.append(to_safe_group_name(f"region_{depot.region}"))
        if depot.utility:
            parents.append(to_safe_group_name(f"utility_{depot.utility}"))
        for name in (*parents, group):
            self.inventory.add_group(name)
        for parent in parents:
            self.inventory.add_child(parent, group)
        self._add_totals(depot, group, parents[1:])
        self.inventory.set_variable(group, "derms_circuits", circuits_of(depot))
        self._add_document(depot, group)
        for name, gateway in depot.gateways.items():
            host = self.inventory.hosts.get(name)
            if host is not None and "derms_devices" in host.vars:
                raise AnsibleParserError(
                    f"the gateway {name} of the depot {depot.name} is another depot's, too", obj=path
                )
            self.inventory.add_host(name, group=group)
            self._add_host_variables(depot, name, gateway.address)

    def _add_host_variables(self, depot: Depot, name: str, address: str | None) -> None:
        variables: dict[str, Any] = {"derms_depot": depot.name, "derms_buses": buses_of(depot, name)}
        if address:
            variables["ansible_host"] = address
        # Of the host, not of the depot's group, whose variables are less than those of group_vars/all.
        variables.update({f"derms_{key}": list(blocks) for key, blocks in depot.network.items()})
        if depot.vtn is not None:
            variables["derms_vtn_url"] = depot.vtn.url
        for key, value in variables.items():
            self.inventory.set_variable(name, key, value)
        # Set on the host itself: the inventory would visit every value of every device to note that it came from this
        # file, which takes longer than all else.
        self.inventory.hosts[name].set_variable("derms_devices", Trust().of(devices_of(depot, name)))

    def _add_document(self, depot: Depot, group: str) -> None:
        """Give the depot's group the whole depot; set on the group itself for the same reason as the devices."""
        trust = Trust()
        variables = self.inventory.groups[group]
        variables.set_variable("derms_depot_document", trust.of(depot_document(depot)))
        variables.set_variable("derms_depot_holds_secrets", trust.opened_secrets)

    def _add_totals(self, depot: Depot, group: str, unions: list[str]) -> None:
        own = totals(depot)
        self.inventory.set_variable(group, "derms_totals", own)
        for name in unions:
            before = self.inventory.groups[name].vars.get("derms_totals", dict.fromkeys(own, 0))
            self.inventory.set_variable(name, "derms_totals", {key: round(before[key] + own[key], 1) for key in own})

    def _construct(self, path: str, depot: Depot) -> None:
        """Apply compose, groups and keyed_groups, as every inventory plugin does."""
        self._read_config_data(path)
        strict = self.get_option("strict")
        for name in depot.gateways:
            self._set_composite_vars(self.get_option("compose"), self._host_variables(name), name, strict=strict)
            variables = self._host_variables(name)
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)

    def _host_variables(self, name: str) -> dict[str, Any]:
        variables: dict[str, Any] = self.inventory.hosts[name].get_vars()
        return variables


class Trust:
    """Marks texts as Ansible marks those of its own inventories, and makes what is encrypted its own to open.

    Devices repeat each other's texts, so each is marked once.
    """

    def __init__(self) -> None:
        self._texts: dict[str, Any] = {}
        self.opened_secrets = False

    def of(self, value: Any) -> Any:
        """Return a value with its texts marked."""
        if isinstance(value, str):
            if value not in self._texts:
                vaulted = isinstance(value, Vaulted)
                self.opened_secrets |= vaulted
                self._texts[value] = EncryptedString(ciphertext=str(value)) if vaulted else trust_as_template(value)
            return self._texts[value]
        if isinstance(value, dict):
            return {key: self.of(inner) for key, inner in value.items()}
        return [self.of(inner) for inner in value] if isinstance(value, list) else value
