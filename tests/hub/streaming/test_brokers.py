"""Where a managed broker listens, and what devices are told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from skerry_hub import broker as brokers
from skerry_hub import devices
from skerry_hub.broker.managed import ManagedBroker
from skerry_hub.settings import Settings
from skerry_hub.tables import Device

EVERYWHERE = "0.0.0.0"


@pytest.mark.parametrize("kind", ["auto", "embedded"])
@pytest.mark.parametrize(
    ("given", "told", "own"),
    [
        ({}, "mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:1883"),
        ({"host": "::1"}, "mqtt://[::1]:1883", "mqtt://[::1]:1883"),
        ({"host": EVERYWHERE}, f"mqtt://{brokers.reachable_host(EVERYWHERE)}:1883", "mqtt://127.0.0.1:1883"),
        ({"host": EVERYWHERE, "broker_host": "127.0.0.1"}, "mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:1883"),
        ({"broker_host": "::"}, None, "mqtt://[::1]:1883"),
        ({"broker_public_url": "mqtts://hub.example"}, "mqtts://hub.example", "mqtt://127.0.0.1:1883"),
    ],
)
def test_a_managed_broker_listens_where_the_hub_does_unless_told_otherwise(
    kind: str, given: dict[str, str], told: str | None, own: str, tmp_path: Path
) -> None:
    settings = Settings(data=str(tmp_path), broker=kind, broker_port=1883, **given)  # type: ignore[arg-type]
    made = brokers.choose(settings)
    assert isinstance(made, ManagedBroker)
    assert made.hub_url == own
    assert told is None or made.public_url == told


@pytest.mark.parametrize(("url", "warned"), [("mqtt://127.0.0.1:1883", True), ("mqtt://10.1.2.3:1883", False)])
def test_a_devices_file_says_where_an_address_is_good_for_one_machine_only(url: str, warned: bool) -> None:
    device = Device(id="d", profile="generic-x86_64", password_hash="", created_at=0)
    text = devices.config_text(device, "secret", broker=url, hub_key="k", publishers=[])
    assert tomllib.loads(text)["hub"]["broker"] == url
    assert ("The hub's own machine alone reaches this address" in text) == warned
