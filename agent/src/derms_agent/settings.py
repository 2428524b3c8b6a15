# SPDX-License-Identifier: Apache-2.0
"""agent.conf and limits.conf: what a gateway's agent is told, read and checked before anything runs on it.

Both files are lines of KEY=VALUE, blank lines, and lines that begin with `#`. A value may stand in double quotes. What
each key may hold is said once, at its field of `AgentConf` or `LimitsConf`: reading, writing and the documentation's
tables are made from that. Every mistake is reported, not only the first, each with its file, line and key, what was
found and what was expected.

limits.conf can only tighten what the depot file says, never loosen it; `load` checks this, and that the two files and
the depot file fit together.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from derms_agent import depot as depots
from derms_agent import profiles
from derms_agent.model import Depot, Measures
from derms_agent.one_line import one_line
from derms_agent.profiles.profile import ASSUMED_STEP_WH, CHARGER, ENCLOSURE, Profile, nearest

AGENT_CONF = Path("/etc/derms/agent.conf")
LIMITS_CONF = Path("/etc/derms/limits.conf")
_DEPOT = Path("/etc/derms/depot.yml")
REFUSED, MISTAKEN = 1, os.EX_CONFIG
"""Exit statuses of a service that refuses to start; the second stands in the units' RestartPreventExitStatus=."""

_LONGEST_VALUE = 1024
_LONGEST_SOCKET_PATH = 107  # bytes: sun_path holds 108, the last of them 0 (unix(7))
_SHOWN = 60
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
_COMMENT = re.compile(r"(^|\s)#")
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)
_MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}  # as IANA has them
_TELEMETRY_SCHEMES = ("sqlite", "http", "https", "postgresql")

T = TypeVar("T")
Conf = TypeVar("Conf", "AgentConf", "LimitsConf")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a file, at a line (from 1; None: it is about the file, or about a line that lacks) and key.

    `passing`: it may be well without anybody's doing, as a file that is not there yet.
    """

    file: str
    line: int | None
    key: str | None
    found: str
    expected: str
    passing: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        """Return the mistake as one line that begins with its place."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        key = "" if self.key is None else f"{self.key}: "
        return f"{place}: {key}found {self.found}, expected {self.expected}"


class Mistakes(ValueError):
    """Files that the agent cannot run with. Its text has a line for each mistake, in the order of each file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        found = tuple(mistakes)
        files = [*dict.fromkeys(mistake.file for mistake in found)]
        self.mistakes = tuple(sorted(found, key=lambda mistake: (files.index(mistake.file), mistake.line or 0)))
        super().__init__("\n".join(map(str, self.mistakes)))

    @property
    def lasting(self) -> bool:
        """Whether somebody has to mend it: the same files are refused each time."""
        return not any(mistake.passing for mistake in self.mistakes)


def refusal_status(problem: Exception) -> int:
    """Return the exit status of a service that refuses to start: its unit starts it again, but not for `MISTAKEN`."""
    return MISTAKEN if isinstance(problem, Mistakes) and problem.lasting else REFUSED


def _shown(text: str) -> str:
    """Return a text on one line whatever is in it, cut where it is long."""
    return one_line(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _quoted(text: str) -> str:
    return f'"{_shown(text)}"'


# --- kinds of values --------------------------------------------------------------------------------------------------


class NotOfKind(ValueError):
    """A text that is no value of its kind. `found`: what to show in its stead, where the text holds a secret."""

    def __init__(self, found: str | None = None) -> None:
        super().__init__(found or "")
        self.found = found


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What a key may hold: in words, from a file's text (raises `NotOfKind`), and back into it."""

    expected: str
    parse: Callable[[str], T]
    render: Callable[[T], str] = str


def _shifted(value: Decimal, places: int) -> Decimal:
    sign, digits, exponent = value.as_tuple()
    return Decimal((sign, digits, int(exponent) + places))


def _number(expected: str, admits: Callable[[float], bool], thousands: int = 0) -> Kind[float]:
    """Return the kind of decimal numbers that are admitted; `thousands`: 1 where the file says kW and the field W.

    The point is shifted in decimal, so that 0.1 kW is 100 W to the last bit, and back.
    """

    def parse(text: str) -> float:
        if not _NUMBER.fullmatch(text):
            raise NotOfKind
        written = Decimal(text)
        if not admits(float(written)):
            raise NotOfKind
        value = float(_shifted(written, 3 * thousands))
        if not math.isfinite(value):
            raise NotOfKind
        return value

    def render(value: float) -> str:
        return f"{_shifted(Decimal(repr(float(value))), -3 * thousands).normalize():f}"

    return Kind(expected, parse, render)


def _between(low: float, high: float, unit: str = "") -> Kind[float]:
    return _number(f"a number from {low:g} to {high:g} {unit}".rstrip(), lambda value: low <= value <= high)


def _choice(choices: Mapping[str, T]) -> Kind[T]:
    texts = {value: text for text, value in choices.items()}

    def parse(text: str) -> T:
        if text not in choices:
            raise NotOfKind
        return choices[text]

    return Kind(" or ".join(choices), parse, texts.__getitem__)


def _read_text(text: str) -> str:
    return text


def _read_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise NotOfKind
    return path


def _read_socket(text: str) -> Path:
    path = _read_path(text)
    if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
        raise NotOfKind
    return path


def _read_url(text: str, schemes: Iterable[str]) -> tuple[str, str, int | None]:
    """Return a URL's scheme, host and port. These files are read by every service: a password has no place in them."""
    if ":" in text.rpartition("@")[0].partition("://")[2]:
        raise NotOfKind("a URL with a password, which is not shown")
    if re.search(r"\s", text):
        raise NotOfKind
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise NotOfKind from None
    if parts.scheme not in schemes or port == 0:
        raise NotOfKind
    return parts.scheme, parts.hostname or "", port


def _read_https_url(text: str) -> str:
    _, host, _ = _read_url(text, ("https",))
    if not host or "@" in text:
        raise NotOfKind
    return text


def _read_telemetry_url(text: str) -> str:
    scheme, host, _ = _read_url(text, _TELEMETRY_SCHEMES)
    if bool(host) == (scheme == "sqlite"):
        raise NotOfKind
    return text


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the MQTT broker listens; `tls`: it is spoken to over TLS, with this service's client certificate."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        """Return it as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def _read_broker(text: str) -> Broker:
    scheme, host, port = _read_url(text, _MQTT_PORTS)
    if not host or not re.fullmatch(r"[a-z]+://[^/?#@]+/?", text):
        raise NotOfKind
    return Broker(host, port or _MQTT_PORTS[scheme], scheme == "mqtts")


def _read_fingerprint(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{20}|[0-9A-Fa-f]{64}", text.replace(":", "")):
        raise NotOfKind
    return text


def _read_users(text: str) -> tuple[str, ...]:
    users = tuple(user.strip() for user in text.split(","))
    if len({*users}) < len(users) or not all(map(_USER.fullmatch, users)):
        raise NotOfKind
    return users


_TEXT = Kind("a text", _read_text)
_PATH = Kind("an absolute path without ..", _read_path)
_SOCKET = Kind(f"an absolute path without .., of at most {_LONGEST_SOCKET_PATH} bytes", _read_socket)
_HTTPS = Kind("an https:// URL with a host and without user or password", _read_https_url)
_TELEMETRY = Kind(
    "sqlite:///PATH, or an http://, https:// or postgresql:// URL with a host, without a password", _read_telemetry_url
)
_BROKER = Kind("mqtt://HOST or mqtts://HOST, with :PORT where it is another than 1883 or 8883", _read_broker)
_FINGERPRINT = Kind(
    "a certificate's SHA-256 in hexadecimal digits, whole or its last ten bytes as OpenADR has it, colons or none",
    _read_fingerprint,
)
_USERS = Kind("user names with commas between them, each once", _read_users, ",".join)
_YES_NO = _choice({"yes": True, "no": False})
_ON_OFF = _choice({"on": True, "off": False})

_TLS_VERSIONS: Mapping[str, Literal["1.2", "1.3"]] = {"1.2": "1.2", "1.3": "1.3"}
_TLS = _choice(_TLS_VERSIONS)
_SIGNATURES_TEXTS: Mapping[str, Literal["none", "sign", "require"]] = {
    "none": "none",
    "sign": "sign",
    "require": "require",
}
_SIGNATURES = _choice(_SIGNATURES_TEXTS)
_WINDOWS_TEXTS: Mapping[str, Literal["sliding", "aligned"]] = {"sliding": "sliding", "aligned": "aligned"}
_WINDOWS = _choice(_WINDOWS_TEXTS)
_NOMINAL = _choice({"50": 50.0, "60": 60.0})

_POSITIVE_KVA = _number("a number of kVA above 0", lambda value: value > 0, thousands=1)
_KW = _number("a number of kW, 0 or more", lambda value: value >= 0, thousands=1)
_KW_PER_S = _number("a number of kW/s, 0.01 or more", lambda value: value >= 0.01, thousands=1)  # noqa: PLR2004
_PERCENT = _between(0, 100, "%")
# IEEE 1547-2018, table 24, category III (the deadbands and K are those of all categories or wider).
_DEADBAND = _between(0.017, 1.0, "Hz")
_K = _between(0.02, 0.05)
_RESPONSE = _between(0.2, 10.0, "s")
# Beyond this a reading counts as a broken sensor's, so that a cut-off there would never act (control.thermal).
_HOTTEST_C = 200.0
_DEMAND_H = 0.25


def _cutoff(warmest_air_c: float, reading_off_k: float = 0.5) -> Kind[float]:
    """Return the kind of cut-offs that derating can keep a plant below in the warmest air that control.thermal allows.

    :param reading_off_k: how far a reading may be off, by which the air may be warmer than it looks
    """
    lowest_c = warmest_air_c + reading_off_k
    return _number(
        f"a number of °C above {lowest_c:g} and below {_HOTTEST_C:g}, for the air around it may have {warmest_air_c:g} "
        f"and a reading may be {reading_off_k:g} off: no derating keeps it cooler than that",
        lambda value: lowest_c < value < _HOTTEST_C,
    )


# --- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A line that a file may have. `absent`: what its absence means where no value stands in for it."""

    name: str
    kind: Kind[Any]
    about: str
    absent: str = ""


def _key(name: str, kind: Kind[Any], about: str, absent: str = "") -> Mapping[str, Key]:
    return {"key": Key(name, kind, about, absent)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConf:
    """/etc/derms/agent.conf: who this gateway is, and whom it talks to. A field is None where its line is absent."""

    title: ClassVar[str] = "agent.conf"

    gateway: str = field(metadata=_key("GATEWAY", _TEXT, "this host's name among the depot file's gateways"))
    depot_path: Path = field(default=_DEPOT, metadata=_key("DEPOT", _PATH, "the depot file of this gateway"))
    vtn_url: str | None = field(
        default=None, metadata=_key("VTN_URL", _HTTPS, "the utility's OpenADR server", "no grid events")
    )
    client_id: str | None = field(
        default=None, metadata=_key("CLIENT_ID", _TEXT, "the VEN's id, as the utility gave it", "the VTN gives one")
    )
    ven_name: str | None = field(
        default=None, metadata=_key("VEN_NAME", _TEXT, "the VEN's name, as the utility shows it", "depot file's")
    )
    vtn_fingerprint: str | None = field(
        default=None,
        metadata=_key("VTN_FINGERPRINT", _FINGERPRINT, "the certificate that the VTN must show", "any of CA_PATH's"),
    )
    push_url: str | None = field(
        default=None,
        metadata=_key(
            "PUSH_URL", _HTTPS, "where the VTN reaches this gateway, on a port that it listens on", "it polls"
        ),
    )
    cert_path: Path | None = field(
        default=None, metadata=_key("CERT_PATH", _PATH, "the client certificate; with KEY_PATH", "none is shown")
    )
    key_path: Path | None = field(
        default=None, metadata=_key("KEY_PATH", _PATH, "its private key; with CERT_PATH", "none is shown")
    )
    ca_path: Path | None = field(
        default=None, metadata=_key("CA_PATH", _PATH, "the authorities that peers are verified by", "the system's")
    )
    tls_minimum: Literal["1.2", "1.3"] = field(
        default="1.3", metadata=_key("TLS_MINIMUM", _TLS, "the oldest TLS that the VTN is spoken to with")
    )
    xml_signatures: Literal["none", "sign", "require"] = field(
        default="none",
        metadata=_key(
            "XML_SIGNATURES", _SIGNATURES, "sign: what the VTN is sent is signed; require: what it sends has to be, too"
        ),
    )
    mqtt: Broker | None = field(default=None, metadata=_key("MQTT_URL", _BROKER, "the MQTT broker", "no broker"))
    telemetry_url: str | None = field(
        default=None,
        metadata=_key("TELEMETRY_URL", _TELEMETRY, "where the historian stores telemetry", "the historian's own file"),
    )
    control_peers: tuple[str, ...] = field(
        default=("root", "derms-grid-gateway"),
        metadata=_key("CONTROL_PEERS", _USERS, "users who may change something through the socket"),
    )
    led_red: Path | None = field(
        default=None, metadata=_key("LED_RED", _PATH, "the red LED, as /sys/class/leds/NAME", "no such LED")
    )
    led_amber: Path | None = field(
        default=None, metadata=_key("LED_AMBER", _PATH, "the amber LED, as /sys/class/leds/NAME", "no such LED")
    )
    led_green: Path | None = field(
        default=None, metadata=_key("LED_GREEN", _PATH, "the green LED, as /sys/class/leds/NAME", "no such LED")
    )
    engine_log: Path = field(
        default=Path("/var/log/derms/engine.log"), metadata=_key("ENGINE_LOG", _PATH, "the log, one line an entry")
    )
    state_directory: Path = field(
        default=Path("/var/lib/derms/orchestrator"),
        metadata=_key("STATE_DIRECTORY", _PATH, "where ledger, sessions and limits are kept"),
    )
    grid_state_directory: Path = field(
        default=Path("/var/lib/derms/grid-gateway"),
        metadata=_key("GRID_STATE_DIRECTORY", _PATH, "where the grid gateway keeps events and reports"),
    )
    grid_socket: Path = field(
        default=Path("/run/derms/grid-gateway/ven.sock"),
        metadata=_key("GRID_SOCKET", _SOCKET, "where the grid gateway listens"),
    )
    socket: Path = field(
        default=Path("/run/derms/orchestrator.sock"), metadata=_key("SOCKET", _SOCKET, "where the orchestrator listens")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConf:
    """/etc/derms/limits.conf: limits of power, charge, temperature. A field is None where its line is absent."""

    title: ClassVar[str] = "limits.conf"

    site_limit_va: float | None = field(
        default=None,
        metadata=_key(
            "SITE_LIMIT_KVA", _POSITIVE_KVA, "the most that the site may draw; at most the depot file's", "depot file's"
        ),
    )
    default_limit_w: float | None = field(
        default=None,
        metadata=_key(
            "DEFAULT_LIMIT_KW",
            _KW,
            "holds while the grid's link is lost and its last event is over; at most the depot file's",
            "depot file's",
        ),
    )
    soc_reserve_percent: float | None = field(
        default=None,
        metadata=_key(
            "SOC_RESERVE_PERCENT",
            _PERCENT,
            "at or below it, and while it is unknown, no battery is discharged; at least the depot file's",
            "depot file's, there 20",
        ),
    )
    demand_cap_w: float | None = field(
        default=None,
        metadata=_key("DEMAND_CAP_KW", _KW, "what the 15-minute mean of the site's power may reach", "no cap"),
    )
    demand_windows: Literal["sliding", "aligned"] = field(
        default="sliding",
        metadata=_key(
            "DEMAND_WINDOWS",
            _WINDOWS,
            "the tariff's 15 minutes: any, or the clock's quarters; both for 15 minutes after that clock was set",
        ),
    )
    thermal_enclosure_cutoff_c: float = field(
        default=45.0,
        metadata=_key("THERMAL_ENCLOSURE_CUTOFF_C", _cutoff(40), "the enclosure's temperature with no power left"),
    )
    thermal_charger_cutoff_c: float = field(
        default=70.0, metadata=_key("THERMAL_CHARGER_CUTOFF_C", _cutoff(45), "the same of a charger")
    )
    thermal_battery_cutoff_c: float = field(
        default=45.0, metadata=_key("THERMAL_BATTERY_CUTOFF_C", _cutoff(40), "the same of a vehicle's battery")
    )
    thermal_enclosure_required: bool = field(
        default=False,
        metadata=_key("THERMAL_ENCLOSURE_REQUIRED", _YES_NO, "no power at an EVSE whose enclosure's sensor is silent"),
    )
    thermal_charger_required: bool = field(
        default=False, metadata=_key("THERMAL_CHARGER_REQUIRED", _YES_NO, "the same of the charger's own sensor")
    )
    thermal_battery_required: bool = field(
        default=False,
        metadata=_key(
            "THERMAL_BATTERY_REQUIRED",
            _YES_NO,
            "the same of the vehicle's battery, whose temperature session.put tells: once a minute, 150 s at the most",
        ),
    )
    droop: bool = field(
        default=False, metadata=_key("DROOP", _ON_OFF, "consumption follows the frequency, IEEE 1547-2018, 6.5.2.7")
    )
    nominal_hz: float = field(default=50.0, metadata=_key("NOMINAL_HZ", _NOMINAL, "the grid's frequency, Hz"))
    droop_deadband_hz: float = field(
        default=0.036, metadata=_key("DROOP_DEADBAND_HZ", _DEADBAND, "off nominal by this much, nothing is done")
    )
    droop_k: float = field(
        default=0.05, metadata=_key("DROOP_K", _K, "the share of nominal frequency that moves all of the rated power")
    )
    droop_response_s: float = field(
        default=5.0, metadata=_key("DROOP_RESPONSE_S", _RESPONSE, "the time in which 90 % of a step is answered")
    )
    ramp_w_per_s: float | None = field(
        default=None,
        metadata=_key(
            "RAMP_KW_PER_S", _KW_PER_S, "how fast each EVSE's power may rise; it may always fall at once", "at once"
        ),
    )


def _key_of(one: Field[Any]) -> Key:
    key: Key = one.metadata["key"]
    return key


def keys(conf: type[AgentConf] | type[LimitsConf]) -> Mapping[str, Key]:
    """Return every key of a file by its field's name, in the order of the documentation."""
    return {one.name: _key_of(one) for one in fields(conf)}


def _default(one: Field[Any]) -> str:
    """Return, in words, what stands in for a line that is absent."""
    key = _key_of(one)
    if key.absent:
        return key.absent
    return "required" if one.default is MISSING else f"`{key.kind.render(one.default)}`"


def reference(conf: type[AgentConf] | type[LimitsConf]) -> str:
    """Return a file's keys as a table in Markdown."""
    lines = ["| key | value | without it | what |", "| --- | --- | --- | --- |"]
    for one in fields(conf):
        key = _key_of(one)
        lines.append(f"| `{key.name}` | {key.kind.expected} | {_default(one)} | {key.about} |")
    return "\n".join(lines) + "\n"


def render(conf: AgentConf | LimitsConf) -> str:
    """Return a file's text: a line for each field that is not None, values in quotes where they need them."""
    lines = []
    for one in fields(conf):
        key, value = _key_of(one), getattr(conf, one.name)
        if value is not None:
            text = key.kind.render(value)
            lines.append(
                f'{key.name}="{text}"' if text != text.strip() or _COMMENT.search(text) else f"{key.name}={text}"
            )
    return "".join(f"{line}\n" for line in lines)


# --- reading ----------------------------------------------------------------------------------------------------------


def _lines(text: str, file: str) -> Iterator[tuple[int, str, str] | Mistake]:
    """Yield each line's number, key and value, or what is wrong with its form."""
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in stripped.partition("="))
        if not equals or not key:
            yield Mistake(file, number, None, _quoted(stripped), "KEY=VALUE, a blank line, or # and a comment")
        elif problem := _malformed(value):
            yield Mistake(file, number, _shown(key), *problem)
        else:
            yield number, key, value[1:-1] if value.startswith('"') else value


def _malformed(value: str) -> tuple[str, str] | None:
    """Return what was found and expected where a value is not written as one, quotes included."""
    in_quotes = len(value) > 1 and value.startswith('"') and value.endswith('"')
    inner = value[1:-1] if in_quotes else value
    if not inner:
        return "no value", "a value, or no such line"
    if '"' in inner:
        return _quoted(value), "double quotes around the whole value and none inside, or none at all"
    if len(inner) > _LONGEST_VALUE:
        return f"a value of {len(inner)} characters", f"one of at most {_LONGEST_VALUE}"
    if not inner.isprintable():
        return _quoted(value), "a value without control characters"
    if not in_quotes and _COMMENT.search(inner):
        return _quoted(value), "a comment on a line of its own, or double quotes around the value"
    return None


def _unknown(name: str, conf: type[AgentConf] | type[LimitsConf]) -> str:
    """Return what was expected in place of a key that a file does not have."""
    own = [key.name for key in keys(conf).values()]
    other = LimitsConf if conf is AgentConf else AgentConf
    if any(key.name == name for key in keys(other).values()):
        return f"it in {other.title}"
    likely = nearest(name, own)
    return f"a key of {conf.title}: " + (f"the nearest is {likely}" if likely else f"one of {', '.join(own)}")


@dataclass(frozen=True, slots=True)
class _Written:
    """What of a file could be read: its fields' values, the line of each key, and what is wrong with the rest."""

    file: str
    values: Mapping[str, Any]
    line_of: Mapping[str, int]
    mistakes: tuple[Mistake, ...]
    readable: bool = True

    def mistake(self, key: str, found: str, expected: str) -> Mistake:
        return Mistake(self.file, self.line_of.get(key), key, found, expected)


def _written(text: str, file: str, conf: type[AgentConf] | type[LimitsConf]) -> _Written:
    by_name = {key.name: (one, key) for one, key in keys(conf).items()}
    values: dict[str, Any] = {}
    line_of: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for line in _lines(text, file):
        if isinstance(line, Mistake):
            mistakes.append(line)
            if line.key is not None and line.line is not None:
                line_of.setdefault(line.key, line.line)  # the key does not lack as well
            continue
        number, name, value = line
        if name not in by_name:
            mistakes.append(Mistake(file, number, _shown(name), "an unknown key", _unknown(name, conf)))
            continue
        if name in line_of:
            mistakes.append(Mistake(file, number, name, f"it again after line {line_of[name]}", "each key once"))
            continue
        line_of[name] = number
        one, key = by_name[name]
        try:
            values[one] = key.kind.parse(value)
        except NotOfKind as problem:
            mistakes.append(Mistake(file, number, name, problem.found or _quoted(value), key.kind.expected))
    for field_ in fields(conf):
        key = _key_of(field_)
        if field_.default is MISSING and key.name not in line_of:
            mistakes.append(Mistake(file, None, key.name, "no such line", f"{key.name}=…: {key.about}"))
    return _Written(file, values, line_of, tuple(mistakes))


def _sound(written: _Written, conf: type[Conf]) -> Conf:
    """Return the file's content, or raise what is wrong with it."""
    if written.mistakes:
        raise Mistakes(written.mistakes)
    return conf(**written.values)


def _written_agent_conf(text: str, file: str) -> _Written:
    written = _written(text, file, AgentConf)
    return replace(written, mistakes=(*written.mistakes, *_at_odds(written)))


def _at_odds(written: _Written) -> Iterator[Mistake]:
    """Yield what is wrong with lines of agent.conf that are right each by itself."""
    for one, other in (("CERT_PATH", "KEY_PATH"), ("KEY_PATH", "CERT_PATH")):
        if one in written.line_of and other not in written.line_of:
            yield written.mistake(one, f"it without {other}", "both or neither")
    leds: dict[Path, str] = {}
    for colour in ("red", "amber", "green"):
        path, name = written.values.get(f"led_{colour}"), f"LED_{colour.upper()}"
        if path is not None and leds.setdefault(path, name) != name:
            yield written.mistake(name, _quoted(str(path)), f"an LED of its own: {leds[path]} has this one")


def read_agent_conf(text: str, path: str) -> AgentConf:
    """Return what an agent.conf says.

    :param path: what mistakes call the file
    :raises Mistakes: all that is wrong with it
    """
    return _sound(_written_agent_conf(text, path), AgentConf)


def engine_log_of(agent_conf: Path) -> Path:
    """Return which engine.log to write where the configuration as a whole is refused: its own if that can be told."""
    found: Path = _file(agent_conf, _written_agent_conf).values.get("engine_log", AgentConf(gateway="").engine_log)
    return found


def read_limits_conf(text: str, path: str) -> LimitsConf:
    """Return what a limits.conf says; whether it is within the depot file's limits, `load` tells.

    :param path: what mistakes call the file
    :raises Mistakes: all that is wrong with it
    """
    return _sound(_written(text, path, LimitsConf), LimitsConf)


# --- all together -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that a gateway's agent is told, checked together.

    `depot.site` holds the limits in force: the depot file's, or those that limits.conf tightens them to. `warnings` are
    the depot file's, and who lacks a sensor that limits.conf requires.
    """

    agent: AgentConf
    limits: LimitsConf
    depot: Depot
    warnings: tuple[str, ...] = ()


def load(agent_conf_path: Path, limits_conf_path: Path, depot_path: Path | None = None) -> Configuration:
    """Return what the files say.

    :param depot_path: the depot file; None: the one that agent.conf names
    :raises Mistakes: all that is wrong with any of them, or with them together
    """
    agent = _file(agent_conf_path, _written_agent_conf)
    limits = _file(limits_conf_path, lambda text, file: _written(text, file, LimitsConf))
    mistakes = [*agent.mistakes, *limits.mistakes]
    depot: Depot | None = None
    warnings: tuple[str, ...] = ()
    where = depot_path or _depot_of(agent)
    if where is not None:
        try:
            depot, located = depots.read(where)
            warnings = tuple(map(str, located))
        except depots.DepotError as error:
            mistakes += map(_from_depot, error.problems)
        except OSError as error:
            mistakes.append(_unreadable(where, error))
    if depot is not None:
        mistakes += _not_the_depots(agent, depot)
        mistakes += _beyond_the_depot(limits, depot)
        mistakes += _never_shown(limits, depot)
        mistakes += _never_metered(limits, agent.values.get("gateway"), depot)
        warnings += tuple(_shown_by_some(limits, depot))
        warnings += tuple(_coarsely_metered(limits, agent.values.get("gateway"), depot))
    if mistakes or depot is None:
        raise Mistakes(mistakes)
    conf = LimitsConf(**limits.values)
    return Configuration(agent=AgentConf(**agent.values), limits=conf, depot=_tightened(depot, conf), warnings=warnings)


def _file(path: Path, written: Callable[[str, str], _Written]) -> _Written:
    """Return what a file says; one that cannot be read is a mistake and says nothing."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Written(str(path), {}, {}, (_unreadable(path, error),), readable=False)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        mistake = Mistake(str(path), line, None, f"the byte 0x{content[error.start]:02x}", "a text in UTF-8")
        return _Written(str(path), {}, {}, (mistake,), readable=False)
    return written(text, str(path))


def _unreadable(path: Path, error: OSError) -> Mistake:
    found, expected = (error.strerror or str(error)).lower(), "a file that this user can read"
    return Mistake(str(path), None, None, found, expected, passing=True)


def _depot_of(agent: _Written) -> Path | None:
    """Return the depot file that agent.conf names, or by its absence the default; None where that is not known."""
    if "DEPOT" in agent.line_of:
        return agent.values.get("depot_path")
    return _DEPOT if agent.readable else None


def _from_depot(located: depots.Located) -> Mistake:
    problem = located.problem
    hint = f"; the nearest is {problem.nearest}" if problem.nearest else ""
    return Mistake(
        located.file, located.line, ".".join(problem.path) or None, problem.found, f"{problem.expected}{hint}"
    )


def _not_the_depots(agent: _Written, depot: Depot) -> Iterator[Mistake]:
    """Yield what is wrong where this gateway is not one that allocates circuits of the depot and has a bus to do so."""
    gateway = agent.values.get("gateway")
    if gateway is None:
        return
    allocators = {circuit.allocator for circuit in depot.circuits.values() if circuit.allocator is not None}
    if gateway not in depot.gateways:
        likely = nearest(gateway, [*depot.gateways])
        hint = f"; the nearest is {likely}" if likely else ""
        expected = f"a gateway of depot {depot.name}: {', '.join(depot.gateways)}{hint}"
        yield agent.mistake("GATEWAY", _quoted(gateway), expected)
        return
    if gateway not in allocators:
        expected = f"the allocator of a tree of circuits, as the depot file has it: {', '.join(sorted(allocators))}"
        yield agent.mistake("GATEWAY", _quoted(gateway), expected)
    connected = {bus.gateway for bus in depot.buses.values()}
    if gateway not in connected:
        expected = f"the gateway of a bus, as the depot file has it: {', '.join(sorted(connected)) or 'none has one'}"
        yield agent.mistake("GATEWAY", _quoted(gateway), expected)


def _beyond_the_depot(limits: _Written, depot: Depot) -> Iterator[Mistake]:
    """Yield where limits.conf would loosen what the depot file says."""
    site = depot.site
    site_va, default_w, reserve = (
        limits.values.get(name) for name in ("site_limit_va", "default_limit_w", "soc_reserve_percent")
    )
    rule = "limits.conf can only tighten it"
    if site_va is not None and site_va > site.limit_va:
        expected = f"at most {site.limit_va / 1000:g} kVA, the depot file's site limit: {rule}"
        yield limits.mistake("SITE_LIMIT_KVA", f'"{site_va / 1000:g}"', expected)
    if default_w is not None:
        if site.default_limit_w is not None and default_w > site.default_limit_w:
            expected = f"at most {site.default_limit_w / 1000:g} kW, the depot file's default limit: {rule}"
            yield limits.mistake("DEFAULT_LIMIT_KW", f'"{default_w / 1000:g}"', expected)
        elif default_w > (highest := min(site.limit_va, site_va or math.inf)):
            expected = f"at most {highest / 1000:g} kW, for that is the site limit in kVA"
            yield limits.mistake("DEFAULT_LIMIT_KW", f'"{default_w / 1000:g}"', expected)
    if reserve is not None and reserve < site.soc_reserve_percent:
        expected = f"at least {site.soc_reserve_percent:g} %, the depot file's reserve: {rule}"
        yield limits.mistake("SOC_RESERVE_PERCENT", f'"{reserve:g}"', expected)


def _never_metered(limits: _Written, gateway: str | None, depot: Depot) -> Iterator[Mistake]:
    """Yield what is wrong where a demand cap needs a register that nobody reads, or one that is too coarse for it.

    What nobody measures counts for the most that may flow: all of a cap would be used up for good.
    """
    cap_w = limits.values.get("demand_cap_w")
    roots = [one.name for one in depot.circuits.values() if one.parent is None and one.allocator == gateway]
    if cap_w is None or len(roots) != 1:
        return
    profile = _read_by(gateway, roots[0], depot)
    found = f'"{cap_w / 1000:g}"'
    if profile is None or not {"energy", "current_l1"} <= set(profile.poll):
        has = "no meter there" if profile is None else f"profile {profile.name}, which does not"
        expected = (
            f"no cap, or a meter that measures circuit {roots[0]}, on a bus of gateway {gateway}, "
            f"whose profile polls energy and current_l1: there is {has}"
        )
        yield limits.mistake("DEMAND_CAP_KW", found, expected)
        return
    step_wh, share = profile.step("energy"), depot.share_of(roots[0])
    if step_wh is not None and cap_w > 0 and cap_w * share * _DEMAND_H <= step_wh:
        least_kw = step_wh / _DEMAND_H / 1000 / share
        expected = f"more than {least_kw:g} kW, for {profile.name} counts in {step_wh / 1000:g} kWh"
        if share < 1:
            expected += f", and circuit {roots[0]} has {share:.0%} of the cap"
        yield limits.mistake("DEMAND_CAP_KW", found, expected)


def _coarsely_metered(limits: _Written, gateway: str | None, depot: Depot) -> Iterator[str]:
    """Yield where a register whose step nobody tells is taken to be too coarse for a demand cap, until it rises."""
    cap_w = limits.values.get("demand_cap_w")
    roots = [one.name for one in depot.circuits.values() if one.parent is None and one.allocator == gateway]
    if not cap_w or len(roots) != 1:
        return
    profile = _read_by(gateway, roots[0], depot)
    if profile is None or profile.step("energy") is not None:
        return
    share = depot.share_of(roots[0])
    if cap_w * share * _DEMAND_H <= ASSUMED_STEP_WH:
        least_kw = ASSUMED_STEP_WH / _DEMAND_H / 1000 / share
        yield (
            f"{limits.file}: DEMAND_CAP_KW: no power until the register of {profile.name} has risen: "
            f"its step is not known, and up to {least_kw:g} kW one of {ASSUMED_STEP_WH / 1000:g} kWh leaves nothing"
        )


def _read_by(gateway: str | None, root: str, depot: Depot) -> Profile | None:
    """Return the profile of the meter that a gateway reads on a circuit; of several, the last is the one."""
    own = {bus.name for bus in depot.buses.values() if bus.gateway == gateway}
    profile = None
    for meter in depot.meters.values():
        if meter.circuit == root and meter.measures is Measures.CIRCUIT and depot.devices[meter.device].bus in own:
            profile = profiles.load(depot.devices[meter.device].profile)
    return profile


def _lacking(limits: _Written, depot: Depot) -> Iterator[tuple[str, str, tuple[str, ...], bool]]:
    """Yield of each required kind of sensor: its key, what it is of, who does not show it, and whether any does.

    A battery's temperature is no device's: it is told.
    """
    charging = [device for device in depot.devices.values() if device.evses]
    for kind in (ENCLOSURE, CHARGER):
        if limits.values.get(f"thermal_{kind}_required"):
            lack = tuple(one.name for one in charging if kind not in profiles.load(one.profile).temperatures)
            yield f"THERMAL_{kind.upper()}_REQUIRED", kind, lack, len(lack) < len(charging)


def _never_shown(limits: _Written, depot: Depot) -> Iterator[Mistake]:
    """Yield which sensor is required that no device of the depot has: nobody would ever charge."""
    for key, kind, _lack, any_shows in _lacking(limits, depot):
        if not any_shows:
            used = sorted({device.profile for device in depot.devices.values() if device.evses})
            expected = f"no, for no profile of depot {depot.name} shows a temperature of the {kind}: {', '.join(used)}"
            yield limits.mistake(key, '"yes"', expected)


def _shown_by_some(limits: _Written, depot: Depot) -> Iterator[str]:
    """Yield who never charges, for their profiles do not show a sensor that is required."""
    for key, kind, lack, any_shows in _lacking(limits, depot):
        if any_shows and lack:
            yield f"{limits.file}: {key}: no power at {', '.join(lack)}: the profile shows no temperature of the {kind}"


def _tightened(depot: Depot, limits: LimitsConf) -> Depot:
    """Return the depot with the limits in force; its default limit stays within the site's, as in a depot file."""
    site = depot.site
    limit_va = site.limit_va if limits.site_limit_va is None else limits.site_limit_va
    default_w = site.default_limit_w if limits.default_limit_w is None else limits.default_limit_w
    reserve = site.soc_reserve_percent if limits.soc_reserve_percent is None else limits.soc_reserve_percent
    tightened = replace(
        site,
        limit_va=limit_va,
        default_limit_w=None if default_w is None else min(default_w, limit_va),
        soc_reserve_percent=reserve,
    )
    return replace(depot, site=tightened)
