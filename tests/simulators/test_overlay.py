"""The overlay's two files are read by the agent, by ``pynq`` and by ``pynqmetadata`` as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.engines.bitfile import Bitfile, Metadata, check_pair, parse_bitfile, parse_metadata
from skerry_modules.errors import PeerError
from skerry_simulators.fpga import overlay
from skerry_simulators.fpga.network import Layer, Network, identity, pack

NETWORK = Network((Layer(weights=np.eye(4, dtype=np.int8), bias=np.zeros(4, np.int32)),))


@given(design=st.from_regex(r"[a-z][a-z0-9]{0,30}", fullmatch=True), payload=st.binary(max_size=200))
def test_a_bitfile_is_read_as_it_was_written(design: str, payload: bytes) -> None:
    found = parse_bitfile(overlay.bitstream(design, payload))
    assert found == Bitfile(
        design.removesuffix("_wrapper") if design.endswith("_wrapper") else design, overlay.PART, payload
    )


@given(cut=st.integers(0, 150), junk=st.binary(max_size=100))
def test_a_damaged_bitfile_is_refused_and_nothing_else_happens(cut: int, junk: bytes) -> None:
    whole = overlay.bitstream("digits", b"x" * 64)
    for content in (whole[: min(cut, len(whole) - 1)], junk, whole + b"more"):
        with pytest.raises(PeerError) as caught:
            parse_bitfile(content)
        assert caught.value.code == "install.load_failed"
        assert caught.value.message.startswith("cannot read the bitstream")


@pytest.mark.parametrize(
    ("bit", "hwh", "words"),
    [
        (Bitfile("digits", "7z020clg400", b""), Metadata("digits", "7z020clg400"), ""),
        (Bitfile("digits", "xc7z020clg400-1", b""), Metadata("digits", "7z020clg400"), ""),
        (Bitfile("digits", "7z020clg400", b""), Metadata("resizer", "7z020clg400"), "describes the design 'resizer'"),
        (Bitfile("digits", "7z010clg400", b""), Metadata("digits", "7z020clg400"), "is for 7z020clg400, its .bit for"),
    ],
)
def test_a_pair_that_does_not_belong_together(bit: Bitfile, hwh: Metadata, words: str) -> None:
    if not words:
        check_pair(bit, hwh)
        return
    with pytest.raises(PeerError) as caught:
        check_pair(bit, hwh)
    assert caught.value.code == "board.wrong_metadata"
    assert words in caught.value.message


def test_metadata_without_a_design_is_refused() -> None:
    with pytest.raises(PeerError, match="names no design"):
        parse_metadata(b"<xml/>")


@pytest.mark.pynq
def test_pynq_reads_the_same_header(tmp_path: Path) -> None:
    overlay.write(tmp_path, "digits", NETWORK)
    content = (tmp_path / "digits.bit").read_bytes()
    code = Path(__import__("pynqmetadata").__file__).parents[1] / "pynq" / "pl_server" / "embedded_device.py"
    # pynq's own parser, taken out of a file whose import asks for a board's libraries.
    text = code.read_text()
    start, end = text.index("def parse_bit_header"), text.index("def bit2bin")
    space: dict[str, object] = {"struct": __import__("struct")}
    exec(text[start:end], space)
    found = space["parse_bit_header"](content)  # type: ignore[operator]
    ours = parse_bitfile(content)
    assert found["design"] == f"{ours.design}_wrapper"
    assert found["part"] == ours.part
    assert found["data"] == ours.data


@pytest.mark.pynq
def test_pynqmetadata_finds_the_engine_and_the_core(tmp_path: Path) -> None:
    from pynqmetadata.frontends import Metadata as Frontend
    from pynqmetadata.views.runtime import RuntimeMetadataParser

    assert overlay.write(tmp_path, "digits", NETWORK, length_bits=14) == identity(pack(NETWORK))
    assert parse_metadata((tmp_path / "digits.hwh").read_bytes()) == Metadata("digits", overlay.PART)
    parser = RuntimeMetadataParser(Frontend(input=tmp_path / "digits.hwh"))
    core = parser.ip_dict[overlay.CORE_NAME]
    assert core["type"] == overlay.CORE_TYPE
    offsets = {name: register["address_offset"] for name, register in core["registers"].items()}
    assert {name: offsets[name] for name in ("rows", "row_bytes", "frames", "identity")} == {
        "rows": 0x10,
        "row_bytes": 0x18,
        "frames": 0x20,
        "identity": 0x28,
    }
    dma = parser.ip_dict[overlay.DMA_NAME]
    assert dma["type"] == "xilinx.com:ip:axi_dma:7.1"
    assert dma["parameters"]["c_sg_length_width"] == "14"
