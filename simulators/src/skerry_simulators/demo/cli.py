"""``skerry-sim demo``: run the story; then keep running, or with ``--once`` check it and exit.

Exit codes: 0 every claim held; 1 one did not, or the story did not come to its end; 130 Ctrl-C before that.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from skerry_modules.errors import SkerryError
from skerry_simulators.demo.processes import Children, DemoFailure
from skerry_simulators.demo.screen import Screen
from skerry_simulators.demo.story import HUB_PORT, Demo, Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--once", action="store_true", help="check the outcome and exit instead of running on")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")
    parser.add_argument("--port", type=int, default=HUB_PORT, help=f"console's port, if free (default {HUB_PORT})")
    parser.add_argument("--data", type=Path, help="empty folder for everything (default: a new temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")


def run(options: argparse.Namespace) -> int:
    """The command. Returns the exit code."""
    # With --json stdout is for the summary alone: the story is told on stderr.
    console = Console(stderr=options.json, highlight=False)
    screen = Screen(console)
    signal.signal(signal.SIGTERM, _as_interrupt)
    folder, temporary = _folder(options.data)
    summary: Summary | None = None
    try:
        summary = _perform(folder, screen, options)
    except DemoFailure as error:
        summary = _failed(folder, str(error))
        screen.failure(f"the demo failed: {error}")
    except SkerryError as error:
        summary = _failed(folder, f"{error.message} [{error.code}]")
        screen.failure(f"the demo failed: {error.message} [{error.code}]")
    except KeyboardInterrupt:
        screen.step("stopped")
    good = summary is not None and summary.ok
    if temporary and not options.keep and (good or summary is None):
        shutil.rmtree(folder, ignore_errors=True)
        if summary is not None:
            summary.data = ""  # nothing is left there
    elif not good:
        screen.warn(f"logs and data are in {folder}")
    if summary is None:
        return 130 if options.once else 0
    if options.json and (options.once or not good):
        _print(summary)
    return 0 if good else 1


def _perform(folder: Path, screen: Screen, options: argparse.Namespace) -> Summary:
    with Children(folder / "logs") as children:
        demo = Demo(folder, children, screen, port=options.port)
        try:
            with screen.live():
                summary = demo.run()
            screen.claims(summary.claims)
            screen.step("every claim held" if summary.ok else "NOT every claim held")
            if not options.once:
                if options.json:
                    _print(summary)
                screen.act(f"The console: {demo.console}   (Ctrl-C ends the demo)")
                screen.step(f"or ask from another terminal: skerry --url {demo.console} devices list")
                with screen.live():
                    demo.keep_running()
        finally:
            demo.stop()
    return summary


def _failed(folder: Path, text: str) -> Summary:
    return Summary(
        ok=False,
        seconds=0.0,
        console="",
        data=str(folder),
        agents=[],
        left_out=[],
        claims=[],
        requests=[],
        rollouts=[],
        failure=text,
    )


def _folder(wanted: Path | None) -> tuple[Path, bool]:
    """An empty folder, and whether it is ours to remove. Temporary ones are short: socket paths have a limit."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="skerry-demo-")), True
    if wanted.exists() and any(wanted.iterdir()):
        raise SystemExit(f"cannot use {wanted}: it is not empty; name a new folder with --data")
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted.absolute(), False


def _print(summary: Summary) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
    sys.stdout.buffer.flush()


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="skerry-sim demo", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
