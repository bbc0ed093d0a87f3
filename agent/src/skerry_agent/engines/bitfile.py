"""Reads what an overlay's two files say of themselves, so that a wrong pair is refused before it reaches a board.

A ``.bit`` starts with fields for design, part, date and time; a ``.hwh`` names its design, device and package near its
top. Vivado names the bitstream's design ``<design>_wrapper``. A board configured with one design and driven by the
other's addresses hangs its bus: nothing recovers from that but a power cycle.

Sources: the ``.bit`` layout as in ``pynq/pl_server/embedded_device.py`` (``parse_bit_header``); the ``.hwh`` is XML,
of which only the ``SYSTEMINFO`` tag is looked at.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import msgspec

from skerry_modules.errors import PeerError

_WRAPPER: Final = "_wrapper"
_HEAD_BYTES: Final = 64 * 1024  # SYSTEMINFO stands in the first lines


class Bitfile(msgspec.Struct, frozen=True):
    """``design`` without Vivado's ``_wrapper``; ``part`` such as ``7z020clg400``; ``data`` the configuration."""

    design: str
    part: str
    data: bytes


class Metadata(msgspec.Struct, frozen=True):
    """Of a ``.hwh``; ``part`` is device and package in one, as a ``.bit`` writes it."""

    design: str
    part: str


def parse_bitfile(content: bytes) -> Bitfile:
    """Read a ``.bit`` file.

    Raises:
        PeerError: ``install.load_failed``: it is none, or is cut short.
    """
    texts: dict[int, str] = {}
    try:
        at = 2 + struct.unpack_from(">H", content)[0] + 2
        while content[at] != ord("e"):
            if content[at] not in b"abcd":
                raise _no_bitfile("an unknown header field")
            length = struct.unpack_from(">H", content, at + 1)[0]
            texts[content[at]] = content[at + 3 : at + 3 + length].rstrip(b"\0").decode("ascii")
            at += 3 + length
        size = struct.unpack_from(">I", content, at + 1)[0]
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise _no_bitfile("no valid header") from error
    data = content[at + 5 :]
    if len(data) != size:
        raise _no_bitfile(f"{len(data)} bytes of configuration, its header says {size}")
    design = texts.get(ord("a"), "").split(";")[0].removesuffix(_WRAPPER)
    return Bitfile(design, texts.get(ord("b"), ""), data)


def _no_bitfile(problem: str) -> PeerError:
    return PeerError("install.load_failed", f"cannot read the bitstream: it has {problem}; build or pack it again")


def parse_metadata(content: bytes) -> Metadata:
    """Read a ``.hwh`` file's own description.

    Raises:
        PeerError: ``board.wrong_metadata``: it has none.
    """
    tag = re.search(r"<SYSTEMINFO\b[^>]*>", content[:_HEAD_BYTES].decode("utf-8", "replace"))
    fields = dict(re.findall(r'(\w+)="([^"]*)"', tag[0])) if tag else {}
    if not fields.get("NAME"):
        raise PeerError(
            "board.wrong_metadata", "cannot use the .hwh file: it names no design; export it from Vivado again"
        )
    return Metadata(fields["NAME"], fields.get("DEVICE", "") + fields.get("PACKAGE", ""))


def check_pair(bitfile: Bitfile, metadata: Metadata) -> None:
    """Whether the two belong together.

    Raises:
        PeerError: ``board.wrong_metadata`` with both sides' words.
    """
    if bitfile.design != metadata.design:
        raise PeerError(
            "board.wrong_metadata",
            f"cannot use the overlay: its .hwh describes the design {metadata.design!r}, its .bit is "
            f"{bitfile.design!r}; pack the two files of one build",
        )
    # A .bit writes the part without a speed grade, some tools with a leading "xc".
    if metadata.part and metadata.part not in bitfile.part:
        raise PeerError(
            "board.wrong_metadata",
            f"cannot use the overlay: its .hwh is for {metadata.part}, its .bit for {bitfile.part}; "
            "pack the two files of one build",
        )
