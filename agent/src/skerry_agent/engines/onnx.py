"""ONNX Runtime.

A model is compiled on the device once: ONNX Runtime writes its optimised graph, with the weights packed for this CPU in
a file of their own, and every later load maps that file (measured on 25 MB: half the load time, and the weights in the
page cache instead of in each worker's own memory; the file is twice the model). What it writes depends on the model,
the runtime and the CPU, so these three are the cache's key.

Threads wait by sleeping: the runtime's default spins and burns a core at 100 requests a second.

Execution providers (CUDA, TensorRT, OpenVINO, …) are those of the firmware profile's list that this build of ONNX
Runtime has, in its order; the CPU is always the last. Inputs and outputs are not bound (``io_binding``): on the CPU
that measured slower than plain calls, by 1–4 µs for models of 3 to 45 µs.

Options of the manifest: ``skerry_modules.options.OnnxOptions``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Final

from skerry_agent.engines import _devices, _host
from skerry_agent.ports import Arrays
from skerry_modules import options
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest

CPU: Final = "CPUExecutionProvider"
COMPILE_FROM_BYTES: Final = 256 * 1024
"""Smaller models load faster than their compiled form could be found."""

_OPERATOR = re.compile(
    r"(?:Could not find an implementation for|No Op registered for)\s+([\w.:]+)"
    r"|([\w.]+:[\w.]+)\(-?\d+\) is not a registered function/op"
)
_NO_MEMORY = re.compile(r"bad_alloc|Failed to allocate memory|MemoryError")


class OnnxModel:
    """One session; ``run`` is called from one thread."""

    def __init__(self, session: Any, outputs: tuple[str, ...], notes: tuple[tuple[str, str], ...] = ()) -> None:
        self.notes = notes
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
            session, notes = self._choose(path, manifest, cache)
            outputs = _check_names(session, manifest)
            model = OnnxModel(session, outputs, notes)
        except (MemoryError, SkerryError):
            raise
        except Exception as error:
            raise _load_error(manifest.model, error) from error
        _host.trim()
        return model

    def _choose(self, path: Path, manifest: Manifest, cache: Path) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """A session on the first provider that takes the model, and a note where another was asked for first."""
        import onnxruntime as ort

        asked = [options.provider(name) for name in _devices.wanted(manifest.options, ("provider",), self.name)]
        devices, missing = _devices.choose(asked, ort.get_available_providers(), CPU)
        if devices[0] == CPU:
            notes = (_devices.note(manifest.name, missing, CPU),) if missing else ()
            return self._open(path, manifest, cache), notes
        try:
            session = _session(path, manifest, [(name, provider_options(name, manifest, cache)) for name in devices])
        except MemoryError:
            raise
        except Exception as error:  # a driver that does not fit shows only here
            lost = (*missing, *(name for name in devices if name != CPU))
            return self._open(path, manifest, cache), (_devices.note(manifest.name, lost, CPU, str(error)[:300]),)
        taken = session.get_providers()
        lost = (*missing, *(name for name in devices[: devices.index(taken[0])] if name not in taken))
        return session, (_devices.note(manifest.name, lost, taken[0]),) if lost else ()

    def _open(self, path: Path, manifest: Manifest, cache: Path) -> Any:
        """A session on the CPU."""
        provider = [CPU]
        if (
            not manifest.options.get("compile", True)
            or str(cache) in ("", ".")
            or path.stat().st_size < COMPILE_FROM_BYTES
        ):
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


def _session(path: Path, manifest: Manifest, providers: Any, *, compiled: bool = False) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(path), _options(manifest, compiled=compiled), providers=providers)


def provider_options(provider: str, manifest: Manifest, cache: Path) -> dict[str, str]:
    """What a provider is told. What it compiles it keeps in the cache, which is pruned with the rest.

    Source: https://onnxruntime.ai/docs/execution-providers/ (TensorRT, OpenVINO).
    """
    keeps = str(cache) not in ("", ".")
    half = manifest.options.get("precision") == "f16"
    match provider:
        case "TensorrtExecutionProvider":
            folder = str(cache / "tensorrt")
            kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder} if keeps else {}
            return {"trt_fp16_enable": "1" if half else "0", **kept}
        case "OpenVINOExecutionProvider":
            device = str(manifest.options.get("device", "CPU"))
            kept = {"cache_dir": str(cache / "openvino-provider")} if keeps else {}
            return {"device_type": device, "precision": "FP16" if half else "FP32", **kept}
    return {}


def _compile(path: Path, target: Path, manifest: Manifest, providers: Any) -> None:
    import onnxruntime as ort

    options = _options(manifest)
    options.optimized_model_filepath = str(target / "model.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    # Weights as the kernels want them: otherwise each load repacks them into memory of its own, and maps nothing.
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    ort.InferenceSession(str(path), options, providers=providers)
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
