"""Batch jobs in the database and the store, on both databases: parts made, given out, taken once, merged, forgotten.

Devices are here what they are to the hub: rows, commands, and the pieces that they send.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlmodel import col, select

from skerry_hub import batches, commands, devices, registry
from skerry_hub.batch import inputs as batch_inputs
from skerry_hub.batch.engine import BatchEngine
from skerry_hub.batch.look import BatchSettings
from skerry_hub.batch.results import BatchResults
from skerry_hub.batches import NewBatch
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.objects import FolderStore
from skerry_hub.rules.batch import BatchLimits
from skerry_hub.tables import BatchPart, BatchRow, CommandRow, DeviceModule
from skerry_modules import chunks, messages
from skerry_modules.batches import InputFile, InputList, PartOrder, ResultFrame, encode_frame
from skerry_modules.errors import InputError
from skerry_modules.messages import Command, Tensor
from support.processes import wait_until

from .test_profiling import fleet  # noqa: F401 - a fixture: two devices online, and version 1 of digits

ROWS = 40


class Hub:
    """Engine and results over a real database and store; what they send is kept."""

    def __init__(self, database: Database, objects: FolderStore, folder: Path) -> None:
        self.db, self.objects = database, objects
        self.told: list[tuple[str, Command]] = []
        self.taken: list[tuple[str, messages.Taken]] = []
        self.refused: list[str] = []
        settings = BatchSettings(lease_s=60.0)
        self.engine = BatchEngine(database, objects, Bus(), folder, self._send, settings=settings)
        self.results = BatchResults(
            database,
            objects,
            self._publish,
            refuse=lambda device, code, message: self.refused.append(code),
            done=lambda: None,
            max_bytes=10_000_000,
        )
        self.results.start()

    def _send(self, device: str, command: Command) -> bool:
        self.told.append((device, command))
        return True

    def _publish(self, topic: str, payload: bytes) -> bool:
        self.taken.append((topic.split("/")[3], messages.decode("taken", payload)))
        return True

    def close(self) -> None:
        self.results.stop()
        self.engine.close()

    def upload(self, rows: int = ROWS) -> str:
        text = "id,x_0,x_1,x_2,x_3\n" + "".join(f"r{number},{number},0,0,0\n" for number in range(rows))
        data = text.encode()
        halves = [self.objects.put_bytes(part) for part in (data[:100], data[100:])]
        one = InputFile(path="in.csv", size=len(data), pieces=tuple(halves))
        return self.objects.put_bytes(msgspec.json.encode(InputList(kind="table", files=(one,))))

    def start(self, **wishes: object) -> int:
        wish = msgspec.convert(
            {"model": "digits:1", "target": "*", "upload": self.upload(), "keep": ["id"], "part_rows": 10, **wishes},
            NewBatch,
        )
        with self.db.session() as session:
            row = batches.create(session, wish, batches.checked(session, wish), actor="me", now=now_ms())
            return row.id or 0

    def orders(self, job: int, count: int) -> dict[str, PartOrder]:
        """What devices were told, once so many parts are out."""

        def out() -> bool:
            self.engine.step()
            return len(self._orders(job)) >= count

        wait_until(out, what=f"{count} parts to be given out")
        return self._orders(job)

    def _orders(self, job: int) -> dict[str, PartOrder]:
        found = {
            device: msgspec.convert(command.arguments, PartOrder)
            for device, command in self.told
            if command.name == "batch"
        }
        return {device: order for device, order in found.items() if order.job == job}

    def send(self, device: str, order: PartOrder, result: bytes) -> messages.Taken:
        """All of a result, as a device sends it; the last answer."""
        digest = hashlib.sha256(result).hexdigest()
        said: messages.Taken | None = None
        for number in range(-1, chunks.count(len(result))):
            data = result[number * chunks.CHUNK_BYTES : (number + 1) * chunks.CHUNK_BYTES] if number >= 0 else b""
            piece = messages.Piece(
                job=order.job,
                part=order.part,
                digest=digest,
                size=len(result),
                number=number,
                data=chunks.frame(data) if number >= 0 else b"",
            )
            before = len(self.taken)
            self.results.take(device, messages.encode(piece))
            wait_until(lambda seen=before: len(self.taken) > seen, what="an answer")
            said = self.taken[-1][1]
            if said.over:
                break
        assert said is not None
        return said

    def answered(self, device: str, *, code: str = "", command: str = "") -> None:
        """The device ends its command: its only one, if none is named."""
        with self.db.session() as session:
            going = select(CommandRow).where(col(CommandRow.device) == device, col(CommandRow.ended_at) == 0)
            row = session.get(CommandRow, command) if command else session.exec(going).one()
            assert row is not None
            row.state = commands.CommandState.FAILED if code else commands.CommandState.DONE
            row.code, row.message, row.ended_at = code, code and "why", now_ms()
            session.add(row)

    def job(self, job: int) -> BatchRow:
        with self.db.read() as session:
            return batches.get(session, job)

    def parts(self, job: int) -> list[BatchPart]:
        with self.db.read() as session:
            return list(batches.parts_of(session, job))


@pytest.fixture
def hub(fleet: Database, objects: FolderStore, tmp_path: Path) -> Iterator[Hub]:  # noqa: F811 - the fixture
    with fleet.session() as session:
        for name in ("dev-1", "dev-2"):
            serving = {"digest": "d" * 64, "phase": "Healthy", "role": "current", "reported_at": 1}
            session.add(DeviceModule(device=name, module="digits", version=1, **serving))
    made = Hub(fleet, objects, tmp_path / "batches")
    yield made
    made.close()


def result_of(rows: int, value: float = 1.0) -> bytes:
    data = np.full((rows, 4), value, "f4").tobytes()
    tensor = Tensor(datatype="FP32", shape=(rows, 4), data=data)
    return encode_frame(ResultFrame(rows=tuple(range(rows)), outputs={"x": tensor}))


def finish(hub: Hub, job: int, value: Callable[[int], float] = float) -> BatchRow:
    """Both devices score whatever they are given until the job has ended."""

    def over() -> bool:
        hub.engine.step()
        for device, command in [one for one in hub.told if one[1].name == "batch"]:
            hub.told.remove((device, command))
            order = msgspec.convert(command.arguments, PartOrder)
            units = hub.parts(job)[order.part].units
            assert hub.send(device, order, result_of(units, value(order.part))).over
            hub.answered(device, command=command.id)
        return hub.job(job).ended_at > 0

    wait_until(over, what="the job to end")
    return hub.job(job)


def test_a_job_goes_its_whole_way(hub: Hub) -> None:
    job = hub.start()
    ended = finish(hub, job)
    assert (ended.state, ended.scored, ended.units, ended.progress, ended.upload) == ("done", ROWS, ROWS, 1.0, "")
    parts = hub.parts(job)
    assert [part.first for part in parts] == [0, 10, 20, 30], "as many rows as a kill may cost"
    table = pq.read_table(hub.objects.key_path(ended.result))
    assert table.column("row").to_pylist() == list(range(ROWS))
    assert table.column("id").to_pylist() == [f"r{number}" for number in range(ROWS)]
    assert [row[0] for row in table.column("x").to_pylist()] == [float(number // 10) for number in range(ROWS)]
    with hub.db.read() as session:
        assert batches.counts(session, [job]) == {job: {"done": 4}}
        shares = batches.shares_of(session, ended)
        assert [(one.device, one.scored) for one in shares if one.done] != []
        assert sum(one.done for one in shares) == 4


def test_what_a_job_needs_is_not_collected_and_a_finished_ones_is(hub: Hub) -> None:
    job = hub.start()
    registry.collect_garbage(hub.db, hub.objects, grace_s=0.0)
    hub.orders(job, 2)
    wait_until(lambda: not hub.job(job).upload, what="all parts to be made")  # what is stored is not in a row at once
    registry.collect_garbage(hub.db, hub.objects, grace_s=0.0)
    assert all(hub.objects.exists(part.input) and hub.objects.exists(part.kept) for part in hub.parts(job))
    with hub.db.session() as session, pytest.raises(InputError) as caught:
        registry.delete_version(session, "digits", 1, actor="me", now=1)
    assert caught.value.code == "module.in_use"
    assert caught.value.data["batch"] == [str(job)]
    ended = finish(hub, job)
    registry.collect_garbage(hub.db, hub.objects, grace_s=0.0)
    assert not any(hub.objects.exists(part.input) for part in hub.parts(job))
    assert hub.objects.key_path(ended.result).is_file()


def test_a_part_counts_once_whoever_sends_it(hub: Hub) -> None:
    job = hub.start(part_rows=1000)
    with hub.db.session() as session:
        devices.get(session, "dev-2").online = False
    order = hub.orders(job, 1)["dev-1"]
    assert hub.send("dev-2", order, result_of(ROWS, 7.0)).over, "it was never given the part"
    hub.answered("dev-1", code="command.no_answer")
    with hub.db.session() as session:
        devices.get(session, "dev-1").online, devices.get(session, "dev-2").online = False, True
    hub.told.clear()
    again = hub.orders(job, 1)["dev-2"]
    assert (again.part, again.input) == (order.part, order.input)
    assert hub.send("dev-1", order, result_of(ROWS, 1.0)).over, "the silent one comes first after all"
    told = [(device, said.part, said.over) for device, said in hub.taken if not said.digest]
    assert told == [("dev-2", order.part, True)], "the other one need not go on"
    assert hub.send("dev-2", again, result_of(ROWS, 2.0)).over
    ended = finish(hub, job)
    assert (ended.state, ended.scored) == ("done", ROWS)
    table = pq.read_table(hub.objects.key_path(ended.result))
    assert {row[0] for row in table.column("x").to_pylist()} == {1.0}
    assert hub.parts(job)[0].device == "dev-1"


def test_who_asks_about_a_part_is_answered_by_how_it_stands(hub: Hub) -> None:
    job = hub.start(part_rows=20, target="id=dev-1")
    order = hub.orders(job, 1)["dev-1"]

    def wanted(device: str, number: int, part: int) -> bool:
        before = len(hub.taken)
        ask = messages.Piece(job=number, part=part, digest="", size=0, number=-1)
        hub.results.take(device, messages.encode(ask))
        wait_until(lambda: len(hub.taken) > before, what="an answer")
        to, said = hub.taken[-1]
        assert (to, said.job, said.part, said.digest) == (device, number, part, "")
        return not said.over

    assert wanted("dev-1", job, order.part)
    assert not wanted("dev-2", job, order.part), "it was never given it"
    assert not wanted("dev-1", job, 99)
    assert not wanted("dev-1", job + 1, 0), "nobody knows that job"
    with hub.db.session() as session:
        batches.cancel(session, job, actor="me", now=now_ms())
    hub.results._known.clear()  # two seconds later
    assert not wanted("dev-1", job, order.part)
    hub.engine.step()
    stops = [(device, command.arguments) for device, command in hub.told if command.name == "batch-stop"]
    assert ("dev-1", {"job": job}) in stops, "it is told at once, too"


@pytest.mark.parametrize("result", [b"no frames", encode_frame(ResultFrame(rows=(0,)))], ids=["noise", "no-output"])
def test_a_result_that_is_none_counts_as_a_failure_of_the_device(hub: Hub, result: bytes) -> None:
    job = hub.start(part_rows=1000, target="id=dev-1")
    for _ in range(BatchLimits().failures):
        hub.told.clear()
        order = hub.orders(job, 1)["dev-1"]  # nobody else could: it is tried again there, after a pause
        assert hub.send("dev-1", order, result).over
    wait_until(lambda: hub.engine.step() or hub.job(job).ended_at, what="the end")
    ended = hub.job(job)
    assert (ended.state, ended.code, ended.result) == ("failed", "message.malformed", "")


def test_a_half_sent_result_goes_on_after_the_hub_was_killed(hub: Hub, tmp_path: Path) -> None:
    job = hub.start(part_rows=1000, target="id=dev-1")
    order = hub.orders(job, 1)["dev-1"]
    random = np.random.default_rng(1)
    noise = random.normal(size=(ROWS, 4)).astype("f4")
    wide = Tensor(datatype="FP32", shape=(ROWS, 4), data=noise.tobytes())
    kept = {"note": [random.bytes(4000).hex() for _ in range(ROWS)]}  # more than one chunk
    result = encode_frame(ResultFrame(rows=tuple(range(ROWS)), outputs={"x": wide}, kept=kept))
    assert chunks.count(len(result)) >= 2
    digest = hashlib.sha256(result).hexdigest()
    first = chunks.frame(result[: chunks.CHUNK_BYTES])
    piece = messages.Piece(job=job, part=order.part, digest=digest, size=len(result), number=0, data=first)
    hub.results.take("dev-1", messages.encode(piece))
    wait_until(lambda: hub.taken, what="an answer")
    after = Hub(hub.db, hub.objects, tmp_path / "batches")
    try:
        ask = messages.Piece(job=job, part=order.part, digest=digest, size=len(result), number=-1)
        after.results.take("dev-1", messages.encode(ask))
        wait_until(lambda: after.taken, what="an answer")
        lacks = list(chunks.decode_bitmap(after.taken[-1][1].bitmap, chunks.count(len(result))))
        assert lacks == list(range(1, chunks.count(len(result))))
        assert after.send("dev-1", order, result).over
    finally:
        after.close()
    assert hub.parts(job)[0].state == "done"


def test_a_missing_column_and_a_missing_piece_begin_nothing(hub: Hub) -> None:
    upload = batch_inputs.read_list(hub.objects, hub.upload())
    with hub.db.read() as session:
        version = registry.get_version(session, "digits", 1)
    manifest = msgspec.json.decode(version.manifest, type=batch_inputs.Manifest)
    batch_inputs.check(hub.objects, upload, manifest, (), ("id",))
    with pytest.raises(InputError, match="cannot find the column 'z'"):
        batch_inputs.check(hub.objects, upload, manifest, (), ("z",))
    broken = msgspec.structs.replace(upload.files[0], pieces=(*upload.files[0].pieces, "0" * 64))
    listed = hub.objects.put_bytes(msgspec.json.encode(InputList(kind="table", files=(broken,))))
    with pytest.raises(InputError, match="is not all there"):
        batch_inputs.read_list(hub.objects, listed)


def test_pieces_read_as_one_file(objects: FolderStore) -> None:
    data = bytes(range(256)) * 20
    pieces = [objects.put_bytes(data[start : start + 700]) for start in range(0, len(data), 700)]
    with batch_inputs.Joined(objects, pieces) as joined:
        file = io.BufferedReader(joined, 64)
        assert file.read() == data
        for at in (0, 699, 700, 5000):
            file.seek(at)
            assert file.read(900) == data[at : at + 900]
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read(100) == data[-10:]
