"""Score on a device from Python: numpy in, numpy out.

>>> import skerry
>>> digits = skerry.Endpoint("http://device:8090", "digits")
>>> digits.score({"pixels": images})["probabilities"]
>>> digits(images)                     # for a model with one input and one output

It speaks the binary form of the Open Inference Protocol over keep-alive connections and needs nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from skerry_modules.arrays import Array, as_declared
from skerry_modules.errors import InputError
from skerry_modules.oip import Metadata
from skerry_modules.scorer import Scorer

_MOVED = ("scoring.unknown_input", "scoring.wrong_datatype", "scoring.wrong_shape")


class Endpoint:
    """A name that a device serves. Any number of threads may use one.

    Args:
        url: ``http://host:port``, ``https://host:port``, or ``unix:/path`` for the device's own Unix socket.
        name: an endpoint or a module.
        version: of the module; None: whatever the endpoint routes to.
        timeout_s: for one call with all its retries; the device stops scoring for it then too.
        retries: how often a call is sent again that was refused for now (429, 503, nobody there). The device says with
            ``Retry-After`` when; if that is after the deadline the call fails at once.
        low_priority: wait until no other request does.
        shared_memory: put inputs of 128 KiB and more into shared memory; for a ``unix:`` address, and an agent that
            runs as the same user (or root) and sees the same ``/dev/shm``.

    Raises:
        InputError: ``settings.invalid``: the address cannot be read.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        version: int | str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        low_priority: bool = False,
        shared_memory: bool = False,
    ) -> None:
        self.url = url
        self.name = name
        self.timeout_s = timeout_s
        self._scorer = Scorer(url, name, version, retries=retries, low=low_priority, shared=shared_memory)
        self._metadata: Metadata | None = None

    def metadata(self) -> Metadata:
        """Names, datatypes and shapes (−1: varies) of inputs and outputs, and the versions behind the name, now.

        Raises:
            SkerryError: ``module.unknown``, ``scoring.not_ready``, ``resource.agent_unreachable``.
        """
        self._metadata = self._scorer.metadata(self.timeout_s)
        return self._metadata

    def ready(self) -> bool:
        """Whether it can score now; False also if nobody answers."""
        return self._scorer.ready(self.timeout_s)

    def score(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        key: str = "",
    ) -> dict[str, Array]:
        """Score one batch.

        Args:
            inputs: an array, or what numpy makes one of, for each input. Floats are narrowed and whole numbers
                widened to the declared datatype; a float never becomes a whole number.
            outputs: only these; None: all.
            timeout_s: other than the endpoint's.
            key: where versions share the traffic, the same key goes to the same version (a machine's or a user's id).

        Returns:
            The outputs by name; arrays may be written to. ``BYTES`` are objects of type bytes.

        Raises:
            InputError: ``scoring.wrong_shape``, ``scoring.wrong_datatype``, ``scoring.unknown_input``,
                ``scoring.unknown_output``, ``scoring.bad_data``, ``module.unknown``, ``request.too_large``.
            ResourceError: ``scoring.overloaded``, ``scoring.not_ready``, ``scoring.deadline``,
                ``resource.agent_unreachable``.
            PeerError: ``scoring.failed``, ``scoring.quarantined``.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        headers = _key_header(key) if key else b""
        known = self._metadata or self.metadata()
        try:
            return self._scorer.score(_declared(inputs, known), outputs, timeout_s=limit, headers=headers).outputs
        except InputError as error:
            if error.code not in _MOVED:
                raise
            fresh = self.metadata()  # another version may take something else by now
            if fresh.inputs == known.inputs:
                raise
            return self._scorer.score(_declared(inputs, fresh), outputs, timeout_s=limit, headers=headers).outputs

    def __call__(self, array: Any, *, timeout_s: float | None = None, key: str = "") -> Array:
        """Score a model that has one input and one output.

        Raises:
            InputError: ``scoring.unknown_input``: it has more; and what :meth:`score` raises.
        """
        known = self._metadata or self.metadata()
        if len(known.inputs) != 1 or len(known.outputs) != 1:
            names = ", ".join(spec.name for spec in known.inputs)
            raise InputError(
                "scoring.unknown_input",
                f"cannot call {self.name} with one array: it has the inputs {names} and {len(known.outputs)} outputs; "
                "use score() with names",
            )
        return self.score({known.inputs[0].name: array}, timeout_s=timeout_s, key=key)[known.outputs[0].name]

    def close(self) -> None:
        """Close the connections and the shared memory that are kept."""
        self._scorer.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _declared(inputs: Mapping[str, Any], known: Metadata) -> dict[str, Array]:
    specs = {spec.name: spec for spec in known.inputs}
    if set(inputs) != set(specs):
        raise InputError(
            "scoring.unknown_input",
            f"cannot score {known.name}: inputs {', '.join(map(repr, inputs)) or '(none)'} are given; "
            f"it takes each of {', '.join(map(repr, specs))} once",
        )
    return {name: as_declared(inputs[name], spec) for name, spec in specs.items()}


def _key_header(key: str) -> bytes:
    if not key.isascii() or not key.isprintable():  # also: a line end would be a header of the caller's choosing
        raise InputError("request.invalid", f"cannot use the key {key!r}: it must be printable ASCII; hash it")
    return f"X-Skerry-Key: {key}\r\n".encode()
