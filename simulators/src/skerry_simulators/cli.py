"""``skerry-sim``: the simulators' commands. Each stands in a package of its own and is imported only when asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

COMMANDS: Final = {
    "demo": "the whole loop on this machine: train, pack, sign, roll out, score, watch",
    "fleet": "many light devices from one process, over real MQTT",
    "world": "the agent's and the hub's rules on a virtual clock, network and disk, by seed",
}
"""What each command does; its code is ``skerry_simulators.<command>.cli``, with ``main(arguments) -> exit code``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    if name in ("", "-h", "--help"):
        return _help(0 if name else 2)
    module = f"skerry_simulators.{name}.cli"
    if name not in COMMANDS or find_spec(f"skerry_simulators.{name}") is None or find_spec(module) is None:
        sys.stderr.write(f"skerry-sim: cannot run {name!r}: there is no such command\n")
        return _help(2)
    return int(importlib.import_module(module).main(given[1:]) or 0)


def _help(code: int) -> int:
    lines = ["usage: skerry-sim COMMAND [--help]", "", *(f"  {name:8}{text}" for name, text in COMMANDS.items())]
    (sys.stderr if code else sys.stdout).write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
