"""Tensors that a client on the device put into shared memory instead of into its request.

An input then has the parameters ``shared_memory_region``, ``shared_memory_byte_size`` and ``shared_memory_offset``, as
Triton names them, but the region is not registered: its name is that of a file in ``/dev/shm``. The agent's process
forwards the request as any other; the worker reads the tensor straight into an array of its own.

It is read, not mapped: a client that cuts the file short gets an error, where a mapping would kill the worker. A name
is 128 random bits, so that nobody can name what another client did not tell; other files cannot be named at all.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Final

import numpy as np

from skerry_modules.errors import InputError

FOLDER: Final = "/dev/shm"  # noqa: S108 - where POSIX shared memory is
NAME: Final = re.compile(r"skerry-[0-9a-f]{32}")
MAX_BYTES: Final = 256 * 1024 * 1024


def read(name: str, parameters: dict[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An input's tensor.

    Raises:
        InputError: ``scoring.bad_data``, ``request.too_large``.
    """
    region, offset = parameters["shared_memory_region"], parameters.get("shared_memory_offset", 0)
    size = parameters.get("shared_memory_byte_size")
    if not isinstance(region, str) or not NAME.fullmatch(region):
        raise _bad(name, f"{region!r} is no name of a region")
    if type(offset) is not int or type(size) is not int or offset < 0:
        raise _bad(name, "shared_memory_byte_size and shared_memory_offset must be whole numbers")
    if size > MAX_BYTES:
        raise InputError("request.too_large", f"cannot take input {name!r} of {size} bytes; the limit is {MAX_BYTES}")
    needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size != needed:
        raise _bad(name, f"its shape needs {needed} bytes but shared_memory_byte_size says {size}")
    try:
        descriptor = os.open(f"{FOLDER}/{region}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _bad(name, f"its region cannot be opened: {error.strerror}; is the agent's user allowed to?") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < offset + size:
            raise _bad(name, f"its region has {found.st_size} bytes, {offset + size} are told")
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < size:
            got = os.preadv(descriptor, [view[done:]], offset + done)
            if not got:
                raise _bad(name, "its region was cut short while it was read")
            done += got
    finally:
        os.close(descriptor)
    array.flags.writeable = False  # as binary ones are
    return array


def _bad(name: str, problem: str) -> InputError:
    return InputError("scoring.bad_data", f"cannot read input {name!r} from shared memory: {problem}")
