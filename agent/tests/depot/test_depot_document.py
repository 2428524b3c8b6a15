# SPDX-License-Identifier: Apache-2.0
"""A depot written out as a depot file is the same depot when it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.depot import Vaulted, document, examine
from derms_agent.depot.assembly import Assembly
from derms_agent.depot.plain import depot_document, devices_in
from derms_agent.model import (
    Bus,
    Circuit,
    Connection,
    Depot,
    Device,
    DeviceKind,
    Evse,
    Gateway,
    GridLevel,
    Measures,
    Meter,
    Parity,
    Phase,
    PriceLimit,
    Site,
    TransactionIds,
    Transport,
    Vehicle,
    Vtn,
)
from derms_agent.profiles import Profile, load_all
from derms_agent.profiles.profile import LEAST_POWER_FACTOR

ROOT = Path(__file__).parents[3]
INVENTORIES = sorted((ROOT / "inventories").glob("*/*.yml"))


def written(depot: Depot) -> str:
    return yaml.safe_dump(depot_document(depot), sort_keys=False, allow_unicode=True)


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: path.stem)
def test_the_trees_own_depots_come_back_as_they_were(path: Path) -> None:
    depot = examine(path.read_text(encoding="utf-8"), path.name).depot
    assert depot is not None
    again = examine(written(depot), "written")
    assert [str(one) for one in again.errors] == []
    assert again.depot == depot
    assert list(again.depot.devices) == list(depot.devices)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,11}", fullmatch=True)
amounts = st.one_of(st.integers(1, 10_000), st.floats(0.001, 1e6, allow_nan=False))
seconds = st.floats(0.001, 3600)


def thousands(value: float) -> float:
    """Return what a depot file's kW become."""
    return value * 1000.0


@st.composite
def buses(draw: Any, gateway: str, index: int) -> Bus:
    transport = draw(st.sampled_from(Transport))
    serial = transport is Transport.SERIAL
    return Bus(
        name=f"bus-{index}",
        gateway=gateway,
        transport=transport,
        host=None if serial else f"192.0.2.{index + 1}",
        port=502 if serial else draw(st.integers(1, 65535)),
        path=f"/dev/derms/{index}" if serial else None,
        baud_rate=None if transport is Transport.TCP else draw(st.sampled_from([9600, 19200, 115200])),
        parity=draw(st.sampled_from(Parity)) if serial else Parity.EVEN,
        timeout_s=draw(seconds),
        gateway_timeout_s=draw(seconds),
        connect_timeout_s=draw(seconds),
        delay_after_connect_s=draw(st.floats(0, 60)),
        delay_between_s=draw(st.floats(0, 60)),
        max_in_flight=draw(st.integers(1, 16)),
        transaction_ids=draw(st.sampled_from(TransactionIds)),
    )


@st.composite
def depots(draw: Any) -> Depot:
    """Return a depot of any of the parts that a file can declare; what its devices hold is the profiles' affair."""
    gateways = {name: Gateway(name=name, address=draw(st.none() | names)) for name in draw(st.sets(names, min_size=1))}
    allocator = min(gateways)
    rating = draw(st.tuples(amounts, amounts, amounts))
    root = Circuit(
        name="main",
        parent=None,
        connection=Connection.WYE,
        voltage_v=400.0,
        rating_a=(float(rating[0]), float(rating[1]), float(rating[2])),
        rating_kva=draw(st.none() | amounts),
        base_load_a=(0.0, 0.0, draw(st.floats(0, 10))),
        allocator=allocator,
    )
    office = Circuit(
        name="office",
        parent="main",
        connection=Connection.SINGLE_PHASE,
        voltage_v=230.0,
        rating_a=(0.0, 32.0, 0.0),
    )
    lines = [draw(buses(allocator, index)) for index in range(draw(st.integers(1, 3)))]
    devices = {}
    for index, bus in enumerate(lines):
        name = f"box-{index}"
        connectors = draw(st.sampled_from([(1,), (1, 2), (2,)]))
        devices[name] = Device(
            name=name,
            kind=DeviceKind.CHARGER,
            bus=bus.name,
            unit_id=draw(st.integers(1, 246)),
            profile="cabinet",
            settings={"failsafe_power": draw(st.integers(0, 20_000))},
            circuit=draw(st.sampled_from([None, "main"])),
            evses=tuple(
                Evse(
                    name=name if len(connectors) == 1 else f"{name}/{connector}",
                    device=name,
                    connector=connector,
                    circuit="main",
                    phases=tuple(draw(st.permutations(list(Phase)))),
                    rating_a=float(draw(amounts)),
                    cable_a=draw(st.none() | st.floats(0.001, 100)),
                    power_factor=LEAST_POWER_FACTOR,  # as its profile has it, which is told W
                )
                for connector in connectors
            ),
        )
    devices["grid"] = Device(
        name="grid", kind=DeviceKind.METER, bus=lines[0].name, unit_id=247, profile="meter", circuit="main"
    )
    return Depot(
        name=draw(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)),
        region=draw(st.none() | st.just("north")),
        utility=draw(st.none() | st.just("010")),
        site=Site(
            limit_va=thousands(draw(amounts)),
            default_limit_w=draw(st.none() | amounts.map(thousands)),
            soc_reserve_percent=draw(st.floats(0, 100)),
        ),
        gateways=gateways,
        buses={bus.name: bus for bus in lines},
        devices=devices,
        circuits={"main": root, "office": office},
        meters={
            "grid": Meter(name="grid", device="grid", measures=Measures.CIRCUIT, circuit="main"),
            "load": Meter(name="load", device="box-0", measures=Measures.LOAD, circuit="office"),
        },
        vehicles={
            name: Vehicle(
                name=name,
                capacity_wh=thousands(draw(amounts)),
                power_w=thousands(draw(amounts)),
                phases=draw(st.integers(1, 3)),
            )
            for name in draw(st.sets(names, max_size=3))
        },
        vtn=draw(
            st.none()
            | st.builds(
                Vtn,
                url=st.just("https://vtn.example:443/path"),
                ven_name=st.text(min_size=1, alphabet=st.characters(codec="ascii", categories=["L", "N", "P"])),
                client_id=st.none() | st.sampled_from(["1:30", "yes", "0x1f", "null"]),
                tls_minimum=st.sampled_from(["1.2", "1.3"]),
                xml_signatures=st.sampled_from(["none", "sign", "require"]),
                levels=st.dictionaries(
                    st.integers(1, 3),
                    st.builds(GridLevel, limit_w=amounts.map(thousands))
                    | st.builds(GridLevel, baseline_percent=st.floats(0, 100)),
                ),
                price_limit=st.none()
                | st.builds(
                    PriceLimit,
                    currency=st.sampled_from(["EUR", "NOK"]),
                    above_per_kwh=st.floats(-1, 10),
                    limit_w=st.just(0.0) | amounts.map(thousands),
                ),
                market_contexts=st.lists(st.just("http://utility.example/shed"), max_size=1).map(tuple),
                resources=st.dictionaries(st.sampled_from(["0012", "yes"]), st.just("site")),
                groups=st.lists(st.sampled_from(["01", "north"]), max_size=2).map(tuple),
            )
        ),
        network=draw(st.dictionaries(st.just("internal_blocks"), st.just(("192.0.2.0/24", "2001:db8::/32")))),
    )


@settings(max_examples=40)
@given(depot=depots())
def test_any_depot_comes_back_as_it_was(depot: Depot, profiles: Mapping[str, Profile]) -> None:
    # Not by `examine`: whether a made-up depot makes sense is not what this is about.
    written_out = document.parse(written(depot), "written")
    assert written_out.problems == ()
    assert isinstance(written_out.data, dict)
    assembly = Assembly(written_out.data, profiles, ())
    assembly.assemble()
    assert list(assembly.found) == []
    assert assembly.depot() == depot


def test_what_is_encrypted_is_still_so() -> None:
    (path,) = (path for path in INVENTORIES if path.parent.name == "demo")
    depot = examine(path.read_text(encoding="utf-8"), "demo").depot
    assert depot is not None
    secret = Vaulted("$ANSIBLE_VAULT;1.1;AES256\n00")
    first = next(iter(depot.devices.values()))
    changed = replace(first, settings={**first.settings, "password": secret})
    plain = depot_document(replace(depot, devices={**depot.devices, first.name: changed}))
    assert isinstance(plain["devices"][first.name]["settings"]["password"], Vaulted)


@settings(max_examples=40)
@given(
    held=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["failsafe_current", "failsafe_timeout", "standby"]), st.sampled_from([6, 6.0, 30])
            ),
            unique_by=lambda setting: setting[0],
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_devices_share_is_said_once_and_each_has_its_settings_in_their_order(
    held: list[list[tuple[str, float]]],
) -> None:
    """Settings are written in their order."""
    (path,) = (path for path in INVENTORIES if path.parent.name == "demo")
    demo = examine(path.read_text(encoding="utf-8"), "demo").depot
    assert demo is not None
    first = next(one for one in demo.devices.values() if one.profile == "heidelberg_energy_control")
    devices = {
        f"box-{unit}": replace(first, name=f"box-{unit}", unit_id=unit, settings=dict(pairs), evses=())
        for unit, pairs in enumerate(held, 1)
    }
    document = depot_document(replace(demo, devices=devices, meters={}))
    shared = document["profile_defaults"][first.profile]
    assert shared["circuit"] == first.circuit
    assert not any("circuit" in one for one in document["devices"].values())
    assembly = Assembly(document, load_all(), ())
    assembly.assemble()
    for name, device in devices.items():
        again = assembly.devices[name].settings
        assert [*map(repr, again.items())] == [*map(repr, device.settings.items())]
        assert devices_in(document)[name].get("settings", {}) == device.settings
    if all(pairs == held[0] for pairs in held):
        assert not any("settings" in one for one in document["devices"].values())
