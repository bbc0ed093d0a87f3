"""Pages of files are given back; those that were written to are not."""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
import sys
from pathlib import Path

from skerry_agent.serving import pages

LIBC = ctypes.CDLL(None, use_errno=True)


def resident(address: int) -> int:
    """KB of the mapping at this address that are in memory."""
    found = re.search(
        rf"^{address:x}-.*?^Rss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return int(found[1])


def test_what_is_only_read_is_released_and_what_was_written_stays(tmp_path: Path) -> None:
    """As a loader does: written, then protected. Dropping that page would bring back the file's own bytes."""
    size = 16 * mmap.PAGESIZE
    views, addresses = [], []
    for name in ("read", "written"):
        (tmp_path / name).write_bytes(b"a" * size)
        with (tmp_path / name).open("rb") as stream:
            views.append(
                mmap.mmap(stream.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            )
        addresses.append(ctypes.addressof(ctypes.c_char.from_buffer(views[-1])))
    views[1][5 * mmap.PAGESIZE] = ord("b")
    for view, address in zip(views, addresses, strict=True):
        assert view[:] != b""
        assert LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ) == 0
        assert resident(address) > 0
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        verdicts = [pages.clean(pagemap.fileno(), pages.Mapping(address, address + size)) for address in addresses]
    assert verdicts == [True, False]
    assert pages.release_files() > 0
    assert resident(addresses[0]) == 0
    assert resident(addresses[1]) > 0
    assert views[1][5 * mmap.PAGESIZE] == ord("b")
    assert views[0][:] == b"a" * size  # it comes back as it was


def test_a_process_works_on_after_it_gave_everything_back() -> None:
    """Relocated tables, code and constants of a dozen libraries, numpy's and ONNX Runtime's among them."""
    script = """
import hashlib, sqlite3, numpy, onnxruntime
from pathlib import Path
from skerry_agent.serving import pages
def kb(what):
    return int(Path('/proc/self/smaps_rollup').read_text().partition(what + ':')[2].split()[0])
def resident():
    return kb('Rss') - kb('Anonymous')
before = resident()
pages.give_back()
print(resident() < before / 2)
one, = sqlite3.connect(':memory:').execute('select 1').fetchone()
print(numpy.linalg.inv(numpy.eye(3)).sum(), one, len(hashlib.sha256(b'').digest()))
try:
    onnxruntime.InferenceSession(b'no model')
except Exception as error:
    print(type(error).__name__)
pages.give_back()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split("\n")[:2] == ["True", "3.0 1 32"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_only_files_that_nobody_may_write_to_are_looked_at() -> None:
    text = """\
5000-6000 r--p 00000000 fe:00 12 /usr/lib/a.so
6000-9000 r-xp 00001000 fe:00 12 /usr/lib/a.so
9000-a000 rw-p 00004000 fe:00 12 /usr/lib/a.so
a000-b000 r--s 00000000 fe:00 13 /var/shared
b000-c000 r-xp 00000000 00:00 0 [vdso]
c000-d000 r--p 00000000 00:00 0
d000-e000 r--p 00000000 fe:00 14 /a folder/with spaces (deleted)
"""
    assert list(pages.mappings(text)) == [(0x5000, 0x6000), (0x6000, 0x9000), (0xD000, 0xE000)]
