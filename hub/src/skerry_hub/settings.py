"""Every setting of the hub, declared once: name, default, unit and help.

A setting comes from, strongest first: a flag of ``skerry-hub serve``, an environment variable ``SKERRY_HUB_<NAME>``,
the default. ``skerry-hub settings`` prints this list, and a test finds each of them in the docs.

Not handled here: settings of the agents (theirs), and what people change while the hub runs (the database).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from skerry_modules.errors import InputError

ENV_PREFIX: Final = "SKERRY_HUB_"


def _setting(default: Any, unit: str, text: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"unit": unit, "help": text, "secret": secret})


def default_data_folder() -> Path:
    """Where a user's services keep their data by the XDG base directory specification."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "skerry-hub"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The hub's settings. Times end in ``_s`` or ``_ms`` and sizes in ``_bytes``; see :func:`describe`."""

    data: str = _setting(
        "", "path", "Folder for keys, objects and the default database; empty: ~/.local/share/skerry-hub"
    )
    database: str = _setting(
        "", "URL", "Database: sqlite:///path or postgresql://…; empty: SQLite in the data folder", secret=True
    )
    host: str = _setting("127.0.0.1", "address", "Address to listen on; one that is not loopback needs a token")
    port: int = _setting(8420, "port", "Port of console and API; 0: any free one")
    token: str = _setting(
        "",
        "text",
        "Tokens that callers must give: name:secret, comma-separated; empty: loopback only, no token",
        secret=True,
    )
    allowed_hosts: str = _setting("", "names", "Further names, comma-separated, that a Host header may hold")
    broker: str = _setting(
        "auto", "URL", "MQTT broker: auto (managed Mosquitto, else embedded), mosquitto, embedded, or mqtt://host:port"
    )
    broker_host: str = _setting("", "address", "Address that the managed broker listens on; empty: as the hub")
    broker_port: int = _setting(18830, "port", "Port that the managed broker listens on; 0: any free one")
    broker_public_url: str = _setting(
        "", "URL", "The broker's address as devices reach it; empty: the one the hub uses"
    )
    broker_username: str = _setting("", "text", "The hub's user name at an external broker")
    broker_password: str = _setting("", "text", "The hub's password at an external broker", secret=True)
    lease_s: float = _setting(
        15.0, "s", "How long a hub holds its database without renewing; it renews three times as often"
    )
    database_busy_s: float = _setting(10.0, "s", "How long a statement waits for another writer of the SQLite database")
    database_pool: int = _setting(10, "count", "Connections kept open to PostgreSQL")
    package_max_bytes: int = _setting(2_000_000_000, "bytes", "Largest package that may be registered")
    package_max_files: int = _setting(10_000, "count", "Most files in one package")
    uploads_max: int = _setting(8, "count", "Packages registered at the same time; further ones wait for their turn")
    upload_idle_s: float = _setting(60.0, "s", "How long an upload may stand still before it is given up")
    body_max_bytes: int = _setting(1_000_000, "bytes", "Largest body of any other request")
    page_size: int = _setting(100, "rows", "Rows of a list when the caller names no limit")
    page_max: int = _setting(1000, "rows", "Most rows of a list in one answer")
    object_grace_s: float = _setting(
        3600.0, "s", "How old an unreferenced object must be before it is collected; looked at as often"
    )
    stream_keepalive_s: float = _setting(15.0, "s", "Silence on the event stream after which a comment is sent")
    streams_max: int = _setting(
        200, "count", "Live connections (open pages of the console, event streams) at once; a further one is told 503"
    )
    shutdown_s: float = _setting(3.0, "s", "How long a stopping hub waits for open requests")
    telemetry_days: float = _setting(30.0, "days", "How long telemetry is kept; 0: for ever")
    health_days: float = _setting(14.0, "days", "How long devices' health is kept; 0: for ever")
    events_days: float = _setting(90.0, "days", "How long events are kept; 0: for ever")
    batches_days: float = _setting(30.0, "days", "How long batch jobs and their results are kept; 0: for ever")
    batch_lease_s: float = _setting(
        120.0, "s", "A device that says nothing for so long loses its part of a batch job to another"
    )
    batch_hub_jobs: int = _setting(1, "jobs", "Batch jobs that the hub itself scores at the same time; others wait")
    batch_result_max_bytes: int = _setting(2_000_000_000, "bytes", "Largest result of one part of a batch job")
    reconnects_per_s: float = _setting(
        500.0,
        "1/s",
        "Devices that may come back in one second after the broker was away; they are told how long to spread it",
    )
    device_offline_s: float = _setting(300.0, "s", "A device that said nothing for so long counts as offline")
    samples_every_s: float = _setting(60.0, "s", "How often captured samples are looked at to be written as Parquet")
    samples_min_rows: int = _setting(200, "rows", "Samples of a version and day that are written at once; fewer wait …")
    samples_max_age_s: float = _setting(300.0, "s", "… but no sample waits longer than this")

    def __post_init__(self) -> None:
        for name in ("port", "broker_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise _invalid(name, getattr(self, name), "use 0 to 65535")
        for info in dataclasses.fields(self):
            value = getattr(self, info.name)
            if isinstance(value, int | float) and not info.name.endswith("port"):
                if info.name.endswith("_days") and value < 0:
                    raise _invalid(info.name, value, "it must be 0 or more")
                if not info.name.endswith("_days") and not value > 0:
                    raise _invalid(info.name, value, "it must be above 0")
        if self.page_size > self.page_max:
            raise _invalid("page_size", self.page_size, f"it must be at most page_max ({self.page_max})")

    @property
    def data_folder(self) -> Path:
        return Path(self.data).expanduser() if self.data else default_data_folder()

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{(self.data_folder / 'hub.db').absolute()}"

    @property
    def loopback(self) -> bool:
        """Whether the hub listens where only this machine can reach it."""
        return is_loopback(self.host)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, /, **flags: Any) -> Settings:
        """Settings from the environment, overridden by flags that are not None.

        Raises:
            InputError: ``settings.invalid`` names the variable or flag that cannot be used.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for info in dataclasses.fields(cls):
            raw = environ.get(ENV_PREFIX + info.name.upper())
            if raw is not None:
                values[info.name] = _convert(info.name, raw, type(info.default))
        values.update({name: value for name, value in flags.items() if value is not None})
        known = {info.name for info in dataclasses.fields(cls)}
        if unknown := sorted(
            name for name in environ if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].lower() not in known
        ):
            raise InputError(
                "settings.invalid",
                f"cannot use the variable {unknown[0]}: no setting has this name; see `skerry-hub settings`",
                setting=unknown[0],
            )
        return cls(**values)


@dataclass(frozen=True)
class SettingInfo:
    """One setting, for ``skerry-hub settings`` and the docs."""

    name: str
    variable: str
    flag: str
    default: str
    unit: str
    help: str
    secret: bool


def describe() -> list[SettingInfo]:
    """Every setting in the order of declaration."""
    return [
        SettingInfo(
            name=info.name,
            variable=ENV_PREFIX + info.name.upper(),
            flag="--" + info.name.replace("_", "-"),
            default=str(info.default),
            unit=info.metadata["unit"],
            help=info.metadata["help"],
            secret=info.metadata["secret"],
        )
        for info in dataclasses.fields(Settings)
    ]


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _convert(name: str, raw: str, kind: type[Any]) -> Any:
    try:
        return kind(raw)
    except ValueError as error:
        raise _invalid(name, raw, f"it must be of type {kind.__name__}") from error


def _invalid(name: str, value: Any, rule: str) -> InputError:
    return InputError("settings.invalid", f"cannot use {value!r} for the setting {name}: {rule}", setting=name)
