"""``skerry-agent``: run the daemon, and ask the running one.

Exit codes: 0 done; 1 the device or the agent could not (resource), or the answer is bad news; 2 the call or the
configuration is wrong. Errors go to stderr with their code; ``--json`` prints one JSON value to stdout.

Only argparse is imported until a command is known: the commands start fast on small devices.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from skerry_agent.settings import Settings

PLACES: Final = ("agent.toml", "/etc/skerry/agent.toml")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.version:
        return _version()
    if "work" not in options:
        parser.error("name a command; --help lists them")
    from skerry_modules.errors import InputError, SkerryError

    try:
        code: int = options.work(options)
    except SkerryError as error:
        print(f"skerry-agent: {error.message} [{error.code}]", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skerry-agent",
        description="Runs model modules on this device: installs what the hub asks for, proves it, serves it.",
        epilog="The configuration is agent.toml here or /etc/skerry/agent.toml, unless --config names another. "
        "Exit codes: 0 done; 1 the device or the agent could not; 2 the call or the configuration is wrong.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and the engines of this device")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _command(commands, "run", _run, "start the daemon and serve until it is told to stop")
    run.add_argument("--log", default="info", choices=["debug", "info", "warning", "error"], help="what to log")

    status = _command(commands, "status", _status, "what the running agent does: hub, modules, spool, sources, disk")
    status.add_argument("--json", action="store_true", help="everything, as one JSON object")

    _add_score(commands)
    _add_batch(commands)

    events = _command(commands, "events", _events, "the last events of this device, also while the agent is stopped")
    events.add_argument("--limit", type=int, default=30, help="how many (default 30)")
    events.add_argument("--json", action="store_true", help="as a JSON list")

    _add_profile(commands)

    settings = _command(
        commands, "settings", _settings, "every setting: name, default, unit, variable and what it does"
    )
    settings.add_argument("--json", action="store_true", help="as a JSON list")
    return parser


def _add_score(commands: Any) -> None:
    score = _command(commands, "score", _score, "score an input on a module of this device")
    score.add_argument("module", help="the module's or endpoint's name")
    given = score.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="FILE", help=".npz with arrays by input name, .npy, .json or .csv")
    given.add_argument("--data", metavar="JSON", help="an object of nested lists by input name, or a bare nested list")
    score.add_argument("--module-version", type=int, metavar="N", help="a version other than the current one")
    score.add_argument("--url", help="the agent's scoring address; default: from the configuration")
    score.add_argument("--json", action="store_true", help="the answer as it came")


def _add_batch(commands: Any) -> None:
    batch = _command(commands, "batch", _batch, "score a table or a folder on this device, behind live traffic")
    batch.add_argument("module", help="the module's or endpoint's name, or NAME:VERSION")
    batch.add_argument(
        "input", type=Path, help="a .parquet, .csv or .csv.gz, a folder of .npz, .npy and .json, or one of them"
    )
    batch.add_argument("--output", type=Path, required=True, metavar="FILE", help=".parquet, .csv or .jsonl; else new")
    batch.add_argument("--module-version", default="", metavar="N", help="a version other than the current one")
    batch.add_argument("--columns", default="", metavar="A,B", help="the input's columns in order; default: by name")
    batch.add_argument("--keep", default="", metavar="A,B", help="columns that go beside the scores, as an id")
    batch.add_argument("--part-rows", type=int, default=2000, help="rows that are kept at once (default 2000)")
    batch.add_argument("--rows", type=int, default=1024, help="rows of one request at most (default 1024)")
    batch.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one request (default 60 s)")
    batch.add_argument("--patience", type=float, default=300.0, metavar="S", help="without any answer (default 300 s)")
    batch.add_argument("--restart", action="store_true", help="begin anew, whatever is done or written")
    batch.add_argument("--url", help="the agent's scoring address; default: from the configuration")
    batch.add_argument(
        "--module-folder", type=Path, metavar="FOLDER", help="score by the module in this folder; no agent is asked"
    )
    batch.add_argument("--header", choices=["yes", "no"], help="whether a CSV's first line names the columns")
    batch.add_argument("--json", action="store_true", help="the summary as one JSON object")
    # For the agent and the hub, which run this command as a child.
    batch.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    batch.add_argument("--child-of", type=int, default=0, help=argparse.SUPPRESS)
    batch.add_argument("--built", type=Path, help=argparse.SUPPRESS)


def _add_profile(commands: Any) -> None:
    profile = _command(commands, "profile", _profile, "measure what a module's folder costs on this machine")
    profile.add_argument("folder", type=Path, help="the module's folder, with its module.toml")
    profile.add_argument("--engines", default="", metavar="A,B", help="default: all that can load the model")
    profile.add_argument("--threads", default="", metavar="N,M", help="default: 1, 2, 4, … up to the processors")
    profile.add_argument("--batches", default="", metavar="N,M", help="rows of one request; default 1,8,32")
    profile.add_argument("--seconds", type=float, default=1.0, help="per measured setting (default 1)")
    profile.add_argument("--latency-ms", type=float, default=1000.0, help="what a batch's p99 may be (default 1000)")
    profile.add_argument("--tolerance", type=float, default=0.1, help="share of the best p99 (default 0.1)")
    profile.add_argument("--deadline", type=float, default=600.0, metavar="S", help="of the whole (default 600 s)")
    profile.add_argument("--nice", type=int, default=0, help="niceness of the measured worker (default 0)")
    profile.add_argument("--for-profile", default="", metavar="NAME", help="the firmware profile to measure within")
    profile.add_argument("--json", action="store_true", help="everything, as one JSON object")


def _command(commands: Any, name: str, work: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("--config", type=Path, metavar="FILE", help="the configuration file (TOML)")
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="override one setting; may be repeated"
    )
    command.set_defaults(work=work)
    return command


def _load(options: argparse.Namespace) -> Settings:
    from skerry_agent.settings import ENV_PREFIX, load
    from skerry_modules.errors import InputError

    path: Path | None = options.config
    if path is None:
        path = next((Path(place) for place in PLACES if Path(place).is_file()), None)
    if path is None and f"{ENV_PREFIX}DEVICE_ID" not in os.environ:
        raise InputError(
            "settings.invalid",
            f"cannot find a configuration at {' or '.join(PLACES)}: name it with --config; "
            "the hub wrote it when the device was registered",
        )
    return load(path, overrides=options.set)


def _run(options: argparse.Namespace) -> int:
    settings = _load(options)
    import logging

    logging.basicConfig(
        level=options.log.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    from skerry_agent.device_profile import equip, load_profile
    from skerry_agent.serving import headstart

    equip(load_profile(settings.device.profile), os.environ)
    headstart.begin(settings.folder)  # engines import while the agent does

    from skerry_agent.app import App
    from skerry_agent.serving.plane import run

    if settings.hub.password and options.config and options.config.stat().st_mode & 0o077:
        text = "others on this device can read %s, which holds the broker's password: chmod 600 it"
        logging.getLogger("skerry_agent").warning(text, options.config)

    async def serve() -> None:
        await App(settings).run()

    try:
        run(serve())
    finally:
        headstart.end_rest()
    return 0


def _status(options: argparse.Namespace) -> int:
    from skerry_agent import control, report

    status = control.ask(_load(options).folder, "status")
    _print(status if options.json else report.status(status), as_json=options.json)
    return 0


def _events(options: argparse.Namespace) -> int:
    from skerry_agent import report

    events = report.read_events(_load(options).folder, options.limit)
    _print(events if options.json else report.events(events), as_json=options.json)
    return 0


def _score(options: argparse.Namespace) -> int:
    from skerry_agent import report, score

    address = options.url or score.find_address(_load(options))
    answer = score.score(address, options.module, options.module_version, options.input, options.data)
    _print(answer if options.json else report.answer(answer), as_json=options.json)
    return 0


def _profile(options: argparse.Namespace) -> int:
    from skerry_agent.profiling import local
    from skerry_agent.rules.profile_plan import parse
    from skerry_modules.measurement import to_builtins

    wanted = parse(
        {
            "engines": [name for name in options.engines.split(",") if name],
            "threads": _numbers(options.threads),
            "batches": _numbers(options.batches),
            "seconds": options.seconds,
            "latency_ms": options.latency_ms,
            "tolerance": options.tolerance,
        }
    )
    found = local.profile(
        options.folder,
        wanted,
        deadline_s=options.deadline,
        firmware_profile=options.for_profile,
        niceness=options.nice,
        progress=lambda share, text: print(f"{share:4.0%} {text}", file=sys.stderr),  # noqa: T201 - progress
    )
    _print(to_builtins(found) if options.json else local.text(found), as_json=options.json)
    return 0


def _numbers(text: str) -> list[int]:
    from skerry_modules.errors import InputError

    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise InputError("request.invalid", f"cannot read {text!r}: give whole numbers, as 1,2,4") from None


def _batch(options: argparse.Namespace) -> int:
    import contextlib

    from skerry_agent import report, score
    from skerry_agent.batch import here, job
    from skerry_modules.errors import InputError, ResourceError

    if options.child_of:
        from skerry_agent.parent import die_with_parent

        die_with_parent(options.child_of, "skerry-batch")
    name, _, version = options.module.partition(":")
    version = options.module_version or version
    if options.module_folder and not version.isdecimal():
        raise InputError("request.invalid", "cannot use --module-folder without a version: write NAME:VERSION")
    try:
        with contextlib.ExitStack() as stack:
            if options.module_folder:
                url = stack.enter_context(here.serving(options.module_folder, int(version), options.built))
            else:
                url = options.url or score.find_address(_load(options))
            summary = job.told(job.run(_order(options, url, name, version)))
    except OSError as error:
        text = f"cannot go on with {options.output}: {error.strerror or error}; make room, then run it again"
        raise ResourceError("resource.no_space", text) from error
    _print(summary if options.json else report.batch(summary), as_json=options.json)
    return 1 if summary["errors"] and not summary["rows"] else 0


def _order(options: argparse.Namespace, url: str, name: str, version: str) -> Any:
    from skerry_agent.batch import job

    return job.Order(
        url=url,
        model=name,
        version=version,
        input=options.input,
        output=options.output,
        columns=_names(options.columns),
        keep=_names(options.keep),
        part_rows=options.part_rows,
        rows=options.rows,
        timeout_s=options.timeout,
        patience_s=options.patience,
        restart=options.restart,
        header=None if options.header is None else options.header == "yes",
        told=options.lines,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _settings(options: argparse.Namespace) -> int:
    import msgspec

    from skerry_agent import report
    from skerry_agent.settings import catalogue

    found = [msgspec.to_builtins(one) for one in catalogue()]
    _print(found if options.json else report.settings(found), as_json=options.json)
    return 0


def _version() -> int:
    from skerry_agent.engines import available
    from skerry_agent.engines._host import installed

    engines = ", ".join(f"{name} {version}" for name, version in available().items())
    _print(f"skerry-agent {installed('skerry')}; engines: {engines}", as_json=False)
    return 0


def _print(value: Any, *, as_json: bool) -> None:
    if as_json:
        import json

        value = json.dumps(value, ensure_ascii=False)
    print(value, flush=True)  # noqa: T201 - this is a command's output


if __name__ == "__main__":
    sys.exit(main())
