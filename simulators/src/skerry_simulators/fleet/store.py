"""The bytes that all devices of a fleet download, kept once per process.

A device says which chunks it has got by its own bit set. A chunk's bytes are compared with those that came first, and
the whole is hashed once: a device whose every chunk equals the verified whole has verified the same bytes.
"""

from __future__ import annotations

import hashlib

from skerry_modules import chunks
from skerry_modules.index import Index, parse_index


class SharedObject:
    """One object: chunks as they first came."""

    def __init__(self, digest: str, size: int) -> None:
        self.digest, self.size = digest, size
        self.total = chunks.count(size)
        self.parts: dict[int, bytes] = {}
        self._verified: bool | None = None

    def take(self, part: int, data: memoryview) -> bool:
        """Whether these are the object's bytes for this chunk."""
        if not 0 <= part < self.total:
            return False
        if len(data) != min(chunks.CHUNK_BYTES, self.size - part * chunks.CHUNK_BYTES):
            return False
        known = self.parts.setdefault(part, bytes(data))
        return known == data

    def verified(self) -> bool:
        """Whether the whole has the digest that it is named by."""
        if self._verified is None:
            if len(self.parts) < self.total:
                return False
            whole = hashlib.sha256()
            for part in range(self.total):
                whole.update(self.parts[part])
            self._verified = whole.hexdigest() == self.digest
            if not self._verified:
                self.parts.clear()
                self._verified = None
                return False
        return self._verified

    def content(self) -> bytes:
        return b"".join(self.parts[part] for part in range(self.total))


class Store:
    """Objects by digest, and the indexes among them."""

    def __init__(self) -> None:
        self._objects: dict[str, SharedObject] = {}
        self._indexes: dict[str, Index] = {}

    def object(self, digest: str, size: int) -> SharedObject:
        """Raises ValueError where the size differs from what was said before."""
        found = self._objects.setdefault(digest, SharedObject(digest, size))
        if found.size != size:
            raise ValueError(f"the object {digest} has two sizes")
        return found

    def index(self, digest: str) -> Index:
        """A module's index, once its object is verified."""
        if digest not in self._indexes:
            self._indexes[digest] = parse_index(self._objects[digest].content())
        return self._indexes[digest]
