"""A hub that comes after its devices: they say again at once what nobody heard, and not all in one moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.shell.daemon import Daemon
from hub.streaming.conftest import PahoDevice, World, kill_broker
from hub.streaming.test_streaming import event
from skerry_hub.broker import parse_url
from skerry_hub.rules.hails import BURST_S, Hails, HailSettings, spread_s
from skerry_modules import messages, topics

Wait = Callable[..., None]

SETTINGS = HailSettings(per_s=100.0, backlog=10)
STEPS = st.lists(
    st.tuples(st.sampled_from(["present", "settled", "due", "busy"]), st.integers(0, 30), st.floats(0.0, 0.5)),
    max_size=60,
)


@given(STEPS)
def test_each_is_hailed_once_for_each_time_it_was_there_first_and_no_faster_than_the_pace(
    steps: list[tuple[str, int, float]],
) -> None:
    hails, now = Hails(SETTINGS), 100.0
    waiting: set[str] = set()
    at: list[float] = []
    for what, number, pause in steps:
        now += pause
        device = f"d{number}"
        if what == "present":
            hails.present(device)
            waiting.add(device)
        elif what == "settled":
            hails.settled(device)
            waiting.discard(device)
        else:
            chosen = hails.due(now, SETTINGS.backlog + (what == "busy"))
            assert len(set(chosen)) == len(chosen)
            assert set(chosen) <= waiting
            assert not (chosen and what == "busy")
            waiting.difference_update(chosen)
            at += [now] * len(chosen)
        assert len(hails) == len(waiting)
    for start in at:
        within = sum(start <= one <= start + 1.0 for one in at)
        assert within <= SETTINGS.per_s * (1.0 + BURST_S) + 1


def test_ten_thousand_are_hailed_in_ten_seconds() -> None:
    hails = Hails()
    for number in range(10_000):
        hails.present(f"d{number}")
    looks = 0
    while hails:
        looks += 1
        hails.due(100.0 + looks * hails.settings.look_s, backlog=0)
    assert 9.0 < looks * hails.settings.look_s < 11.0


@given(st.integers(0, 10**6), st.floats(0.1, 10**5))
def test_a_fleet_is_told_to_spread_itself_as_its_size_needs(devices: int, per_s: float) -> None:
    assert spread_s(devices, per_s) * per_s >= 2 * devices
    assert (spread_s(devices, per_s) - 1) * per_s < 2 * devices


def present(device: PahoDevice) -> None:
    online = messages.encode(messages.Presence(online=True, boot="boot-1"))
    device.client.publish(topics.presence(device.name), online, 1, True).wait_for_publish(5)


def answering(device: PahoDevice) -> list[Any]:
    """Have a device do what a hail asks of it; the hails that it hears are added to what is returned."""
    hails: list[Any] = []
    taken = device.client.on_message

    def heard(client: Any, data: Any, message: Any) -> None:
        assert taken is not None
        taken(client, data, message)
        if message.topic.endswith("/down/ack") and messages.decode("ack", message.payload).again:
            hails.append(message)
            device.hello()
            device.send("event", event("said again"), seq=1)

    device.client.on_message = heard
    return hails


def test_what_was_said_before_the_hub_listened_is_asked_for_at_once(broker_world: World, eventually: Wait) -> None:
    """The hub is away; a device connects and speaks, to nobody. It is not silence that makes it speak again."""
    broker_world.register("dev-1", "dev-2", "dev-3")
    broker_world.streaming.stop()
    early, gone = broker_world.device("dev-1"), broker_world.device("dev-2")
    hails = answering(early)
    for device in (early, gone):
        present(device)
        device.hello()
        device.send("event", event("nobody hears this"), seq=1)
    offline = messages.encode(messages.Presence(online=False, boot="boot-1"))
    gone.client.publish(topics.presence("dev-2"), offline, 1, True).wait_for_publish(5)
    broker_world.start()
    eventually(lambda: early.marks().get(0) == 1, what="the mark of what was said again")
    assert [m for (m,) in broker_world.rows("SELECT message FROM event")] == ["said again"]
    assert broker_world.row("dev-1").boot == "boot-1"
    late = broker_world.device("dev-3")
    late_hails = answering(late)
    present(late)
    late.hello()
    eventually(lambda: late.payloads("ack"), what="the late one's acknowledgement")
    assert (len(hails), len(late_hails)) == (1, 0)  # who was heard is not asked again
    assert broker_world.streaming.greeter.hailed == 1  # nor who is not there
    assert early.payloads("ack")[-1].spread_s == 1  # three devices need no long spread


def test_an_agent_that_outlives_broker_and_hub_is_heard_as_soon_as_they_are_back(
    small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Wait
) -> None:
    """The real daemon over a broker that is killed while no hub listens, with a patience that nobody would wait for."""
    small_world.start()
    small_world.register("device-1")
    monkeypatch.setenv("SKERRY_AGENT_HUB_PASSWORD", small_world.passwords["device-1"])
    monkeypatch.setenv("SKERRY_AGENT_SPOOL_RESEND_S", "3600")
    monkeypatch.setenv("SKERRY_AGENT_HUB_RETRY_MAX_S", "60")
    key = small_world.key.public.text()
    agent = Daemon(tmp_path / "agent", parse_url(small_world.broker.hub_url)[1], key, key)
    try:
        agent.start()
        eventually(lambda: small_world.count("health") > 0, what="the agent's health")
        small_world.streaming.stop()
        kill_broker(small_world.broker)
        eventually(lambda: not agent.status()["hub"]["connected"], what="the loss to be noticed")
        eventually(lambda: agent.status()["hub"]["connected"], what="the agent to come back before the hub")
        unheard = agent.status()["spool"]["records"]
        eventually(lambda: agent.status()["spool"]["records"] > unheard + 2, what="records that nobody hears")
        before = small_world.count("health")
        small_world.start()
        eventually(lambda: small_world.count("health") > before + 2, what="what was said while nobody listened")
        eventually(lambda: agent.status()["spool"]["records"] <= 2, what="its acknowledgement")
        assert small_world.rows("SELECT SUM(lost) FROM stream_mark") == [(0,)]
    finally:
        agent.stop()
