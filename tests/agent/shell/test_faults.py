"""Faults of a real daemon: kills, bad input from the hub, no space, no broker. Nothing half-done, nothing lost."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.shell.daemon import Daemon, module_folder
from agent.shell.hub import FakeHub
from skerry_modules import messages, topics, trust
from skerry_modules.messages import Signed
from support import processes
from support.processes import wait_until

pytestmark = pytest.mark.mosquitto

Make = Callable[..., Daemon]


def test_killed_in_the_middle_of_a_download_it_goes_on_from_there(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    ballast = 60 * 64 * 1024
    agent = daemon(start=False)
    kill_at = [10, 25, 45]
    killed: list[int] = []

    def after_chunk(count: int) -> None:
        if kill_at and count >= kill_at[0]:
            kill_at.pop(0)
            killed.append(count)
            hub.delivering = False

    hub.after_chunk = after_chunk
    module = hub.pack(module_folder(tmp_path / "m", ballast=ballast))
    hub.desire(module.wanted(1))
    for round_number in range(3):
        hub.delivering = True
        agent.start()
        hub.wait(lambda n=round_number: len(killed) == n + 1, "chunks to be sent")
        agent.kill()
    hub.delivering = True
    agent.start()
    hub.wait_phase(1, "Healthy")
    assert agent.scores(2.0)
    total = sum(hub.sent.values())
    # Each kill may lose what was on its way at that moment; never what was on disk.
    assert total <= 62 + 4 + 3 * 34, total


@pytest.mark.parametrize("after", [2, 5])
def test_killed_after_each_report_it_ends_in_the_same_place(
    hub: FakeHub, daemon: Make, tmp_path: Path, after: int
) -> None:
    agent = daemon(start=False)
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    agent.start()
    with contextlib.suppress(AssertionError):
        hub.wait(lambda: len(hub.bodies("state")) >= after, "the report", seconds=5)
    agent.kill()
    agent.start()
    hub.wait(lambda: agent.status()["modules"] and agent.status()["modules"][0]["phase"] == "Healthy", "health")
    assert agent.scores(2.0)
    hub.wait_phase(1, "Healthy")
    hub.wait(lambda: agent.status()["spool"]["records"] <= 2, "the spool to drain")
    assert hub.gaps == 0
    assert not hub.events("internal.bug")


def test_it_boots_and_scores_without_hub_and_network(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    agent.kill()
    config = agent.config.read_text()
    for broker in ("mqtt://no-such-host.invalid", ""):
        lines = [f'broker = "{broker}"' if line.startswith("broker") else line for line in config.splitlines()]
        agent.config.write_text("\n".join(lines))
        agent.start()
        wait_until(lambda: agent.score([[1.0, 3.0]])[0] == 200, what=f"scoring with {broker!r}")
        assert agent.scores(2.0)
        assert not agent.status()["hub"]["connected"]
        agent.kill()


def test_a_broker_that_goes_takes_nothing_with_it(
    mosquitto_program: str, daemon: Make, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    agent: Daemon | None = None
    try:
        with processes.mosquitto(mosquitto_program, tmp_path, port=port):
            hub = FakeHub(port, "device-1")
            agent = Daemon(tmp_path / "agent", port, hub.key.public.text(), hub.publisher.public.text()).start()
            hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
            hub.wait_phase(1, "Healthy")
        wait_until(lambda: not agent.status()["hub"]["connected"], what="the loss to be noticed")
        for _ in range(30):
            assert agent.scores(2.0)
        wait_until(lambda: agent.status()["spool"]["records"] >= 30, what="samples to wait in the spool")
        with processes.mosquitto(mosquitto_program, tmp_path, port=port):
            hub.wait(lambda: len(hub.bodies("sample")) >= 30, "what waited to arrive")
            hub.wait(lambda: hub.events("resource.broker_unreachable"), "the event of the loss")
            hub.wait(lambda: agent.status()["spool"]["records"] <= 2, "the spool to drain")
            assert len(hub.events("resource.broker_unreachable")) == 1
            assert hub.gaps == 0
            assert len({one.id for one in hub.bodies("sample")}) == len(hub.bodies("sample"))
            hub.close()
    finally:
        if agent:
            agent.stop()


def test_a_module_by_an_unknown_publisher_or_with_a_forged_signature_never_serves(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    agent = daemon()
    stranger = trust.SigningKey.generate("stranger")
    hub.desire(hub.pack(module_folder(tmp_path / "m"), stranger).wanted(1))
    state = hub.wait_phase(1, "Failed")
    assert state.reason == "trust.unknown_key"
    assert agent.score([[1.0, 2.0]])[0] in (404, 503)
    module = hub.pack(module_folder(tmp_path / "m2", 3.0))
    forged = trust.Signature(module.signature.keyid, bytes(64))
    hub.desire(module.wanted(2, signatures=(forged,)))
    assert hub.wait_phase(2, "Failed").reason == "trust.bad_signature"
    assert agent.score([[1.0, 2.0]])[0] in (404, 503)
    assert not list((agent.state / "modules").iterdir())


def test_flipped_bytes_on_the_way_are_fetched_again(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    module = hub.pack(module_folder(tmp_path / "m", ballast=100_000))
    flips = 3

    def tamper(digest: str, part: int, payload: bytes) -> bytes:
        nonlocal flips
        if digest != module.digest and flips:
            flips -= 1
            return payload[:-1] + bytes([payload[-1] ^ 1])  # the chunk's own checksum sees it
        return payload

    hub.tamper = tamper
    hub.desire(module.wanted(1))
    hub.wait_phase(1, "Healthy")
    assert flips == 0
    assert agent.scores(2.0)


def test_a_sender_that_cheats_with_chunks_is_caught_by_the_object_digest(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    from skerry_modules import chunks

    agent = daemon()
    module = hub.pack(module_folder(tmp_path / "m", ballast=100_000))
    cheats = 1

    def tamper(digest: str, part: int, payload: bytes) -> bytes:
        nonlocal cheats
        if digest != module.digest and cheats:
            cheats -= 1
            return chunks.frame(bytes(len(payload) - 5))  # well-formed, of the right size, and not what was signed
        return payload

    hub.tamper = tamper
    hub.desire(module.wanted(1))
    hub.wait_phase(1, "Healthy", seconds=60)
    assert agent.scores(2.0)


def test_chunks_that_come_for_it_alone_are_taken_and_checked_like_all(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    agent = daemon(start=False)
    hub.alone = True
    flipped: list[int] = []

    def flip(digest: str, part: int, data: bytes) -> bytes:
        if part == 1 and not flipped:
            flipped.append(part)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    hub.tamper = flip
    hub.desire(hub.pack(module_folder(tmp_path / "m", ballast=3 * 64 * 1024)).wanted(1))
    agent.start()
    hub.wait_phase(1, "Healthy")
    assert flipped == [1]
    assert agent.scores(2.0)
    assert not hub.events("message.unknown_topic")


def test_a_version_whose_file_the_hub_lost_fails_with_what_to_do(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    good = hub.pack(module_folder(tmp_path / "m"))
    hub.desire(good.wanted(1))
    hub.wait_phase(1, "Healthy")
    held = set(hub.objects)
    hub.desire(hub.pack(module_folder(tmp_path / "m2", ballast=1000)).wanted(2))
    for digest in [one for one in hub.objects if one not in held][:-1]:
        del hub.objects[digest]  # all but the index
    failed = hub.wait_phase(2, "Failed")
    assert failed.reason == "install.object_gone"
    assert "register the same files" in failed.message
    assert agent.scores(2.0)


def test_a_version_that_fails_its_golden_test_leaves_the_one_before_serving(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    agent = daemon()
    good = hub.pack(module_folder(tmp_path / "m1"))
    hub.desire(good.wanted(1))
    hub.wait_phase(1, "Healthy")
    hub.desire(hub.pack(module_folder(tmp_path / "m2", 3.0, expected=4.0)).wanted(2))
    assert hub.wait_phase(2, "Failed").reason == "install.golden_failed"
    assert agent.scores(2.0)
    hub.desire(hub.pack(module_folder(tmp_path / "m3", 5.0)).wanted(3))
    hub.wait_phase(3, "Healthy")
    assert agent.scores(5.0)
    hub.desire()
    hub.wait(lambda: not agent.status()["modules"], "the module to go")
    hub.wait(lambda: agent.score([[1.0, 2.0]])[0] in (404, 503), "its route to go")
    hub.wait(lambda: not list((agent.state / "objects").iterdir()), "its objects to go")
    assert not list((agent.state / "modules").iterdir())


def test_bad_messages_are_events_with_codes_and_change_nothing(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    hub.send("desired", b"\x93nonsense")
    hub.wait(lambda: hub.events("message.malformed"), "malformed")
    hub.send("desired", bytes(1024 * 1024 + 1))
    hub.wait(lambda: hub.events("message.oversized"), "oversized")
    hub.desire(device="device-2")
    hub.wait(lambda: hub.events("message.wrong_device"), "another's document")
    forged = trust.SigningKey.generate()
    hub.send("desired", messages.encode(Signed(1, b"x", (forged.sign(trust.DESIRED_TYPE, b"x"),))))
    hub.wait(lambda: hub.events("trust.unknown_key"), "a stranger's document")
    hub.send("desired", messages.encode(Signed(1, b"x")))
    hub.wait(lambda: hub.events("trust.unsigned"), "an unsigned document")
    for kind in ("ack", "command"):
        hub.send(kind, b"\xc1")
    hub.raw(topics.down("device-1", "surprise"), b"")
    hub.wait(lambda: hub.events("message.unknown_topic"), "an unknown kind")
    hub.raw(topics.chunk("0" * 64, 3), b"junk that nobody asked for")
    hub.send("command", messages.encode(messages.Command(id="c1", name="ping")))
    hub.send("command", messages.encode(messages.Command(id="c2", name="dance")))
    hub.wait(lambda: len(hub.bodies("result")) == 2, "answers to commands")
    assert {(one.command, one.ok, one.code) for one in hub.bodies("result")} == {
        ("c1", True, ""),
        ("c2", False, "command.unknown"),
    }
    assert agent.scores(2.0)
    assert agent.status()["revision"] == 1
    listed = agent.command("events", "--json")
    assert "message.wrong_device" in listed.stdout


def test_no_space_ends_in_a_reason_before_the_first_byte(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon(disk_mb=1)
    module = hub.pack(module_folder(tmp_path / "m", ballast=3_000_000))
    hub.desire(module.wanted(1))
    state = hub.wait_phase(1, "Unschedulable")
    assert state.reason == "unschedulable.disk"
    assert {digest for digest, _ in hub.sent} == {module.digest}, "only the index may have been sent"
    assert not list((agent.state / "partial").iterdir())


def test_a_full_disk_ends_in_a_reason(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon(start=False)
    rules = "[rules]\nspare_disk_mb = 100000000\n[rules.lifecycle]\nbackoff_s = 0.1\n"
    agent.config.write_text(agent.config.read_text() + rules)
    agent.start()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    state = hub.wait_phase(1, "Failed")
    assert state.reason == "resource.no_space"
    assert not hub.sent


def test_a_second_agent_on_the_same_state_is_refused(hub: FakeHub, daemon: Make) -> None:
    agent = daemon()
    second = agent.command("run")
    assert second.returncode == 1
    assert "resource.state_in_use" in second.stderr
    assert agent.answers()


def test_kill_9_while_the_hub_is_silent_loses_no_sample_and_doubles_none(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    agent = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    hub.acking = False
    promised = 0
    for _ in range(2):
        for _ in range(20):
            assert agent.scores(2.0)
        promised += 20
        wait_until(
            lambda n=promised: agent.status()["spool"]["streams"]["sample"] >= n, what="the samples to be on disk"
        )
        agent.kill()
        agent.start()
        wait_until(lambda: agent.status()["hub"]["connected"], what="the link")
        wait_until(lambda: agent.score([[1.0, 3.0]])[0] == 200, what="scoring")
    hub.acking = True
    hub.wait(lambda: agent.status()["spool"]["records"] <= 2, "the spool to drain")
    samples = [one.id for one in hub.bodies("sample")]
    assert len(samples) == len(set(samples)) >= promised
    assert hub.gaps == 0


def test_a_damaged_state_and_spool_are_told_and_survived(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    agent.kill()
    for name in ("agent.state", "spool.db"):
        path = agent.state / name
        data = bytearray(path.read_bytes())
        data[:200] = bytes(200)
        path.write_bytes(data)
    (agent.state / "spool.db-wal").unlink(missing_ok=True)
    agent.start()
    hub.wait(lambda: hub.events("resource.state_damaged") and hub.events("resource.spool_damaged"), "both events")
    wait_until(lambda: agent.score([[1.0, 3.0]])[0] == 200, what="scoring")
    assert agent.scores(2.0)


def test_a_version_damaged_on_disk_is_mended_at_the_next_start(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    module = hub.pack(module_folder(tmp_path / "m"))
    hub.desire(module.wanted(1))
    hub.wait_phase(1, "Healthy")
    agent.kill()
    script = agent.state / "modules" / module.digest / "main.py"
    script.chmod(0o644)
    script.write_text("def run(inputs):\n    return {'y': inputs['x'] * 666}\n")
    agent.start()
    wait_until(lambda: agent.score([[1.0, 3.0]])[0] == 200, what="scoring")
    assert agent.scores(2.0), "what is not as signed must never serve"


def test_the_hubs_settings_are_followed(hub: FakeHub, daemon: Make, tmp_path: Path) -> None:
    agent = daemon()
    hub.desire(
        hub.pack(module_folder(tmp_path / "m")).wanted(1), settings=messages.Settings(telemetry_s=0.2, capture_rate=0.0)
    )
    hub.wait_phase(1, "Healthy")
    before = len(hub.bodies("sample"))
    for _ in range(5):
        assert agent.scores(2.0)
    hub.wait(lambda: sum(one.requests for one in hub.bodies("telemetry")) >= 5, "telemetry")
    assert len(hub.bodies("sample")) == before


def test_while_no_byte_can_be_written_it_scores_and_afterwards_nothing_is_missing(
    hub: FakeHub, daemon: Make, tmp_path: Path
) -> None:
    agent = daemon("[rules]\nsave_retry_max_s = 1.0\n")
    hub.desire(hub.pack(module_folder(tmp_path / "m1")).wanted(1))
    hub.wait_phase(1, "Healthy")
    assert agent.process is not None
    limits = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)
    before = {one.id for one in hub.bodies("sample")}
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # the kernel refuses every write
    for _ in range(40):
        assert agent.scores(2.0)
    hub.desire(hub.pack(module_folder(tmp_path / "m2", 3.0)).wanted(2))
    hub.wait(lambda: agent.status()["revision"] == 2, "the document to be read")
    time.sleep(1.0)  # not one more byte is on disk, so nothing may follow from it
    assert not list((agent.state / "partial").iterdir())
    assert agent.scores(2.0), "what cannot be saved must not be acted on"
    duplicates = hub.duplicates
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, limits)
    hub.wait_phase(2, "Healthy", seconds=60)
    assert agent.scores(3.0)
    hub.wait(lambda: len({one.id for one in hub.bodies("sample")} - before) >= 41, "every sample to arrive")
    assert len({one.id for one in hub.bodies("sample")}) == len(hub.bodies("sample"))
    assert hub.gaps == 0
    assert hub.duplicates - duplicates < 100
    assert hub.events("resource.no_space")
