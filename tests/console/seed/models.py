"""The models of the seeded fleet: their versions, files and tags."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlmodel import SQLModel

from console.seed.fleet import MINUTE
from skerry_hub import tables as t

MODELS: dict[str, dict[str, Any]] = {
    "digits": {
        "description": "Handwritten digits, 8×8 grey images",
        "engine": "onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64], "description": "grey levels 0 to 16"}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
        "profiles": [],
        "versions": 4,
    },
    "digits-fpga": {
        "description": "The same digits as int8 for PYNQ boards",
        "engine": "pynq",
        "inputs": [{"name": "image", "datatype": "INT8", "shape": [-1, 64]}],
        "outputs": [{"name": "scores", "datatype": "INT32", "shape": [-1, 10]}],
        "profiles": ["kria-kv260", "pynq-z2"],
        "versions": 1,
    },
    "vibration": {
        "description": "Bearing wear from accelerometer windows",
        "engine": "onnx",
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 256, 3], "unit": "g"}],
        "outputs": [
            {"name": "wear", "datatype": "FP32", "shape": [-1, 1], "unit": "µm"},
            {"name": "class", "datatype": "INT64", "shape": [-1], "labels": ["good", "worn", "broken"]},
        ],
        "profiles": [],
        "versions": 2,
    },
}
PIPELINE: dict[tuple[str, int], dict[str, Any]] = {
    ("vibration", 2): {
        "engine": "pipeline",
        "model": "",
        "outputs": [
            {**MODELS["vibration"]["outputs"][0], "from": "net.wear"},
            {**MODELS["vibration"]["outputs"][1], "from": "net.class"},
        ],
        "steps": [
            {
                "name": "detrend",
                "engine": "onnx",
                "model": "detrend.onnx",
                "from": {"window": "input.window"},
                "inputs": MODELS["vibration"]["inputs"],
                "outputs": MODELS["vibration"]["inputs"],
            },
            {
                "name": "net",
                "engine": "onnx",
                "model": "model.onnx",
                "from": {"window": "detrend.window"},
                "inputs": MODELS["vibration"]["inputs"],
                "outputs": MODELS["vibration"]["outputs"],
            },
        ],
    }
}
"""What differs in versions that are pipelines."""
COMMITS = ("9f1c2ab04d7e", "5be0a91c77f3", "c40d1f88a2b6", "1d77e0f9c350")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def models(now: int) -> dict[type[SQLModel], list[dict[str, Any]]]:
    found: dict[type[SQLModel], list[dict[str, Any]]] = {
        t.Model: [],
        t.ModelVersion: [],
        t.VersionFile: [],
        t.VersionTag: [],
    }
    for order, (name, facts) in enumerate(MODELS.items()):
        found[t.Model].append(
            {
                "name": name,
                "description": facts["description"],
                "last_version": facts["versions"],
                "created_at": now - (30 - order) * 1440 * MINUTE,
            }
        )
        for version in range(1, facts["versions"] + 1):
            manifest = {
                "format": 1,
                "name": name,
                "engine": facts["engine"],
                "model": "model.onnx",
                "inputs": facts["inputs"],
                "outputs": facts["outputs"],
                "description": facts["description"],
                "release": f"2026.{version}",
                "license": "Apache-2.0",
                "resources": {"memory_mb": 180, "threads": 1},
                "targets": {"profiles": facts["profiles"]},
                "golden": {
                    "file": "golden.npz",
                    "absolute": 1e-4,
                    "relative": 1e-3,
                    "argmax": facts["outputs"][0]["name"],
                },
                "baseline": {"file": "baseline.json"},
                "capture": {"rate": 0.01, "low_confidence": 0.6, "max_per_minute": 30},
            } | PIPELINE.get((name, version), {})
            at = now - (26 - 5 * version - order) * 1440 * MINUTE
            found[t.ModelVersion].append(
                {
                    "name": name,
                    "version": version,
                    "digest": digest(f"{name}{version}"),
                    "index_size": 1480,
                    "size": 214_332 + 9_000 * version,
                    "engine": manifest["engine"],
                    "manifest": json.dumps(manifest),
                    "facts": json.dumps(
                        {"opset": 17, "operators": ["Add", "Gemm", "Relu", "Softmax"], "size_bytes": 201_004}
                    ),
                    "signatures": "[]",
                    "signer": "ed25519:4f0c9a1b",
                    "git_commit": COMMITS[version % 4] * 3,
                    "git_branch": "main",
                    "git_remote": "https://git.example.org/vision/digits.git",
                    "git_dirty": version == 3,
                    "created_by": ("mira", "jonas")[version % 2],
                    "reason": (
                        "retrained with harbour night images",
                        "first version",
                        "wider hidden layer",
                        "fewer false alarms on line 2",
                    )[version % 4],
                    "created_at": at,
                }
            )
            for path, size in (
                ("model.onnx", 201_004),
                ("module.toml", 812),
                ("golden.npz", 9_120),
                ("baseline.json", 3_396),
            ):
                found[t.VersionFile].append(
                    {
                        "name": name,
                        "version": version,
                        "path": path,
                        "sha256": digest(f"{name}{version}{path}"),
                        "size": size,
                    }
                )
            tags = {
                "stage": "production" if version == facts["versions"] - 1 else "candidate",
                "accuracy": f"0.9{60 + 7 * version}",
            }
            found[t.VersionTag] += [{"name": name, "version": version, "key": k, "value": v} for k, v in tags.items()]
    return found
