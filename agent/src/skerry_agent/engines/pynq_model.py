"""A configured board: the stock ``pynq`` overlay and DMA driver behind ``ports.LoadedModel``.

What :mod:`skerry_agent.engines.pynq` says of deadlines, recovery and self-test is done here.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_agent import golden
from skerry_agent.engines import pynq_packing as packing
from skerry_agent.ports import Arrays
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.options import PynqOptions

SELF_TEST_ROWS: Final = 4

# AXI DMA, AMD PG021: channel offsets, status bits
_SEND, _RECEIVE, _STATUS = 0x00, 0x30, 0x04
_IDLE = 0x02
_ERRORS: Final = {
    0x10: "internal error (a transfer of no bytes, or a frame longer than its buffer)",
    0x20: "slave error (the memory refused the access)",
    0x40: "decode error (no memory at the address)",
}
_AP_START = 0x01
_SPINS = 200  # polls without a pause: most transfers end within them


class PynqModel:
    """A configured board with its buffers. One thread at a time, as workers do."""

    def __init__(self, bitstream: Path, manifest: Manifest, options: PynqOptions, lock: int) -> None:
        self._manifest, self._options, self._lock = manifest, options, lock
        self._source, self._target = manifest.inputs[0], manifest.outputs[0]
        self._packing = packing.Packing(options, self._source, self._target)
        self._spoiled = False
        with quiet():
            self._overlay = _configure(bitstream)
            self._dma = self._ip(options.dma)
            self._core = self._ip(options.core) if options.core else None
        self._check_dma()
        self._check_identity()
        self._check_sizes()
        self._buffers: list[Any] = []
        try:
            for row_bytes in (self._packing.row_bytes_in, self._packing.row_bytes_out):
                self._buffers.append(_allocate(options.rows_per_transfer * row_bytes))
            self._input, self._output = self._buffers
            self._check_alignment()
        except SkerryError:
            self._free()
            raise

    # -- scoring -----------------------------------------------------------------------------------------------------

    def run(self, inputs: Arrays) -> Arrays:
        """Score a batch of any number of rows, ``rows_per_transfer`` at a time."""
        stream = self._packing.encode(np.asarray(inputs[self._source.name]))
        return {self._target.name: self._packing.decode(self._score(stream))}

    def integers(self, inputs: Arrays) -> np.ndarray[Any, Any]:
        """The integers that the design computed, before scaling: for comparison to the bit."""
        stream = self._packing.encode(np.asarray(inputs[self._source.name]))
        return self._packing.integers(self._score(stream))

    def close(self) -> None:
        """Give the buffers and the board back."""
        self._free()
        os.close(self._lock)

    def _free(self) -> None:
        while self._buffers:
            self._buffers.pop().freebuffer()

    def _score(self, stream: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        step = self._options.rows_per_transfer
        parts = [self._transfer(stream[at : at + step]) for at in range(0, len(stream), step)]
        return np.concatenate(parts) if parts else np.zeros((0, self._packing.row_bytes_out), np.uint8)

    def _transfer(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._spoiled:
            self._configure_anew()
        size_in, size_out = rows.size, len(rows) * self._packing.row_bytes_out
        self._input[:size_in] = rows.reshape(-1)
        try:
            if self._core is not None:
                self._core.write(self._options.rows_register, len(rows))
                self._core.write(0, _AP_START)
            # The receiver first: a sender without one stalls as soon as the design's output queue is full.
            self._dma.recvchannel.transfer(self._output, nbytes=size_out)
            self._dma.sendchannel.transfer(self._input, nbytes=size_in)
            deadline = time.monotonic() + self._options.transfer_timeout_s
            self._wait(self._dma.sendchannel, _SEND, deadline)
            self._wait(self._dma.recvchannel, _RECEIVE, deadline)
        except SkerryError:
            self._spoiled = True
            raise
        except (RuntimeError, ValueError, OSError) as error:
            self._spoiled = True
            raise ResourceError("board.dma_error", f"cannot score on the board: {error}") from error
        if self._dma.recvchannel.transferred != size_out:
            self._spoiled = True
            raise PeerError(
                "board.dma_error",
                f"cannot score on the board: it returned {self._dma.recvchannel.transferred} bytes for {len(rows)} "
                f"rows, the manifest's output takes {size_out}; compare [[outputs]] with the design",
            )
        return np.array(self._output[:size_out], dtype=np.uint8).reshape(len(rows), -1)

    def _wait(self, channel: Any, offset: int, deadline: float) -> None:
        """``channel.wait()``, but to a deadline and with the hardware's own reason."""
        side = "input" if offset == _SEND else "output"
        spins = 0
        while not (status := self._dma.read(offset + _STATUS)) & _IDLE:
            for bit, meaning in _ERRORS.items():
                if status & bit:
                    raise ResourceError("board.dma_error", f"cannot score on the board: {side} DMA {meaning}")
            if time.monotonic() > deadline:
                raise ResourceError(
                    "board.hang",
                    f"cannot score on the board: the {side} transfer did not end within "
                    f"{self._options.transfer_timeout_s:g} s; the board is configured anew before the next request",
                )
            spins += 1
            if spins > _SPINS:
                time.sleep(0.0002)
        channel.wait()

    def _configure_anew(self) -> None:
        try:
            with quiet():
                self._overlay.download()
            self._dma.recvchannel.start()
            self._dma.sendchannel.start()
        except Exception as error:  # as in _configure
            raise ResourceError("board.dma_error", f"cannot configure the board anew: {error}") from error
        self._spoiled = False

    # -- checks after configuration ----------------------------------------------------------------------------------

    def _ip(self, name: str) -> Any:
        if name not in self._overlay.ip_dict:
            names = ", ".join(sorted(self._overlay.ip_dict)) or "none"
            raise PeerError(
                "board.wrong_metadata",
                f"cannot use the overlay: its .hwh has no IP {name!r}, only {names}; mend [options]",
            )
        found = self._overlay
        for part in name.split("/"):  # an IP inside a hierarchy is named hierarchy/ip
            found = getattr(found, part)
        return found

    def _check_dma(self) -> None:
        parameters = getattr(self._dma, "description", {}).get("parameters", {})
        channels = all(getattr(self._dma, side, None) is not None for side in ("sendchannel", "recvchannel"))
        if not channels or int(parameters.get("c_include_sg", 0)):
            raise PeerError(
                "board.wrong_metadata",
                f"cannot use the overlay: {self._options.dma} is no AXI DMA engine in direct mode with both channels; "
                "name another in [options], or build it without scatter-gather",
            )

    def _check_identity(self) -> None:
        if self._core is None or self._options.identity_register < 0:
            return
        try:
            found = self._core.read(self._options.identity_register)
        except OSError as error:
            raise PeerError(
                "board.wrong_metadata",
                f"cannot use the overlay: nothing answers where its .hwh says that {self._options.core} is ({error})",
            ) from error
        if found != self._options.identity:
            raise PeerError(
                "board.wrong_bitstream",
                f"cannot use the overlay: the design on the board identifies itself as {found:#x}, the module was "
                f"made for {self._options.identity:#x}; pack the module with the bitstream that it was trained for",
            )

    def _check_sizes(self) -> None:
        most = self._dma.buffer_max_size
        row = max(self._packing.row_bytes_in, self._packing.row_bytes_out)
        if row * self._options.rows_per_transfer > most:
            rows = most // row
            mend = f"set rows_per_transfer to at most {rows}" if rows else "build it with a wider length register"
            raise PeerError(
                "board.oversize",
                f"cannot use the overlay: {self._options.rows_per_transfer} rows of {row} bytes are more than the "
                f"{most} bytes that its DMA engine moves at once; {mend}",
            )

    def _check_alignment(self) -> None:
        parameters = self._dma.description["parameters"]
        for buffer, side in ((self._input, "mm2s"), (self._output, "s2mm")):
            realigns = int(parameters.get(f"c_include_{side}_dre", 0))
            width = int(parameters.get(f"c_m_axi_{side}_data_width", 32)) // 8
            if not realigns and buffer.physical_address % width:
                raise ResourceError(
                    "board.misaligned",
                    f"cannot use the board: a buffer is at {buffer.physical_address:#x}, its DMA engine needs "
                    f"multiples of {width} bytes; build the design with realignment (DRE), or check the board's memory",
                )

    def self_test(self, folder: Path) -> None:
        """Tell faults of the board from a wrong model, by a few golden cases.

        Raises:
            SkerryError: ``board.*``.
        """
        expectation = self._manifest.golden
        if expectation is None:
            return
        inputs, expected = golden.load(folder / expectation.file)
        if self._source.name not in inputs or self._target.name not in expected:
            return  # the golden test itself says what is missing
        rows = min(SELF_TEST_ROWS, self._options.rows_per_transfer, len(inputs[self._source.name]))
        want = expected[self._target.name][:rows]

        def score(stream: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            self._output[:] = packing.SENTINEL
            self._output.flush()
            return self._transfer(stream)

        def passes(stream: np.ndarray[Any, Any]) -> bool:
            got = {self._target.name: self._packing.decode(stream)}
            return golden.compare(expectation, {self._target.name: want}, got).failed == 0

        sent = self._packing.encode(inputs[self._source.name][:rows])
        distinct = len(np.unique(want.reshape(rows, -1), axis=0)) > 1
        fault = packing.diagnose(sent, score, passes, distinct)
        if fault is not None:
            raise ResourceError(fault.code, f"cannot use the board: {fault.message}")


def _configure(bitstream: Path) -> Any:
    import pynq

    try:
        _ = pynq.Device.active_device
    except RuntimeError as error:
        raise ResourceError(
            "board.absent",
            "cannot use the engine pynq: no board was found; on a board set XILINX_XRT=/usr, to try without one set "
            "SKERRY_PYNQ_DEVICE to a simulated one",
        ) from error
    try:
        return pynq.Overlay(str(bitstream))
    except Exception as error:  # pynq and its metadata parsers raise nearly anything
        raise PeerError(
            "install.load_failed", f"cannot configure the board: {type(error).__name__}: {error}"
        ) from error


def _allocate(size: int) -> Any:
    import pynq

    try:
        return pynq.allocate((size,), dtype=np.uint8)
    except (MemoryError, RuntimeError) as error:
        raise ResourceError("resource.no_memory", f"cannot allocate {size} bytes for the board: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """``pynq`` warns about every machine that is not a board, and about drivers that no design here uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
