"""A batch job through kills, torn files, a restarted agent and a version that goes: nothing twice, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from agent.serving.harness import Running
from agent.serving.models import linear_module
from support.disks import resize, small_disk
from support.processes import wait_until

from .conftest import Command, Start, csv_of, picky

ROWS = 1200
PART = 100


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["a,b,c,d"] + [f"{n},0,0,0" for n in range(ROWS)]
    lines[301] = "300,oops,0,0"
    path = tmp_path / "in.csv"
    path.write_text("\n".join(lines))
    return path


def finished(folder: Path) -> set[int]:
    """Parts whose line is whole in the journal."""
    try:
        lines = (folder / "journal.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return set()
    return {json.loads(line)["part"] for line in lines}


def check(summary: dict[str, Any], out: Path) -> None:
    assert (summary["rows"], summary["errors"]) == (ROWS - 1, 1)
    found = pq.read_table(out)
    assert found["row"].to_pylist() == [n for n in range(ROWS) if n != 300]
    assert found["y"].to_pylist() == [2.0 * n for n in range(ROWS) if n != 300]
    assert [json.loads(line)["row"] for line in Path(summary["errors_file"]).read_text().splitlines()] == [300]


def test_kills_cost_only_the_part_that_was_being_scored(start: Start, table: Path, tmp_path: Path) -> None:
    plane = start()
    log = tmp_path / "scored"
    plane.serve(picky(tmp_path / "picky", seconds=0.0003, log=log))
    batch, out = Command(plane), tmp_path / "out.parquet"
    arguments = ("picky", table, "--output", out, "--part-rows", str(PART))
    folder = tmp_path / "out.parquet.batch"
    kept: list[set[int]] = []
    for least in (1, 4, 9):
        process = subprocess.Popen(batch.arguments(*arguments), stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda least=least: len(finished(folder)) >= least, what=f"{least} parts")  # type: ignore[misc]
        finally:
            process.kill()
            process.wait()
        assert not out.exists()
        kept.append(finished(folder))
        log.rename(tmp_path / f"scored-{least}")
        log.touch()
    assert kept[0] < kept[1] < kept[2]
    for before, run in zip(kept, (4, 9), strict=False):
        again = {int(line) // PART for line in (tmp_path / f"scored-{run}").read_text().split()}
        assert not again & before, "a finished part was scored again"
    summary = batch(*arguments)
    again = {int(line) // PART for line in log.read_text().split()}
    assert not again & kept[2]
    assert summary["resumed"] == sum(PART for _ in kept[2])
    check(summary, out)
    assert not folder.exists()


def begin(plane: Running, table: Path, tmp_path: Path, parts: int = 4) -> tuple[Command, tuple[Any, ...], Path]:
    """A job that was killed with so many parts finished, at least."""
    plane.serve(picky(tmp_path / "picky", seconds=0.0002))
    batch = Command(plane)
    arguments = ("picky", table, "--output", tmp_path / "out.parquet", "--part-rows", str(PART))
    folder = tmp_path / "out.parquet.batch"
    process = subprocess.Popen(batch.arguments(*arguments), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(finished(folder)) >= parts, what="the first parts")
    finally:
        process.kill()
        process.wait()
    return batch, arguments, folder


def test_what_a_kill_may_leave_behind(start: Start, table: Path, tmp_path: Path) -> None:
    """A journal line cut short, a part without its line, a part's file cut short, drafts."""
    batch, arguments, folder = begin(start(), table, tmp_path)
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)[:3]
    journal.write_bytes(b"".join(lines)[:-9])  # the third line is torn: its part counts as not done
    second = folder / "000001.parquet"
    second.write_bytes(second.read_bytes()[:-1])
    (folder / "000007.parquet.draft").write_bytes(b"PAR1")
    (folder / "output").write_bytes(b"half")
    summary = batch(*arguments)
    assert summary["resumed"] == PART
    check(summary, tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == [
        "out.parquet",
        "out.parquet.errors.jsonl",
    ]


def test_a_kill_between_the_rename_and_the_clearing(start: Start, table: Path, tmp_path: Path) -> None:
    """The output is there and so is the folder, whole or being removed: nothing is scored again."""
    plane = start()
    log = tmp_path / "scored"
    plane.serve(picky(tmp_path / "picky", log=log))
    batch, out = Command(plane), tmp_path / "out.parquet"
    arguments = ("picky", table, "--output", out, "--part-rows", str(PART))
    folder = tmp_path / "out.parquet.batch"
    keeper = threading.Thread(target=_keep, args=(folder, tmp_path / "kept"))
    keeper.start()
    check(batch(*arguments), out)
    keeper.join()
    shutil.copytree(tmp_path / "kept", folder)
    missing = set(range(ROWS // PART)) - finished(folder)
    log.write_text("")
    summary = batch(*arguments)
    assert {int(line) // PART for line in log.read_text().split()} == missing
    check(summary, out)
    shutil.copytree(tmp_path / "kept", tmp_path / ".out.parquet.batch.done")  # half removed
    assert "it exists" in batch(*arguments, code=2)
    assert not (tmp_path / ".out.parquet.batch.done").exists()


def _keep(folder: Path, kept: Path) -> None:
    """Copies of the job's folder while it is there; the last whole one stays."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if len(finished(folder)) >= 2:
            try:
                shutil.copytree(folder, kept)
            except (OSError, shutil.Error):
                shutil.rmtree(kept, ignore_errors=True)
                continue
            return
        time.sleep(0.002)


def test_another_job_is_not_mixed_in(start: Start, table: Path, tmp_path: Path) -> None:
    batch, arguments, folder = begin(start(), table, tmp_path)
    text = batch(*arguments[:-1], "50", code=2)
    assert "part_rows was 100" in text
    assert "--restart" in text
    table.write_text(table.read_text() + "\n1200,0,0,0")
    assert "the input has changed" in batch(*arguments, code=2)
    assert finished(folder)
    summary = batch(*arguments, "--restart")
    assert (summary["rows"], summary["errors"], summary["resumed"]) == (ROWS, 1, 0)


def test_two_at_once_on_one_output(start: Start, table: Path, tmp_path: Path) -> None:
    plane = start()
    plane.serve(picky(tmp_path / "picky", seconds=0.002))
    batch = Command(plane)
    arguments = ("picky", table, "--output", tmp_path / "out.parquet")
    first = subprocess.Popen(batch.arguments(*arguments), stdout=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "out.parquet.batch" / "job.json").exists, what="the first to begin")
        assert "resource.state_in_use" in batch(*arguments, code=1)
    finally:
        first.kill()
        first.wait()


def test_a_job_is_scored_by_one_version_alone(start: Start, table: Path, tmp_path: Path) -> None:
    """The endpoint moves on while a job is interrupted: it goes on with the version it began with, or says so."""
    plane = start()
    batch, arguments, _ = begin(plane, table, tmp_path)
    first = next(iter(plane.plane._versions))
    second = picky(tmp_path / "second")
    second.version = 2
    plane.serve(second)
    process = subprocess.Popen(batch.arguments(*arguments), stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    process.kill()
    process.wait()
    plane.call(plane.plane.unload(first))
    text = batch(*arguments, code=2)
    assert "cannot find version 1 of picky" in text
    summary = batch(*arguments, "--restart")
    assert summary["version"] == "2"
    check(summary, tmp_path / "out.parquet")


def test_a_job_outlives_a_restart_of_the_agent(start: Start, table: Path, tmp_path: Path) -> None:
    plane = start()
    module = picky(tmp_path / "picky", seconds=0.0005)
    plane.serve(module)
    batch, out = Command(plane), tmp_path / "out.parquet"
    process = subprocess.Popen(
        [*batch.arguments("picky", table, "--output", out, "--part-rows", str(PART)), "--json"], stdout=subprocess.PIPE
    )
    wait_until(lambda: len(finished(tmp_path / "out.parquet.batch")) >= 2, what="the first parts")
    plane.close()
    again = start()
    again.serve(module)
    out_text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    check(json.loads(out_text), out)


def test_live_traffic_loses_nothing_beside_a_batch(start: Start, tmp_path: Path) -> None:
    plane = start(low_wait_s=0.02)
    plane.serve(linear_module(tmp_path / "linear"))
    rows = np.random.default_rng(2).normal(size=(3000, 4)).astype("f4")
    batch, out = Command(plane), tmp_path / "out.parquet"
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses[plane.score("linear", rows[:1]).status] += 1

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        summary = batch("linear", csv_of(tmp_path / "in.csv", rows), "--output", out, "--keep", "id")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (summary["rows"], summary["errors"]) == (3000, 0)
    assert set(statuses) == {200}


def test_a_full_disk_ends_it_with_what_is_done_kept(plane: Running, table: Path, tmp_path: Path) -> None:
    """A real one: 16 KiB, of which each part takes 4."""
    with small_disk(tmp_path / "disk", 16) as disk:
        out = disk / "out.parquet"
        arguments = ("picky", table, "--output", out, "--part-rows", str(PART), "--json")
        batch = Command(plane)
        ended = subprocess.run(batch.arguments(*arguments), capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 1
        assert "make room, then run it again [resource.no_space]" in ended.stderr
        assert not out.exists()
        kept = finished(disk / "out.parquet.batch")
        assert kept
        resize(disk, 1024)
        ended = subprocess.run(batch.arguments(*arguments), capture_output=True, text=True, check=True, timeout=60)
        summary = json.loads(ended.stdout)
        assert summary["resumed"] >= (len(kept) - 1) * PART
        check(summary, out)
