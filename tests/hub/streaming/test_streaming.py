"""The hub's streaming end to end: real brokers, real databases, real clients, real kills."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skerry_hub.tables import DocumentDue
from skerry_modules import chunks, messages, topics
from skerry_modules.messages import Stream

from .conftest import PahoDevice, World, connect, kill_broker

Wait = Callable[..., None]


def telemetry(requests: int = 1) -> messages.Telemetry:
    latency = messages.Distribution(counts=(0, 0, 5, 5), total=20.0, minimum=1.4, maximum=2.0)
    return messages.Telemetry(
        module="m",
        version=1,
        digest="d",
        endpoint="m",
        start=1,
        end=2,
        requests=requests,
        p50_us=1.5,
        p99_us=2.0,
        latency_us=latency,
    )


def event(text: str = "hello") -> messages.Event:
    return messages.Event(severity=messages.Severity.INFO, code="test.event", message=text, data={"n": 1})


def sample(name: str, value: float = 0.5) -> messages.Sample:
    import struct

    tensor = messages.Tensor(datatype="FP32", shape=(1, 2), data=struct.pack("<2f", value, -value))
    return messages.Sample(id=name, module="m", version=1, digest="d", at=1, inputs={"x": tensor}, probability=0.25)


def state(device: str, revision: int, *phases: str) -> messages.State:
    modules = tuple(
        messages.ModuleState(
            name=f"m{number}", version=1, digest="d", phase=messages.ModulePhase(phase), role="current"
        )
        for number, phase in enumerate(phases)
    )
    return messages.State(device=device, boot="boot-1", revision=revision, modules=modules)


def test_a_full_round_with_a_device(world: World, eventually: Wait) -> None:
    """Hello, presence, all kinds of messages, acknowledgement, desired document, download, state: one device's day."""
    data = bytes(range(256)) * 700
    index, (digest,) = world.model("m", data)
    device = world.device(
        "dev-1", will=(topics.presence("dev-1"), messages.encode(messages.Presence(online=False, boot="boot-1")))
    )
    revision = world.assign("dev-1", "m")
    world.streaming.publish_desired(["dev-1"])
    online = messages.encode(messages.Presence(online=True, boot="boot-1"))
    device.client.publish(topics.presence("dev-1"), online, 1, True)
    device.hello()
    eventually(lambda: device.payloads("desired"), what="the desired document")
    wanted = messages.decode_desired(device.payloads("desired")[-1].payload)
    assert (wanted.revision, wanted.modules[0].digest) == (revision, index)
    eventually(lambda: device.payloads("ack"), what="the hello's acknowledgement")
    assert device.marks() == {}

    device.client.subscribe(topics.chunks_of(digest), 1)
    total = chunks.count(len(data))
    want = messages.Want(digest=digest, size=len(data), bitmap=chunks.encode_bitmap(range(total), total))
    device.client.publish(topics.up("dev-1", "want"), messages.encode(want), 1)
    parts: dict[int, bytes] = {}

    def received() -> bool:
        for topic, payload in list(device.got):
            if topic.startswith(f"{topics.ROOT}/c/"):
                parts[topics.parse(topic).part] = bytes(chunks.unframe(payload))
        return len(parts) == total

    eventually(received, what="all chunks")
    whole = b"".join(parts[number] for number in range(total))
    assert hashlib.sha256(whole).hexdigest() == digest
    device.client.publish(topics.up("dev-1", "want"), messages.encode(messages.Want(digest=digest, size=len(data))), 1)
    eventually(lambda: world.streaming.delivery.idle, what="delivery to be done")

    device.send("state", state("dev-1", revision, "Healthy"))
    device.send("telemetry", telemetry())
    device.send("health", messages.Health(boot="boot-1", uptime_s=1.0, cpu_percent=5.0))
    device.send("event", event())
    device.send("sample", sample("s1"))
    device.send("result", messages.Result(command="c1", ok=False, code="internal.bug", message="no"))
    everything = {Stream.ALARM: 1, Stream.STATE: 1, Stream.RESULT: 1, Stream.SAMPLE: 1, Stream.METRIC: 2}
    eventually(lambda: device.marks() == {int(k): v for k, v in everything.items()}, what="the acknowledgement")
    row = world.row("dev-1")
    assert (row.online, row.boot, row.agent, row.reported_revision) == (True, "boot-1", "test", revision)
    assert row.epoch == device.epoch.hex()
    assert world.rows("SELECT module, phase, role FROM device_module") == [("m0", "Healthy", "current")]
    assert world.rows("SELECT requests, p50_us > 1 FROM telemetry")[0][0] == 1
    assert world.rows("SELECT cpu_percent FROM health") == [(5.0,)]
    codes = {code for (code,) in world.rows("SELECT code FROM event")}
    assert codes == {"test.event", "internal.bug"}
    assert world.rows("SELECT id, probability FROM sample") == [("s1", 0.25)]

    device.client.loop_stop()
    device.client.socket().close()  # type: ignore[union-attr]  # a cut cable, not a goodbye
    eventually(lambda: not world.row("dev-1").online, what="the last will")


def test_duplicates_gaps_and_reorderings_are_stored_once_and_in_order(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    for seq in (1, 2, 2, 1, 4, 3, 5, 3, 4, 5):
        device.send("event", event(str(seq)), seq=seq)
    eventually(lambda: device.marks().get(0) == 5, what="the mark 5")
    device.send("event", event("6"), seq=6)
    eventually(lambda: device.marks().get(0) == 6, what="the mark 6")
    stored = [message for (message,) in database_world.rows("SELECT message FROM event ORDER BY id")]
    assert stored == ["1", "2", "3", "4", "5", "6"]
    counters = database_world.streaming.ingest.counters
    assert (counters.duplicates, counters.gaps) == (3, 2)


def test_a_jump_of_base_is_counted_as_lost_by_the_device(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    device.send("event", event(), seq=1)
    device.send("event", event(), seq=10, base=10)
    eventually(lambda: device.marks().get(0) == 10, what="the mark")
    assert database_world.rows("SELECT lost FROM stream_mark") == [(8,)]


def test_a_device_cannot_speak_or_listen_as_another(broker_world: World, eventually: Wait) -> None:
    good, bad = broker_world.device("dev-good"), broker_world.device("dev-bad")
    bad.client.subscribe([("#", 1), (topics.all_down("dev-good"), 1), (topics.ALL_UP, 1)])
    forged = bad.envelope("event", event("forged"), seq=1)
    bad.client.publish(topics.up("dev-good", "event"), forged, 1)
    bad.client.publish(topics.presence("dev-good"), b"x", 1, True)
    bad.client.publish(topics.down("dev-good", "desired"), b"forged", 1, True)
    bad.client.publish(topics.chunk("0" * 64, 0), b"forged", 1)
    bad.client.publish(topics.up("dev-bad", "state"), bad.envelope("state", state("dev-good", 1, "Healthy")), 1)
    good.send("event", event("true"))
    eventually(lambda: good.marks().get(0) == 1 and bad.marks().get(1) == 1, what="both acknowledgements")
    assert [m for (m,) in broker_world.rows("SELECT message FROM event WHERE code = 'test.event'")] == ["true"]
    refused = broker_world.rows("SELECT device, code FROM event WHERE code <> 'test.event'")
    assert refused == [("dev-bad", "message.wrong_device")]
    assert broker_world.count("device_module") == 0
    assert not [topic for topic, payload in good.got if payload == b"forged"]
    assert not [topic for topic, _ in bad.got if "dev-good" in topic]


def test_what_is_retained_reaches_nobody_who_may_not_read_it(broker_world: World, eventually: Wait) -> None:
    """Neither on connecting, while others hold subscriptions that match it, nor on a subscription that is refused."""
    good = broker_world.device("dev-good")
    for topic in (topics.presence("dev-good"), topics.down("dev-good", "desired")):
        broker_world.streaming.link.publish(topic, b"retained", 1, True)
    eventually(lambda: len(good.got) == 1, what="the document")
    bad = broker_world.device("dev-bad")
    bad.client.subscribe([("#", 1), (topics.all_down("dev-good"), 1), (topics.ALL_PRESENCE, 1)])
    bad.send("event", event())
    eventually(lambda: bad.marks().get(0) == 1, what="the acknowledgement")
    assert not [topic for topic, _ in bad.got if "dev-bad" not in topic]


def test_a_packet_over_the_limit_ends_its_connection_and_no_other(broker_world: World, eventually: Wait) -> None:
    good, bad = broker_world.device("dev-good"), broker_world.device("dev-bad")
    bad.down.clear()
    bad.client.publish(topics.up("dev-bad", "sample"), bytes(20_000_000), 1)
    assert bad.down.wait(10), "the broker took 20 MB"
    bad.client.loop_stop()
    good.send("event", event())
    eventually(lambda: good.marks().get(0) == 1, what="the others' acknowledgement")
    if broker_world.broker.name == "embedded":  # Mosquitto ends the connection without a word
        told = "SELECT device, message FROM event WHERE code = 'message.oversized'"
        eventually(lambda: broker_world.rows(told), what="the event")
        device, message = broker_world.rows(told)[0]
        assert device == "dev-bad"
        assert "cannot take a packet of 200000" in message
        assert "the limit is 8454144" in message


def test_the_largest_message_of_the_protocol_passes(broker_world: World, eventually: Wait) -> None:
    device = broker_world.device("dev-1")
    refused = broker_world.streaming.ingest.counters.refused
    largest = messages.MAX_BYTES["sample"]
    device.client.publish(topics.up("dev-1", "sample"), bytes(largest), 1)
    eventually(lambda: refused["message.malformed"] == 1, what="the refusal of what it holds")
    device.client.publish(topics.up("dev-1", "sample"), bytes(largest + 1), 1)
    eventually(lambda: refused.total() == 2, what="the refusal by the hub")
    assert device.client.is_connected()


def test_a_last_will_cannot_be_forged(broker_world: World, eventually: Wait) -> None:
    good = broker_world.device("dev-good")
    broker_world.register("dev-bad")
    topic = topics.presence("dev-good")
    bad = connect(
        broker_world.broker.hub_url,
        "dev-bad",
        broker_world.passwords["dev-bad"],
        will=(topic, messages.encode(messages.Presence(online=False))),
    )
    good.client.publish(topic, messages.encode(messages.Presence(online=True, boot="b")), 1, True)
    eventually(lambda: broker_world.row("dev-good").online, what="presence")
    if not bad.refused:  # the embedded broker's gate refuses it at once; Mosquitto drops the will itself
        bad.client.loop_stop()
        bad.client.socket().close()  # type: ignore[union-attr]
    good.send("event", event())
    eventually(lambda: good.marks().get(0) == 1, what="the acknowledgement")
    assert broker_world.row("dev-good").online


def test_strangers_and_removed_devices_are_put_out(broker_world: World, eventually: Wait) -> None:
    assert connect(broker_world.broker.hub_url, "nobody", "x").refused
    device = broker_world.device("dev-1")
    assert connect(broker_world.broker.hub_url, "dev-1", "wrong").refused
    broker_world.broker.set_credentials({})
    assert device.down.wait(10), "a removed device was not put out"


def test_what_is_malformed_is_refused_told_and_does_not_block_what_follows(
    database_world: World, eventually: Wait
) -> None:
    device = database_world.device("dev-1")
    up = topics.up("dev-1", "event")
    device.client.publish(up, b"\xc1not msgpack", 1)
    device.client.publish(up, b"", 1)
    device.client.publish(topics.up("dev-1", "nonsense"), b"x", 1)
    device.client.publish(up, messages.encode(messages.Up(99, b"e", 0, 1, 1, 0, event())), 1)
    device.client.publish(up, device.envelope("event", {"severity": 7}, seq=1), 1)  # a sound envelope, a bad body
    device.client.publish(up, device.envelope("event", event("x" * 70_000), seq=2), 1)
    device.client.publish(up, device.envelope("event", event(), seq=3, stream=77), 1)
    device.client.publish(topics.up("dev-1", "hello"), b"\x00", 1)
    device.client.publish(topics.up("dev-1", "want"), b"\x00", 1)
    device.send("event", event("fine"), seq=3)
    eventually(lambda: device.marks().get(0) == 3, what="the mark past what was refused")
    refused = database_world.streaming.ingest.counters.refused
    eventually(lambda: refused["message.malformed"] >= 5, what="the refusals")
    assert {"message.malformed", "message.unsupported_version", "message.oversized"} <= set(refused)
    told = {
        code
        for (code,) in database_world.rows("SELECT code FROM event WHERE severity = 'warning' AND device = 'dev-1'")
    }
    assert {"message.malformed", "message.unsupported_version", "message.oversized"} <= told
    assert database_world.streaming.link.healthy


def test_numbers_that_a_database_cannot_hold_cost_one_message_only(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    device.send("telemetry", telemetry(requests=2**63), seq=1)
    device.send("telemetry", telemetry(requests=7), seq=2)
    eventually(lambda: device.marks().get(4) == 2, what="the mark")
    assert database_world.rows("SELECT requests FROM telemetry") == [(7,)]
    assert database_world.streaming.ingest.counters.refused["message.malformed"] == 1


def test_a_device_that_is_not_registered_is_refused(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    with database_world.db.session() as session:
        session.connection().exec_driver_sql("DELETE FROM device WHERE id = 'dev-1'")
    database_world.streaming.ingest.forget_devices()
    device.send("event", event())
    refused = database_world.streaming.ingest.counters.refused
    eventually(lambda: refused["device.unknown"] == 1, what="the refusal")
    # It is counted before it is committed.
    eventually(lambda: database_world.rows("SELECT code FROM event") == [("device.unknown",)], what="its event")
    assert device.marks() == {}


def test_only_desired_objects_are_delivered(database_world: World, eventually: Wait) -> None:
    _, (mine,) = database_world.model("mine", b"a" * 1000)
    _, (other,) = database_world.model("other", b"b" * 1000)
    device = database_world.device("dev-1")
    database_world.assign("dev-1", "mine")
    for digest, size in ((other, 1000), (mine, 999), ("f" * 64, 10), (mine, 1000)):
        device.client.subscribe(topics.chunks_of(digest), 1)
        want = messages.encode(messages.Want(digest=digest, size=size, bitmap=b"\x01"))
        device.client.publish(topics.up("dev-1", "want"), want, 1)
    eventually(lambda: any("/c/" in topic for topic, _ in device.got), what="a chunk")
    eventually(lambda: database_world.streaming.delivery.counters.refused == 3, what="three refusals")
    assert {topics.parse(topic).digest for topic, _ in device.got if "/c/" in topic} == {mine}


def test_what_one_device_lost_comes_to_it_alone(broker_world: World, eventually: Wait) -> None:
    data = bytes(3 * chunks.CHUNK_BYTES)
    _, (digest,) = broker_world.model("m", data)
    one, two = (broker_world.device(name) for name in ("dev-1", "dev-2"))
    for device in (one, two):
        broker_world.assign(device.name, "m")
        device.client.subscribe(topics.chunks_of(digest), 1)

    def want(device: PahoDevice, *parts: int) -> None:
        said = messages.Want(digest=digest, size=len(data), bitmap=chunks.encode_bitmap(parts, 3), alone=True)
        device.client.publish(topics.up(device.name, "want"), messages.encode(said), 1)

    def shared(device: PahoDevice) -> list[int]:
        return sorted(
            topics.parse(topic).part for topic, _ in list(device.got) if topic.startswith(f"{topics.ROOT}/c/")
        )

    for device in (one, two):
        want(device, 0, 1, 2)
    eventually(lambda: shared(one) == shared(two) == [0, 1, 2], what="all chunks, for both")
    one.hello()
    want(one, 1)
    eventually(lambda: one.payloads("gap"), what="the chunk for one device alone")
    (gap,) = one.payloads("gap")
    assert (gap.digest, gap.part, bytes(chunks.unframe(gap.data))) == (digest, 1, bytes(chunks.CHUNK_BYTES))
    two.hello()
    want(two, 0)
    eventually(lambda: two.payloads("gap"), what="the other's")
    assert (shared(one), shared(two)) == ([0, 1, 2], [0, 1, 2])
    assert len(one.payloads("gap")) == 1
    assert broker_world.streaming.delivery.counters.alone == 2


def _ask(device: PahoDevice, *objects: tuple[str, int]) -> None:
    for digest, size in objects:
        device.client.subscribe(topics.chunks_of(digest), 1)
        want = messages.Want(digest=digest, size=size, bitmap=chunks.encode_bitmap(range(1), 1))
        device.client.publish(topics.up(device.name, "want"), messages.encode(want), 1)


def _gone(device: PahoDevice) -> list[str]:
    return [digest for ack in device.payloads("ack") for digest in ack.gone]


def _chunks(device: PahoDevice) -> set[str]:
    return {topics.parse(topic).digest for topic, _ in list(device.got) if topic.startswith(f"{topics.ROOT}/c/")}


def test_an_object_that_the_store_lost_is_told_as_gone_and_holds_up_no_other(
    database_world: World, eventually: Wait
) -> None:
    """Lost before it was asked for, lost while it was being sent, and cut short: all three."""
    blobs = [bytes([number]) * 1000 for number in range(4)]
    _, digests = database_world.model("m", *blobs)
    device, delivery = database_world.device("dev-1"), database_world.streaming.delivery
    database_world.assign("dev-1", "m")
    lost, later, short, kept = digests
    store = database_world.objects
    _ask(device, (later, 1000))
    eventually(lambda: _chunks(device) == {later}, what="a chunk while all is well")
    delivery._files.pop(later).close()  # as when others were read since
    device.hello()  # a new session: what flew to the former one flies no more
    store.delete(lost)
    store.delete(later)
    store.path(short).write_bytes(blobs[2][:500])
    _ask(device, *((digest, 1000) for digest in digests))
    eventually(lambda: set(_gone(device)) == {lost, later, short}, what="three objects to be told as gone")
    eventually(lambda: _chunks(device) == {later, kept}, what="the object that is there")
    assert {one.part_of for one in delivery.missing.values()} == {("f0 of m:1",), ("f1 of m:1",), ("f2 of m:1",)}
    told = "SELECT message FROM event WHERE code = 'resource.object_missing'"
    eventually(lambda: database_world.rows(told), what="the event")
    ((message,),) = database_world.rows(told)
    assert " of m:1" in message
    assert "restore the store" in message

    store.put_bytes(blobs[0])
    _ask(device, (lost, 1000))
    eventually(lambda: lost in _chunks(device), what="the object that was put back")
    assert lost not in delivery.missing


def test_of_a_store_that_is_away_nothing_is_told_as_gone(small_world: World, eventually: Wait, tmp_path: Path) -> None:
    small_world.start()
    _, (digest,) = small_world.model("m", b"a" * 1000)
    device = small_world.device("dev-1")
    small_world.assign("dev-1", "m")
    place = small_world.objects.folder / "objects"
    place.rename(tmp_path / "unmounted")
    _ask(device, (digest, 1000))
    eventually(lambda: small_world.streaming.delivery.counters.wants == 1, what="the want")
    (tmp_path / "unmounted").rename(place)
    _ask(device, (digest, 1000))
    eventually(lambda: _chunks(device) == {digest}, what="the chunk, once the store is back")
    assert not _gone(device)
    assert not small_world.streaming.delivery.missing


def test_a_broker_that_is_killed_comes_back_and_everybody_goes_on(broker_world: World, eventually: Wait) -> None:
    device = broker_world.device("dev-1")
    broker_world.model("m", b"x")
    device.send("event", event("before"))
    eventually(lambda: device.marks().get(0) == 1, what="the first acknowledgement")
    connects = broker_world.streaming.link.connects
    kill_broker(broker_world.broker)
    device.close()  # paho connects again by itself: two clients of one name would throw each other out, for ever
    revision = broker_world.assign("dev-1", "m")
    broker_world.streaming.publish_desired(["dev-1"])  # while there is no broker at all
    link = broker_world.streaming.link
    # Connected is more than answered: what a device sends before the hub has subscribed goes nowhere.
    eventually(
        lambda: broker_world.broker.restarts == 1 and link.connects > connects and link.connected,
        seconds=30,
        what="the hub",
    )
    again = broker_world.device("dev-1")
    again.numbers[0] = 1
    again.send("event", event("after"))
    eventually(lambda: again.marks().get(0) == 2, seconds=30, what="the acknowledgement after the kill")
    eventually(lambda: again.payloads("desired"), seconds=30, what="the document made meanwhile")
    assert messages.decode_desired(again.payloads("desired")[-1].payload).revision == revision


def test_a_device_that_is_ahead_of_the_hub_gets_a_document_above_what_it_has(
    database_world: World, eventually: Wait
) -> None:
    """It was removed and added again, or the hub's database is an older copy: it would refuse what is not newer."""
    device = database_world.device("dev-1")
    database_world.model("m", b"weights")
    database_world.assign("dev-1", "m")
    device.hello(revision=40)

    def newest() -> messages.Desired | None:
        said = device.payloads("desired")
        return messages.decode_desired(said[-1].payload) if said else None

    eventually(lambda: (got := newest()) is not None and got.revision == 41, what="the document above it")
    got = newest()
    assert got is not None
    assert [(one.name, one.version, one.attempt) for one in got.modules] == [("m", 1, 41)]
    device.hello(revision=41)
    assert database_world.assign("dev-1", "m") == 42
    device.hello(revision=2**31 - 1)  # which no hub ever issued
    eventually(lambda: database_world.row("dev-1").reported_revision == 2**31 - 1, what="the hello")
    assert database_world.assign("dev-1", "m") <= 2**30 + 1


def test_a_hub_that_starts_writes_and_sends_the_documents_that_a_dead_one_left(
    small_world: World, eventually: Wait
) -> None:
    small_world.register("dev-1")
    with small_world.db.session() as session:
        session.add(DocumentDue(device="dev-1"))
    small_world.start()
    device = small_world.device("dev-1")
    eventually(lambda: device.payloads("desired"), what="the document")
    assert messages.decode_desired(device.payloads("desired")[0].payload).revision == 1
    assert small_world.count("document_due") == 0


def test_a_removed_devices_document_is_cleared(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    database_world.model("m", b"x")
    database_world.assign("dev-1", "m")
    database_world.streaming.publish_desired(["dev-1"])
    eventually(lambda: device.payloads("desired"), what="the document")
    with database_world.db.session() as session:
        session.connection().exec_driver_sql("DELETE FROM desired_document")
    database_world.streaming.publish_desired(["dev-1"])
    eventually(
        lambda: any(topic.endswith("/desired") and not payload for topic, payload in device.got), what="clearing"
    )


def test_the_last_will_of_an_older_boot_changes_nothing(database_world: World, eventually: Wait) -> None:
    device = database_world.device("dev-1")
    device.hello(boot="boot-2")
    eventually(lambda: database_world.row("dev-1").online, what="hello")
    old = messages.encode(messages.Presence(online=False, boot="boot-1"))
    device.client.publish(topics.presence("dev-1"), old, 1)
    device.send("event", event())
    eventually(lambda: device.marks().get(0) == 1, what="the acknowledgement")
    assert database_world.row("dev-1").online


@pytest.mark.parametrize("kind", ["state", "hello"])
def test_nudges_follow_commits(database_world: World, kind: str, eventually: Wait) -> None:
    import asyncio

    device = database_world.device("dev-1")

    async def listen() -> frozenset[str]:
        heard: set[str] = set()
        stream: Any = database_world.bus.listen(quiet_s=5.0)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        if kind == "state":
            device.send("state", state("dev-1", 1, "Healthy"))
        else:
            device.hello()
        heard |= await task
        await stream.aclose()
        return frozenset(heard)

    assert {"device:dev-1", "fleet"} <= asyncio.run(listen())
