"""``skerry-hub``: serve, migrate, settings, keys. Flags are the settings; their help is declared there."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from skerry_hub.settings import Settings, describe
from skerry_modules.errors import InputError, ResourceError, SkerryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or another (see the help) with one clear line on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return int(options.run(options) or 0)
    except SkerryError as error:
        sys.stderr.write(f"skerry-hub: {error.message} [{error.code}]\n")
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skerry-hub",
        description="The Skerry hub: registry, rollouts, console.",
        epilog="Exit codes: 0 done; 1 the server could not; 2 the call or a setting is wrong.",
    )
    parser.add_argument("--version", action="version", version=f"skerry-hub {version('skerry')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("serve", _serve, "run the hub until Ctrl-C"),
        ("migrate", _migrate, "bring the database's tables up to date, and exit"),
        ("keys", _keys, "print the hub's public key, and the publishers that it accepts"),
        ("settings", _settings, "list every setting with its default and meaning"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        if run is not _serve:
            command.add_argument("--json", action="store_true", help="print JSON, for programs")
        if run is not _settings:
            _add_settings(command, None if run is _serve else _WITHOUT_SERVER)
    return parser


_WITHOUT_SERVER: Final = ("data", "database", "database_busy_s")
"""The settings that matter to what runs beside no server."""


def _add_settings(command: argparse.ArgumentParser, names: Sequence[str] | None) -> None:
    for info in describe():
        if names is not None and info.name not in names:
            continue
        default = f"; default {info.default}" if info.default else ""
        help_text = f"{info.help} [{info.unit}{default}; {info.variable}]".replace("%", "%%")
        kind = type(getattr(Settings, info.name))
        command.add_argument(info.flag, dest=info.name, type=kind, metavar=info.unit.upper(), help=help_text)


def _load(options: argparse.Namespace) -> Settings:
    return Settings.load(**{info.name: getattr(options, info.name, None) for info in describe()})


def _serve(options: argparse.Namespace) -> int:
    from skerry_hub.auth import authenticator
    from skerry_hub.server import Server

    settings = _load(options)
    authenticator(settings)  # refuses an open address without a token, before anything is opened
    with listen(settings.host, settings.port) as listener:
        settings = dataclasses.replace(settings, port=listener.getsockname()[1])
        Server(settings, _announce).serve_until_stopped(listener)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ResourceError: ``resource.port_in_use``.
        InputError: ``settings.invalid``: no such address on this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError("settings.invalid", f"cannot listen on {host}: {error}", setting="host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ResourceError(
                "resource.port_in_use",
                f"cannot listen on {host}:{port}: another program does; stop it, or choose another port with --port",
                host=host,
                port=port,
            ) from error
        raise InputError(
            "settings.invalid", f"cannot listen on {host}:{port}: {error.strerror}", setting="host"
        ) from error
    return listener


def _announce(hub: Any) -> None:
    """Printed once the hub serves: where people go, and what devices connect to."""
    where = hub.address.replace("0.0.0.0", socket.gethostname())  # noqa: S104 - replaced, not listened on
    sys.stdout.write(f"Console   {where}\nAPI       {where}/api/v1\nBroker    {hub.broker.public_url}\n")
    sys.stdout.write(f"Database  {hub.db}\nStop with Ctrl-C.\n")
    sys.stdout.flush()


def _migrate(options: argparse.Namespace) -> int:
    from skerry_hub.db import Database

    settings = _load(options)
    database = Database(settings.database_url, busy_s=settings.database_busy_s)
    try:
        database.migrate()
    finally:
        database.close()
    if options.json:
        sys.stdout.write(json.dumps({"database": str(database), "up_to_date": True}) + "\n")
    else:
        sys.stdout.write(f"The database {database} is up to date.\n")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from skerry_hub import keys
    from skerry_hub.db import Database

    settings = _load(options)
    settings.data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = keys.hub_key(settings.data_folder)
    database = Database(settings.database_url, busy_s=settings.database_busy_s)
    try:
        database.migrate()
        with database.read() as session:
            publishers = [public.text() for public in keys.publishers(session).values()]
    finally:
        database.close()
    if options.json:
        sys.stdout.write(json.dumps({"hub": key.public.text(), "publishers": publishers}) + "\n")
        return 0
    sys.stdout.write(f"hub        {key.public.text()}\n" + "".join(f"publisher  {text}\n" for text in publishers))
    return 0


def _settings(options: argparse.Namespace) -> int:
    rows = describe()
    if options.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        return 0
    for row in rows:
        sys.stdout.write(f"{row.variable}\n    {row.help} [{row.unit}; default {row.default or 'empty'}]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
