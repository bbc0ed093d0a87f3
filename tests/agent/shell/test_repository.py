"""Clients load versions that a real device holds, and only such: verified and proven again, apart from the routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from support.processes import wait_until

from .daemon import Daemon, module_folder
from .hub import FakeHub

pytestmark = pytest.mark.mosquitto

X = np.array([[1, 2]], dtype="f4")


class Client(triton.InferenceServerClient):  # type: ignore[misc]
    def __del__(self) -> None:
        """The fixture closes it: the collector may run in the plane's thread, where gevent must not be used."""


@pytest.fixture
def device(hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    """Version 2 serves; version 1, the one before, is held and not loaded."""
    one = daemon()
    for version, factor in ((1, 3.0), (2, 5.0)):
        hub.desire(hub.pack(module_folder(tmp_path / f"v{version}", factor)).wanted(version))
        hub.wait_phase(version, "Healthy", 60)
    return one


@pytest.fixture
def client(device: Daemon) -> Iterator[triton.InferenceServerClient]:
    made = Client(device.status()["scoring"].removeprefix("http://"))
    wait_until(lambda: "UNAVAILABLE" in states(made).values(), seconds=60)
    yield made
    made.close()


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    return {entry["version"]: entry["state"] for entry in client.get_model_repository_index()}


def score(client: triton.InferenceServerClient, version: str = "") -> Any:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(X)
    return client.infer("double", [given], model_version=version).as_numpy("y")


def test_the_version_before_is_loaded_beside_the_one_that_serves(client: triton.InferenceServerClient) -> None:
    assert states(client) == {"1": "UNAVAILABLE", "2": "READY"}
    with pytest.raises(InferenceServerException, match="version 1 of double"):
        score(client, "1")
    client._post("v2/repository/models/double/load", '{"parameters": {"version": "1"}}', None, None)
    assert states(client) == {"1": "READY", "2": "READY"}
    np.testing.assert_array_equal(score(client, "1"), X * 3)
    np.testing.assert_array_equal(score(client), X * 5)  # the route stays where the hub has put it
    client.load_model("double")  # what serves is loaded: nothing happens
    client.unload_model("double")
    assert states(client) == {"1": "UNAVAILABLE", "2": "READY"}
    np.testing.assert_array_equal(score(client), X * 5)
    with pytest.raises(InferenceServerException, match="the hub wants it"):
        client.unload_model("double")


def test_a_version_changed_on_the_disk_is_refused(device: Daemon, client: triton.InferenceServerClient) -> None:
    for path in (device.state / "modules").glob("*/main.py"):
        path.chmod(0o644)
        text = path.read_text()
        path.unlink()
        path.write_text(text + "\n# changed\n")
    answer = client._post("v2/repository/models/double/versions/1/load", "{}", None, None)
    assert answer.status_code == 500
    assert b"was changed on this device" in answer.read()
    assert states(client) == {"1": "UNAVAILABLE", "2": "READY"}


def test_what_the_hub_takes_away_is_unloaded_for_clients_too(
    hub: FakeHub, client: triton.InferenceServerClient
) -> None:
    answer = client._post("v2/repository/models/double/versions/1/load", "{}", None, None)
    assert answer.status_code == 200, answer.read()
    assert states(client) == {"1": "READY", "2": "READY"}
    hub.desire()
    wait_until(lambda: not states(client), seconds=60)
    answer = client._get("v2/models/double", None, None)
    assert (answer.status_code, b"this device serves none" in answer.read()) == (404, True), "not: ask again soon"
