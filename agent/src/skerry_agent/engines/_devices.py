"""Which of a machine's devices an engine runs a model on: what the manifest asks, else what the profile lists.

The profile's list reaches workers as an environment variable, as what engines want set does. A device that is listed
and not here is no reason not to serve: the next one is taken, the CPU at last, and a note names what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any, Final, NamedTuple

from skerry_modules.options import names
from skerry_modules.profiles import Profile

_VARIABLE: Final = "SKERRY_DEVICES_"
NOTE: Final = "run.engine_device"


class Choice(NamedTuple):
    """``devices`` in the order to try; ``missing``: those asked for before the first of these that are not here."""

    devices: tuple[str, ...]
    missing: tuple[str, ...]


def publish(profile: Profile, environment: MutableMapping[str, str]) -> None:
    """Tell engines, which start as children, what the profile lists."""
    for engine in profile.engines:
        if engine.devices:
            environment[_VARIABLE + engine.name.upper()] = ",".join(engine.devices)


def listed(engine: str, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What the profile lists for an engine; empty: nothing."""
    return names(environment.get(_VARIABLE + engine.upper(), ""))


def wanted(options: Mapping[str, Any], keys: Sequence[str], engine: str) -> tuple[str, ...]:
    """The manifest's own list (``"NPU,GPU"``) under the first of ``keys`` that it has, else the profile's."""
    for key in keys:
        if chosen := names(str(options.get(key, ""))):
            return chosen
    return listed(engine)


def choose(asked: Sequence[str], here: Collection[str], last: str) -> Choice:
    """The devices of ``asked`` that are here, each once, then ``last`` (the CPU), which always is.

    A device with a number or a list of its own (``GPU.0``, ``AUTO:GPU,CPU``) is here if its kind is.
    """
    here = {*here, last}
    found = list(dict.fromkeys(name for name in asked if _is_here(name, here)))
    first = next((place for place, name in enumerate(asked) if _is_here(name, here)), len(asked))
    missing = tuple(name for name in asked[:first] if name != last)
    if last not in found:
        found.append(last)
    return Choice(tuple(found), missing)


def _is_here(name: str, here: Collection[str]) -> bool:
    kind = name.partition(":")[0].partition(".")[0]
    return name in here or kind in {one.partition(".")[0] for one in here}


def note(module: str, missing: Sequence[str], taken: str, why: str = "") -> tuple[str, str]:
    """(code, text) for people."""
    lost = ", ".join(missing)
    reason = f": {why}" if why else " (not on this device, or its runtime is not installed)"
    return NOTE, f"cannot run {module} on {lost}{reason}; it runs on {taken}"
