"""Every figure of docs/benchmarks.md: ``make bench``, or ``make bench ONLY=name``.

Each benchmark is a module here with ``run() -> list[dict]``. It measures its limit (or peer) interleaved in the same
run, since absolute times differ from machine to machine. Each runs in a process of its own, so that none sees
another's memory or caches. One JSON line per figure goes to stdout, progress to stderr; the exit code is 1 if a
figure misses its bar.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time

NAMES = (
    "scoring",
    "scoring-batched",
    "client",
    "swap",
    "crash",
    "footprint",
    "shadow",
    "batch",
    "telemetry-cost",
    "peers",
    "fpga",
    "delivery",
    "resume",
    "ingest",
    "write-path",
    "agent-size",
    "fleet",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=NAMES, help="run one benchmark")
    parser.add_argument("--inline", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inline:
        for figure in importlib.import_module(f"benchmarks.{options.only.replace('-', '_')}").run():
            print(json.dumps(figure), flush=True)
        return 0
    passed = True
    for name in [options.only] if options.only else NAMES:
        began = time.monotonic()
        print(f"· {name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--only", name, "--inline"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            passed = passed and bool(json.loads(line)["ok"])
        if process.wait() != 0:
            print(f"cannot measure {name}: it ended with {process.returncode}", file=sys.stderr)
            passed = False
        print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
