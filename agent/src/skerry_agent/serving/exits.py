"""How a worker ended, and where in a module: a pipeline's worker bears the name of the step that it is in."""

from __future__ import annotations

from typing import Final

from skerry_modules.manifest import Manifest

EXIT_NO_MEMORY: Final = 77
STEP_TITLE: Final = "skerry-step-"
"""What the process of a pipeline is called while it runs a step, and the step's number after it (from 0, as declared).
A process's name has at most 15 characters."""


def in_step(manifest: Manifest, title: str) -> str:
    """`` in step 'scale'`` for the process's name at its end; empty where that names no step."""
    number = title.removeprefix(STEP_TITLE)
    if number == title or not number.isdecimal() or int(number) >= len(manifest.steps):
        return ""
    return f" in step {manifest.steps[int(number)].name!r}"


def exit_reason(status: int) -> str:
    """ "signal 11", "exit 1", "memory"."""
    if status == EXIT_NO_MEMORY:
        return "memory"
    return f"signal {-status}" if status < 0 else f"exit {status}"
