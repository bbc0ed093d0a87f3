"""The mergeable distribution: latency, features and scores, counted on devices and added up on the hub.

A :class:`Histogram` has fixed edges; bin *i* holds ``edges[i] <= x < edges[i+1]``, and the last bin its right edge too.
What lies outside is counted ``below`` and ``above``; missing values (NaN) are ``null`` and ±infinity is ``infinite``,
since both are what monitoring looks for, and a sketch would drop them silently. Counts merge exactly, in any order;
the running ``total`` is a float sum, exact up to rounding.

Edges come from one of two places:

* :data:`LOG2_EDGES`, the standard for latency in µs: a quarter of a doubling per bin, from 1 µs to 2**26 µs (67 s), so
  that a quantile is off by at most 19 %. On the wire they are left out.
* a :class:`Baseline`: quantiles of the training data, so that every bin held the same share when the model was trained.

numpy is imported only where arrays are: the agent process counts and merges without it.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec

from skerry_modules.errors import InputError, PeerError
from skerry_modules.messages import Distribution

if TYPE_CHECKING:
    import numpy as np

LOG2_EDGES: Final[tuple[float, ...]] = tuple(2.0 ** (step / 4) for step in range(26 * 4 + 1))
"""105 edges, 104 bins, in µs."""

MAX_BINS: Final = 1024
"""The most bins that a distribution from the wire may have."""

BASELINE_FORMAT: Final = 1
BASELINE_BINS: Final = 32
"""Bins per feature of a baseline: enough for drift tests, about 130 bytes of counts on the wire."""
MAX_FEATURES: Final = 32
"""A tensor with more elements per row than this (an image) is one feature: the distribution of all its values."""


class Histogram:
    """Counts over fixed edges. ``minimum`` and ``maximum`` are of finite values; inf and −inf while there are none."""

    __slots__ = ("above", "below", "counts", "edges", "infinite", "maximum", "minimum", "null", "total")

    def __init__(self, edges: tuple[float, ...] = LOG2_EDGES) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) - 1)
        self.below = self.above = self.null = self.infinite = 0
        self.total = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    @property
    def count(self) -> int:
        """Finite values counted."""
        return self.below + sum(self.counts) + self.above

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN if there are none."""
        count = self.count
        return self.total / count if count else math.nan

    def add(self, value: float) -> None:
        """Count one value."""
        if value != value:  # noqa: PLR0124 - the cheapest test for NaN, on the path of every request
            self.null += 1
            return
        if value in (math.inf, -math.inf):
            self.infinite += 1
            return
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        place = bisect_right(self.edges, value)
        if place == 0:
            self.below += 1
        elif place < len(self.edges):
            self.counts[place - 1] += 1
        elif value == self.edges[-1]:
            self.counts[-1] += 1
        else:
            self.above += 1

    def add_many(self, values: np.ndarray[Any, Any]) -> None:
        """Count an array of any shape and numeric dtype."""
        import numpy as np

        flat = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            nulls = int(np.isnan(flat).sum())
            self.null += nulls
            self.infinite += len(flat) - int(finite.sum()) - nulls
            flat = flat[finite]
        if not len(flat):
            return
        with np.errstate(over="ignore"):  # a sum past 1.8e308 becomes inf; the wire holds it at the largest float
            self.total += float(flat.sum())
        self.minimum = min(self.minimum, float(flat.min()))
        self.maximum = max(self.maximum, float(flat.max()))
        places = np.searchsorted(self.edges, flat, side="right")
        places[flat == self.edges[-1]] = len(self.edges) - 1
        tally = np.bincount(places, minlength=len(self.edges) + 1).tolist()
        self.below += tally[0]
        self.above += tally[-1]
        self.counts = [mine + more for mine, more in zip(self.counts, tally[1:-1], strict=True)]

    def merge(self, other: Histogram) -> None:
        """Add another's counts to these.

        Raises:
            PeerError: ``message.malformed`` if the edges differ: such counts cannot be added.
        """
        if other.edges is not self.edges and other.edges != self.edges:
            raise PeerError(
                "message.malformed",
                f"cannot merge distributions: one has {len(self.edges)} edges, the other {len(other.edges)} or others; "
                "merge only those of the same module version",
            )
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.below += other.below
        self.above += other.above
        self.null += other.null
        self.infinite += other.infinite
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, share: float) -> float:
        """An estimate of the value below which ``share`` (0 to 1) of the finite values lie; NaN if there are none.

        It lies in the same bin as the true one (nearest rank), and within the smallest and largest value seen.
        """
        count = self.count
        if not count:
            return math.nan
        rank = min(max(math.ceil(share * count), 1), count)
        for low, high, inside in self._spans():
            if rank <= inside:
                start, end = max(low, self.minimum), min(high, self.maximum)
                # Half a step back: the one value of a bin is estimated at its middle, not at its upper edge.
                return min(max(start + (end - start) * (rank - 0.5) / inside, start), end)
            rank -= inside
        return self.maximum

    def _spans(self) -> Iterable[tuple[float, float, int]]:
        yield self.minimum, self.edges[0], self.below
        for (low, high), inside in zip(pairwise(self.edges), self.counts, strict=True):
            yield low, high, inside
        yield self.edges[-1], self.maximum, self.above

    def take(self) -> Histogram:
        """Move everything counted so far into a new histogram and start from nothing."""
        taken = Histogram(self.edges)
        for name in ("counts", "below", "above", "null", "infinite", "total", "minimum", "maximum"):
            setattr(taken, name, getattr(self, name))
        self.__init__(self.edges)  # type: ignore[misc]
        return taken

    def to_wire(self) -> Distribution:
        """Trailing empty bins and the standard edges are left out."""
        used = len(self.counts)
        while used and not self.counts[used - 1]:
            used -= 1
        # What is left at its default takes no byte on the wire, and most windows of most features are quiet.
        sums = {} if self.minimum > self.maximum else _sums(self)
        return Distribution(
            counts=tuple(self.counts[:used]),
            edges=() if self.edges == LOG2_EDGES else self.edges,
            below=self.below,
            above=self.above,
            null=self.null,
            infinite=self.infinite,
            **sums,
        )

    @classmethod
    def from_wire(cls, wire: Distribution) -> Histogram:
        """The inverse of :meth:`to_wire`.

        Raises:
            PeerError: ``message.malformed`` for what no device of ours would send.
        """
        if wire.edges:
            _check_edges(wire.edges)
        made = cls(wire.edges or LOG2_EDGES)
        outside = (wire.below, wire.above, wire.null, wire.infinite)
        if len(wire.counts) > len(made.counts) or min((*wire.counts, *outside)) < 0:
            raise PeerError("message.malformed", "cannot read a distribution: its counts do not fit its edges")
        if not all(map(math.isfinite, (wire.total, wire.minimum, wire.maximum))):
            raise PeerError("message.malformed", "cannot read a distribution: its sums are not finite")
        made.counts[: len(wire.counts)] = wire.counts
        made.below, made.above, made.null, made.infinite = outside
        made.total = wire.total
        if made.count:
            made.minimum, made.maximum = wire.minimum, wire.maximum
        return made


def _sums(histogram: Histogram) -> dict[str, float]:
    largest = sys.float_info.max
    total = 0.0 if math.isnan(histogram.total) else min(max(histogram.total, -largest), largest)
    return {"total": total, "minimum": histogram.minimum, "maximum": histogram.maximum}


def _check_edges(edges: tuple[float, ...]) -> None:
    ascending = all(low < high for low, high in pairwise(edges))
    if not 2 <= len(edges) <= MAX_BINS + 1 or not ascending or not all(map(math.isfinite, edges)):
        raise PeerError("message.malformed", "cannot read a distribution: its edges are not finite and ascending")


# -- the training data's distribution ----------------------------------------------------------------------------------


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of one tensor: an element of its rows by flat ``index``, or all of them together (−1).

    ``distribution`` is the training data's, with the edges that devices count with.
    """

    name: str
    tensor: str
    index: int
    distribution: Distribution


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What inputs and scores looked like when the model was trained. Written by a module's ``train.py``."""

    format: int = BASELINE_FORMAT
    rows: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        outputs: Mapping[str, np.ndarray[Any, Any]] | None = None,
        *,
        bins: int = BASELINE_BINS,
        max_features: int = MAX_FEATURES,
    ) -> Baseline:
        """Count a data set.

        Args:
            inputs: by tensor name, one row per example: shape ``(rows, …)``. Tensors of strings are left out.
            outputs: what the model gave for them, likewise.
            bins: per feature, at most; fewer where the values are few.
            max_features: a tensor with more elements per row counts as one feature.

        Raises:
            InputError: ``request.invalid`` if there are no rows, or tensors differ in theirs.
        """
        every = {**inputs, **(outputs or {})}
        rows = {len(array) if array.ndim else 0 for array in every.values()}
        if len(rows) != 1 or not min(rows):
            raise InputError(
                "request.invalid",
                f"cannot make a baseline of arrays with {sorted(rows) or 'no'} rows: give each tensor as many rows, "
                "one per example",
            )
        return cls(
            rows=rows.pop(),
            inputs=_features(inputs, bins, max_features),
            outputs=_features(outputs or {}, bins, max_features),
        )

    def to_json(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, data: bytes) -> Baseline:
        """Read what :meth:`to_json` wrote.

        Raises:
            PeerError: ``message.malformed``, ``message.unsupported_version``.
        """
        try:
            baseline = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError("message.malformed", f"cannot read the baseline: {error}") from error
        if baseline.format != BASELINE_FORMAT:
            raise PeerError(
                "message.unsupported_version", f"cannot read a baseline of format {baseline.format}: update this side"
            )
        for feature in (*baseline.inputs, *baseline.outputs):
            Histogram.from_wire(feature.distribution)
        return baseline

    def window(self, side: str = "inputs") -> Window:
        """An empty window over the features of ``inputs`` or ``outputs``."""
        return Window(self.inputs if side == "inputs" else self.outputs)


class Window:
    """Counts of a baseline's features since the last :meth:`take`."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        self._features = features
        self._histograms = {feature.name: Histogram(feature.distribution.edges or LOG2_EDGES) for feature in features}

    def add(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Count a batch, shape ``(rows, …)`` per tensor. Tensors without a feature are passed over."""
        for feature in self._features:
            array = arrays.get(feature.tensor)
            if array is None or not array.size or array.dtype.kind not in "biuf":
                continue
            values = array
            if feature.index >= 0:
                rows = array.reshape(len(array), -1)
                if feature.index >= rows.shape[1]:
                    continue
                values = rows[:, feature.index]
            self._histograms[feature.name].add_many(values)

    def take(self) -> dict[str, Distribution]:
        """What was counted, by feature, for a telemetry message; the window starts again from nothing."""
        return {name: histogram.take().to_wire() for name, histogram in self._histograms.items()}


def _features(arrays: Mapping[str, np.ndarray[Any, Any]], bins: int, max_features: int) -> tuple[Feature, ...]:
    import numpy as np

    found = []
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            continue
        rows = array.reshape(len(array), -1).astype(np.float64)
        if rows.shape[1] == 1 or rows.shape[1] > max_features:
            found.append(_feature(name, name, -1, rows.ravel(), bins))
            continue
        found += [_feature(f"{name}[{index}]", name, index, rows[:, index], bins) for index in range(rows.shape[1])]
    return tuple(found)


def _feature(name: str, tensor: str, index: int, values: np.ndarray[Any, Any], bins: int) -> Feature:
    histogram = Histogram(quantile_edges(values, bins))
    histogram.add_many(values)
    return Feature(name=name, tensor=tensor, index=index, distribution=histogram.to_wire())


def quantile_edges(values: np.ndarray[Any, Any], bins: int) -> tuple[float, ...]:
    """Ascending edges that split the finite values into about equal shares; a constant gets a bin of its own."""
    import numpy as np

    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return (0.0, 1.0)
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) == 1:
        return (float(edges[0]), math.nextafter(float(edges[0]), math.inf))
    return tuple(edges.tolist())


_LOG2_MIDDLES: Final = tuple(math.sqrt(low * high) for low, high in pairwise(LOG2_EDGES))
_MIDDLES: Final = (0.0, *_LOG2_MIDDLES)  # by place in the running sums: 0 is what lies below the first edge


def latency_quantiles(latency: Distribution) -> tuple[float, float]:
    """Estimates of the median and the 99th percentile in µs, from a distribution over the log2 edges; −1: none.

    The middle of the bin that holds the rank, within what was seen. Other edges are not latency: −1.
    """
    counts = latency.counts
    if latency.edges or len(counts) > len(_LOG2_MIDDLES):
        return -1.0, -1.0
    sums = list(accumulate(counts, initial=latency.below))
    total = sums[-1] + latency.above
    if total <= 0:
        return -1.0, -1.0
    low, high = latency.minimum, latency.maximum
    middles = _MIDDLES
    place50, place99 = bisect_left(sums, 0.5 * total), bisect_left(sums, 0.99 * total)
    p50 = middles[place50] if place50 < len(sums) else high
    p99 = middles[place99] if place99 < len(sums) else high
    # Conditions instead of min() and max(): this runs once for every row.
    return (
        low if p50 < low else high if p50 > high else p50,  # noqa: FURB136
        low if p99 < low else high if p99 > high else p99,  # noqa: FURB136
    )
