"""The saved state: whatever a power cut leaves, the newest whole generation is read back."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.statefile import FolderLock, StateFile
from skerry_modules.errors import ResourceError


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert StateFile(tmp_path).load() is None


def test_the_last_save_is_read_back(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    for state in (b"one", b"two", b""):
        file.save(state)
        assert StateFile(tmp_path).load() == state
    assert not file.fell_back


@settings(max_examples=60)
@given(old=st.binary(max_size=200), new=st.binary(max_size=200), cut=st.floats(0, 1), flip=st.booleans())
def test_a_torn_or_flipped_newest_falls_back_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, cut: float, flip: bool
) -> None:
    folder = tmp_path_factory.mktemp("state")
    file = StateFile(folder)
    file.save(old)
    file.save(new)
    path = folder / "agent.state"
    data = bytearray(path.read_bytes())
    place = int(cut * (len(data) - 1))
    if flip:
        data[place] ^= 0x10
    else:
        del data[place:]
    path.write_bytes(data)
    reader = StateFile(folder)
    assert reader.load() == old
    assert reader.fell_back
    reader.save(b"next")
    assert StateFile(folder).load() == b"next"


@pytest.mark.parametrize("stage", ["new torn", "new whole", "moved aside", "done"])
def test_a_cut_at_each_stage_of_a_save_leaves_a_whole_state(tmp_path: Path, stage: str) -> None:
    file = StateFile(tmp_path)
    file.save(b"before")
    other = tmp_path / "other"
    other.mkdir()
    twin = StateFile(other)
    twin.save(b"before")
    twin.save(b"after")
    written = (other / "agent.state").read_bytes()
    new = tmp_path / "agent.state.new"
    if stage == "new torn":
        new.write_bytes(written[: len(written) // 2])
    else:
        new.write_bytes(written)
    if stage in ("moved aside", "done"):
        (tmp_path / "agent.state").replace(tmp_path / "agent.state.prev")
    if stage == "done":
        new.replace(tmp_path / "agent.state")
    # A whole .new was flushed before the rename: taking it is right, whether or not the rename came.
    assert StateFile(tmp_path).load() == (b"before" if stage == "new torn" else b"after")


def test_a_failed_save_leaves_the_state_before(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    file = StateFile(folder)
    file.save(b"before")
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    with pytest.raises(ResourceError, match="cannot write the agent's state") as caught:
        file.save(b"after")
    assert caught.value.code == "resource.no_space"
    assert StateFile(kept).load() == b"before"


def _hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    FolderLock(folder).take()
    ready.set()
    multiprocessing.Event().wait()


def test_one_agent_per_folder_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(ResourceError, match=f"process id {other.pid} runs on it") as caught:
            FolderLock(tmp_path).take()
        assert caught.value.code == "resource.state_in_use"
    finally:
        other.kill()
        other.join()
        other.close()
    lock = FolderLock(tmp_path)
    lock.take()
    lock.release()
