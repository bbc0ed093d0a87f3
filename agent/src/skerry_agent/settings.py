"""Every setting of the agent, declared once: name, default, unit and what it does.

Three places give a value, the later one wins: the configuration file (TOML, usually ``agent.toml``), the environment
(``SKERRY_AGENT_<SECTION>_<NAME>``), and ``--set section.name=value`` on the command line. Relative paths in a file are
relative to the file. Errors name the place and the field. :func:`catalogue` lists all settings, so that a test can
hold the documentation to them.

Secrets (``hub.password``) are never printed: :func:`redacted` is what status and logs show.
"""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from skerry_agent.rules.download import DownloadSettings
from skerry_agent.rules.health import HealthSettings
from skerry_agent.rules.lifecycle import LifecycleSettings
from skerry_agent.rules.settings import BrainSettings
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import topics
from skerry_modules.errors import InputError

ENV_PREFIX: Final = "SKERRY_AGENT_"


def _meta(help_text: str, unit: str = "", *, gt: float | None = None, ge: float | None = None) -> Meta:
    limits: dict[str, Any] = {name: value for name, value in (("gt", gt), ("ge", ge)) if value is not None}
    return Meta(description=help_text, extra={"unit": unit}, **limits)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Device(_Section, frozen=True, kw_only=True):
    """Who this device is."""

    id: Annotated[str, _meta("The device's id, as the hub registered it; also its MQTT user name and client id.")]
    profile: Annotated[str, _meta("The firmware profile (device class) that says what the device can run.")]


class Hub(_Section, frozen=True, kw_only=True):
    """The link to the hub. Without a broker the agent runs alone, for ever, from what it has."""

    broker: Annotated[str, _meta("mqtt://host[:port] or mqtts://host[:port]; empty: no hub.")] = ""
    username: Annotated[str, _meta("MQTT user name; empty: the device's id.")] = ""
    password: Annotated[str, _meta("MQTT password.")] = ""
    key: Annotated[str, _meta("The hub's public key (ed25519:…), which signs desired documents.")] = ""
    publishers: Annotated[tuple[str, ...], _meta("Public keys (ed25519:…) whose modules this device runs.")] = ()
    protocol: Annotated[Literal["3.1.1", "5"], _meta("The MQTT version to speak; nothing depends on 5.")] = "3.1.1"
    ca: Annotated[str, _meta("File with the certificates that mqtts trusts; empty: the system's.")] = ""
    certificate: Annotated[str, _meta("The device's certificate for mqtts, where the broker asks for one.")] = ""
    certificate_key: Annotated[str, _meta("The private key of that certificate.")] = ""
    keepalive_s: Annotated[int, _meta("MQTT keep-alive.", "s", ge=5)] = 30
    connect_timeout_s: Annotated[float, _meta("How long one attempt to connect may take.", "s", gt=0)] = 10.0
    retry_min_s: Annotated[
        float,
        _meta(
            "The first pauses after a loss are random up to this, or to more if the hub says that its fleet is large; "
            "later ones up to how long the outage has lasted.",
            "s",
            gt=0,
        ),
    ] = 1.0
    retry_max_s: Annotated[
        float, _meta("Longest pause before another attempt; the pause is random up to it (full jitter).", "s", gt=0)
    ] = 60.0
    stall_s: Annotated[float, _meta("The link's thread is replaced when it is silent for so long.", "s", gt=0)] = 45.0
    backlog_mb: Annotated[
        int, _meta("Chunks that may wait for the disk; more are dropped and asked for again.", "MB", ge=1)
    ] = 16


class State(_Section, frozen=True, kw_only=True):
    """Where the agent keeps what must outlive it."""

    folder: Annotated[str, _meta("The state folder; one agent per folder.")] = "/var/lib/skerry"
    sync_chunks: Annotated[
        int, _meta("Chunks of a download between two flushes to disk; a power cut loses at most these.", "chunks", ge=1)
    ] = 16


class Reporting(_Section, frozen=True, kw_only=True):
    """What the device tells the hub, and how often."""

    telemetry_s: Annotated[float, _meta("Length of a telemetry window.", "s", gt=0)] = 10.0
    health_s: Annotated[float, _meta("Time between two health reports.", "s", gt=0)] = 30.0
    traffic_s: Annotated[float, _meta("How often the soak looks at live traffic.", "s", gt=0)] = 1.0
    repeat_s: Annotated[float, _meta("Equal events within this time are counted, not repeated.", "s", ge=0)] = 60.0
    journal: Annotated[int, _meta("Events that `skerry-agent events` can look back on.", "events", ge=0)] = 500


class Spool(_Section, frozen=True, kw_only=True):
    """What waits for the hub's acknowledgement."""

    budget_mb: Annotated[int, _meta("Bytes on disk for all that waits; the least urgent goes first.", "MB", ge=1)] = 64
    window: Annotated[int, _meta("Messages that may be on their way unacknowledged.", "messages", ge=1)] = 64
    window_kb: Annotated[int, _meta("Bytes that may be on their way unacknowledged.", "kB", ge=1)] = 1024
    resend_s: Annotated[float, _meta("Silence of the hub after which all is sent again.", "s", gt=0)] = 15.0
    gather_s: Annotated[
        float, _meta("Samples and metrics are gathered so long before one durable write.", "s", ge=0)
    ] = 0.5


class Batch(_Section, frozen=True, kw_only=True):
    """Batch jobs that the hub gives to this device."""

    inputs: Annotated[
        tuple[str, ...],
        _meta("Folders whose files the hub may have scored, besides `inputs` in the state folder; no others."),
    ] = ()
    budget_mb: Annotated[int, _meta("Inputs and results of batch jobs that may stand on the disk.", "MB", ge=1)] = 512
    report_s: Annotated[float, _meta("How often the hub hears how far a part is.", "s", gt=0)] = 5.0


class SourceSettings(_Section, frozen=True, kw_only=True):
    """One source of inputs: a dataset replay, a watched folder, or an MQTT topic."""

    kind: Annotated[Literal["replay", "folder", "mqtt"], _meta("replay, folder or mqtt.")]
    name: Annotated[str, _meta("The source's name in status and events; empty: its kind and endpoint.")] = ""
    module: Annotated[str, _meta("The module that scores; the same as endpoint.")] = ""
    endpoint: Annotated[str, _meta("The endpoint that scores; empty: the module's name.")] = ""
    path: Annotated[str, _meta("replay: an .npz of named arrays. folder: the folder to watch.")] = ""
    rate: Annotated[float, _meta("replay: rows per second; 0: as fast as they are scored.", "1/s", ge=0)] = 10.0
    batch: Annotated[int, _meta("replay: rows per request.", "rows", ge=1)] = 1
    loop: Annotated[bool, _meta("replay: start again at the end.")] = True
    every_s: Annotated[float, _meta("folder: time between two looks.", "s", gt=0)] = 1.0
    keep_files: Annotated[int, _meta("folder: scored files kept in done/, the newest; 0 deletes them.", ge=0)] = 1000
    max_file_mb: Annotated[int, _meta("folder and mqtt: larger inputs are refused.", "MB", ge=1)] = 16
    broker: Annotated[str, _meta("mqtt: the broker of the sensors; empty: the hub's broker.")] = ""
    username: Annotated[str, _meta("mqtt: user name at that broker.")] = ""
    password: Annotated[str, _meta("mqtt: password at that broker.")] = ""
    topic: Annotated[str, _meta("mqtt: the topic filter to listen to.")] = ""
    input: Annotated[str, _meta("mqtt with raw payloads: the input's name.")] = ""
    datatype: Annotated[str, _meta("mqtt with raw payloads: datatype of the little-endian values; empty: JSON.")] = ""
    shape: Annotated[tuple[int, ...], _meta("mqtt with raw payloads: the tensor's shape.")] = ()
    results_topic: Annotated[str, _meta("mqtt: where outputs are published as JSON; empty: nowhere.")] = ""
    results_file: Annotated[str, _meta("A file that gets one JSON line per scored input; empty: none.")] = ""
    results_mb: Annotated[int, _meta("The results file starts anew (the last one kept) at this size.", "MB", ge=1)] = 16

    @property
    def target(self) -> str:
        """The endpoint to score on."""
        return self.endpoint or self.module

    @property
    def label(self) -> str:
        return self.name or f"{self.kind}:{self.target}"


class Settings(_Section, frozen=True, kw_only=True):
    """The whole configuration."""

    device: Device
    hub: Hub = Hub()
    state: State = State()
    serving: ServingSettings = ServingSettings()
    reporting: Reporting = Reporting()
    spool: Spool = Spool()
    batch: Batch = Batch()
    rules: BrainSettings = BrainSettings()
    sources: tuple[SourceSettings, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.state.folder).expanduser()


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "device": Device,
    "hub": Hub,
    "state": State,
    "serving": ServingSettings,
    "reporting": Reporting,
    "spool": Spool,
    "batch": Batch,
    "rules": BrainSettings,
    "rules.lifecycle": LifecycleSettings,
    "rules.download": DownloadSettings,
    "rules.health": HealthSettings,
    "sources": SourceSettings,
}
_PATHS: Final = (("state", "folder"), ("hub", "ca"), ("hub", "certificate"), ("hub", "certificate_key"))
_SOURCE_PATHS: Final = ("path", "results_file")


class Setting(msgspec.Struct, frozen=True):
    """One line of :func:`catalogue`. ``env`` is empty where no variable can set it (lists of tables)."""

    name: str
    default: Any
    unit: str
    help: str
    env: str


def catalogue() -> list[Setting]:
    """Every setting there is, in the order of the configuration file."""
    found = []
    for section, kind in _SECTIONS.items():
        helps = _helps(kind)
        for name, default in _fields(kind).items():
            repeated = section == "sources"
            full = f"{section}[].{name}" if repeated else f"{section}.{name}"
            unit, text = helps.get(name, ("", ""))
            found.append(Setting(full, default, unit, text, "" if repeated else _variable(section, name)))
    return found


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Default by name (None: required); parts that are sections of their own are left out."""
    return {
        field.name: None if field.default is msgspec.NODEFAULT else field.default
        for field in msgspec.structs.fields(kind)
        if not isinstance(field.default, msgspec.Struct)
    }


def _variable(section: str, name: str) -> str:
    return f"{ENV_PREFIX}{section}_{name}".upper().replace(".", "_")


def _helps(kind: type[msgspec.Struct]) -> dict[str, tuple[str, str]]:
    """(unit, help) of each field: from its annotation, its line in ``Attributes:``, or the comment behind it."""
    found: dict[str, tuple[str, str]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Meta):
                found[name] = ((extra.extra or {}).get("unit", ""), extra.description or "")
    if found:
        return found
    pattern = r"^ +(\w+): (.+)$" if "Attributes:" in (kind.__doc__ or "") else r"^    (\w+): [^#\n]+# (.+)$"
    source = kind.__doc__ if "Attributes:" in (kind.__doc__ or "") else inspect.getsource(kind)
    for name, text in re.findall(pattern, source or "", re.MULTILINE):
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        found[name] = (unit, f"{text[0].upper()}{text[1:]}")
    return found


_UNITS: Final = {"_s": "s", "_bytes": "bytes", "_mb": "MB"}


def load(path: Path | None, *, environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()) -> Settings:
    """Read the configuration.

    Args:
        path: the TOML file, or None for none (then everything comes from ``environ`` and ``overrides``).
        environ: ``SKERRY_AGENT_*`` variables; default: the process's.
        overrides: ``section.name=value`` texts, as ``--set`` takes them.

    Raises:
        InputError: ``settings.invalid``, naming the place (file, variable or flag) and the field.
    """
    document = _read(path) if path else {}
    if path:
        _anchor(document, path.parent)
    places: dict[str, str] = {}
    known = {_variable(section, name): (section, name) for section, kind in _SECTIONS.items() for name in _fields(kind)}
    for variable, value in sorted((os.environ if environ is None else environ).items()):
        if variable.startswith(ENV_PREFIX):
            section, name = known.get(variable, ("", ""))
            _put(document, (section, name), value, f"the environment variable {variable}", places)
    for override in overrides:
        field, equals, value = override.partition("=")
        if not equals:
            raise _invalid("--set", field, "write section.name=value")
        section, _, name = field.strip().rpartition(".")
        _put(document, (section, name), value, f"--set {field.strip()}", places)
    return _convert(document, str(path) if path else "the settings", places)


def _anchor(document: dict[str, Any], folder: Path) -> None:
    """Relative paths in a file are relative to the file: where the agent is started from must not matter."""
    sources = document.get("sources")
    tables = [(document.get(section), name) for section, name in _PATHS]
    tables += [(one, name) for one in (sources if isinstance(sources, list) else ()) for name in _SOURCE_PATHS]
    for table, name in tables:
        if isinstance(table, dict) and isinstance(value := table.get(name), str) and value:
            table[name] = str(folder / Path(value).expanduser())


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "settings.invalid",
            f"cannot read the configuration {path}: {error.strerror}; give the right one with --config",
            file=str(path),
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            "settings.invalid", f"cannot read {path}: it is not TOML: {error}; mend that line", file=str(path)
        ) from error


def _put(document: dict[str, Any], field: tuple[str, str], text: str, place: str, places: dict[str, str]) -> None:
    section, name = field
    kind = _SECTIONS.get(section)
    if section == "sources" or kind is None or name not in _fields(kind):
        raise _invalid(place, f"{section}.{name}".strip("."), _UNKNOWN)
    hint = get_type_hints(kind)[name]
    value: Any = text
    if hint is not str and getattr(hint, "__origin__", None) is not Literal:
        value = _literal(hint, text, place, f"{section}.{name}")
    table = document
    for part in section.split("."):
        table = table.setdefault(part, {})
    table[name] = value
    places[f"{section}.{name}"] = place


_UNKNOWN: Final = "there is no such setting; `skerry-agent settings` lists all"


def _literal(hint: Any, text: str, place: str, field: str) -> Any:
    if getattr(hint, "__origin__", None) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(text.strip(), hint, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(place, field, str(error)) from error


def _convert(document: dict[str, Any], source: str, places: dict[str, str]) -> Settings:
    for section in ("serving", "rules", "rules.lifecycle", "rules.download", "rules.health"):
        table: Any = document
        for part in section.split("."):
            table = table.get(part, {}) if isinstance(table, dict) else {}
        known = {field.name for field in msgspec.structs.fields(_SECTIONS[section])}
        for name in table if isinstance(table, dict) else ():
            if name not in known:  # those structs belong to others, who are lenient
                raise _invalid(source, f"{section}.{name}", _UNKNOWN)
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").lstrip(".")
        if "field `" in problem:
            name = problem.split("`")[1]
            field = f"{field}.{name}" if field else name
        raise _invalid(places.get(field, source), field or "(document)", problem) from error
    _check(settings, source)
    return settings


def _check(settings: Settings, source: str) -> None:
    try:
        topics.check_device_id(settings.device.id)
    except InputError as error:
        raise _invalid(source, "device.id", error.message) from error
    if settings.hub.broker:
        parse_broker(settings.hub.broker, source, "hub.broker")
        if not settings.hub.key:
            raise _invalid(source, "hub.key", "a hub's public key is needed to verify what it asks for")
    if settings.serving.http:
        parse_address(settings.serving.http, source, "serving.http")
    for index, one in enumerate(settings.sources):
        for field, problem in _source_problems(one):
            raise _invalid(source, f"sources[{index}].{field}", problem)


def _source_problems(one: SourceSettings) -> Iterator[tuple[str, str]]:
    if not one.target:
        yield "endpoint", "name the endpoint or the module that scores"
    if one.kind in ("replay", "folder") and not one.path:
        yield "path", f"a {one.kind} source needs one"
    if one.kind == "mqtt":
        if not one.topic:
            yield "topic", "an mqtt source needs a topic filter"
        if one.datatype and not (one.input and one.shape):
            yield "datatype", "raw payloads need input and shape too"


def parse_broker(url: str, source: str = "", field: str = "broker") -> tuple[str, int, bool]:
    """``mqtt[s]://host[:port]`` into (host, port, tls).

    Raises:
        InputError: ``settings.invalid``.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _invalid(source, field, f"{url!r} has no valid port") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise _invalid(source, field, f"{url!r} is not of the form mqtt://host:port or mqtts://host:port")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), tls


def parse_address(text: str, source: str = "", field: str = "http") -> tuple[str, int]:
    """``host:port`` into its parts; ``[::1]:80`` for IPv6.

    Raises:
        InputError: ``settings.invalid``.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _invalid(source, field, f"{text!r} is not of the form host:port")
    return host, int(port)


def _invalid(source: str, field: str, problem: str) -> InputError:
    return InputError(
        "settings.invalid",
        f"cannot use {source}, field {field}: {problem}",
        file=source,
        field=field,
        problem=problem,
    )


def redacted(settings: Settings) -> dict[str, Any]:
    """Plain data without secrets, for status and logs."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for section in (plain["hub"], *plain["sources"]):
        if section["password"]:
            section["password"] = "…"  # noqa: S105 - a mask, no secret
    return plain
