# SPDX-License-Identifier: Apache-2.0
"""Whole files: what they come to, and what is said of their mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from derms_agent.depot import DepotError, Vaulted, check, examine, load, read
from derms_agent.depot.plain import buses_of, circuits_of, devices_of, totals
from derms_agent.model import Connection, DeviceKind, Measures, Phase, Transport
from derms_agent.profiles import Profile

Profiles = Mapping[str, Profile]

GOOD = """\
plugin: derms.edge.depot
depot: north
region: up
site: {limit_kva: 160, default_limit_kw: 40}
gateways:
  gateway-1: {address: 192.0.2.10}
circuits:
  main: {voltage_v: 400, rating_a: 250, rating_kva: 170, base_load_a: [20, 10, 10]}
  feeder: {parent: main, voltage_v: 400, rating_a: [160, 160, 160]}
  office: {parent: main, connection: single_phase, voltage_v: 230, rating_a: [0, 32, 0]}
buses:
  line: {gateway: gateway-1, transport: rtu_over_tcp, host: 192.0.2.20, baud_rate: 19200,
         device_defaults: {profile: wallbox, circuit: feeder, settings: {failsafe_current: 6}}}
  box-[1:2]: {gateway: gateway-1, transport: tcp, host: "192.0.2.[31:32]"}
  others: {gateway: gateway-1, transport: tcp, host: 192.0.2.40, port: 1502}
profile_defaults:
  wallbox: {settings: {failsafe_current: 10, failsafe_timeout: 60}, evses: {rating_a: 16}}
devices:
  charger-[01:08]: {bus: line, unit_id: 1..8}
  charger-09: {bus: line, unit_id: 9, circuit: office, settings: {failsafe_current: 8}, evses: {rating_a: 32, cable_a: 20}}
  box-[1:2]: {bus: "box-[1:2]", unit_id: 255, profile: wallbox, circuit: feeder, evses: {phases: [L2, L3, L1]}}
  dc: {bus: others, unit_id: 1, profile: cabinet, circuit: main, settings: {failsafe_power: 6928},
       evses: {"1": {rating_a: 100}, "2": {rating_a: 50, circuit: feeder}}}
  icu: {bus: others, unit_id: 2, profile: icu, settings: {generation_limit: 70}}
meters:
  grid: {bus: others, unit_id: 3, profile: meter, measures: circuit, circuit: main}
  sun: {device: icu, measures: generator, circuit: main}
vehicles:
  van-[1:2]: {capacity_kwh: 75, power_kw: 11}
vtn: {url: "https://vtn.example", ven_name: north}
"""  # noqa: E501 (YAML as a person writes it)


def lines(text: str, profiles: Profiles) -> list[str]:
    """Return a text's problems, without the file's name."""
    return [str(one).removeprefix("f:") for one in examine(text, "f", profiles).problems]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_good_file_is_a_depot(profiles: Profiles) -> None:
    examined = examine(GOOD, "f", profiles)
    assert examined.problems == ()
    depot = examined.depot
    assert depot is not None
    assert (depot.name, depot.region, depot.utility) == ("north", "up", None)
    assert (depot.site.limit_va, depot.site.default_limit_w, depot.site.soc_reserve_percent) == (160_000, 40_000, 20)
    assert list(depot.devices) == [
        *(f"charger-0{number}" for number in range(1, 10)), "box-1", "box-2", "dc", "icu", "grid"
    ]  # fmt: skip
    eighth = depot.devices["charger-08"]
    assert (eighth.kind, eighth.bus, eighth.unit_id, eighth.circuit) == (DeviceKind.CHARGER, "line", 8, "feeder")
    assert eighth.settings == {"failsafe_current": 6, "failsafe_timeout": 60}
    (evse,) = eighth.evses
    assert (evse.name, evse.connector, evse.rating_a, evse.phases) == ("charger-08", 1, 16, tuple(Phase))
    ninth = depot.devices["charger-09"]
    assert ninth.settings["failsafe_current"] == 8
    assert (ninth.evses[0].phases, ninth.evses[0].limit_a) == ((Phase.L2,), 20)
    assert depot.devices["box-2"].bus == "box-2"
    assert depot.devices["box-2"].settings["failsafe_current"] == 10
    assert depot.devices["box-2"].evses[0].phases == (Phase.L2, Phase.L3, Phase.L1)
    assert depot.buses["box-2"].host == "192.0.2.32"
    assert (depot.buses["line"].transport, depot.buses["others"].port) == (Transport.RTU_OVER_TCP, 1502)
    assert [(evse.name, evse.circuit) for evse in depot.devices["dc"].evses] == [("dc/1", "main"), ("dc/2", "feeder")]
    assert depot.circuits["main"].allocator == "gateway-1"
    assert depot.circuits["feeder"].allocator is None
    assert (depot.circuits["feeder"].parent, depot.circuits["feeder"].connection) == ("main", Connection.WYE)
    assert depot.circuits["office"].rating_a == (0, 32, 0)
    assert (depot.meters["grid"].device, depot.meters["sun"].device) == ("grid", "icu")
    assert depot.meters["sun"].measures is Measures.GENERATOR
    assert depot.devices["grid"].kind is DeviceKind.METER
    assert depot.vehicles["van-2"].capacity_wh == 75_000
    assert depot.vtn is not None
    assert depot.vtn.tls_minimum == "1.3"


def test_the_plain_form_holds_all_of_a_gateways_own(profiles: Profiles) -> None:
    depot = examine(GOOD, "f", profiles).depot
    assert depot is not None
    assert [bus["name"] for bus in buses_of(depot, "gateway-1")] == ["line", "box-1", "box-2", "others"]
    assert buses_of(depot, "gateway-2") == devices_of(depot, "gateway-2") == []
    box = devices_of(depot, "gateway-1")[10]
    assert box == {
        "name": "box-2",
        "kind": "charger",
        "bus": "box-2",
        "unit_id": 255,
        "profile": "wallbox",
        "circuit": "feeder",
        "settings": {"failsafe_current": 10, "failsafe_timeout": 60},
        "evses": [
            {"name": "box-2", "connector": 1, "circuit": "feeder", "phases": ["L2", "L3", "L1"], "rating_a": 16.0,
             "cable_a": None}
        ],
    }  # fmt: skip
    assert circuits_of(depot)[2]["rating_a"] == [0.0, 32.0, 0.0]
    # 10 × 16 A and 150 A on three phases, and 20 A on one.
    assert totals(depot) == {"devices": 14, "evses": 13, "installed_kw": 219.4}


MISTAKEN = """\
plugin: derms.edge.depot
depot: north
regoin: up
site: {limit_kva: 160}
gateways:
  gateway-1: {}
circuits:
  main: {voltage_v: 400, rating_a: 400, base_load_a: 20}
  feeder: {parent: main, voltage_v: 400, rating_a: [160, 160]}
  office: {parent: main, voltage_v: 400, rating_a: 63, allocator: gateway-1}
buses:
  line: {gateway: gatway-1, transport: rtu_over_tcp, host: 192.0.2.20, baud_rate: 19200,
         device_defaults: {profile: wallbox, circuit: office, evses: {rating_a: 16}}}
devices:
  charger-[001:008]: {bus: line, unit_id: 1..7}
  charger-009: {bus: line, unit_id: 9, settings: {failsafe_current: 25}}
  charger-[010:014]: {bus: line, unit_id: 10..14, settings: {failsafe_current: 13}}
  charger-015: {bus: line, unit_id: 12}
  charger-016: {bus: line, unit_id: 16, profile: walbox}
  charger-017:
    bus: line
    unit_id: 17
    settings:
      failsafe_curent: 6
"""

TEN_ERRORS = [
    (
        "3:1: regoin: found an unknown key; expected one of plugin, depot, region, utility, site, "
        "network, gateways, circuits, buses, profile_defaults, devices, meters and 8 more; the "
        "nearest is region"
    ),
    (
        "9:52: circuits.feeder.rating_a: found the list [160, 160]; expected a number of A for all "
        "three phases, or a list of three for L1, L2 and L3, none below 0"
    ),
    (
        "10:52: circuits.office.rating_a: found 81 A on L1/L2/L3 when no EVSE is controlled: 5 × "
        "wallbox 13 A, 1 × wallbox 16 A (its rating); base_load_a 0, 0, 0; expected at most 63 A; "
        "of fallback and after-boot limit the higher counts"
    ),
    (
        "10:67: circuits.office.allocator: found a second allocator, gateway-1; expected none, for "
        "the whole tree of main has one allocator, set there"
    ),
    ("12:19: buses.line.gateway: found the gateway gatway-1; expected one of gateway-1; the nearest is gateway-1"),
    (
        "15:43: devices.charger-[001:008].unit_id: found the text '1..7', a range of 7; expected a "
        "range of 8, as long as that of charger-[001:008]"
    ),
    ("16:69: devices.charger-009.settings.failsafe_current: found 25; expected 6 to 16 or 0 A, by the profile wallbox"),
    (
        "18:37: devices.charger-015.unit_id: found unit 12 of bus line for charger-015; expected a "
        "unit of its own: charger-012 has this one"
    ),
    (
        "19:50: devices.charger-016.profile: found the profile walbox; expected one of wallbox, "
        "cabinet, meter, icu; the nearest is wallbox"
    ),
    (
        "24:7: devices.charger-017.settings.failsafe_curent: found failsafe_curent, which the "
        "profile wallbox does not have as a setting; expected one of failsafe_current, "
        "failsafe_timeout, standby, password; the nearest is failsafe_current"
    ),
]


def test_ten_planted_mistakes_yield_ten_good_errors(profiles: Profiles) -> None:
    assert lines(MISTAKEN, profiles) == TEN_ERRORS


def test_warnings_do_not_hide_among_errors_and_every_error_names_its_line(profiles: Profiles, tmp_path: Path) -> None:
    file = tmp_path / "depot.yml"
    file.write_text(MISTAKEN, encoding="utf-8")
    with pytest.raises(DepotError) as caught:
        load(file, profiles)
    assert str(caught.value).splitlines() == [f"{file}:{line}" for line in TEN_ERRORS]
    assert [one.line for one in caught.value.problems] == sorted(one.line for one in caught.value.problems)


# What is changed in the good file, where that is then found wrong (what stands there), and what is said of it.
ONE_MISTAKE = {
    "no region's form": (
        "region: up",
        "region: Up North",
        "Up North",
        ("region: found the text 'Up North'; expected small letters, digits and inner hyphens, at most 63"),
    ),
    "a plugin's name": (
        "derms.edge.depot",
        "derms.edge.depo",
        "derms.edge.depo",
        ("plugin: found the text 'derms.edge.depo'; expected derms.edge.depot, by which Ansible knows the file"),
    ),
    "no depot": (
        "depot: north\n",
        "",
        "plugin: derms.ed",
        ("the file: found no depot; expected depot: small letters, digits and inner hyphens, at most 63"),
    ),
    "a limit below zero": (
        "limit_kva: 160",
        "limit_kva: -1",
        "-1, default_limi",
        "site.limit_kva: found -1; expected the most that the depot may draw, in kVA",
    ),
    "a default above it": (
        "default_limit_kw: 40",
        "default_limit_kw: 161",
        "161}",
        "site.default_limit_kw: found 161; expected at most limit_kva, 160",
    ),
    "a gateway's key": (
        "{address:",
        "{adress:",
        "adress: 192.0.2.",
        ("gateways.gateway-1.adress: found an unknown key; expected one of address; the nearest is address"),
    ),
    "a parent": (
        "feeder: {parent: main",
        "feeder: {parent: mian",
        "mian, voltage_v:",
        ("circuits.feeder.parent: found the circuit mian; expected one of main, feeder, office; the nearest is main"),
    ),
    "a cycle": (
        "  main: {voltage_v",
        "  main: {parent: office, voltage_v",
        "office, voltage_",
        (
            "circuits.main.parent: found a cycle: main under office under main; expected a parent that "
            "does not hang on this circuit"
        ),
    ),
    "a phase that the parent lacks": (
        "rating_a: [160, 160, 160]}",
        "rating_a: 160}\n  sub: {parent: office, voltage_v: 400, rating_a: 16}",
        "16}",
        ("circuits.sub.rating_a: found L1, L3, which its parent office lacks; expected phases of the parent"),
    ),
    "one number for a single phase": (
        "rating_a: [0, 32, 0]",
        "rating_a: 32",
        "32}",
        (
            "circuits.office.rating_a: found 32; expected a list of L1, L2 and L3 with one above 0, "
            "such as [32, 0, 0], for the circuit has one phase"
        ),
    ),
    "an allocator": (
        "170, base",
        "170, allocator: gw, base",
        "gw, base_load_a:",
        "circuits.main.allocator: found the gateway gw; expected one of gateway-1",
    ),
    "a serial line without speed": (
        ", baud_rate: 19200",
        "",
        "line: {gateway: ",
        (
            "buses.line: found no baud_rate on a bus with transport rtu_over_tcp; expected baud_rate: "
            "the speed of its serial line, by which its time is reckoned"
        ),
    ),
    "a path over the network": (
        "host: 192.0.2.40",
        "host: 192.0.2.40, path: /dev/x",
        "path: /dev/x, po",
        "buses.others.path: found path /dev/x; expected no path, for the transport is tcp",
    ),
    "an endpoint twice": (
        "192.0.2.[31:32]",
        "192.0.2.[20:21]",
        '"192.0.2.[20:21]',
        (
            "buses.box-[1:2].host: found 192.0.2.20 port 502; expected an endpoint of its own, for line"
            " has this one, and one connection leads to each"
        ),
    ),
    "a name twice": (
        "  charger-09: {bus: line, unit_id: 9,",
        (
            "  charger-[9:9]: {bus: others, unit_id: 9, profile: wallbox, circuit: main}\n  "
            "charger-[08:09]: {bus: line, unit_id: 9..10,"
        ),
        "charger-[08:09]:",
        ("devices.charger-[08:09]: found charger-08 a second time; expected a name that charger-[01:08] does not hold"),
    ),
    "a range without one in the name": (
        "charger-[01:08]: {",
        "charger-1: {",
        "1..8}",
        (
            "devices.charger-1.unit_id: found the text '1..8', a range of 8; expected no range, for "
            "charger-1 stands for one; or a range of 8 in the name, which"
        ),
    ),
    "a range that is none": (
        "charger-[01:08]",
        "charger-[01-08]",
        "charger-[01-08]:",
        (
            "devices.charger-[01-08]: found that name; expected a range such as [1:12] or [001:012], "
            "both ends of the same width where the first begins with 0"
        ),
    ),
    "a bus": (
        "dc: {bus: others",
        "dc: {bus: other",
        "other, unit_id: ",
        ("devices.dc.bus: found the bus other; expected one of line, box-1, box-2, others; the nearest is others"),
    ),
    "a unit on a serial line": (
        "unit_id: 9,",
        "unit_id: 248,",
        "248, circuit: of",
        ("devices.charger-09.unit_id: found unit 248; expected a unit from 1 to 247, for the bus is a serial line"),
    ),
    "a unit that YAML reads as octal": (
        "unit_id: 255",
        "unit_id: 010",
        "010, profile: wa",
        (
            "devices.box-[1:2].unit_id: found the text '010'; expected a unit's number from 0 to 255, "
            "or a range such as 1..12"
        ),
    ),
    "a unit in a range too high": (
        'bus: "box-[1:2]", unit_id: 255',
        "bus: others, unit_id: 255..256",
        "255..256, profil",
        "devices.box-[1:2].unit_id: found unit 256; expected a unit from 0 to 255",
    ),
    "a setting's type": (
        "settings: {failsafe_current: 8}",
        "settings: {failsafe_current: low}",
        "low}, evses: {ra",
        (
            "devices.charger-09.settings.failsafe_current: found the text 'low'; expected a number, by "
            "the profile wallbox"
        ),
    ),
    "a state": (
        "settings: {failsafe_current: 8}",
        "settings: {failsafe_current: 8, standby: no way}",
        "no way}, evses: ",
        (
            "devices.charger-09.settings.standby: found the text 'no way'; expected one of allowed, "
            "prevented, by the profile wallbox"
        ),
    ),
    "a SunSpec setting": (
        "generation_limit: 70",
        "generation_limit: 101",
        "101}}",
        (
            "devices.icu.settings.generation_limit: found 101; expected a number at least 0 and at most"
            " 100 percent, by the profile icu"
        ),
    ),
    "defaults for no profile": (
        "  wallbox: {settings",
        "  walbox: {unit_id: 1}\n  wallbox: {settings",
        "walbox: {unit_id",
        (
            "profile_defaults.walbox: found the profile walbox; expected one of wallbox, cabinet, "
            "meter, icu; the nearest is wallbox"
        ),
    ),
    "a connector": (
        '"2": {rating_a: 50',
        '"3": {rating_a: 50',
        '"3": {rating_a: ',
        ("devices.dc.evses.3: found connector 3; expected a connector from 1 to 2, as the profile cabinet has"),
    ),
    "an EVSE without rating": (
        '"2": {rating_a: 50, ',
        '"2": {',
        '"2": {circuit: f',
        ("devices.dc.evses.2: found no rating_a; expected rating_a: a number of A above 0, per conductor"),
    ),
    "a charger without EVSE": (
        (
            'profile: cabinet, circuit: main, settings: {failsafe_power: 6928},\n       evses: {"1": '
            '{rating_a: 100}, "2": {rating_a: 50, circuit: feeder}}}'
        ),
        "profile: cabinet, circuit: main}",
        "dc: {bus: others",
        (
            "devices.dc: found no evses; expected evses: at least one, such as {rating_a: 32}, for the "
            "device is a charger"
        ),
    ),
    "an inverter with EVSEs": (
        "settings: {generation_limit: 70}",
        "evses: {rating_a: 1}",
        "evses: {rating_a",
        "devices.icu.evses: found EVSEs on a device of kind inverter; expected none",
    ),
    "no circuit": (
        "profile: wallbox, circuit: feeder, evses",
        "profile: wallbox, evses",
        "box-[1:2]: {bus:",
        "devices.box-[1:2]: found no circuit; expected circuit: the circuit that feeds the charger",
    ),
    "a phase that the circuit lacks": (
        "rating_a: 32, cable_a: 20}",
        "rating_a: 32, cable_a: 20, phases: [L1]}",
        "[L1]}}",
        ("devices.charger-09.evses.phases: found L1, which the circuit office lacks; expected phases of office: L2"),
    ),
    "a conductor twice": (
        "[L2, L3, L1]",
        "[L2, L2]",
        "[L2, L2]}}",
        (
            "devices.box-[1:2].evses.phases: found the list ['L2', 'L2']; expected the supply's "
            "conductors that the connector's own L1, L2 and L3 are wired to,"
        ),
    ),
    "a meter without bus": (
        "grid: {bus: others, unit_id: 3, profile: meter,",
        "grid: {",
        "grid: { measures",
        (
            "meters.grid: found no bus; expected bus, unit_id and profile of the meter, or device: the "
            "device that measures"
        ),
    ),
    "a meter of another device": (
        "sun: {device: icu",
        "sun: {device: ICU",
        "ICU, measures: g",
        (
            "meters.sun.device: found the device ICU; expected one of charger-01, charger-02, "
            "charger-03, charger-04, charger-05, charger-06, charger-07,"
        ),
    ),
    "a watchdog that is too short": (
        "failsafe_timeout: 60",
        "failsafe_timeout: 2",
        "2}, evses: {rati",
        (
            "profile_defaults.wallbox.settings.failsafe_timeout: found a watchdog of 2 s; expected more"
            " than 2.2 s, which its refresh may take on the bus line"
        ),
    ),
    "a transformer's power": (
        "rating_kva: 170",
        "rating_kva: 70",
        "70, base_load_a:",
        (
            "circuits.main.rating_kva: found 72.77 kVA when no EVSE is controlled: 8 × wallbox 6 A, 1 ×"
            " wallbox 8 A, 2 × wallbox 10 A, 2 × cabinet 10.5 A; expected"
        ),
    ),
    "one phase of a circuit": (
        "rating_a: [0, 32, 0]",
        "rating_a: [0, 7, 0]",
        "[0, 7, 0]}",
        (
            "circuits.office.rating_a: found 8 A on L2 when no EVSE is controlled: 1 × wallbox 8 A; "
            "base_load_a 0, 0, 0; expected at most 0, 7, 0 A; of fallback"
        ),
    ),
    "TLS in a number": (
        "ven_name: north}",
        "ven_name: north, tls_minimum: 1.3}",
        "1.3}",
        'vtn.tls_minimum: found 1.3; expected "1.2" or "1.3", in quotes',
    ),
    "signatures by a word of YAML's": (
        "ven_name: north}",
        "ven_name: north, xml_signatures: off}",
        "off}",
        "vtn.xml_signatures: found false; expected none, sign or require",
    ),
    "a price without a currency": (
        "ven_name: north}",
        "ven_name: north, price_limit: {above_per_kwh: 0.3, limit_kw: 20}}",
        "price_limit: {above",
        "vtn.price_limit: found no currency; expected currency: a currency's code by ISO 4217, such as EUR",
    ),
    "a currency by its sign": (
        "ven_name: north}",
        "ven_name: north, price_limit: {currency: €, above_per_kwh: 0.3, limit_kw: 20}}",
        "€",
        "vtn.price_limit.currency: found the text '€'; expected a currency's code by ISO 4217, such as EUR",
    ),
    "a limit below nothing": (
        "ven_name: north}",
        "ven_name: north, price_limit: {currency: EUR, above_per_kwh: 0.3, limit_kw: -1}}",
        "-1}}",
        "vtn.price_limit.limit_kw: found -1; expected a number of kW, 0 or more",
    ),
    "a merge": (
        "office: {parent",
        "office: {<<: {}, parent",
        "<<: {}, parent: ",
        ("circuits.office.<<: found an unknown key; expected settings under device_defaults or profile_defaults"),
    ),
}


@pytest.mark.parametrize(("old", "new", "at", "said"), list(ONE_MISTAKE.values()), ids=list(ONE_MISTAKE))
def test_one_mistake_is_one_error(old: str, new: str, at: str, said: str, profiles: Profiles) -> None:
    text = changed(old, new)
    (found,) = examine(text, "f", profiles).problems
    assert text.splitlines()[found.line - 1][found.column - 1 :].startswith(at)
    assert str(found.problem).startswith(said)


SECRET = "settings: {failsafe_current: 8, password: !vault abc}"  # noqa: S105 (a ciphertext that is none)


def test_what_is_encrypted_stays_so_in_secret_fields_alone(profiles: Profiles, tmp_path: Path) -> None:
    text = changed("settings: {failsafe_current: 8}", SECRET).replace("north}", "north, client_id: !vault def}")
    depot = examine(text, "f", profiles).depot
    assert depot is not None
    assert depot.vtn is not None
    assert isinstance(depot.devices["charger-09"].settings["password"], Vaulted)
    assert isinstance(depot.vtn.client_id, Vaulted)
    file = tmp_path / "depot.yml"
    file.write_text(text, encoding="utf-8")
    plain, warnings = read(file, profiles)
    assert "password" not in plain.devices["charger-09"].settings
    assert plain.vtn is not None
    assert plain.vtn.client_id is None
    assert [str(one).removeprefix(f"{file}:") for one in warnings] == [
        (
            "20:98: warning: devices.charger-09.settings.password: found an encrypted value; expected "
            "Ansible to open it; "
            "left out here"
        ),
        "30:63: warning: vtn.client_id: found an encrypted value; expected Ansible to open it; left out here",
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("region: up", "region: !vault abc", "region: found an encrypted value"),
        (
            "failsafe_current: 8",
            "failsafe_current: !vault abc",
            "devices.charger-09.settings.failsafe_current: found an enc",
        ),
        ("host: 192.0.2.40", "host: !vault abc", "buses.others.host: found an encrypted value; expected a plain one"),
        (
            "failsafe_current: 8",
            "password: wrong horse",
            "devices.charger-09.settings.password: found a value that is not",
        ),
    ],
)
def test_secrets_elsewhere_and_secrets_that_are_wrong(old: str, new: str, said: str, profiles: Profiles) -> None:
    found = [str(one.problem) for one in examine(changed(old, new), "f", profiles).problems]
    assert any(line.startswith(said) for line in found)
    assert not any("abc" in line or "horse" in line for line in found)


WARNED = {
    "a slow line": (
        "charger-[01:08]: {bus: line, unit_id: 1..8}",
        "charger-[10:29]: {bus: line, unit_id: 11..30, settings: {failsafe_current: 0}}",
        (
            "warning: buses.line: found 21 units on line, whose control points take 691 ms to read at 19200 "
            "baud; a shed of all "
            "takes 520 ms; expected at most 500 ms, which is enough for 15 such units: more serial lines, "
            "or a faster one"
        ),
    ),
    "a cable": (
        "rating_a: 32, cable_a: 20",
        "rating_a: 32, cable_a: 7",
        (
            "warning: devices.charger-09: found an EVSE that may draw 8 A by itself on a cable of 7 A; "
            "expected a fallback and "
            "an after-boot limit no higher than cable_a, or a breaker that protects the cable"
        ),
    ),
    "another gateway": (
        "gateway-1: {address: 192.0.2.10}\ncircuits:\n  main: {voltage_v",
        "gateway-[1:2]: {}\ncircuits:\n  main: {allocator: gateway-2, voltage_v",
        (
            "warning: buses.line.gateway: found gateway-1, while gateway-2 allocates the circuits of its "
            "EVSEs; expected "
            "gateway-2: otherwise each setpoint needs both gateways and the line between them"
        ),
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), list(WARNED.values()), ids=list(WARNED))
def test_what_is_only_unwise_is_a_warning(old: str, new: str, said: str, profiles: Profiles) -> None:
    examined = examine(changed(old, new), "f", profiles)
    assert examined.depot is not None
    assert examined.errors == ()
    assert str(examined.warnings[0].problem) == said


def test_a_gateway_shares_out_one_tree(profiles: Profiles) -> None:
    (line,) = lines(changed("  feeder: {parent: main, ", "  feeder: {"), profiles)
    assert (
        "circuits.feeder: found a second tree for gateway-1, which shares out that of main; expected a parent" in line
    )


def test_two_gateways_want_an_allocator_for_each_tree(profiles: Profiles) -> None:
    (line,) = lines(changed("gateway-1: {address: 192.0.2.10}", "gateway-[1:2]: {}"), profiles)
    assert line.startswith(
        "8:3: circuits.main: found no allocator; expected allocator: the gateway that shares this tree"
    )


@pytest.mark.parametrize("text", ["", "a", "- a\n", "1\n"])
def test_what_is_no_mapping(text: str, profiles: Profiles) -> None:
    (line,) = lines(text, profiles)
    assert "expected a mapping that begins with plugin: derms.edge.depot" in line


def test_each_section_that_is_of_another_kind_is_named(profiles: Profiles) -> None:
    text = (
        "plugin: derms.edge.depot\ndepot: a\nsite: []\ngateways: [a]\ncircuits: 1\nbuses: x\ndevices: ~\nmeters: []\n"
    )
    assert [line.split(" found ")[0] for line in lines(text, profiles)] == [
        "3:7: site:", "4:11: gateways:", "5:11: circuits:", "6:8: buses:", "7:10: devices:", "8:9: meters:"
    ]  # fmt: skip


def test_check_is_pure_and_takes_what_yaml_holds(profiles: Profiles) -> None:
    data = examine(GOOD, "f", profiles).data
    depot, problems = check(data, profiles)
    assert depot == examine(GOOD, "f", profiles).depot
    assert problems == ()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "depot.yml"
    file.write_bytes(b"plugin: \xff\n")
    with pytest.raises(DepotError, match=r"depot.yml:1:1: the file: found bytes that are no UTF-8 at 8"):
        load(file)
