"""What the pynq engine decides without a board: options, quantising, and which fault a wrong answer means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.engines.pynq_packing import REORDERINGS, SENTINEL, Options, Packing, diagnose, options_of
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import TensorSpec

Array = np.ndarray[Any, Any]


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


MODULE = Manifest(
    format=1, name="m", engine="pynq", model="m.bit", inputs=(spec("x", -1, 6),), outputs=(spec("y", -1, 3),)
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"options": {"core": "a", "rowz": 1}}, "unknown field `rowz`"),
        ({"options": {"input_scale": "big"}}, "`$.input_scale`"),
        ({"options": {"input_type": "int4"}}, "int4"),
        ({"options": {"input_scale": 0.0}}, "scales and timeouts must be above 0"),
        ({"options": {"rows_per_transfer": 0}}, "must be at least 1"),
        ({"inputs": (spec("a", -1, 2), spec("b", -1, 2))}, "one input and one output"),
        ({"outputs": (spec("y", -1, -1),)}, "y must be numeric, of shape [rows, fixed sizes"),
        ({"inputs": (spec("x", -1, 2, datatype="BYTES"),)}, "x must be numeric"),
        ({"inputs": (spec("x", 4),)}, "x must be numeric"),
    ],
)
def test_unusable_options_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        options_of(msgspec.structs.replace(MODULE, **fields))
    assert caught.value.code == "install.load_failed"
    assert words in caught.value.message
    assert caught.value.message.startswith("cannot load m: ")
    assert caught.value.message.endswith("mend module.toml")


@given(
    values=st.lists(st.floats(-1000, 1000, width=32), min_size=6, max_size=6),
    scale=st.floats(0.01, 10),
    zero=st.integers(-20, 20),
    kind=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32"]),
    alignment=st.sampled_from([1, 4, 8, 64]),
)
def test_packing_is_exact_within_a_step_or_saturates(
    values: list[float], scale: float, zero: int, kind: Any, alignment: int
) -> None:
    """A design that gives back what it got: decode(encode(x)) is x within half a step, or the range's end."""
    options = Options(
        input_scale=scale, input_zero=zero, input_type=kind, row_alignment=alignment,
        output_scale=scale, output_zero=zero, output_type=kind,
    )  # fmt: skip
    packing = Packing(options, spec("x", -1, 2, 3), spec("y", -1, 3, 2, datatype="FP64"))
    rows = np.array([values], np.float32).reshape(1, 2, 3)
    stream = packing.encode(rows)
    assert stream.shape == (1, packing.row_bytes_in)
    assert packing.row_bytes_in % alignment == 0
    got = packing.decode(stream).reshape(-1)
    limits = np.iinfo(kind)
    low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
    assert np.allclose(got, np.clip(rows.reshape(-1), low, high), atol=scale * 0.5001, rtol=1e-6)


def test_rows_are_padded_with_zeros_and_little_endian() -> None:
    packing = Packing(Options(input_type="int16", row_alignment=8), spec("x", -1, 3), spec("y", -1, 1))
    assert packing.encode(np.array([[1.0, -2.0, 258.0]])).tolist() == [[1, 0, 254, 255, 2, 1, 0, 0]]


def test_nan_becomes_the_zero_point_and_not_a_random_integer() -> None:
    packing = Packing(Options(input_zero=0), spec("x", -1, 4), spec("y", -1, 1))
    assert packing.encode(np.array([[np.nan, np.inf, -np.inf, 1.0]])).view(np.int8).tolist() == [[0, 127, -128, 1]]


def test_integers_go_out_unscaled_where_the_manifest_says_integers() -> None:
    packing = Packing(Options(output_scale=0.5), spec("x", -1, 4), spec("y", -1, 2, datatype="INT32"))
    stream = np.array([[7, -9]], "<i4").view(np.uint8)
    assert packing.decode(stream).tolist() == [[7, -9]]


def test_softmax_sums_to_one_however_large_the_logits() -> None:
    packing = Packing(Options(softmax=True), spec("x", -1, 4), spec("y", -1, 3))
    got = packing.decode(np.array([[2**30, 0, -(2**30)]], "<i4").view(np.uint8))
    assert got.dtype == np.float32
    assert got.sum() == pytest.approx(1.0)


# -- what a wrong answer means: a board as a function of stream bytes


def right(rows: Array) -> Array:
    """A design that sums weighted bytes: every byte and its place matter."""
    sums = rows.astype(np.int64) @ (np.arange(rows.shape[1]) ** 2 + 1)
    return sums.astype("<i4").view(np.uint8).reshape(len(rows), 4)


SENT = np.random.default_rng(0).integers(0, 128, (4, 16)).astype(np.uint8)
SENT[1] = SENT[0] + 1


def reordered(meaning: str) -> Callable[[Array], Array]:
    return lambda rows: right(REORDERINGS[meaning](rows))


BOARDS: list[tuple[str, Callable[[Array], Array], str | None, str]] = [
    ("a good one", right, None, ""),
    ("no flush", lambda rows: right(np.zeros_like(rows)), "board.stale_memory", "no flush"),
    ("the same input from before", lambda rows: right(SENT), "board.stale_memory", "no flush"),
    ("an old input", lambda rows: right(np.repeat(SENT[:1], len(rows), axis=0)), "board.stale_memory", "no flush"),
    ("no invalidate", lambda rows: np.full((len(rows), 4), SENTINEL, np.uint8), "board.stale_memory", "no invalidate"),
    *((f"order: {meaning}", reordered(meaning), "board.wrong_order", meaning) for meaning in REORDERINGS),
    ("a wrong model", lambda rows: right(rows ^ 0x11), None, ""),
    ("another wrong model", lambda rows: right(rows[:, ::-1] ^ 0x01), None, ""),
]


@pytest.mark.parametrize(("name", "board", "code", "words"), BOARDS, ids=[case[0] for case in BOARDS])
def test_a_wrong_answer_is_told_apart(name: str, board: Callable[[Array], Array], code: str | None, words: str) -> None:
    expected = right(SENT)
    fault = diagnose(SENT, board, lambda got: np.array_equal(got, expected), distinct=True)
    assert (fault.code if fault else None) == code
    if fault:
        assert words in fault.message


def test_equal_expectations_accuse_nobody() -> None:
    """Where all cases expect the same, equal answers say nothing about a flush."""
    fault = diagnose(SENT, lambda rows: np.ones((len(rows), 4), np.uint8), lambda got: False, distinct=False)
    assert fault is None


@given(width=st.sampled_from([4, 8, 12, 16]), seed=st.integers(0, 999))
def test_each_reordering_undoes_itself(width: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (3, width)).astype(np.uint8)
    for reorder in REORDERINGS.values():
        assert np.array_equal(reorder(reorder(rows)), rows)
