# SPDX-License-Identifier: Apache-2.0
"""agent.conf and limits.conf: what they may say, what each mistake is called, and how they fit the depot file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from derms_agent import settings
from derms_agent.control import demand, droop, thermal
from derms_agent.model import Depot
from derms_agent.profiles.profile import Profile
from derms_agent.settings import (
    AgentConf,
    Broker,
    LimitsConf,
    Mistake,
    Mistakes,
    load,
    read_agent_conf,
    read_limits_conf,
    reference,
    render,
)

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "inventories" / "demo" / "depot.yml"
FULL_AGENT_CONF = """\
# Written by hand.
GATEWAY=gateway-1

  DEPOT = "/srv/derms/depot.yml"
VTN_URL=https://vtn.example:8443/OpenADR2/Simple/2.0b
CLIENT_ID="ven 7 #3"
CERT_PATH=/etc/derms/certs/ven.pem
KEY_PATH=/etc/derms/certs/ven.key
CA_PATH=/etc/derms/certs/ca.pem
TLS_MINIMUM=1.2
XML_SIGNATURES=require
MQTT_URL=mqtts://broker.example
TELEMETRY_URL=postgresql://historian@db.example/derms
CONTROL_PEERS=root, derms-web
LED_RED=/sys/class/leds/gateway:red:status
ENGINE_LOG=/var/log/derms/other.log
STATE_DIRECTORY=/srv/derms/state
SOCKET=/run/derms/other.sock
"""


def agent_mistakes(text: str) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        read_agent_conf(text, "agent.conf")
    assert str(caught.value).split("\n") == [str(mistake) for mistake in caught.value.mistakes]
    return str(caught.value).split("\n")


def limits_mistakes(text: str) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        read_limits_conf(text, "limits.conf")
    return str(caught.value).split("\n")


def test_every_key_of_agent_conf_is_read() -> None:
    assert read_agent_conf(FULL_AGENT_CONF, "agent.conf") == AgentConf(
        gateway="gateway-1",
        depot_path=Path("/srv/derms/depot.yml"),
        vtn_url="https://vtn.example:8443/OpenADR2/Simple/2.0b",
        client_id="ven 7 #3",
        cert_path=Path("/etc/derms/certs/ven.pem"),
        key_path=Path("/etc/derms/certs/ven.key"),
        ca_path=Path("/etc/derms/certs/ca.pem"),
        tls_minimum="1.2",
        xml_signatures="require",
        mqtt=Broker("broker.example", 8883, tls=True),
        telemetry_url="postgresql://historian@db.example/derms",
        control_peers=("root", "derms-web"),
        led_red=Path("/sys/class/leds/gateway:red:status"),
        engine_log=Path("/var/log/derms/other.log"),
        state_directory=Path("/srv/derms/state"),
        socket=Path("/run/derms/other.sock"),
    )


def test_limits_are_in_w_and_va() -> None:
    text = (
        "SITE_LIMIT_KVA=160.1\nDEFAULT_LIMIT_KW=0.1\nSOC_RESERVE_PERCENT=30\nDEMAND_CAP_KW=90\nDEMAND_WINDOWS=aligned\n"
    )
    assert read_limits_conf(text, "limits.conf") == LimitsConf(
        site_limit_va=160_100.0,
        default_limit_w=100.0,
        soc_reserve_percent=30.0,
        demand_cap_w=90_000.0,
        demand_windows="aligned",
    )
    assert read_limits_conf("DROOP=on\r\nNOMINAL_HZ=60\r\n", "limits.conf") == LimitsConf(droop=True, nominal_hz=60.0)
    assert read_limits_conf("", "limits.conf") == LimitsConf()


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("DROOP_K=5", 'limits.conf:1: DROOP_K: found "5", expected a number from 0.02 to 0.05'),
        ("DROOP_RESPONSE_S=0.1", 'limits.conf:1: DROOP_RESPONSE_S: found "0.1", expected a number from 0.2 to 10 s'),
        ("RAMP_KW_PER_S=0", 'limits.conf:1: RAMP_KW_PER_S: found "0", expected a number of kW/s, 0.01 or more'),
        ("DROOP=true", 'limits.conf:1: DROOP: found "true", expected on or off'),
        ("NOMINAL_HZ=50.0", 'limits.conf:1: NOMINAL_HZ: found "50.0", expected 50 or 60'),
        ("SITE_LIMIT_KVA=0", 'limits.conf:1: SITE_LIMIT_KVA: found "0", expected a number of kVA above 0'),
        ("DEMAND_CAP_KW=1e3", 'limits.conf:1: DEMAND_CAP_KW: found "1e3", expected a number of kW, 0 or more'),
        ("DEMAND_CAP_KW=nan", 'limits.conf:1: DEMAND_CAP_KW: found "nan", expected a number of kW, 0 or more'),
        ("DEMAND_CAP_KW=-1", 'limits.conf:1: DEMAND_CAP_KW: found "-1", expected a number of kW, 0 or more'),
        ("DROOP_K", 'limits.conf:1: found "DROOP_K", expected KEY=VALUE, a blank line, or # and a comment'),
        ("DROOP_K=", "limits.conf:1: DROOP_K: found no value, expected a value, or no such line"),
        ('DROOP_K=""', "limits.conf:1: DROOP_K: found no value, expected a value, or no such line"),
        (
            'DROOP_K="0.05',
            'limits.conf:1: DROOP_K: found ""0.05", expected double quotes around the whole value and none inside, ',
        ),
        (
            "DROOP_K=0.05 # steep",
            'limits.conf:1: DROOP_K: found "0.05 # steep", expected a comment on a line of its own, or double quotes',
        ),
        (
            "DROOP_K=0.\x1b[2J05",
            r'limits.conf:1: DROOP_K: found "0.\x1b[2J05", expected a value without control characters',
        ),
        (
            "\nDROOP_K=0.05\nDROOP_K=0.04",
            "limits.conf:3: DROOP_K: found it again after line 2, expected each key once",
        ),
        (
            "DROP_K=0.05",
            "limits.conf:1: DROP_K: found an unknown key, expected a key of limits.conf: the nearest is DROOP_K",
        ),
        ("MQTT_URL=mqtt://a", "limits.conf:1: MQTT_URL: found an unknown key, expected it in agent.conf"),
        (
            "THERMAL_BATTERY_CUTOFF_C=40",
            'limits.conf:1: THERMAL_BATTERY_CUTOFF_C: found "40", expected a number of °C above 40.5 and below 200, ',
        ),
        ("THERMAL_CHARGER_CUTOFF_C=450", "limits.conf:1: THERMAL_CHARGER_CUTOFF_C: found"),
    ],
)
def test_a_mistake_in_limits_conf_says_where_and_what(line: str, mistake: str) -> None:
    (found,) = limits_mistakes(line)
    assert found.startswith(mistake)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("VTN_URL=http://vtn.example", '"http://vtn.example"'),
        ("VTN_URL=https://", '"https://"'),
        ("VTN_URL=https://[::1", '"https://[::1"'),
        ("VTN_URL=https://vtn.example:99999", '"https://vtn.example:99999"'),
        ("MQTT_URL=tcp://broker", '"tcp://broker"'),
        ("MQTT_URL=mqtt://broker/topic", '"mqtt://broker/topic"'),
        ("MQTT_URL=mqtt://broker:0", '"mqtt://broker:0"'),
        ("MQTT_URL=mqtt://me:secret@broker", "a URL with a password, which is not shown"),
        ("TELEMETRY_URL=postgresql://me:sec ret@db", "a URL with a password, which is not shown"),
        ("TELEMETRY_URL=influx://db", '"influx://db"'),
        ("TELEMETRY_URL=https:///db", '"https:///db"'),
        ("TELEMETRY_URL=sqlite://db", '"sqlite://db"'),
        ("CA_PATH=certs/ca.pem", '"certs/ca.pem"'),
        ("CA_PATH=/etc/../root", '"/etc/../root"'),
        ("TLS_MINIMUM=1.1", '"1.1"'),
        ("XML_SIGNATURES=yes", '"yes"'),
        ("CONTROL_PEERS=root,", '"root,"'),
        ("CONTROL_PEERS=root,root", '"root,root"'),
        ("CONTROL_PEERS=0", '"0"'),
        (f"SOCKET=/{'s' * 107}", f'"/{"s" * 59}…"'),
        ("CERT_PATH=/a", "it without KEY_PATH"),
        ("KEY_PATH=/a", "it without CERT_PATH"),
        ("LED_GREEN=/l/a\nLED_RED=/l/a", '"/l/a"'),
    ],
)
def test_a_mistake_in_agent_conf_says_what_was_found(line: str, found: str) -> None:
    (mistake,) = agent_mistakes(f"GATEWAY=gateway-1\n{line}\n")
    key = line.partition("=")[0]
    assert re.match(rf"agent.conf:2: {key}: found {re.escape(found)}, expected .+", mistake)


def test_sqlite_is_named_by_its_path() -> None:
    conf = read_agent_conf("GATEWAY=g\nTELEMETRY_URL=sqlite:///var/lib/t.db\n", "agent.conf")
    assert conf.telemetry_url == "sqlite:///var/lib/t.db"


def test_what_is_required_is_missed_once_and_all_mistakes_are_told() -> None:
    assert agent_mistakes("TLS_MINIMUM=2\nGATEWAYS=a\n\nfoo\n") == [
        "agent.conf: GATEWAY: found no such line, expected GATEWAY=…: this host's name among the depot file's gateways",
        'agent.conf:1: TLS_MINIMUM: found "2", expected 1.2 or 1.3',
        "agent.conf:2: GATEWAYS: found an unknown key, expected a key of agent.conf: the nearest is GATEWAY",
        'agent.conf:4: found "foo", expected KEY=VALUE, a blank line, or # and a comment',
    ]
    assert agent_mistakes("GATEWAY=") == ["agent.conf:1: GATEWAY: found no value, expected a value, or no such line"]


# --- properties -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, blacklist_characters='"'), min_size=1, max_size=40)
PRINTABLE = TEXT.filter(str.isprintable)
PATH = (
    st.from_regex(r"/[a-z0-9 #=:.]{1,30}(/[a-z0-9#]{1,9})?", fullmatch=True)
    .map(Path)
    .filter(lambda path: ".." not in path.parts)
)
HOST = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)
BROKER = st.builds(Broker, st.one_of(HOST, st.just("fd42::1")), st.integers(1, 65535), st.booleans())
OWN = {
    "gateway": PRINTABLE,
    "client_id": PRINTABLE,
    "ven_name": PRINTABLE,
    "vtn_fingerprint": st.from_regex(r"[0-9A-F]{20}|[0-9a-f]{64}|([0-9A-F]{2}:){9}[0-9A-F]{2}", fullmatch=True),
    "vtn_url": HOST.map(lambda host: f"https://{host}/OpenADR2"),
    "push_url": HOST.map(lambda host: f"https://{host}:8443"),
    "telemetry_url": HOST.map(lambda host: f"https://{host}:8086/db"),
    "mqtt": BROKER,
    "tls_minimum": st.sampled_from(("1.2", "1.3")),
    "xml_signatures": st.sampled_from(("none", "sign", "require")),
    "control_peers": st.lists(st.from_regex(r"[a-z_][a-z0-9-]{0,9}", fullmatch=True), min_size=1, unique=True).map(
        tuple
    ),
    "demand_windows": st.sampled_from(("sliding", "aligned")),
    "nominal_hz": st.sampled_from((50.0, 60.0)),
    "site_limit_va": st.floats(1e-300, 1e300),
    "default_limit_w": st.floats(0, 1e300),
    "demand_cap_w": st.floats(0, 1e9),
    "soc_reserve_percent": st.floats(0, 100),
    "droop_deadband_hz": st.floats(0.017, 1),
    "droop_k": st.floats(0.02, 0.05),
    "droop_response_s": st.floats(0.2, 10),
    "ramp_w_per_s": st.floats(10, 1e9),
    "thermal_enclosure_cutoff_c": st.floats(40.5, 200, exclude_min=True, exclude_max=True),
    "thermal_charger_cutoff_c": st.floats(45.5, 200, exclude_min=True, exclude_max=True),
    "thermal_battery_cutoff_c": st.floats(40.5, 200, exclude_min=True, exclude_max=True),
    "thermal_enclosure_required": st.booleans(),
    "thermal_charger_required": st.booleans(),
    "thermal_battery_required": st.booleans(),
    "droop": st.booleans(),
}


def confs(conf: type[Any]) -> st.SearchStrategy[Any]:
    parts = {}
    for one in fields(conf):
        strategy = OWN.get(one.name, PATH)
        parts[one.name] = st.one_of(st.none(), strategy) if one.default is None else strategy
    return st.builds(conf, **parts)


@given(confs(AgentConf))
def test_what_is_rendered_of_an_agent_conf_is_read_again(conf: AgentConf) -> None:
    if conf.cert_path is None or conf.key_path is None:
        conf = replace(conf, cert_path=None, key_path=None)
    if len({conf.led_red, conf.led_amber, conf.led_green}) < 3:
        conf = replace(conf, led_red=None, led_amber=None)
    assert read_agent_conf(render(conf), "agent.conf") == conf


@given(confs(LimitsConf))
def test_what_is_rendered_of_a_limits_conf_is_read_again(conf: LimitsConf) -> None:
    assert read_limits_conf(render(conf), "limits.conf") == conf


KEYS = [key.name for conf in (AgentConf, LimitsConf) for key in settings.keys(conf).values()]
VALUES = st.one_of(st.text(), st.from_regex(r"[a-z]{0,6}:?/{0,3}[^ ]*"), st.from_regex(r"[+-]?[0-9]*\.?[0-9]*"))
LINES = st.one_of(st.text(), st.builds("{}={}".format, st.sampled_from(KEYS), VALUES))


def mistakes_of(read: Callable[[str, str], object], text: str) -> list[str]:
    try:
        read(text, "file.conf")
    except Mistakes as mistakes:
        return list(map(str, mistakes.mistakes)) or [""]
    return []


@given(st.lists(LINES).map("\n".join))
@example("DEMAND_CAP_KW=" + "9" * 1000)
@example("DEMAND_CAP_KW=" + "9" * 100_000)
@example("VTN_URL=https://\u2100.example")
@example("MQTT_URL=mqtt://a:\u0661")
@example("\x00=\x00")
def test_no_text_raises_anything_but_mistakes(text: str) -> None:
    for read in (read_agent_conf, read_limits_conf):
        found = mistakes_of(read, text)
        assert "" not in found
        assert all(map(str.isprintable, found))


def test_the_ranges_are_those_of_control() -> None:
    allowed = droop.ALLOWABLE[droop.Category.III]
    for name, span in (
        ("DROOP_DEADBAND_HZ", allowed.deadband_hz),
        ("DROOP_K", allowed.k),
        ("DROOP_RESPONSE_S", allowed.response_s),
    ):
        read_limits_conf(f"{name}={span.low}\n", "limits.conf")
        read_limits_conf(f"{name}={span.high}\n", "limits.conf")
        for outside in (span.low * 0.999, span.high * 1.001):
            assert len(limits_mistakes(f"{name}={outside:.6f}")) == 1
    default, standard = LimitsConf(), droop.Settings()
    assert default.droop_deadband_hz == standard.deadband_of_hz == standard.deadband_uf_hz
    assert default.droop_k == standard.k_of == standard.k_uf
    assert default.droop_response_s == standard.response_s


@pytest.mark.parametrize("kind", thermal.SensorKind)
def test_a_cut_off_is_taken_where_control_takes_it(kind: thermal.SensorKind) -> None:
    sensor = thermal.DEFAULTS[kind]
    name = f"THERMAL_{kind.name}_CUTOFF_C"
    assert getattr(LimitsConf(), name.lower()) == sensor.cut_off_c
    for tenths in range(300, 600):
        celsius = tenths / 10
        try:
            replace(sensor, cut_off_c=celsius)
        except ValueError:
            assert len(limits_mistakes(f"{name}={celsius}")) == 1
        else:
            read_limits_conf(f"{name}={celsius}", "limits.conf")


def test_the_windows_are_those_of_control() -> None:
    for windows in demand.Windows:
        conf = read_limits_conf(f"DEMAND_WINDOWS={windows.value}", "limits.conf")
        assert demand.Windows(conf.demand_windows) is windows
    assert demand.Cap(cap_w=1).windows is demand.Windows(LimitsConf().demand_windows)


def test_the_keys_are_called_as_agreed() -> None:
    """The names are a contract with roles, manual and people: here they stand apart from the table that makes them."""
    assert " ".join(key.name for key in settings.keys(AgentConf).values()) == (
        "GATEWAY DEPOT VTN_URL CLIENT_ID VEN_NAME VTN_FINGERPRINT PUSH_URL CERT_PATH KEY_PATH CA_PATH TLS_MINIMUM "
        "XML_SIGNATURES MQTT_URL TELEMETRY_URL CONTROL_PEERS "
        "LED_RED LED_AMBER LED_GREEN ENGINE_LOG STATE_DIRECTORY GRID_STATE_DIRECTORY GRID_SOCKET SOCKET"
    )
    assert " ".join(key.name for key in settings.keys(LimitsConf).values()) == (
        "SITE_LIMIT_KVA DEFAULT_LIMIT_KW SOC_RESERVE_PERCENT DEMAND_CAP_KW DEMAND_WINDOWS THERMAL_ENCLOSURE_CUTOFF_C "
        "THERMAL_CHARGER_CUTOFF_C THERMAL_BATTERY_CUTOFF_C THERMAL_ENCLOSURE_REQUIRED "
        "THERMAL_CHARGER_REQUIRED THERMAL_BATTERY_REQUIRED DROOP NOMINAL_HZ DROOP_DEADBAND_HZ DROOP_K DROOP_RESPONSE_S "
        "RAMP_KW_PER_S"
    )


def test_the_documentation_has_the_keys_as_they_are() -> None:
    page = (ROOT / "docs" / "agent-conf.md").read_text(encoding="utf-8")
    for conf in (AgentConf, LimitsConf):
        assert reference(conf) in page, f"docs/agent-conf.md: expected\n{reference(conf)}"


# --- all together -----------------------------------------------------------------------------------------------------


class Files:
    """The three files of a gateway, the depot file being the demo's."""

    def __init__(self, directory: Path) -> None:
        self.agent, self.limits, self.depot = (directory / name for name in ("agent.conf", "limits.conf", "depot.yml"))
        self.depot.write_bytes(DEMO.read_bytes())
        self.agent.write_text(f"DEPOT={self.depot}\nGATEWAY=gateway-1\n", encoding="utf-8")
        self.limits.write_text("", encoding="utf-8")

    def mistakes(self) -> list[Mistake]:
        with pytest.raises(Mistakes) as caught:
            load(self.agent, self.limits)
        return list(caught.value.mistakes)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_without_limits_the_depot_files_hold(files: Files) -> None:
    site = load(files.agent, files.limits).depot.site
    assert (site.limit_va, site.default_limit_w, site.soc_reserve_percent) == (160_000, 40_000, 20)


def test_limits_conf_tightens_what_the_depot_file_says(files: Files) -> None:
    files.limits.write_text("SITE_LIMIT_KVA=100\nDEFAULT_LIMIT_KW=30\nSOC_RESERVE_PERCENT=35\n", encoding="utf-8")
    site = load(files.agent, files.limits).depot.site
    assert (site.limit_va, site.default_limit_w, site.soc_reserve_percent) == (100_000, 30_000, 35)


def test_a_sensor_that_no_profile_shows_cannot_be_required(files: Files) -> None:
    files.limits.write_text("SITE_LIMIT_KVA=100\nTHERMAL_ENCLOSURE_REQUIRED=yes\n", encoding="utf-8")
    with pytest.raises(Mistakes) as raised:
        load(files.agent, files.limits)
    assert str(raised.value) == (
        f'{files.limits}:2: THERMAL_ENCLOSURE_REQUIRED: found "yes", expected no, for no profile of depot demo shows a '
        "temperature of the enclosure: alpitronic_hyc, heidelberg_energy_control, keba_p30"
    )
    files.limits.write_text("THERMAL_ENCLOSURE_REQUIRED=no\nTHERMAL_BATTERY_REQUIRED=yes\n", encoding="utf-8")
    assert load(files.agent, files.limits).limits.thermal_battery_required


@pytest.mark.parametrize(
    ("meter", "has"),
    [
        ("", "no meter there"),
        (
            "  grid: {bus: grid, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: yard}\n",
            "no meter there",
        ),
        ("  grid: {bus: grid, unit_id: 1, profile: sunspec_der, measures: circuit, circuit: main}\n", "sunspec_der"),
    ],
)
def test_a_demand_cap_needs_a_register_that_is_read(files: Files, meter: str, has: str) -> None:
    text = files.depot.read_text(encoding="utf-8")
    line = next(one for one in text.splitlines(keepends=True) if one.startswith("  grid: {bus: grid"))
    files.depot.write_text(
        text.replace(line, meter) if meter else text.replace(f"meters:\n{line}", ""), encoding="utf-8"
    )
    files.limits.write_text("SITE_LIMIT_KVA=100\nDEMAND_CAP_KW=50\n", encoding="utf-8")
    (mistake,) = files.mistakes()
    assert (mistake.file, mistake.line, mistake.key) == (str(files.limits), 2, "DEMAND_CAP_KW")
    assert has in mistake.expected
    assert "circuit main" in mistake.expected
    files.limits.write_text("SITE_LIMIT_KVA=100\n", encoding="utf-8")
    load(files.agent, files.limits)


def test_a_demand_cap_is_not_finer_than_its_register(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.limits.write_text("DEMAND_CAP_KW=4\n", encoding="utf-8")
    of_4_kw = load(files.agent, files.limits)
    assert of_4_kw.limits.demand_cap_w == 4000
    assert "no power until the register of sunspec_meter has risen" in of_4_kw.warnings[-1]
    monkeypatch.setattr(Profile, "step", lambda _self, _name: 1000.0)
    (mistake,) = files.mistakes()
    assert mistake.expected == "more than 4 kW, for sunspec_meter counts in 1 kWh"
    files.limits.write_text("DEMAND_CAP_KW=4.1\n", encoding="utf-8")
    assert load(files.agent, files.limits).limits.demand_cap_w == 4100
    # Each of several trees has but its share of the cap.
    monkeypatch.setattr(Depot, "share_of", lambda _self, _root: 0.5)
    (mistake,) = files.mistakes()
    expected = "more than 8 kW, for sunspec_meter counts in 1 kWh, and circuit main has 50% of the cap"
    assert mistake.expected == expected
    files.limits.write_text("DEMAND_CAP_KW=8.1\n", encoding="utf-8")
    assert load(files.agent, files.limits).limits.demand_cap_w == 8100


def test_who_lacks_a_sensor_that_is_required_is_warned_of(files: Files) -> None:
    before = load(files.agent, files.limits).warnings
    files.limits.write_text("THERMAL_CHARGER_REQUIRED=yes\n", encoding="utf-8")
    (warning,) = (one for one in load(files.agent, files.limits).warnings if one not in before)
    assert warning == (
        f"{files.limits}: THERMAL_CHARGER_REQUIRED: no power at charger-021, charger-022, charger-023, charger-024, "
        "fast-1: the profile shows no temperature of the charger"
    )


def test_a_default_limit_stays_within_a_lowered_site_limit(files: Files) -> None:
    files.limits.write_text("SITE_LIMIT_KVA=25\n", encoding="utf-8")
    assert load(files.agent, files.limits).depot.site.default_limit_w == 25_000


def test_limits_conf_cannot_loosen_what_the_depot_file_says(files: Files) -> None:
    files.limits.write_text("SITE_LIMIT_KVA=160.1\nDEFAULT_LIMIT_KW=41\nSOC_RESERVE_PERCENT=19.9\n", encoding="utf-8")
    rule = "limits.conf can only tighten it"
    assert [(mistake.line, mistake.key, mistake.found, mistake.expected) for mistake in files.mistakes()] == [
        (1, "SITE_LIMIT_KVA", '"160.1"', f"at most 160 kVA, the depot file's site limit: {rule}"),
        (2, "DEFAULT_LIMIT_KW", '"41"', f"at most 40 kW, the depot file's default limit: {rule}"),
        (3, "SOC_RESERVE_PERCENT", '"19.9"', f"at least 20 %, the depot file's reserve: {rule}"),
    ]


def test_a_default_limit_above_the_site_limit_is_a_mistake(files: Files) -> None:
    files.limits.write_text("SITE_LIMIT_KVA=20\nDEFAULT_LIMIT_KW=30\n", encoding="utf-8")
    (mistake,) = files.mistakes()
    assert (mistake.line, mistake.key, mistake.found) == (2, "DEFAULT_LIMIT_KW", '"30"')


def test_the_gateway_is_one_of_the_depot(files: Files) -> None:
    files.agent.write_text(f"DEPOT={files.depot}\nGATEWAY=gatway-1\n", encoding="utf-8")
    (mistake,) = files.mistakes()
    expected = "expected a gateway of depot demo: gateway-1; the nearest is gateway-1"
    assert str(mistake) == f'{files.agent}:2: GATEWAY: found "gatway-1", {expected}'


def test_the_gateway_allocates(files: Files) -> None:
    text = files.depot.read_text(encoding="utf-8").replace("  gateway-1: {}\n", "  gateway-1: {}\n  gateway-2: {}\n")
    files.depot.write_text(text, encoding="utf-8")
    files.agent.write_text(f"DEPOT={files.depot}\nGATEWAY=gateway-2\n", encoding="utf-8")
    mistakes = files.mistakes()
    assert [(mistake.line, mistake.key, mistake.found) for mistake in mistakes] == [(2, "GATEWAY", '"gateway-2"')] * 2
    assert [mistake.expected for mistake in mistakes] == [
        "the allocator of a tree of circuits, as the depot file has it: gateway-1",
        "the gateway of a bus, as the depot file has it: gateway-1",
    ]


def test_the_gateway_has_a_bus(files: Files) -> None:
    """The service would refuse to start without one, as it would without a tree."""
    text = files.depot.read_text(encoding="utf-8").replace("  gateway-1: {}\n", "  gateway-1: {}\n  gateway-2: {}\n")
    files.depot.write_text(text.replace("gateway: gateway-1", "gateway: gateway-2"), encoding="utf-8")
    (mistake,) = files.mistakes()
    assert (mistake.line, mistake.key, mistake.found) == (2, "GATEWAY", '"gateway-1"')
    assert mistake.expected == "the gateway of a bus, as the depot file has it: gateway-2"


def test_mistakes_of_all_files_come_at_once(files: Files) -> None:
    files.agent.write_text(f"DEPOT={files.depot}\n", encoding="utf-8")
    files.limits.write_text("DROOP=x\nSITE_LIMIT_KVA=500\n", encoding="utf-8")
    depot = files.depot.read_text(encoding="utf-8").replace("rating_a: 630", "rating_a: -630")
    files.depot.write_text(depot, encoding="utf-8")
    mistakes = files.mistakes()
    assert [(mistake.file, mistake.key) for mistake in mistakes[:2]] == [
        (str(files.agent), "GATEWAY"),
        (str(files.limits), "DROOP"),
    ]
    assert (mistakes[2].file, mistakes[2].key) == (str(files.depot), "circuits.main.rating_a")
    assert mistakes[2].line is not None


def test_files_that_cannot_be_read_are_mistakes(files: Files) -> None:
    files.agent.unlink()
    files.limits.unlink()
    files.limits.mkdir()
    assert [str(mistake) for mistake in files.mistakes()] == [
        f"{files.agent}: found no such file or directory, expected a file that this user can read",
        f"{files.limits}: found is a directory, expected a file that this user can read",
    ]


def test_a_depot_file_that_is_missing_is_a_mistake(files: Files) -> None:
    files.depot.unlink()
    (mistake,) = files.mistakes()
    assert mistake == Mistake(
        str(files.depot), None, None, "no such file or directory", "a file that this user can read"
    )


def test_bytes_that_are_no_utf_8_are_a_mistake_at_their_line(files: Files) -> None:
    files.limits.write_bytes(b"DROOP=on\n\xff\n")
    assert [str(mistake) for mistake in files.mistakes()] == [
        f"{files.limits}:2: found the byte 0xff, expected a text in UTF-8"
    ]


def test_a_depot_file_can_be_given_in_place_of_the_named_one(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.yml"
    files.depot.rename(other)
    assert load(files.agent, files.limits, other).depot.name == "demo"


def test_only_what_somebody_has_to_mend_keeps_a_service_from_being_started_again(tmp_path: Path) -> None:
    agent, limits, depot = (tmp_path / name for name in ("agent.conf", "limits.conf", "depot.yml"))
    limits.write_text("DROOP_K=5\n", encoding="utf-8")
    statuses = []
    for text in (None, f"GATEWAY=gateway-1\nDEPOT={depot}\n", f"GATEWAY=gateway-1\nDEPOT={DEMO}\n"):
        if text is not None:
            agent.write_text(text, encoding="utf-8")
        with pytest.raises(Mistakes) as found:
            load(agent, limits)
        statuses.append(settings.refusal_status(found.value))
    assert statuses == [1, 1, 78]
    assert settings.refusal_status(ValueError("a host without a name")) == 1


@pytest.mark.parametrize(
    "unit", ["agent/templates/derms-orchestrator.service.j2", "grid_gateway/templates/derms-grid-gateway.service.j2"]
)
def test_the_units_do_not_start_a_service_again_whose_files_are_mistaken(unit: str) -> None:
    lines = (ROOT / "roles" / unit).read_text(encoding="utf-8").splitlines()
    assert f"RestartPreventExitStatus={settings.MISTAKEN}" in lines
    assert "Restart=always" in lines


def test_the_unit_of_control_starts_without_any_of_its_certificates() -> None:
    """For a file that is not there systemd takes what is set under its name, and starts nothing where nothing is."""
    unit = (ROOT / "roles/agent/templates/derms-orchestrator.service.j2").read_text(encoding="utf-8")
    loaded = re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)
    assert re.findall(r"^SetCredential=(\w+):\w", unit, re.MULTILINE) == loaded == ["cert", "key", "ca"]
