# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot files of an inventory, through ansible-inventory itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from derms_agent.depot import read

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
PASSWORD = "open sesame"  # noqa: S105

NORTH = """\
plugin: derms.edge.depot
depot: north
region: up-country
utility: valley
site: {limit_kva: 100}
network: {management_blocks: [192.0.2.0/24], internal_blocks: [10.0.0.0/24]}
gateways:
  north-[1:2]: {address: "192.0.2.[11:12]"}
circuits:
  main: {voltage_v: 400, rating_a: 160, allocator: north-1}
buses:
  line: {gateway: north-1, transport: rtu_over_tcp, host: 10.0.0.20, baud_rate: 19200}
  meter: {gateway: north-2, transport: tcp, host: 10.0.0.21}
devices:
  charger-[1:4]:
    bus: line
    unit_id: 1..4
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6}
    evses: {rating_a: 16}
meters:
  grid: {bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}
vtn: {url: "https://vtn.example:443/OpenADR2/Simple/2.0b", ven_name: north}
"""
SOUTH = """\
plugin: derms.edge.depot
depot: south
region: up-country
site: {limit_kva: 100}
gateways:
  south-1:
circuits:
  main: {voltage_v: 400, rating_a: 160}
buses:
  box: {gateway: south-1, transport: tcp, host: 10.1.0.20}
devices:
  charger: {bus: box, unit_id: 255, profile: keba_p30, circuit: main, evses: {rating_a: 32}}
"""


def run(directory: Path, *arguments: str, config: Path = ROOT / "ansible.cfg") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_HOME": str(directory.parent / ".ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "COLUMNS": "2000",
    }
    return subprocess.run(
        [str(BIN / "ansible-inventory"), "-i", str(directory), *arguments],
        cwd=directory.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    directory = tmp_path / "inventory"
    directory.mkdir()
    (directory / "north.yml").write_text(NORTH)
    (directory / "south.yaml").write_text(SOUTH)
    return directory


def listed(directory: Path, *arguments: str) -> Any:
    process = run(directory, "--list", *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_the_graph_reads_well_and_is_the_same_each_time(inventory: Path) -> None:
    graphs = {run(inventory, "--graph").stdout for _ in range(2)}
    assert graphs == {
        """\
@all:
  |--@ungrouped:
  |--@derms_gateways:
  |  |--@depot_north:
  |  |  |--north-1
  |  |  |--north-2
  |  |--@depot_south:
  |  |  |--south-1
  |--@region_up_country:
  |  |--@depot_north:
  |  |  |--north-1
  |  |  |--north-2
  |  |--@depot_south:
  |  |  |--south-1
  |--@utility_valley:
  |  |--@depot_north:
  |  |  |--north-1
  |  |  |--north-2
"""
    }


def test_each_gateway_has_its_own_buses_and_devices(inventory: Path) -> None:
    hosts = listed(inventory)["_meta"]["hostvars"]
    first, second, south = hosts["north-1"], hosts["north-2"], hosts["south-1"]
    assert [device["name"] for device in first["derms_devices"]] == [f"charger-{number}" for number in range(1, 5)]
    assert first["derms_devices"][3] == {
        "name": "charger-4",
        "kind": "charger",
        "bus": "line",
        "unit_id": 4,
        "profile": "heidelberg_energy_control",
        "circuit": "main",
        "settings": {"failsafe_current": 6},
        "evses": [
            {
                "name": "charger-4",
                "connector": 1,
                "circuit": "main",
                "phases": ["L1", "L2", "L3"],
                "rating_a": 16.0,
                "cable_a": None,
            }
        ],
    }
    assert [device["name"] for device in second["derms_devices"]] == ["grid"]
    assert ([bus["name"] for bus in first["derms_buses"]], first["derms_buses"][0]["port"]) == (["line"], 502)
    assert (first["ansible_host"], second["ansible_host"]) == ("192.0.2.11", "192.0.2.12")
    assert "ansible_host" not in south
    assert (first["derms_depot"], south["derms_depot"]) == ("north", "south")
    assert first["derms_internal_blocks"] == ["10.0.0.0/24"]
    assert first["derms_vtn_url"] == "https://vtn.example:443/OpenADR2/Simple/2.0b"
    assert [circuit["name"] for circuit in second["derms_circuits"]] == ["main"]
    assert "derms_internal_blocks" not in south
    assert first["derms_totals"] == {"devices": 5, "evses": 4, "installed_kw": 44.3}


def test_a_regions_totals_are_those_of_its_depots(inventory: Path) -> None:
    groups = listed(inventory, "--export")
    north, south = groups["depot_north"]["vars"]["derms_totals"], groups["depot_south"]["vars"]["derms_totals"]
    region = groups["region_up_country"]["vars"]["derms_totals"]
    assert region == {key: pytest.approx(north[key] + south[key]) for key in north}
    assert groups["utility_valley"]["vars"]["derms_totals"] == north


def test_group_vars_beside_it_add_and_host_vars_go_over_what_it_says(inventory: Path) -> None:
    for name, variables in {
        "group_vars/all/main.yml": "ansible_user: deploy\nderms_internal_blocks: [203.0.113.0/28]\n",
        "group_vars/depot_north/main.yml": "derms_management_blocks: [198.51.100.0/24]\nderms_serial: 3\n",
        "host_vars/north-2.yml": "ansible_host: 198.51.100.2\nderms_vtn_url: https://other.example/\n",
    }.items():
        (inventory / name).parent.mkdir(parents=True, exist_ok=True)
        (inventory / name).write_text(variables)
    hosts = listed(inventory)["_meta"]["hostvars"]
    assert {host["ansible_user"] for host in hosts.values()} == {"deploy"}
    assert hosts["north-1"]["derms_management_blocks"] == ["192.0.2.0/24"]
    assert hosts["north-1"]["derms_serial"] == 3
    assert hosts["north-2"]["derms_vtn_url"] == "https://other.example/"
    assert hosts["north-1"]["derms_internal_blocks"] == ["10.0.0.0/24"]
    assert hosts["south-1"]["derms_internal_blocks"] == ["203.0.113.0/28"]
    assert (hosts["north-1"]["ansible_host"], hosts["north-2"]["ansible_host"]) == ("192.0.2.11", "198.51.100.2")


def test_a_plain_inventory_beside_it_and_constructed_groups(inventory: Path) -> None:
    (inventory / "others.yml").write_text("all: {hosts: {bastion: {}}}\n")
    constructed = """
compose: {site_code: derms_depot | upper}
groups: {with_chargers: derms_devices | length > 1}
keyed_groups: [{key: derms_depot, prefix: at}]
"""
    (inventory / "north.yml").write_text(NORTH + constructed)
    groups = listed(inventory)
    assert groups["ungrouped"]["hosts"] == ["bastion"]
    assert groups["with_chargers"]["hosts"] == ["north-1"]
    assert groups["at_north"]["hosts"] == ["north-1", "north-2"]
    assert groups["_meta"]["hostvars"]["north-2"]["site_code"] == "NORTH"


def refused(directory: Path, **options: Path) -> str:
    process = run(directory, "--graph", **options)
    assert process.returncode != 0
    assert process.stdout == ""
    return process.stderr


def test_every_mistake_is_named_and_the_first_is_shown(inventory: Path) -> None:
    wrong = NORTH.replace("failsafe_current: 6", "failsafe_current: 60").replace("rating_a: 160", "rating_amps: 160")
    (inventory / "north.yml").write_text(wrong)
    said = refused(inventory)
    file = inventory / "north.yml"
    assert "3 mistakes in the depot file:" in said
    assert f"- {file}:10:3: circuits.main: found no rating_a; expected rating_a: " in said
    assert (
        f"- {file}:10:26: circuits.main.rating_amps: found an unknown key; expected one of parent, connection, "
        "voltage_v, rating_a, rating_kva, base_load_a, allocator; the nearest is rating_a" in said
    )
    assert f"- {file}:20:34: devices.charger-[1:4].settings.failsafe_current: found 60; expected 6 to 16 or 0 A" in said
    assert f"Origin: {file}:10:3" in said
    assert "10   main: {voltage_v: 400, rating_amps: 160, allocator: north-1}" in said
    assert "'ini'" not in said
    assert "'auto'" not in said


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        (
            "allocator: north-1",
            "allocator: north-3",
            "north-3",
            "circuits.main.allocator: found the gateway north-3; exp",
        ),
        (
            "rating_a: 160",
            "rating_a: wide",
            "wide",
            "circuits.main.rating_a: found the text 'wide'; expected a number of A",
        ),
        (
            "rating_a: 160",
            "rating_a: 63",
            "63",
            "circuits.main.rating_a: found 64 A on L1/L2/L3 when no EVSE is controlled",
        ),
        (
            "[10.0.0.0/24]",
            "[10.0.0.1/24]",
            "10.0.0.1/24",
            "network.internal_blocks.0: found the text '10.0.0.1/24'; exp",
        ),
        ("rating_a: 160", "baserate: 1", "main:", "circuits.main: found no rating_a; expected rating_a: a number of A"),
    ],
)
def test_ansible_shows_the_line(inventory: Path, old: str, new: str, at: str, said: str) -> None:
    assert NORTH.count(old) == 1
    text = NORTH.replace(old, new)
    before = text[: text.index(at)]
    place = f"{inventory / 'north.yml'}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    (inventory / "north.yml").write_text(text)
    printed = refused(inventory)
    assert f"- {place}: {said}" in printed
    assert f"Origin: {place}\n" in printed


def test_a_key_that_is_repeated_is_an_error(inventory: Path) -> None:
    (inventory / "north.yml").write_text(NORTH.replace("depot: north\n", "depot: north\ndepot: nord\n"))
    assert f"{inventory / 'north.yml'}:3:1: depot: found the key a second time (first on line 2)" in refused(inventory)


def test_what_is_no_yaml_is_shown_with_its_line(inventory: Path) -> None:
    (inventory / "north.yml").write_text(NORTH.replace("voltage_v: 400,", "voltage_v: 400"))
    printed = refused(inventory)
    assert f"- {inventory / 'north.yml'}:10:" in printed
    assert "found no YAML" in printed


def test_a_depot_and_a_gateway_may_be_declared_once(inventory: Path) -> None:
    (inventory / "south.yaml").write_text(SOUTH.replace("depot: south", "depot: north"))
    assert "the depot north is declared by another file already" in refused(inventory)
    (inventory / "south.yaml").write_text(SOUTH.replace("south-1", "north-2"))
    assert "the gateway north-2 of the depot south is another depot's, too" in refused(inventory)


def test_it_is_found_without_this_trees_configuration(inventory: Path, tmp_path: Path) -> None:
    config = tmp_path / "ansible.cfg"
    config.write_text("[inventory]\nany_unparsed_is_failed = true\n")
    assert "depot_north" in run(inventory, "--graph", config=config).stdout
    (inventory / "north.yml").write_text(NORTH.replace("rating_a: 160", "rating_a: 63"))
    assert "found 64 A on L1/L2/L3" in refused(inventory, config=config)


def test_a_secret_is_opened_by_ansible_alone(inventory: Path) -> None:
    password = inventory.parent / "password"
    password.write_text(PASSWORD)
    encrypted = subprocess.run(
        [str(BIN / "ansible-vault"), "encrypt_string", "--vault-password-file", str(password), "canary-4711"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    indented = "\n    ".join(line.strip() for line in encrypted.strip().splitlines())
    (inventory / "north.yml").write_text(NORTH.replace("ven_name: north}", f"ven_name: north, client_id: {indented}}}"))
    # In flow style a block scalar cannot stand, so the section is written out.
    block = (
        NORTH[: NORTH.index("vtn:")] + f"vtn:\n  url: https://vtn.example\n  ven_name: north\n  client_id: {indented}\n"
    )
    (inventory / "north.yml").write_text(block)
    assert run(inventory, "--graph").returncode == 0
    (inventory / "north.yml").write_text(NORTH.replace("depot: north", f"depot: {indented}"))
    printed = refused(inventory)
    assert "depot: found an encrypted value; expected a plain one" in printed
    assert "canary" not in printed


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """Give what Ansible makes of each of the tree's own inventories, which warn of nothing."""
    found = {}
    for name in ("demo", "example"):
        process = run(ROOT / "inventories" / name, "--list")
        assert (process.returncode, process.stderr) == (0, "")
        found[name] = json.loads(process.stdout)
    return found


@pytest.fixture(scope="module")
def examples(own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the variables of each gateway of the two depots that are there to be copied."""
    variables: dict[str, dict[str, Any]] = own["example"]["_meta"]["hostvars"]
    return variables


def test_the_trees_own_inventories_are_whole_and_warn_of_nothing(own: dict[str, Any]) -> None:
    for name, depots in {"demo": {"depot_demo"}, "example": {"depot_northgate", "depot_riverside"}}.items():
        assert set(own[name]["derms_gateways"]["children"]) == depots
        assert all(one["derms_devices"] for one in own[name]["_meta"]["hostvars"].values())
        for file in (ROOT / "inventories" / name).glob("*.yml"):
            _, warnings = read(file)
            assert [str(warning) for warning in warnings] == []
    graph = run(ROOT / "inventories" / "example", "--graph")
    assert (graph.returncode, graph.stderr) == (0, "")
    assert "|--@depot_northgate:\n  |  |  |--northgate-gateway-1\n" in graph.stdout


def test_the_examples_are_a_fleet_depot_and_a_dc_depot_with_storage(examples: dict[str, dict[str, Any]]) -> None:
    def profiles(*gateways: str) -> set[str]:
        return {device["profile"] for gateway in gateways for device in examples[gateway]["derms_devices"]}

    assert profiles("riverside-gateway-1", "riverside-gateway-2") == {"keba_p30", "alfen_ng9", "sunspec_meter"}
    assert profiles("northgate-gateway-1") == {"alpitronic_hyc", "sunspec_der", "sunspec_meter"}


def test_one_example_is_behind_a_bastion_and_one_on_a_cellular_link(examples: dict[str, dict[str, Any]]) -> None:
    bastion = "-o ProxyJump=bastion.example.net"
    for gateway, variables in examples.items():
        assert ("riverside" in gateway) == (bastion in variables["ansible_ssh_common_args"])
        assert "-o ServerAliveInterval=" in variables["ansible_ssh_common_args"]
    north, river = examples["northgate-gateway-1"], examples["riverside-gateway-1"]
    assert "-o Compression=yes" in north["ansible_ssh_common_args"]
    assert "ControlPersist" in north["ansible_ssh_args"]
    assert north["ansible_ssh_pipelining"] is True
    assert north["ansible_ssh_timeout"] > river["ansible_ssh_timeout"]
    # Three attempts to connect fit into what the gateway waits for a new login.
    connect_s = int(re.search(r"ConnectTimeout=(\d+)", north["ansible_ssh_common_args"])[1])  # type: ignore[index]
    assert north["rollback_after_s"] >= 3 * connect_s
