"""Requests that came together, inside a worker: scored as one where that is proven, and each answered as if alone.

Clients of one program send the same but for the values. Such requests are read as one array and answered from one
sheet, which costs less than the same work for each; all others are read one by one, and joined as ``batching.groups``
says. What is wrong with one of them costs the others time and nothing else: then each is scored alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skerry_agent.ports import Arrays
from skerry_agent.serving import batching, frames, sheet
from skerry_agent.serving.codec import Codec, Plan, Request
from skerry_agent.serving.frames import Frame


class Together:
    """Of one worker.

    Args:
        rows: at most so many are scored at once.
        score: the model.
        send: to the agent.
        note: is told what was scored, once it is answered.
        parsed: scores and answers one request that was read.
        alone: reads, scores and answers one request, or refuses it.
    """

    def __init__(  # noqa: PLR0917
        self,
        codec: Codec,
        rows: int,
        score: Callable[[Arrays], Arrays],
        send: Callable[[bytes | memoryview], None],
        note: Callable[[bytes, Arrays, Arrays, int], None],
        parsed: Callable[[Frame, Request], None],
        alone: Callable[[Frame], None],
    ) -> None:
        self._codec = codec
        self._rows = rows
        self._score, self._send, self._note = score, send, note
        self._parsed, self._alone = parsed, alone
        self._sheet: sheet.Sheet | None = None

    def infer(self, found: Sequence[Frame]) -> None:
        """Answer all, in this order but for those that are wrong."""
        json, name = found[0].json, found[0].name
        bodies = [frame.body for frame in found if frame.json == json and frame.name == name]
        if len(bodies) == len(found):
            alike = self._codec.parse_alike(bodies, json)
            if alike is not None and alike.plan.rows * 2 <= self._rows:
                self._infer_alike(found, alike)
                return
        self._infer_mixed(found)

    # -- alike but for their values

    def _infer_alike(self, found: Sequence[Frame], alike: Request) -> None:
        """``alike`` is the plan of each, and the inputs of all."""
        plan, inputs = alike
        most = self._rows // plan.rows
        for start in range(0, len(found), most):
            group = found[start : start + most]
            if len(found) > most:
                rows = slice(start * plan.rows, (start + most) * plan.rows)
                inputs = {name: array[rows] for name, array in alike.inputs.items()}
            if not self._score_alike(group, plan, inputs):
                for frame in group:
                    self._alone(frame)

    def _score_alike(self, group: Sequence[Frame], plan: Plan, inputs: Arrays) -> bool:
        """Score one batch and answer all; False: nothing was answered."""
        rows = plan.rows * len(group)
        try:
            outputs = self._score(inputs)
            if not batching.divides(outputs, rows):
                return False
            answers = self._answers(group, plan, outputs)
        except MemoryError:
            raise
        except Exception:  # one request's trouble is not the others': alone each gets its own answer
            return False
        self._send(answers)
        self._note(group[0].name, inputs, outputs, rows)
        return True

    def _answers(self, group: Sequence[Frame], plan: Plan, outputs: Arrays) -> bytes | memoryview:
        name, numbers = group[0].name, [frame.number for frame in group]
        form = self._sheet
        if form is not None and form.fits(name, plan, outputs):
            return form.fill(numbers, outputs)
        text, most = name.decode(), self._rows // plan.rows
        first = {key: outputs[key][: plan.rows] for key, _ in plan.outputs}
        if sheet.fit(plan, first, most):
            form = self._sheet = sheet.Sheet(name, plan, self._codec.format(text, plan, first), first, most)
            return form.fill(numbers, outputs)
        found = self._codec.format_alike(text, plan, outputs, len(group))
        return b"".join([frames.answer(number, *one) for number, one in zip(numbers, found, strict=True)])

    # -- others

    def _infer_mixed(self, found: Sequence[Frame]) -> None:
        parsed: list[tuple[Frame, Request]] = []
        for frame in found:
            try:
                parsed.append((frame, self._codec.parse(frame.body, frame.json)))
            except MemoryError:
                raise
            except Exception:
                self._alone(frame)  # which tells what is wrong with it
        for part in batching.groups([request for _, request in parsed], self._rows):
            group = parsed[part]
            if len(group) == 1 or not self._score_mixed(group):
                for frame, request in group:
                    self._parsed(frame, request)

    def _score_mixed(self, group: Sequence[tuple[Frame, Request]]) -> bool:
        """As :meth:`_score_alike`."""
        counts = [request.plan.rows for _, request in group]
        try:
            outputs = self._score(batching.join([request.inputs for _, request in group]))
            if not batching.divides(outputs, sum(counts)):
                return False
            parts = batching.cut(outputs, counts)
            answers = [
                frames.answer(frame.number, *self._codec.format(frame.name.decode(), request.plan, part))
                for (frame, request), part in zip(group, parts, strict=True)
            ]
        except MemoryError:
            raise
        except Exception:
            return False
        self._send(b"".join(answers))
        for (frame, request), part in zip(group, parts, strict=True):
            self._note(frame.name, request.inputs, part, request.plan.rows)
        return True
