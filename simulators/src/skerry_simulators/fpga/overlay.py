"""Writes the two files of an overlay for the simulated board: ``<design>.bit`` and ``<design>.hwh``.

The block design is that of PYNQ's resizer example (Zynq-7020, one AXI DMA engine, one HLS core), whose ``.hwh`` ships
with ``pynqmetadata``: the metadata is made from it here, with the core and its registers renamed, so that the stock
parser and drivers work on real Vivado output. The ``.bit`` has a valid header; its payload is the packed network
(:mod:`.network`) instead of configuration frames, so it means something to the simulated board only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from skerry_modules.errors import ResourceError
from skerry_simulators.fpga.network import Network, identity, pack

PART: Final = "7z020clg400"
"""Device and package of the PYNQ-Z2 (the ``.hwh`` names the two apart)."""

DMA_NAME: Final = "axi_dma_0"
CORE_NAME: Final = "network_0"
CORE_TYPE: Final = "skerry.dev:hls:int8_network:1.0"

_RENAMED: Final = {
    "resize_accel_0": CORE_NAME,
    "xilinx.com:hls:resize_accel:1.0": CORE_TYPE,
    'MODTYPE="resize_accel"': 'MODTYPE="int8_network"',
    'NAME="src_rows"': 'NAME="rows"',
    'NAME="src_cols"': 'NAME="row_bytes"',
    'NAME="dst_rows"': 'NAME="frames"',
    'NAME="dst_cols"': 'NAME="identity"',
}


def metadata_template() -> Path:
    """The resizer's ``.hwh`` inside the installed ``pynqmetadata``.

    Raises:
        ResourceError: ``resource.missing_dependency``.
    """
    found = importlib.util.find_spec("pynqmetadata")
    path = Path(found.origin).parent / "tests" / "hwhs" / "resizer.hwh" if found and found.origin else None
    if path is None or not path.is_file():
        raise ResourceError(
            "resource.missing_dependency",
            "cannot write an overlay's metadata: its template ships with pynqmetadata, install skerry[pynq]",
        )
    return path


def metadata(design: str, *, length_bits: int = 26) -> str:
    """The ``.hwh`` text of ``design``; ``length_bits`` is the width of the DMA engine's length registers."""
    text = metadata_template().read_text(encoding="utf-8-sig")
    for old, new in _RENAMED.items():
        if old not in text:
            raise ResourceError(
                "resource.missing_dependency", f"cannot derive metadata: this pynqmetadata's resizer.hwh has no {old}"
            )
        text = text.replace(old, new)
    for name in ("C_SG_LENGTH_WIDTH", "c_sg_length_width"):
        text = text.replace(f'NAME="{name}" VALUE="26"', f'NAME="{name}" VALUE="{length_bits}"')
    return text.replace('NAME="resizer"', f'NAME="{design}"')


def bitstream(design: str, payload: bytes, *, part: str = PART) -> bytes:
    """A ``.bit`` file: the usual header (design, part, date, time, length), then ``payload``."""

    def field(key: bytes, text: str) -> bytes:
        data = text.encode("ascii") + b"\0"
        return key + len(data).to_bytes(2, "big") + data

    start = bytes.fromhex("0ff00ff00ff00ff000")
    return b"".join(
        [
            len(start).to_bytes(2, "big") + start + (1).to_bytes(2, "big"),
            field(b"a", f"{design}_wrapper;UserID=0XFFFFFFFF;Version=2019.2"),
            field(b"b", part),
            field(b"c", "2026/01/01"),  # fixed, so that the same network gives the same bytes
            field(b"d", "00:00:00"),
            b"e" + len(payload).to_bytes(4, "big") + payload,
        ]
    )


def write(folder: Path, design: str, network: Network, *, length_bits: int = 26) -> int:
    """Write both files into ``folder``; returns the identity that the core's register will hold."""
    payload = pack(network)
    (folder / f"{design}.bit").write_bytes(bitstream(design, payload))
    (folder / f"{design}.hwh").write_text(metadata(design, length_bits=length_bits), encoding="utf-8")
    return identity(payload)
