"""Requests that came together mean, and are answered, what each would be alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.serving import frames, orders
from skerry_agent.serving.codec import Codec
from skerry_agent.serving.frames import Frame, Kind
from skerry_agent.serving.worker import Worker
from skerry_modules.manifest import Manifest, parse

HEAD: Final = 'format = 1\nname = "m"\nengine = "python"\nmodel = "main.py"\n[batching]\nmax_rows = 8\n'
TENSOR: Final = '[[{side}]]\nname = "{name}"\ndatatype = "{datatype}"\nshape = {shape}\n'
X: Final = TENSOR.format(side="inputs", name="x", datatype="FP32", shape="[-1, 2]") + "allow_nan = false\n"
K: Final = TENSOR.format(side="inputs", name="k", datatype="INT16", shape="[-1]")
Y: Final = TENSOR.format(side="outputs", name="y", datatype="FP32", shape="[-1, 2]")
S: Final = TENSOR.format(side="outputs", name="s", datatype="BYTES", shape="[-1]")
ONE: Final = HEAD + X + Y
TWO: Final = HEAD + X + K + Y + TENSOR.format(side="outputs", name="n", datatype="INT16", shape="[-1]")
TEXT: Final = HEAD + X + Y + S

SCRIPT: Final = """
import numpy as np
sizes = []
def run(inputs):
    x = inputs["x"]
    sizes.append(len(x))
    if (x == 13).any():
        raise ValueError("thirteen")
    text = np.array([b"%g" % row for row in x[:, 0]], dtype=object)
    return {"y": x * 2, "n": inputs.get("k", np.zeros(0)) + 1, "s": text}
"""


class Bench:
    """A worker in this process, and the agent's end of its socket."""

    def __init__(self, folder: Path, text: str, rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_text(SCRIPT)
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs
        self.worker = Worker(theirs, theirs)
        self.worker._load(
            orders.Load(
                digest="0" * 64,
                folder=str(folder),
                manifest=parse(text),
                version=1,
                cache="",
                cache_entries=0,
                cache_bytes=0,
                report_s=60.0,
                observe_one_in=1,
                capture_rate=0.0,
                batch_rows=rows,
            )
        )

    def answers(self, asked: list[bytes]) -> list[Frame]:
        """In the order of their numbers."""
        self.worker._take(frames.Reader().feed(b"".join(asked)))
        reader, found = frames.Reader(), []
        while len(found) < len(asked):
            found += reader.feed(self._ours.recv(1 << 20))
        return sorted(found, key=lambda frame: frame.number)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture(scope="module", params=[ONE, TWO, TEXT], ids=["one-input", "two-inputs", "text"])
def benches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, Bench]]:
    """One that scores together, and one that scores alone."""
    folder = tmp_path_factory.mktemp("alike")
    both = Bench(folder / "a", request.param, 8), Bench(folder / "b", request.param, 1)
    yield both
    for one in both:
        one.close()


DAMAGE: Final = {
    "none": lambda head, tail: (head, tail),
    "short": lambda head, tail: (head, tail[:-1]),
    "long": lambda head, tail: (head, tail + b"\0"),
    "no-json": lambda head, tail: (head[:-1], tail),
    "name": lambda head, tail: (head.replace(b'"name": "x"', b'"name": "z"'), tail),
    "shape": lambda head, tail: (head.replace(b'"shape": [', b'"shape": [1, '), tail),
    "nested": lambda head, tail: (head.replace(b'"data": [', b'"data": [[').replace(b"]}", b"]]}", 1), tail),
    "comma": lambda head, tail: (head.replace(b'"data": [', b'"data": [1, ', 1), tail),
    "fewer": lambda head, tail: (head.replace(b'"data": [0, ', b'"data": [', 1), tail),
    "huge": lambda head, tail: (head.replace(b'"data": [0, ', b'"data": [1e99, ', 1), tail),
    "null": lambda head, tail: (head.replace(b'"data": [0, ', b'"data": [null, ', 1), tail),
}


def encoded(
    manifest: Manifest, values: list[float], binary: bool, more: dict[str, Any], damage: str
) -> tuple[int, bytes]:
    """(length of the JSON or −1, body) of a request whose rows are of ``values``."""
    inputs, tail = [], b""
    for spec in manifest.inputs:
        dtype = "f4" if spec.datatype == "FP32" else "i2"
        array = np.array([[value, 0][: len(spec.shape)] if len(spec.shape) > 1 else 7 for value in values], dtype)
        tensor: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            flat = array.reshape(-1).tolist()
            tensor["data"] = [0 if value != value else int(value) for value in flat]
        inputs.append(tensor)
    head, tail = DAMAGE[damage](json.dumps({"inputs": inputs, **more}).encode(), tail)
    return (len(head) if binary else -1), head + tail


MORE: Final[list[dict[str, Any]]] = [
    {},
    {"parameters": {"binary_data_output": True}},
    {"outputs": [{"name": "y"}]},
    {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
    {"id": "7"},
]
VALUES: Final = st.lists(st.sampled_from([0.0, 1.0, 2.5, 13.0, float("nan"), -0.0]), min_size=1, max_size=3)
KINDS: Final = st.sampled_from([*DAMAGE])
REQUEST: Final = st.tuples(
    VALUES, st.booleans(), st.sampled_from(MORE), st.just("none") | KINDS, st.sampled_from([b"m", b"n"])
)
MIXED: Final = st.lists(REQUEST, min_size=2, max_size=12)
WRONG: Final = [*((kind, 0.0) for kind in DAMAGE), ("none", 13.0), ("none", float("nan"))]


def compare(benches: tuple[Bench, Bench], asked: list[tuple[int, bytes, bytes]]) -> None:
    sent = [
        frames.pack(Kind.INFER, number, json=length, name=name, size=len(body)) + body
        for number, (length, body, name) in enumerate(asked, 1)
    ]
    together, alone = (bench.answers(sent) for bench in benches)
    assert together == alone


@settings(max_examples=60, deadline=None)
@given(MIXED)
def test_a_mixture_is_answered_as_each_alone(benches: tuple[Bench, Bench], asked: list[Any]) -> None:
    manifest = benches[0].worker._manifest
    compare(benches, [(*encoded(manifest, v, binary, more, damage), name) for v, binary, more, damage, name in asked])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=2, max_size=2), min_size=2, max_size=12),
    st.booleans(),
    st.sampled_from(MORE),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(WRONG)), max_size=3),
)
def test_requests_alike_but_a_few_are_answered_as_each_alone(
    benches: tuple[Bench, Bench],
    rows: list[list[float]],
    binary: bool,
    more: dict[str, Any],
    wrong: list[tuple[int, tuple[str, float]]],
) -> None:
    manifest = benches[0].worker._manifest
    kinds = ["none"] * len(rows)
    for place, (kind, value) in wrong:
        kinds[place % len(rows)], rows[place % len(rows)] = kind, [0.0, value]
    found = [(*encoded(manifest, row, binary, more, kind), b"m") for row, kind in zip(rows, kinds, strict=True)]
    compare(benches, [(*encoded(manifest, [0.0, 1.0], binary, more, "none"), b"m")])  # its form is known from here on
    compare(benches, found)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_each_wrong_request_among_others_is_answered_as_alone(benches: tuple[Bench, Bench], binary: bool) -> None:
    manifest = benches[0].worker._manifest
    good = (*encoded(manifest, [0.0, 1.0], binary, MORE[0], "none"), b"m")
    compare(benches, [good])
    for kind, value in WRONG:
        bad = (*encoded(manifest, [0.0, value], binary, MORE[0], kind), b"m")
        compare(benches, [good, bad, good])
    compare(benches, [good, (-1, *good[1:]), good])
    pair = [(*encoded(manifest, [0.0, 1.0], binary, MORE[0], kind), b"m") for kind in ("comma", "fewer")]
    compare(benches, [good, *pair, good])  # together they have as many values as they should


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_requests_that_differ_in_values_alone_are_read_as_one(binary: bool) -> None:
    manifest = parse(ONE)
    codec = Codec(manifest, 1)
    asked = [encoded(manifest, [float(value), 1.0], binary, {}, "none") for value in range(5)]
    length = asked[0][0]
    bodies = [body for _, body in asked]
    assert codec.parse_alike(bodies, length) is None  # nothing like it was seen yet
    each = [codec.parse(body, length) for body in bodies]
    found = codec.parse_alike(bodies, length)
    assert found is not None
    assert found.plan.rows == 2
    np.testing.assert_array_equal(found.inputs["x"], np.concatenate([one.inputs["x"] for one in each]))
    assert codec.parse_alike([*bodies, bodies[0] + b" "], length) is None


def test_as_many_as_may_be_are_scored_at_once(benches: tuple[Bench, Bench]) -> None:
    manifest = benches[0].worker._manifest
    sizes = benches[0].worker._model._module.sizes  # type: ignore[union-attr]
    for binary in (True, False):
        asked = [(*encoded(manifest, [1.0, 2.0], binary, MORE[1], "none"), b"m")] * 11
        compare(benches, asked[:1])
        sizes.clear()
        compare(benches, asked)
        assert sizes == [8, 8, 6]
