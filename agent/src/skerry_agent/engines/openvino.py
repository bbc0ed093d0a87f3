"""OpenVINO, for ONNX files and OpenVINO IR.

Precision is pinned to f32: on CPUs that have bf16 OpenVINO would use it silently (a softmax off by up to 0.13). A
manifest opts in with ``options.precision = "bf16"`` (or "f16") and a golden tolerance of its own.

Options of the manifest: ``precision``, ``device`` (one, or a list by preference such as "NPU,GPU,CPU"; also "GPU.1" and
"AUTO"), ``threads``. Without it the first device of the firmware profile's list that this machine has is taken. Where a
device is missing, or does not take the model, it runs on the next, the CPU at last, and a note says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from skerry_agent.engines import _devices, _host
from skerry_agent.ports import Arrays
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest

CACHE_FROM_BYTES: Final = 256 * 1024
"""Smaller models compile faster than a cached form loads."""

_OPERATORS: Final = (
    re.compile(r"OpenVINO does not support the following ONNX operations:\s*([\w.:]+)"),
    re.compile(r"No conversion rule found for operations?:\s*([\w.:]+)"),
    re.compile(r"[Uu]nsupported (?:operation|operator)s?[^:]*:\s*([\w.:]+)"),
    re.compile(r"operation ([\w.:]+)[^\n]{0,80} (?:is not|isn't) supported"),
)


class OpenVinoModel:
    """One compiled model and one infer request; ``run`` is called from one thread."""

    def __init__(self, compiled: Any, manifest: Manifest, notes: tuple[tuple[str, str], ...] = ()) -> None:
        self.notes = notes
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = _ports(compiled.outputs, [spec.name for spec in manifest.outputs], manifest, "output")
        _ports(compiled.inputs, [spec.name for spec in manifest.inputs], manifest, "input")

    def run(self, inputs: Arrays) -> Arrays:
        try:
            # shared outputs would be overwritten by the next request while this one is still being kept as a sample
            results = self._request.infer(inputs, share_inputs=True, share_outputs=False)
            return {name: results[port] for name, port in self._outputs}
        except MemoryError:
            raise
        except Exception as error:
            if "bad_alloc" in str(error):
                raise MemoryError(str(error)) from error
            raise PeerError("scoring.failed", f"cannot score: OpenVINO says: {_short(error)}") from error

    def close(self) -> None:
        self._request = self._compiled = None
        _host.trim()


class OpenVinoEngine:
    name = "openvino"
    exclusive = False

    def version(self) -> str:
        return _host.installed("openvino")

    def preload(self) -> None:
        import openvino  # noqa: F401 - no Core here: its threads would not survive the fork

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> OpenVinoModel:
        import openvino

        path = folder / manifest.model
        try:
            core = openvino.Core()
            network = core.read_model(str(path))
            compiled, notes = _compile(core, network, path, manifest, cache)
            model = OpenVinoModel(compiled, manifest, notes)
        except (MemoryError, SkerryError):
            raise
        except Exception as error:
            raise _load_error(manifest.model, error) from error
        _host.trim()
        return model


def _compile(
    core: Any, network: Any, path: Path, manifest: Manifest, cache: Path
) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """The model on the first device that takes it, and a note where that is not the first one asked for."""
    asked = _devices.wanted(manifest.options, ("device",), "openvino")
    first = asked[0] if asked else "CPU"
    here = () if first == "CPU" else (*core.available_devices, "AUTO")  # looking for others starts their drivers
    devices, missing = _devices.choose(asked, here, "CPU")
    lost, why = list(missing), ""
    for device in devices[:-1]:
        try:
            compiled = core.compile_model(network, device, _config(path, manifest, cache, device))
        except Exception as error:  # a driver or an operator that the device lacks; what the CPU says is the last word
            if "bad_alloc" in str(error):
                raise
            lost.append(device)
            why = _short(error)
        else:
            return compiled, (_devices.note(manifest.name, lost, device, why),) if lost else ()
    last = devices[-1]
    compiled = core.compile_model(network, last, _config(path, manifest, cache, last))
    return compiled, (_devices.note(manifest.name, lost, last, why),) if lost else ()


def _config(path: Path, manifest: Manifest, cache: Path, device: str = "CPU") -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": str(manifest.options.get("precision", "f32")),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if device == "CPU":
        config["INFERENCE_NUM_THREADS"] = int(manifest.options.get("threads", manifest.resources.threads))
    else:
        del config["NUM_STREAMS"]
    weights = path.with_suffix(".bin")
    size = path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    if str(cache) not in ("", ".") and size >= CACHE_FROM_BYTES:
        config["CACHE_DIR"] = str(cache / f"openvino-{_host.installed('openvino')}-{_host.cpu_key()}")
        config["CACHE_MODE"] = "OPTIMIZE_SPEED"
    return config


def _ports(ports: Any, names: list[str], manifest: Manifest, side: str) -> list[tuple[str, Any]]:
    found = []
    real = {name: port for port in ports for name in port.get_names()}
    for name in names:
        if name not in real:
            raise PeerError(
                "install.load_failed",
                f"cannot load {manifest.model}: its {side}s are {', '.join(sorted(real))} but the manifest says "
                f"{name}; pack the module again",
            )
        found.append((name, real[name]))
    if side == "input" and len(ports) != len(names):
        raise PeerError(
            "install.load_failed",
            f"cannot load {manifest.model}: it has {len(ports)} inputs but the manifest declares {len(names)}; "
            "pack the module again",
        )
    return found


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[-3:])[:500]


def _load_error(name: str, error: Exception) -> SkerryError:
    text = str(error)
    if "bad_alloc" in text:
        raise MemoryError(text) from error
    for pattern in _OPERATORS:
        if found := pattern.search(text):
            operator = found[1].rstrip(".:")
            return ResourceError(
                "unschedulable.operator",
                f"cannot load {name}: OpenVINO has no operator {operator}; export the model without it, or use the "
                "onnx engine",
                operator=operator,
            )
    return PeerError("install.load_failed", f"cannot load {name}: OpenVINO says: {_short(error)}")


ENGINE = OpenVinoEngine()
