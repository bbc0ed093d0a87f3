"""A small module folder, packed; and the means to take a package apart and put it together wrongly."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from skerry_modules import package
from skerry_modules.index import Limits
from skerry_modules.trust import SigningKey

MANIFEST = """\
format = 1
name = "echo"
engine = "python"
model = "main.py"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""
KEY = SigningKey.generate("tester")


def make_folder(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, data in {"module.toml": MANIFEST.encode(), "main.py": b"def run(x): return x\n", **(files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(tmp_path: Path, files: dict[str, bytes] | None = None) -> package.Packed:
    return package.write_package(make_folder(tmp_path / "module", files), tmp_path / "out.skerry", KEY)


def read_all(data: bytes, limits: Limits = package.DEFAULT_LIMITS) -> package.Index:
    with package.read_package(io.BytesIO(data), limits) as opened:
        opened.verify()
        return opened.index


def rewrite(data: bytes, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> bytes:
    """Take a package apart with the standard library, change its members, and write them as ustar again."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    change(members)
    out = io.BytesIO()
    for member, content in members:
        out.write(member.tobuf(tarfile.USTAR_FORMAT) if member.type != b"x" else content)
        if member.type == tarfile.REGTYPE:
            out.write(content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(1024)


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made
