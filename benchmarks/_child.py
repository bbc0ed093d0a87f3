"""A process of a benchmark's own, steered by lines: what is measured shares no interpreter with what measures it.

The child prints one JSON value a line: first what it is, then an answer to each order. It ends when its standard input
closes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any

END_S = 30.0


class Child:
    """``python -m MODULE ARGUMENTS…``. Raises SystemExit where it ends without an answer."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> Any:
        """The next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"cannot measure: {self._module} ended with {self._process.wait()}; see above")
        return json.loads(line)

    def tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def ask(self, order: str) -> Any:
        self.tell(order)
        return self.hear()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(END_S)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
