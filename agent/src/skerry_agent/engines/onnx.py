"""ONNX Runtime.

A model is compiled on the device once: ONNX Runtime writes its optimised graph, with the weights packed for this CPU in
a file of their own, and every later load maps that file (measured on 25 MB: half the load time, and the weights in the
page cache instead of in each worker's own memory; the file is twice the model). What it writes depends on the model,
the runtime and the CPU, so these three are the cache's key.

Threads wait by sleeping: the runtime's default spins and burns a core at 100 requests a second.

Options of the manifest: ``provider`` (default CPUExecutionProvider), ``compile`` = false, ``optimization`` =
"all" | "extended" | "basic" | "none".
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Final

from skerry_agent.engines import _host
from skerry_agent.ports import Arrays
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest

COMPILE_FROM_BYTES: Final = 256 * 1024
"""Smaller models load faster than their compiled form could be found."""

_OPERATOR = re.compile(
    r"(?:Could not find an implementation for|No Op registered for)\s+([\w.:]+)"
    r"|([\w.]+:[\w.]+)\(-?\d+\) is not a registered function/op"
)
_NO_MEMORY = re.compile(r"bad_alloc|Failed to allocate memory|MemoryError")


class OnnxModel:
    """One session; ``run`` is called from one thread."""

    def __init__(self, session: Any, outputs: tuple[str, ...]) -> None:
        self._run = session._sess.run if hasattr(session, "_sess") else session.run  # the checks of .run cost 2 µs
        self._session = session
        self._outputs = list(outputs)

    def run(self, inputs: Arrays) -> Arrays:
        try:
            results = self._run(self._outputs, inputs, None)
        except MemoryError:
            raise
        except Exception as error:
            text = str(error)
            if _NO_MEMORY.search(text):
                raise MemoryError(text) from error
            raise PeerError("scoring.failed", f"cannot score: ONNX Runtime says: {text}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        self._run = self._session = None
        _host.trim()


class OnnxEngine:
    name = "onnx"
    exclusive = False

    def version(self) -> str:
        return _host.installed("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")

    def preload(self) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        onnxruntime.disable_telemetry_events()

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> OnnxModel:
        path = folder / manifest.model
        try:
            session = self._open(path, manifest, cache)
            outputs = _check_names(session, manifest)
            model = OnnxModel(session, outputs)
        except (MemoryError, SkerryError):
            raise
        except Exception as error:
            raise _load_error(manifest.model, error) from error
        _host.trim()
        return model

    def _open(self, path: Path, manifest: Manifest, cache: Path) -> Any:
        provider = str(manifest.options.get("provider", "CPUExecutionProvider"))
        wanted = manifest.options.get("compile", True) and provider == "CPUExecutionProvider"
        if not wanted or str(cache) in ("", ".") or path.stat().st_size < COMPILE_FROM_BYTES:
            return _session(path, manifest, provider)
        level = manifest.options.get("optimization", "all")
        key = f"onnx-{_host.file_sha256(path)[:40]}-{self.version()}-{_host.cpu_key()}-{level}"
        try:
            compiled = _host.cached(cache, key, lambda target: _compile(path, target, manifest, provider))
        except OSError:  # no space for the cache is no reason not to serve
            return _session(path, manifest, provider)
        try:
            return _session(compiled / "model.onnx", manifest, provider, compiled=True)
        except Exception:
            shutil.rmtree(compiled, ignore_errors=True)  # damaged: serve the original, compile again next time
            return _session(path, manifest, provider)


def _options(manifest: Manifest, *, compiled: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(manifest.options.get("threads", manifest.resources.threads))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "none": levels.ORT_DISABLE_ALL,
    }.get("none" if compiled else str(manifest.options.get("optimization", "all")), levels.ORT_ENABLE_ALL)
    return options


def _session(path: Path, manifest: Manifest, provider: str, *, compiled: bool = False) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(path), _options(manifest, compiled=compiled), providers=[provider])


def _compile(path: Path, target: Path, manifest: Manifest, provider: str) -> None:
    import onnxruntime as ort

    options = _options(manifest)
    options.optimized_model_filepath = str(target / "model.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    # Weights as the kernels want them: otherwise each load repacks them into memory of its own, and maps nothing.
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    ort.InferenceSession(str(path), options, providers=[provider])
    _host.trim()


def _check_names(session: Any, manifest: Manifest) -> tuple[str, ...]:
    """The declared outputs; all declared tensors must be the model's."""
    for side, declared, real in (
        ("input", {spec.name for spec in manifest.inputs}, {node.name for node in session.get_inputs()}),
        ("output", {spec.name for spec in manifest.outputs}, {node.name for node in session.get_outputs()}),
    ):
        missing = (declared ^ real) if side == "input" else declared - real
        if missing:
            raise PeerError(
                "install.load_failed",
                f"cannot load {manifest.model}: its {side}s are {', '.join(sorted(real))} but the manifest says "
                f"{', '.join(sorted(declared))}; pack the module again",
            )
    return tuple(spec.name for spec in manifest.outputs)


def _load_error(name: str, error: Exception) -> SkerryError:
    text = str(error)
    if _NO_MEMORY.search(text):
        raise MemoryError(text) from error
    if found := _OPERATOR.search(text):
        operator = (found[1] or found[2]).replace(":", ".")
        return ResourceError(
            "unschedulable.operator",
            f"cannot load {name}: ONNX Runtime has no operator {operator}; export the model without it",
            operator=operator,
        )
    return PeerError("install.load_failed", f"cannot load {name}: ONNX Runtime says: {text[:500]}")


ENGINE = OnnxEngine()
