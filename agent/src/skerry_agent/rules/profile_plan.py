"""What to measure of a module, in which order, and for how long: decided before anything is started.

The manifest's own setting comes first, so that a profile that runs out of time still says what the module needs as
it stands. A thread count or engine that the manifest did not choose follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest

SAME_FILE: Final = ("onnx", "openvino")
"""Engines that both load an ONNX file."""
BATCHES: Final = (1, 8, 32)
SECONDS: Final = 1.0
SECONDS_MAX: Final = 30.0
BATCH_MAX: Final = 4096
THREADS_MAX: Final = 256


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the caller asks for; empty: all that makes sense here. ``seconds`` is per measured setting."""

    engines: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    seconds: float = SECONDS
    latency_ms: float = 1000.0
    tolerance: float = 0.10


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: an engine with threads, scoring each of the batches in turn. ``own``: the manifest's setting."""

    engine: str
    threads: int
    batches: tuple[int, ...]
    own: bool


def parse(arguments: Mapping[str, Any]) -> Wanted:
    """A command's arguments.

    Raises:
        InputError: ``request.invalid``.
    """
    try:
        wanted = msgspec.convert(dict(arguments), Wanted)
    except msgspec.ValidationError as error:
        raise InputError("request.invalid", f"cannot profile: {error}") from error
    for name, values, most in (("threads", wanted.threads, THREADS_MAX), ("batches", wanted.batches, BATCH_MAX)):
        if any(not 1 <= value <= most for value in values) or len(values) > 16:
            raise InputError("request.invalid", f"cannot profile: {name} are up to 16 numbers from 1 to {most}")
    if not 0 < wanted.seconds <= SECONDS_MAX:
        raise InputError("request.invalid", f"cannot profile: seconds are above 0 and at most {SECONDS_MAX:g}")
    if not 0 < wanted.tolerance <= 1 or not wanted.latency_ms > 0:
        raise InputError("request.invalid", "cannot profile: tolerance is above 0 and at most 1, latency_ms above 0")
    return wanted


def ways(manifest: Manifest, wanted: Wanted, available: Iterable[str], cores: int) -> list[Way]:
    """The workers to run, the manifest's own setting first.

    Raises:
        InputError: ``request.invalid``: an engine asked for cannot load this model.
    """
    possible = engines_for(manifest)
    if strange := sorted(set(wanted.engines) - set(possible)):
        raise InputError(
            "request.invalid",
            f"cannot profile {manifest.name} with {', '.join(strange)}: {manifest.model} runs on {', '.join(possible)}",
        )
    here = set(available) | {manifest.engine}
    chosen = [name for name in possible if (name in wanted.engines if wanted.engines else name in here)]
    batches = tuple(sorted(set(wanted.batches or BATCHES))) if batch_varies(manifest) else (fixed_batch(manifest),)
    own = own_threads(manifest)
    found = []
    for engine in chosen:
        counts = sorted(set(wanted.threads or (*_powers(cores), own))) if engine in SAME_FILE else [own]
        found += [
            Way(engine=engine, threads=n, batches=batches, own=(engine, n) == (manifest.engine, own)) for n in counts
        ]
    if not any(way.own for way in found):  # what the module needs as it stands is always told
        found.append(Way(engine=manifest.engine, threads=own, batches=batches, own=True))
    return sorted(found, key=lambda way: (not way.own, way.engine != manifest.engine, way.engine, way.threads))


def engines_for(manifest: Manifest) -> tuple[str, ...]:
    """Engines that can load the module's model file, the manifest's first."""
    if manifest.engine in SAME_FILE and manifest.model.endswith(".onnx"):
        return (manifest.engine, *(name for name in SAME_FILE if name != manifest.engine))
    return (manifest.engine,)


def variant(manifest: Manifest, engine: str, threads: int) -> Manifest:
    """The manifest for another engine or number of threads. An engine's own options do not go over to another."""
    options = dict(manifest.options) if engine == manifest.engine else {}
    if engine in SAME_FILE:
        options["threads"] = threads
    resources = msgspec.structs.replace(manifest.resources, threads=threads)
    return msgspec.structs.replace(manifest, engine=engine, options=options, resources=resources)


def own_threads(manifest: Manifest) -> int:
    """Threads that the module runs with as it stands."""
    asked = manifest.options.get("threads", manifest.resources.threads)
    return max(1, int(asked))


def batch_varies(manifest: Manifest) -> bool:
    """Whether one request may hold any number of rows."""
    return all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs)


def fixed_batch(manifest: Manifest) -> int:
    """Rows of one request where that is fixed."""
    return max((1, *(spec.shape[0] for spec in manifest.inputs if spec.shape)))


def room_mb(limit_mb: int, used_mb: int, free_mb: int, reserve_mb: int) -> int:
    """MB that a measuring worker may take: what modules leave of their limit, and what the machine has free."""
    return max(0, min(limit_mb - used_mb, free_mb - reserve_mb))


def _powers(cores: int) -> list[int]:
    found, count = [], 1
    while count <= max(1, cores):
        found.append(count)
        count *= 2
    return found
