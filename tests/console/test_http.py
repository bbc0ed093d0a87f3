"""What stands around the pages: policy, caches, assets that ship, forms that other sites cannot send, the tables."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete
from sqlmodel import SQLModel, col

from console import seed
from console.conftest import Served
from skerry_hub.console import templating
from skerry_hub.console.pulse import Pulse
from skerry_hub.console.queries import device as device_queries
from skerry_hub.console.queries import fleet, log, models, rollouts
from skerry_hub.db import Database
from skerry_hub.queries import parse
from skerry_hub.tables import RolloutDevice

HTML = {"accept": "text/html"}


def test_a_page_forbids_all_that_it_does_not_need(seeded: Served) -> None:
    answer = httpx.get(seeded.url + "/", headers=HTML)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|style=", answer.text)


def test_assets_may_be_kept_for_ever_since_their_address_changes(seeded: Served) -> None:
    page = httpx.get(seeded.url + "/", headers=HTML).text
    addresses = set(re.findall(r'"(/assets/[^"#]+)', page))
    assert len(addresses) >= 9
    for address in addresses:
        answer = httpx.get(seeded.url + address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    digest = templating.asset_digest("console.css")
    moved = httpx.get(f"{seeded.url}/assets/{'0' * 12}/console.css")
    assert moved.headers["location"] == f"/assets/{digest}/console.css"


def test_a_versions_page_shows_what_was_measured(seeded: Served) -> None:
    def panel(version: str) -> str:
        page = httpx.get(f"{seeded.url}/models/{version}", headers=HTML).text
        found = page.partition('aria-labelledby="measured"')[2].partition("</section>")[0]
        return " ".join(re.sub(r"<[^>]*>", " ", found.replace("<wbr>", "")).split())

    measured = panel("digits/versions/3")
    assert "press-harbour-04 raspberry-pi-5" in measured
    assert "onnx, 1 thread, batch 1 recommended 970 µs 1.07 ms 1.36 ms 3 % 1,031 98 % 11 ms 6.8 MB passed" in measured
    assert "it needs 24 MB : what the scheduler counts" in measured
    assert "openvino, 1 thread, batch 1: unschedulable.engine cannot use the engine openvino" in measured
    assert "A machine that is no device" in measured
    assert "simulated" not in measured
    assert "simulated: its times mean nothing" in panel("digits-fpga/versions/1")
    assert "Nobody measured it yet" in panel("digits/versions/2")


def words(served: Served, path: str, part: str) -> str:
    """The text of one section of a page, by its heading's id."""
    page = httpx.get(served.url + path, headers=HTML).text
    found = page.partition(f'aria-labelledby="{part}"')[2].partition("</section>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", found.replace("<wbr>", "")).split())


def test_a_devices_page_says_what_cannot_run_there_and_what_was_measured(seeded: Served) -> None:
    by_rollout = words(seeded, "/devices/cam-lab-24", "obstacles")
    assert "digits :4 Unschedulable unschedulable.memory needs 180 MB, profile leaves 128 MB rollout #6" in by_rollout
    by_endpoint = words(seeded, "/devices/gate-lab-18", "obstacles")
    assert "digits endpoint Unschedulable unschedulable.memory digits:4 needs 312 MB" in by_endpoint
    assert not words(seeded, "/devices/press-lab-12", "obstacles")
    measured = words(seeded, "/devices/press-harbour-04", "measured")
    assert "digits :3 onnx, 1 thread, up to 8 rows at once 970 µs 1.36 ms 1,031 24 MB" in measured


def test_an_environments_page_shows_its_lock_and_who_uses_it(seeded: Served) -> None:
    page = words(seeded, "/environments/vision/versions/2", "what")
    assert "numpy==2.3.4 scikit-learn==1.7.2 scipy==1.16.2" in page
    assert "digits :4 , vibration :2" in page
    lock = words(seeded, "/environments/vision/versions/2", "wheels")
    assert "threadpoolctl 3.6.0 threadpoolctl-3.6.0-py3-none-any.whl all 18.6 kB" in lock
    assert "scikit-learn 1.7.2 scikit_learn-1.7.2-cp312-cp312-manylinux_2_39_x86_64.whl 3 9.48 MB" in lock
    listed = httpx.get(seeded.url + "/environments", headers=HTML).text
    assert "none now" in listed
    assert (
        "/environments/vision/versions/2" in httpx.get(seeded.url + "/models/vibration/versions/2", headers=HTML).text
    ), "a version names its environment"
    assert httpx.get(seeded.url + "/environments/vision/versions/9", headers=HTML).status_code == 404


def test_a_batch_job_is_cancelled_once_with_a_reason(acting: Served) -> None:
    page = httpx.get(acting.url + "/batches/4", headers=HTML).text
    assert "about" in page.partition("Done</span>")[2][:300], "how long the rest takes"
    answer = httpx.post(acting.url + "/batches/4/cancel", headers=HTML, data={"reason": "wrong week"})
    assert answer.headers["location"] == "/batches/4"
    page = httpx.get(acting.url + "/batches/4", headers=HTML).text
    assert "cancelled by local: wrong week" in page
    assert "cancel-dialog" not in page
    again = httpx.post(acting.url + "/batches/4/cancel", headers=HTML)
    assert (again.status_code, "batch.wrong_state" in again.text) == (409, True)
    assert httpx.get(acting.url + "/batches/99", headers=HTML).status_code == 404


def test_a_pipelines_page_lists_its_steps(seeded: Served) -> None:
    page = httpx.get(seeded.url + "/models/vibration/versions/2", headers=HTML).text
    steps = page.partition('id="steps"')[2].partition("</ul>")[0]
    words = re.sub(r"<[^>]*>|\s+", " ", steps.replace("<wbr>", "")).split()
    assert " ".join(words[1:]) == (
        "detrend onnx detrend.onnx median 40 µs window from input.window "
        "net onnx model.onnx median 900 µs window from detrend.window"
    )
    assert "from net.wear" in page
    assert 'id="steps"' not in httpx.get(seeded.url + "/models/vibration/versions/1", headers=HTML).text


@pytest.mark.parametrize("name", ["../templating.py", "..%2ftemplating.py", "%2e%2e/format.py", "nothing.js", ""])
def test_only_assets_are_served_as_assets(name: str, seeded: Served) -> None:
    answer = httpx.get(f"{seeded.url}/assets/{'0' * 12}/{name}", headers=HTML, follow_redirects=True)
    assert answer.status_code == 404


def test_third_party_files_stand_beside_their_licences() -> None:
    vendor = templating.STATIC / "vendor"
    names = {path.name for path in vendor.iterdir()}
    script = (Path(__file__).parents[2] / "scripts" / "vendor-assets.sh").read_text()
    for name in names:
        assert name in script, f"{name} is not made by scripts/vendor-assets.sh"
    for library in ("htmx", "uplot"):
        assert f"{library}.LICENSE" in names
    subprocess.run(["sh", "-n", "scripts/vendor-assets.sh"], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_another_sites_form_changes_nothing(headers: dict[str, str], seeded: Served) -> None:
    answer = httpx.post(f"{seeded.url}/rollouts/6/pause", headers={**HTML, **headers}, data={"reason": "x"})
    assert answer.status_code == 403
    with seeded.hub.db.read() as session:
        line = rollouts.one(session, 6)
    assert line is not None
    assert line.row.state == "running"


def test_a_page_without_script_still_acts(acting: Served) -> None:
    answer = httpx.post(f"{acting.url}/rollouts", headers=HTML, data={"version": "digits:4", "target": "site=nowhere"})
    assert answer.status_code == 422
    assert "no device has these tags" in answer.text
    plan = {"version": "vibration:2", "target": "id=cam-harbour-19", "waves": "100 %", "soak_s": "0"}
    answer = httpx.post(f"{acting.url}/rollouts", headers=HTML, data=plan)
    assert answer.status_code == 303
    address = answer.headers["location"]
    assert httpx.post(f"{acting.url}{address}/pause", headers=HTML, data={}).headers["location"] == address
    assert "Paused" in httpx.get(f"{acting.url}{address}", headers=HTML).text


def test_a_refresh_brings_main_alone(seeded: Served) -> None:
    answer = httpx.get(seeded.url + "/models", headers={**HTML, "HX-Request": "true"})
    assert answer.text.lstrip().startswith("<title>Models · Skerry</title>")
    assert "<html" not in answer.text
    assert answer.text.count("<main") == 1
    assert "HX-Request" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/models/digits/versions/999", "/rollouts/999", "/devices/x", "/models/none", "/x/y"])
def test_what_is_not_there_is_a_page_that_says_so(path: str, seeded: Served) -> None:
    answer = httpx.get(seeded.url + path, headers=HTML)
    assert answer.status_code == 404
    assert "cannot find" in answer.text or "There is no page" in answer.text


@pytest.mark.parametrize(
    "query", ["page=0", "page=99999", "page=x", "state=<script>", "query=%3D", "presence=1&profile=2"]
)
def test_odd_parameters_still_give_a_page(query: str, seeded: Served) -> None:
    answer = httpx.get(f"{seeded.url}/devices?{query}", headers=HTML)
    assert answer.status_code == 200
    assert "<script>" not in answer.text.replace('<script src="', "")


def test_a_name_is_never_markup(seeded: Served) -> None:
    answer = httpx.get(seeded.url + "/audit?subject=%3Cimg%20src%3Dx%3E", headers=HTML)
    assert "<img" not in answer.text


def test_the_commands_that_empty_pages_name_exist() -> None:
    from typer.main import get_command

    from skerry.cli.app import app

    found = 0
    for template in (Path(templating.__file__).parent / "templates").glob("*.html"):
        for command in re.findall(r'"(skerry [^"]+)"', template.read_text()):
            words = [word for word in shlex.split(command)[1:] if word]
            group = get_command(app)
            while words and words[0] in getattr(group, "commands", {}):
                group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
            assert not getattr(group, "commands", None), command
            options = {option for parameter in group.params for option in parameter.opts}
            assert {word for word in words if word.startswith("-")} <= options, command
            found += 1
    assert found >= 5


# -- the queries, on both databases ----------------------------------------------------------------------------------


@pytest.fixture
def database(database_url: str) -> Database:
    database = Database(database_url)
    seed.seed(database.engine, time.time_ns() // 1_000_000, minutes=2)
    return database


def test_every_query_says_the_same_on_both_databases(database: Database) -> None:
    now = time.time_ns() // 1_000_000
    with database.read() as session:
        counts = fleet.counts(session)
        assert (counts.total, counts.offline) == (60, 4)
        assert sum(counts.states.values()) == 60
        everything = fleet.devices(session, fleet.DeviceFilter(), 1)
        assert (everything.total, everything.pages, len(everything.rows)) == (60, 2, 50)
        assert everything.rows[0].state == "Failed"
        for state in fleet.STATES:
            only = fleet.devices(session, fleet.DeviceFilter(state=state))
            assert only.total == counts.states.get(state, 0)
            assert all(line.state == state for line in only.rows)
        lab = fleet.devices(session, fleet.DeviceFilter(tags=parse("site=lab,kind=cam"), text="cam", presence="online"))
        assert lab.rows
        assert all(("site", "lab") in line.tags and line.online for line in lab.rows)
        assert [line.row.name for line in models.models(session)] == ["digits", "digits-fpga", "vibration"]
        version = models.version(session, "digits", 3)
        assert version is not None
        assert version.presence.current + version.presence.last_good == 53
        assert (len(version.devices.rows), version.devices.total) == (models.DEVICE_ROWS, 53)
        last = models.version(session, "digits", 3, devices_page=9)
        assert last is not None
        assert len(last.devices.rows) == 53 - 2 * models.DEVICE_ROWS
        assert rollouts.rollouts(session).rows[0].active
        assert [line.row.id for line in rollouts.latest(session, limit=3)] == [6, 5, 4]
        assert [line.row.id for line in rollouts.latest(session, limit=0)] == [6, 5]
        assert fleet.troubles(session)[0].reason.startswith("install.")
        running = rollouts.one(session, 6)
        assert running is not None
        in_waves = sum(wave.total for wave in rollouts.waves(session, running))
        assert in_waves == running.total - running.steps["unschedulable"]
        assert sum(line.count for line in rollouts.reasons(session, 6)) == 3
        assert rollouts.devices(session, running).rows[0].row.step == "assigned"
        for line in rollouts.rollouts(session).rows:
            for name in rollouts.ORDER:
                shown = rollouts.devices(session, line, names=[name])
                assert shown.total == line.steps.get(name, 0)
                assert {one.shown for one in shown.rows} <= {name}
        assert rollouts.timeline(session, 6)[-1].action == "rollout.create"
        assert log.events(session, severity="critical").rows
        assert log.audit(session, subject="rollout:6").total >= 4
        assert sum(group.count for group in log.sample_groups(session)) == 140
        assert log.sample_files(session)
        name = "press-lab-12"
        assert device_queries.device(session, name) is not None
        assert device_queries.health(session, name, now, 3_600_000).cpu
        assert not device_queries.telemetry(session, name, now, 3_600_000).empty
        assert not Pulse().points(session, now + 60_000).empty
    database.close()


def test_a_rollouts_waves_are_those_that_have_a_device(tmp_path: Path) -> None:
    """A plan of three waves over a few devices may need two: "wave 1 of 3" would promise one that never comes."""
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    seed.seed(database.engine, time.time_ns() // 1_000_000, minutes=2)
    with database.session() as session:
        (line, *_) = rollouts.latest(session)
        assert (line.waves, len(line.plan.waves)) == (3, 3)
        session.connection().execute(
            delete(RolloutDevice).where(col(RolloutDevice.rollout) == line.row.id, col(RolloutDevice.wave) == 2)
        )
        assert rollouts.latest(session)[0].waves == 2
        found = rollouts.one(session, line.row.id or 0)
        assert found is not None
        assert found.waves == 2
    database.close()


def test_the_pulse_follows_the_table_and_survives_its_emptying(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    now = time.time_ns() // 1_000_000
    seed.seed(database.engine, now, devices=8, minutes=3)
    pulse = Pulse()
    with database.read() as session:
        first = pulse.points(session, now)
        assert pulse.points(session, now).rate == first.rate, "a row is counted once"
    SQLModel.metadata.drop_all(database.engine)
    SQLModel.metadata.create_all(database.engine)
    with database.read() as session:
        pulse.points(session, now)
    database.close()
