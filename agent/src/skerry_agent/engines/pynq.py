"""The engine ``pynq``: a design on an FPGA board, fed by DMA through the stock ``pynq`` package.

The module's ``model`` is the bitstream; its ``.hwh`` of the same name stands beside it. The call order is PYNQ's:
``Overlay``, ``allocate``, receive channel, send channel, wait for both. What PYNQ leaves open is closed here:

* ``wait()`` is a busy loop without end. The channel's status is polled to a deadline first, and ``wait()`` called only
  when it will return at once.
* A board holds one design. A lock file keeps it for one worker (:attr:`PynqEngine.exclusive` tells the data plane to
  stop the version before and to queue requests meanwhile).
* After a failed transfer the core is in an unknown state, so the board is configured anew before the next one.
* A wrong answer has many causes that look alike. After configuration a few golden cases are sent, and what returns
  tells a fault of the board (``board.*``) from a wrong model, which the golden test will find.

``SKERRY_PYNQ_DEVICE`` may name a module that registers a board with ``pynq`` when imported: the simulated one is
``skerry_simulators.fpga.device``.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from skerry_agent.engines import _host
from skerry_agent.engines.bitfile import check_pair, parse_bitfile, parse_metadata
from skerry_agent.ports import Engine, LoadedModel
from skerry_modules.errors import PeerError, ResourceError
from skerry_modules.manifest import Manifest

DEVICE_VARIABLE: Final = "SKERRY_PYNQ_DEVICE"
LOCK_NAME: Final = "board.lock"


class PynqEngine:
    """See ``ports.Engine``."""

    name = "pynq"
    exclusive = True

    def version(self) -> str:
        return _host.installed("pynq")

    def preload(self) -> None:
        """Import ``pynq`` and its DMA driver; nothing is probed until :meth:`load`."""
        from skerry_agent.engines.pynq_model import quiet

        with quiet():
            importlib.import_module("pynq.lib.dma")
            if named := os.environ.get(DEVICE_VARIABLE):
                importlib.import_module(named)

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> LoadedModel:
        """Configure the board.

        Raises:
            SkerryError: ``board.*``, or ``install.load_failed``.
        """
        from skerry_agent.engines import pynq_model, pynq_packing  # they need numpy, which the agent process has not

        options = pynq_packing.options_of(manifest)
        bitstream = folder / manifest.model
        _check_files(bitstream)
        try:
            self.preload()
        except ImportError as error:
            raise ResourceError("unschedulable.engine", f"cannot use the engine pynq: {error}") from error
        # An agent without a cache folder still has one board.
        shared = cache if cache.parts else Path(tempfile.gettempdir()) / f"skerry-{os.getuid()}"
        lock = _take_board(shared / LOCK_NAME, options.lock_timeout_s)
        try:
            model = pynq_model.PynqModel(bitstream, manifest, options, lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            model.self_test(folder)
        except BaseException:
            model.close()
            raise
        return model


def _check_files(bitstream: Path) -> None:
    described = bitstream.with_suffix(".hwh")
    for path in (bitstream, described):
        if not path.is_file():
            raise PeerError(
                "install.load_failed", f"cannot load the overlay: {path.name} is missing; pack the .bit and its .hwh"
            )
    check_pair(parse_bitfile(bitstream.read_bytes()), parse_metadata(described.read_bytes()))


def _take_board(path: Path, timeout_s: float) -> int:
    """The board's lock, held as long as the descriptor is open (also by a process that dies)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(
            "board.busy",
            f"cannot lock the board: {path}: {error.strerror}; name a cache folder that the agent may write",
        ) from error
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ResourceError(
                    "board.busy",
                    f"cannot use the board: another process held it for {timeout_s:g} s ({path}); stop it, or wait",
                ) from error
            time.sleep(0.02)


ENGINE: Final[Engine] = PynqEngine()
