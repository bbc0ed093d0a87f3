"""Batch jobs from the hub: real hub, real broker, real agents, real kills."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skerry_modules.errors import SkerryError
from support.disks import small_disk
from support.processes import stop, wait_until

from .world import World, table

pytestmark = pytest.mark.mosquitto
DEVICES = ("dev-1", "dev-2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w")).running(*DEVICES) as made:
        made.roll_out("adder", 0.0)
        made.roll_out("slow", 0.002)
        yield made


@pytest.fixture(autouse=True)
def _all_are_up(world: World) -> None:
    """A test that fails in the middle of its kills does not take the others with it."""
    assert world.hub is not None
    if world.hub.poll() is not None:
        world.start_hub()
    for device, agent in list(world.agents.items()):
        if agent.poll() is not None:
            world.start_agent(device)
    wait_until(lambda: all(world.serves(device) for device in world.agents), what="all to serve")


def scores(path: Path | str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return found


def test_a_table_is_shared_out_and_merged_in_its_order(world: World, tmp_path: Path) -> None:
    expected = table(tmp_path / "in.csv", 3000, bad=(7, 2900))
    said = world.skerry(
        "batch", "start", "adder:1", "--input", tmp_path / "in.csv", "--on", "site=lab", "--keep", "id",
        "--part-rows", "200", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    job = json.loads(said.stdout)
    assert (job["state"], job["scored"], job["errors"], job["units"], job["progress"]) == ("done", 2998, 2, 3000, 1.0)
    assert {one["device"] for one in job["shares"] if one["done"]} == {"dev-1", "dev-2"}, "both worked"
    found = scores(tmp_path / "out" / f"batch-{job['id']}.parquet")
    good = [number for number in range(3000) if number not in (7, 2900)]
    assert found["row"] == good
    assert found["id"] == [f"r{number}" for number in good]
    np.testing.assert_allclose(found["y"], expected[good], rtol=1e-5)
    errors = (tmp_path / "out" / f"batch-{job['id']}.errors.jsonl").read_text().splitlines()
    assert [(one["row"], one["code"]) for one in map(json.loads, errors)] == [
        (7, "scoring.failed"),
        (2900, "scoring.failed"),
    ]
    for device in world.agents:
        work = world.state(device) / "batch"
        wait_until(lambda at=work: not list(at.glob(f"work/{job['id']}-*")), what="nothing to be left there")
    assert [one.action for one in world.client.audit(subject=str(job["id"]))] == ["batch.start"]
    shown = world.skerry("batch", "show", str(job["id"]), "--parts").stdout
    assert "100%, 3,000 of 3,000 rows" in shown
    assert "2 rows could not be scored" in shown
    assert [row["id"] for row in json.loads(world.skerry("batch", "list", "--json").stdout)][-1] == 1


def test_parquet_needs_nothing_on_the_device_and_keeps_its_types(world: World, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(500, 3)).astype("f4")
    given = pa.table(
        {
            "at": pa.array(range(500), pa.timestamp("ms")),
            "x": pa.array(list(x), pa.list_(pa.float32())),
            "n": pa.array([None if n % 50 == 0 else n for n in range(500)], pa.int32()),
        }
    )
    pq.write_table(given, tmp_path / "in.parquet", row_group_size=70)
    job = world.score(tmp_path / "in.parquet", "id=dev-1", keep=["at", "n"], part_rows=100)
    found = pq.read_table(tmp_path / f"batch-{job.id}.parquet")
    assert found.schema.field("at").type == pa.timestamp("ms")
    assert found.column("n").to_pylist() == given.column("n").to_pylist()
    np.testing.assert_allclose(found.column("y").to_numpy(), x.sum(axis=1) * 2, rtol=1e-5)


def test_a_folder_of_arrays(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    (folder / "deep").mkdir(parents=True)
    for number in range(70):
        np.save(folder / ("deep" if number % 2 else ".") / f"{number:02d}.npy", np.full((2, 3), number, "f4"))
    (folder / "broken.npy").write_bytes(b"no array")
    (folder / "note.txt").write_text("nothing to score")
    job = world.score(folder, "*")
    assert (job.unit, job.units, job.scored, job.errors, job.state) == ("files", 71, 140, 1, "done")
    found = scores(tmp_path / f"batch-{job.id}.parquet")
    assert found["y"] == [6.0 * int(Path(name).stem) for name in found["file"]]
    assert found["row"] == [0, 1] * 70
    error = json.loads((tmp_path / f"batch-{job.id}.errors.jsonl").read_text())
    assert (error["file"], error["row"]) == ("broken.npy", -1)


def test_each_device_scores_what_lies_there(world: World, tmp_path: Path) -> None:
    for device, rows in (("dev-1", 30), ("dev-2", 50)):
        inputs = world.state(device) / "inputs"
        inputs.mkdir(exist_ok=True)
        table(inputs / "day.csv", rows)
    job = world.client.start_batch("adder:1", "*", path="day.csv", keep=["id"])
    assert world.wait_for(job.id, "done", "failed").state == "done"
    world.client.fetch_batch(job.id, tmp_path)
    found = scores(tmp_path / f"batch-{job.id}.parquet")
    assert found["device"] == ["dev-1"] * 30 + ["dev-2"] * 50
    assert found["row"] == [*range(30), *range(50)]
    assert found["id"] == [f"r{number}" for number in (*range(30), *range(50))]


def test_a_device_gives_nothing_but_what_its_owner_allows(world: World, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("id,a,b,c\nr0,1,2,3\n")
    job = world.client.start_batch("adder:1", "id=dev-1", path=str(tmp_path / "secret.csv"), keep=["id"])
    ended = world.wait_for(job.id, "failed")
    assert (ended.code, ended.result_size) == ("batch.not_allowed", 0)
    assert "add its folder to batch.inputs" in ended.message


def test_the_hub_scores_by_itself(world: World, tmp_path: Path) -> None:
    expected = table(tmp_path / "in.csv", 400, bad=(3,))
    job = world.score(tmp_path / "in.csv", "hub")
    assert (job.state, job.scored, job.errors) == ("done", 399, 1)
    found = scores(tmp_path / f"batch-{job.id}.parquet")
    good = [number for number in range(400) if number != 3]
    np.testing.assert_allclose(found["y"], expected[good], rtol=1e-5)
    assert found["id"] == [f"r{number}" for number in good]


def test_the_hub_scores_as_many_jobs_at_once_as_it_may(world: World, tmp_path: Path) -> None:
    table(tmp_path / "in.csv", 2000)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    jobs = [
        world.client.start_batch("slow", "hub", upload=upload, keep=["id"], part_rows=100, rows=20).id for _ in range(3)
    ]
    wait_until(lambda: all(world.client.batch(job).progress for job in jobs[:2]), what="two jobs to go on at once")
    assert [world.client.batch(job).ended for job in jobs] == [False, False, False]
    assert not world.client.batch(jobs[2]).progress, "no more than it may"
    for job in jobs:
        world.client.cancel_batch(job)
    wait_until(lambda: not list((world.folder / "hub" / "batches").glob("*")), what="the hub to stop")


@pytest.mark.parametrize(
    ("model", "target", "wishes", "code", "text"),
    [
        ("adder:99", "*", {}, "module.unknown", "no such version"),
        ("nobody", "*", {}, "module.unknown", "cannot find the model"),
        ("adder:1", "site=moon", {}, "batch.empty_target", "no device matches site=moon"),
        ("adder:1", "*", {"columns": ["a", "b", "z"]}, "scoring.unknown_input", "cannot find the column 'z'"),
        ("adder:1", "*", {"keep": ["y"]}, "request.invalid", "the result has a column of this name"),
        ("adder:1", "*", {}, "scoring.unknown_input", "set others apart with --keep"),
        ("adder:1", "*", {"keep": ["id"], "path": "/data"}, "request.invalid", "and not both"),
        ("adder:1", "*", {"keep": ["id"], "upload": "0" * 64}, "batch.input", "its list 000000000000 cannot be read"),
    ],
)
def test_what_is_wrong_from_the_start_begins_nothing(
    world: World, tmp_path: Path, model: str, target: str, wishes: dict[str, Any], code: str, text: str
) -> None:
    table(tmp_path / "in.csv", 10)
    before = len(world.client.batches())
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    with pytest.raises(SkerryError, match=re.escape(text)) as caught:
        world.client.start_batch(model, target, **{"upload": upload, **wishes})
    assert caught.value.code == code
    assert len(world.client.batches()) == before


def test_devices_that_do_not_serve_the_version_are_named(world: World, tmp_path: Path) -> None:
    table(tmp_path / "in.csv", 10)
    version = world.register("adder", 0.0001)
    said = world.skerry(
        "batch", "start", f"adder:{version}", "-i", tmp_path / "in.csv", "--on", "*", "--keep", "id", code=2
    )
    assert f"cannot begin: dev-1, dev-2 does not serve adder:{version}; roll it out there first" in said.stderr
    assert "[batch.not_held]" in said.stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"id,a,b,c\n", None])
def test_an_input_that_cannot_be_read_is_refused(world: World, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(SkerryError) as caught:
        world.score(tmp_path / "in.csv", "*")
    assert caught.value.code in ("batch.input", "scoring.unknown_input")


def test_a_kill_of_an_agent_and_of_the_hub_only_delays(world: World, tmp_path: Path) -> None:
    expected = table(tmp_path / "in.csv", 1600)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    job = world.client.start_batch("slow", "*", upload=upload, keep=["id"], part_rows=100, rows=20, input="in.csv").id
    wait_until(lambda: world.client.batch(job).scored > 100, what="some rows")
    wait_until(
        lambda: any(
            part.device == "dev-1" and part.state == "running" and not part.progress
            for part in world.client.batch_parts(job)
        ),
        what="the device to have begun a part",
    )
    world.kill("dev-1")
    wait_until(
        lambda: any(part.device == "dev-2" and "dev-1" in part.given for part in world.client.batch_parts(job)),
        what="the killed device's part to be given to the other",
        seconds=60,
    )
    assert world.hub is not None
    stop(world.hub, by=signal.SIGKILL)
    world.start_hub()
    world.start_agent("dev-1")
    ended = world.wait_for(job, "done", "failed")
    assert (ended.state, ended.scored, ended.errors) == ("done", 1600, 0)
    world.client.fetch_batch(job, tmp_path)
    found = scores(tmp_path / f"batch-{job}.parquet")
    assert found["row"] == list(range(1600)), "each row once"
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5)


def test_the_next_part_is_fetched_while_one_is_scored_by_one_process_for_all(world: World, tmp_path: Path) -> None:
    table(tmp_path / "in.csv", 800)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    job = world.client.start_batch("slow", "id=dev-1", upload=upload, keep=["id"], part_rows=200, rows=20).id
    work, agent = world.state("dev-1") / "batch" / "work", psutil.Process(world.agents["dev-1"].pid)
    ahead: set[str] = set()
    processes: set[int] = set()

    def ended() -> bool:
        scoring = {path.parent.name for path in work.glob(f"{job}-*/result.rows.batch")}
        fetched = {path.parent.name for path in work.glob(f"{job}-*/input.csv.gz")}
        if scoring:
            ahead.update(fetched - scoring)
            processes.update(one.pid for one in agent.children(recursive=True) if _is_batch(one))
        return world.client.batch(job).ended

    wait_until(ended, what="the job to end")
    assert world.client.batch(job).scored == 800
    assert ahead >= {f"{job}-1", f"{job}-2"}, "their inputs lay there before their turn came"
    assert len(processes) == 1
    assert [part.attempts for part in world.client.batch_parts(job)] == [1, 1, 1, 1]


@pytest.mark.parametrize("away", ["killed", "asleep"])
def test_what_a_device_had_of_a_part_goes_when_another_has_done_it(world: World, tmp_path: Path, away: str) -> None:
    table(tmp_path / "in.csv", 300)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    job = world.client.start_batch("slow", "*", upload=upload, keep=["id"], part_rows=300, rows=10, input="in.csv").id
    held: list[str] = []

    def begun() -> bool:  # some of it is scored
        found = {device: list(world.state(device).glob(f"batch/work/{job}-*/result.rows.batch")) for device in DEVICES}
        held[:] = [device for device, folders in found.items() if folders]
        return bool(held)

    wait_until(begun, what="a device to score")
    work, agent = world.state(held[0]) / "batch", world.agents[held[0]]
    if away == "killed":
        world.kill(held[0])
    else:
        agent.send_signal(signal.SIGSTOP)
    try:
        assert world.wait_for(job, "done", "failed").scored == 300
        assert [part.device for part in world.client.batch_parts(job)] != held, "the other did it"
        assert list(work.glob(f"work/{job}-*")), "what the device had stands there: nobody could tell it"
    finally:
        if away == "killed":
            world.start_agent(held[0])
        else:
            agent.send_signal(signal.SIGCONT)
    wait_until(lambda: not list(work.glob(f"work/{job}-*")), what="the device to forget it", seconds=30)
    wait_until(lambda: not list(work.glob("objects/*")), what="its input to go too")


@pytest.mark.parametrize("where", ["hub", "id=dev-1"])
def test_a_kill_of_the_process_that_scores_only_delays(world: World, tmp_path: Path, where: str) -> None:
    expected = table(tmp_path / "in.csv", 600)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    parent = world.hub if where == "hub" else world.agents["dev-1"]
    assert parent is not None
    job = world.client.start_batch("slow", where, upload=upload, keep=["id"], part_rows=100, rows=20, input="in.csv").id

    def scoring() -> psutil.Process | None:
        children = psutil.Process(parent.pid).children(recursive=True)
        return next((one for one in children if _is_batch(one)), None)

    wait_until(lambda: world.client.batch(job).progress > 0.1, what="some rows")
    wait_until(lambda: (found := scoring()) is not None and found.kill() is None, what="the process to be killed")
    ended = world.wait_for(job, "done", "failed")
    assert (ended.state, ended.scored, ended.errors) == ("done", 600, 0)
    assert max(part.attempts for part in world.client.batch_parts(job)) == 2
    world.client.fetch_batch(job, tmp_path)
    found = scores(tmp_path / f"batch-{job}.parquet")
    assert found["row"] == list(range(600)), "each row once"
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5)


def _is_batch(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool({"--lines", "skerry_agent.jobs.scoring"} & set(process.cmdline()))
    return False


def test_a_device_with_a_full_disk_leaves_its_parts_to_others_and_serves_on(world: World, tmp_path: Path) -> None:
    expected = table(tmp_path / "in.csv", 400)
    work = world.state("dev-1") / "batch"
    with small_disk(work, 512):
        for name in ("work", "objects", "partial"):
            (work / name).mkdir()
        job = world.score(tmp_path / "in.csv", "*", part_rows=200)
        assert (job.state, job.scored, job.errors) == ("done", 400, 0)
        assert {part.device for part in world.client.batch_parts(job.id)} == {"dev-2"}
        told = {event.code: event.message for event in world.client.events(device="dev-1", limit=20)}
        assert "are kept in reserve; free some space" in told["resource.no_space"]
        assert not list(work.glob("work/*")), "what cannot go on takes no room"
        assert world.answers("dev-1")
    np.testing.assert_allclose(scores(tmp_path / f"batch-{job.id}.parquet")["y"], expected, rtol=1e-5)


def test_a_cancelled_job_ends_on_the_devices_too(world: World, tmp_path: Path) -> None:
    table(tmp_path / "in.csv", 5000)
    upload = world.client.upload_batch_input(tmp_path / "in.csv")
    wishes = {"upload": upload, "keep": ["id"]}
    job = world.client.start_batch("slow", "*", **wishes).id  # type: ignore[arg-type]
    wait_until(lambda: world.client.batch(job).parts.get("running") == 2, what="both to have a part")
    assert world.client.cancel_batch(job, reason="enough").state == "cancelled"
    for device in world.agents:
        work = world.state(device) / "batch"
        wait_until(lambda at=work: not list(at.glob(f"work/{job}-*")), what="the device to stop")
    with pytest.raises(SkerryError) as caught:
        world.client.fetch_batch(job, tmp_path)
    assert caught.value.code == "batch.wrong_state"
    with pytest.raises(SkerryError) as caught:
        world.client.cancel_batch(job)
    assert caught.value.code == "batch.wrong_state"
    last = world.client.start_batch("slow", "hub", **wishes).id  # type: ignore[arg-type]
    wait_until(lambda: world.client.batch(last).state == "running", what="the hub to begin")
    world.client.cancel_batch(last)
    wait_until(lambda: not list((world.folder / "hub" / "batches").glob("*")), what="the hub to stop")
