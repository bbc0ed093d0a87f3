"""Where in a module its worker ended: a pipeline's worker bears the name of the step that it is in."""

from __future__ import annotations

from typing import Final

from skerry_modules.manifest import Manifest

STEP_TITLE: Final = "skerry-step-"
"""What the process of a pipeline is called while it runs a step, and the step's number after it (from 0, as declared).
A process's name has at most 15 characters."""


def in_step(manifest: Manifest, title: str) -> str:
    """`` in step 'scale'`` for the process's name at its end; empty where that names no step."""
    number = title.removeprefix(STEP_TITLE)
    if number == title or not number.isdecimal() or int(number) >= len(manifest.steps):
        return ""
    return f" in step {manifest.steps[int(number)].name!r}"
