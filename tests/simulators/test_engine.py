"""The pynq engine on the simulated board, through the unmodified pynq: exact, and every fault by its own name."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from examples.parts import built, read, script
from skerry_agent import golden
from skerry_agent.engines.pynq import ENGINE, LOCK_NAME
from skerry_modules.errors import SkerryError
from skerry_modules.manifest import Manifest
from skerry_simulators.fpga import network as fpga
from skerry_simulators.fpga import overlay as files
from skerry_simulators.fpga.faults import Fault

pytestmark = pytest.mark.pynq


def quick(manifest: Manifest, **options: Any) -> Manifest:
    """The manifest with short deadlines, so that a hang is found soon."""
    chosen = {**manifest.options, "transfer_timeout_s": 0.2, "lock_timeout_s": 0.1, **options}
    return msgspec.structs.replace(manifest, options=chosen)


def load(folder: Path, cache: Path, **options: Any) -> Any:
    return ENGINE.load(folder, quick(read(folder), **options), cache)


def refused(folder: Path, cache: Path, **options: Any) -> SkerryError:
    with pytest.raises(SkerryError) as caught:
        load(folder, cache, **options)
    return caught.value


def quantised(quality: str) -> tuple[fpga.Network, float]:
    """The network that the example puts on the board, made again."""
    train = script("digits-fpga")
    pixels, labels, *_ = train.load()
    return train.quantise(train.train(pixels, labels, train.PLANS[quality], 0), pixels)  # type: ignore[no-any-return]


@pytest.mark.parametrize("quality", ["good", "better"])
def test_the_board_is_exact_to_the_bit(quality: str, board: Any, tmp_path: Path) -> None:
    folder, card = built("digits-fpga", quality=quality)
    heldout = np.load(folder / "heldout.npz")
    pixels = heldout["input.pixels"]
    model = load(folder, tmp_path)
    try:
        integers = model.integers({"pixels": pixels})
        scores = model.run({"pixels": pixels})["probabilities"]
    finally:
        model.close()
    network, scale = quantised(quality)
    expected = fpga.reference(network, script("digits-fpga").to_int8(pixels))
    assert integers.dtype == np.int32
    assert np.array_equal(integers, expected), "599 rows, every accumulator"
    assert np.array_equal(scores, script("digits-fpga").probabilities(network, scale, pixels))
    assert (scores.argmax(axis=1) == heldout["label"]).mean() == pytest.approx(card["heldout_accuracy"], abs=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 64, 65, 130])
def test_any_number_of_rows(rows: int, board: Any, overlay: Path, tmp_path: Path) -> None:
    pixels = np.load(overlay / "heldout.npz")["input.pixels"]
    model = load(overlay, tmp_path)
    try:
        whole = model.run({"pixels": pixels[:130]})["probabilities"]
        assert np.array_equal(model.run({"pixels": pixels[:rows]})["probabilities"], whole[:rows])
    finally:
        model.close()


def test_a_broken_model_is_the_golden_tests_to_find(board: Any, tmp_path: Path) -> None:
    folder, _ = built("digits-fpga", quality="broken")
    model = load(folder, tmp_path)
    try:
        report = golden.run(read(folder), folder, model.run)
    finally:
        model.close()
    assert not report.passed
    assert report.failed == report.cases


# -- the board's faults --------------------------------------------------------------------------------------------

FAULTS = [
    (Fault.NO_FLUSH, "board.stale_memory", "never reached the board (no flush)"),
    (Fault.NO_INVALIDATE, "board.stale_memory", "never reached the CPU (no invalidate)"),
    (Fault.WRONG_ORDER, "board.wrong_order", "the bytes of each 4-byte word are reversed"),
    (Fault.MISALIGNED, "board.misaligned", "needs multiples of 4 bytes"),
    (Fault.OVERSIZE, "board.oversize", "more than the 63 bytes that its DMA engine moves at once"),
    (Fault.DMA_ERROR, "board.dma_error", "input DMA slave error"),
    (Fault.HANG, "board.hang", "the input transfer did not end within 0.2 s"),
    (Fault.WRONG_HWH, "board.wrong_metadata", "nothing answers where its .hwh says that network_0 is"),
    (Fault.WRONG_BITSTREAM, "board.wrong_bitstream", "identifies itself as"),
]


@pytest.mark.parametrize(("fault", "code", "words"), FAULTS, ids=[case[0] for case in FAULTS])
def test_each_fault_is_caught_by_its_own_name(
    fault: Fault, code: str, words: str, board: Any, overlay: Path, tmp_path: Path
) -> None:
    board.faults.add(fault)
    error = refused(overlay, tmp_path)
    assert (error.code, words in error.message) == (code, True), error.message
    board.faults.clear()
    load(overlay, tmp_path).close()  # nothing is left behind: lock, buffers and board are free again


def test_the_table_holds_every_fault_with_a_reason_of_its_own() -> None:
    assert [fault for fault, *_ in FAULTS] == list(Fault)
    assert len({(code, words) for _, code, words in FAULTS}) == len(Fault)


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DMA_ERROR])
def test_a_transfer_that_fails_later_is_told_and_the_next_one_works(
    fault: Fault, board: Any, overlay: Path, tmp_path: Path
) -> None:
    pixels = np.load(overlay / "heldout.npz")["input.pixels"][:3]
    model = load(overlay, tmp_path)
    try:
        expected = model.run({"pixels": pixels})["probabilities"]
        downloads = board.downloads
        board.faults.add(fault)
        for _ in range(2):
            with pytest.raises(SkerryError) as caught:
                model.run({"pixels": pixels})
            assert caught.value.code == ("board.hang" if fault is Fault.HANG else "board.dma_error")
        board.faults.clear()
        assert np.array_equal(model.run({"pixels": pixels})["probabilities"], expected)
        assert board.downloads == downloads + 2, "configured anew after each failure, and only then"
        model.run({"pixels": pixels})
        assert board.downloads == downloads + 2
    finally:
        model.close()


# -- the module's faults -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(overlay: Path, tmp_path: Path) -> Path:
    """A copy of the overlay's folder to spoil."""
    return Path(shutil.copytree(overlay, tmp_path / "copy"))


def test_metadata_of_another_design(board: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "digits.hwh").write_text(files.metadata("letters"), encoding="utf-8")
    before = board.downloads
    error = refused(copy, tmp_path)
    assert error.code == "board.wrong_metadata"
    assert "describes the design 'letters', its .bit is 'digits'" in error.message
    assert board.downloads == before, "it never reached the board"


def test_a_bitstream_for_another_part_never_reaches_the_board(board: Any, copy: Path, tmp_path: Path) -> None:
    payload = fpga.pack(quantised("good")[0])
    (copy / "digits.bit").write_bytes(files.bitstream("digits", payload, part="7z010clg400"))
    before = board.downloads
    assert refused(copy, tmp_path).code == "board.wrong_metadata"
    assert board.downloads == before


def test_a_bitstream_of_another_training(board: Any, copy: Path, tmp_path: Path) -> None:
    shutil.copy(built("digits-fpga", quality="good")[0] / "digits.bit", copy / "digits.bit")
    error = refused(copy, tmp_path)
    assert error.code == "board.wrong_bitstream"


@pytest.mark.parametrize("name", ["digits.bit", "digits.hwh"])
def test_a_missing_file_is_named(name: str, board: Any, copy: Path, tmp_path: Path) -> None:
    (copy / name).unlink()
    error = refused(copy, tmp_path)
    assert (error.code, error.message) == (
        "install.load_failed",
        f"cannot load the overlay: {name} is missing; pack the .bit and its .hwh",
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"dma": "axi_dma_7"}, "board.wrong_metadata", "has no IP 'axi_dma_7', only axi_dma_0, network_0"),
        ({"dma": "network_0"}, "board.wrong_metadata", "network_0 is no AXI DMA engine in direct mode"),
        ({"core": "network_9"}, "board.wrong_metadata", "has no IP 'network_9'"),
        ({"identity": 1}, "board.wrong_bitstream", "the module was made for 0x1"),
        ({"core": ""}, "board.hang", "the input transfer did not end"),
        ({"output_type": "int8"}, "board.dma_error", "output DMA internal error"),
        ({"colour": "red"}, "install.load_failed", "unknown field `colour`"),
    ],
)
def test_options_that_do_not_fit_the_design(
    options: dict[str, Any], code: str, words: str, board: Any, overlay: Path, tmp_path: Path
) -> None:
    error = refused(overlay, tmp_path, **options)
    assert (error.code, words in error.message) == (code, True), error.message


# -- one board, one overlay ----------------------------------------------------------------------------------------


def test_a_board_in_use_is_waited_for_and_then_told(board: Any, overlay: Path, tmp_path: Path) -> None:
    first = load(overlay, tmp_path)
    try:
        error = refused(overlay, tmp_path)
        assert error.code == "board.busy"
        assert "another process held it for 0.1 s" in error.message
    finally:
        first.close()
    load(overlay, tmp_path).close()


def test_a_lock_that_cannot_be_made_is_told(board: Any, overlay: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = refused(overlay, tmp_path / "file")
    assert error.code == "board.busy"
    assert "name a cache folder that the agent may write" in error.message


def test_a_process_that_died_leaves_the_board_free(board: Any, overlay: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        fcntl.flock(os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)
        os._exit(9)  # without unlocking
    os.waitpid(pid, 0)
    load(overlay, tmp_path).close()


def test_the_engine_costs_the_agent_no_import() -> None:
    """The agent process asks what is installed; it must not grow by numpy and pynq for that."""
    import subprocess
    import sys

    code = (
        "import sys; from skerry_agent.engines.pynq import ENGINE; assert ENGINE.version(); assert ENGINE.exclusive;"
        "print([name for name in ('numpy', 'pynq', 'skerry_simulators') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_without_a_board_the_reason_says_what_to_do(overlay: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import pathlib, sys; from skerry_agent.engines.pynq import ENGINE; from skerry_modules import manifest\n"
        f"folder = pathlib.Path({str(overlay)!r})\n"
        "try: ENGINE.load(folder, manifest.parse((folder / 'module.toml').read_text()), pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(error.code, error.message)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SKERRY_", "XILINX_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("board.absent cannot use the engine pynq: no board was found")
    assert "SKERRY_PYNQ_DEVICE" in done.stdout


def test_pynq_is_unmodified(board: Any) -> None:
    """What the engine drives is the package from the index: its files match the hashes of its own record."""
    import base64
    import hashlib
    from importlib.metadata import distribution

    pynq = distribution("pynq")
    checked = 0
    for file in pynq.files or ():
        if file.hash is None or file.suffix != ".py":
            continue
        digest = hashlib.new(file.hash.mode, pynq.locate_file(file).read_bytes()).digest()  # type: ignore[attr-defined]
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
        checked += 1
    assert checked > 100


def test_the_stock_driver_in_the_wrong_order_stalls_as_a_real_one_does(board: Any, overlay: Path) -> None:
    """Send first and wait, with the receiver not yet started: the wait would never end."""
    import pynq

    from skerry_agent.engines.pynq_model import quiet

    with quiet():
        loaded = pynq.Overlay(str(overlay / "digits.bit"))
        dma, core = loaded.axi_dma_0, loaded.network_0
    rows = 8
    source, target = pynq.allocate((rows, 64), np.int8), pynq.allocate((rows, 10), np.int32)
    source[:] = 1
    core.write(0x10, rows)
    core.write(0, 1)
    dma.sendchannel.transfer(source)
    assert not any(dma.sendchannel.idle for _ in range(50))
    dma.recvchannel.transfer(target)
    dma.sendchannel.wait()
    dma.recvchannel.wait()
    assert target.any()
    assert core.register_map.identity is not None
    source.freebuffer()
    target.freebuffer()
