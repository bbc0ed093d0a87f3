"""Settings into parts: the small constructions that :mod:`skerry_agent.app` strings together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_agent.disk import MB, Disk
from skerry_agent.jobs.command import PartScorer
from skerry_agent.jobs.courier import Courier
from skerry_agent.jobs.folders import Folders
from skerry_agent.mqtt import LinkEvent, LinkSettings, Message, MqttLink
from skerry_agent.ports import Source
from skerry_agent.rules.brain import Brain
from skerry_agent.settings import Settings, SourceSettings, parse_address
from skerry_agent.shelf import DiskShelf
from skerry_agent.sources import Feeder, Opened
from skerry_modules import messages, topics, trust
from skerry_modules.errors import InputError
from skerry_modules.messages import Presence
from skerry_modules.profiles import Profile

if TYPE_CHECKING:
    from skerry_agent.app import App
    from skerry_agent.serving.plane import Plane


def make_brain(settings: Settings, profile: Profile) -> Brain:
    """Raises ``InputError`` (``settings.invalid``) for a key that is none."""
    publishers = _keys(settings.hub.publishers, "hub.publishers")
    hub_keys = _keys((settings.hub.key,) if settings.hub.key else (), "hub.key")
    return Brain(settings.device.id, profile, publishers, hub_keys, settings.rules)


def _keys(texts: tuple[str, ...], field: str) -> dict[str, trust.PublicKey]:
    try:
        return {key.keyid: key for key in map(trust.parse_public, texts)}
    except InputError as error:
        raise InputError(
            "settings.invalid", f"cannot use the settings, field {field}: {error.message}", field=field
        ) from error


def make_shelf(app: App) -> DiskShelf:
    """What clients may have loaded."""
    publishers = _keys(app.settings.hub.publishers, "hub.publishers")
    return DiskShelf(app.disk, app.disk_thread, lambda: app.brain.slots, publishers, app.profile.limits)


def link_settings(settings: Settings, boot: str) -> LinkSettings | None:
    """None where no hub is configured."""
    hub, device = settings.hub, settings.device.id
    if not hub.broker:
        return None
    return LinkSettings(
        broker=hub.broker,
        client_id=device,
        username=hub.username or (device if hub.password else ""),
        password=hub.password,
        protocol=hub.protocol,
        ca=hub.ca,
        certificate=hub.certificate,
        certificate_key=hub.certificate_key,
        keepalive_s=hub.keepalive_s,
        connect_timeout_s=hub.connect_timeout_s,
        retry_min_s=hub.retry_min_s,
        retry_max_s=hub.retry_max_s,
        stall_s=hub.stall_s,
        will=(topics.presence(device), messages.encode(Presence(online=False, boot=boot))),
    )


def addresses(plane: Plane, settings: Settings) -> str:
    """Where clients score, for people."""
    found = []
    if settings.serving.http:
        host, _ = parse_address(settings.serving.http)
        found.append(f"http://{f'[{host}]' if ':' in host else host}:{plane.port}")
    if settings.serving.socket:
        found.append(f"unix:{settings.serving.socket}")
    return ", ".join(found) or "nowhere"


def make_part_scorer(app: App) -> PartScorer:
    """Who scores parts of the hub's batch jobs. Their inputs stand apart from modules' objects."""
    settings = app.settings
    spare_mb = settings.rules.spare_disk_mb
    disk = Disk(settings.folder / "batch", reserve_mb=spare_mb, sync_chunks=settings.state.sync_chunks)
    urgent = ("alarm", "state", "result")
    courier = Courier(
        settings.device.id,
        app.hub,
        disk,
        app.in_disk_thread,
        lambda: any(app.outbox.facts["streams"][name] for name in urgent),
        backlog=settings.hub.backlog_mb * MB,
    )
    return PartScorer(
        [settings.folder / "inputs", *(Path(one).expanduser() for one in settings.batch.inputs)],
        settings.batch,
        Folders(disk, budget_mb=settings.batch.budget_mb, spare_mb=spare_mb),
        courier,
        address=lambda: addresses(app.plane, settings).split(", ", maxsplit=1)[0],
        connected=lambda: app.hub.connected,
        on_disk=app.in_disk_thread,
    )


# -- sources -----------------------------------------------------------------------------------------------------------


def make_feeders(app: App) -> list[Feeder]:
    """One feeder per configured source."""
    return [_feeder(app, one, number) for number, one in enumerate(app.settings.sources)]


def _feeder(app: App, one: SourceSettings, number: int) -> Feeder:
    return Feeder(
        one.label,
        one.target,
        lambda: _source(app, one, number),
        app.plane,
        specs_of=app.telemeter.specs_of,
        events=app.events,
    )


def _source(app: App, one: SourceSettings, number: int) -> Opened:
    """The source, and where its results go. Raises ``InputError`` where it cannot be opened."""
    limit = one.max_file_mb
    if one.kind == "replay":
        from skerry_agent.sources.replay import Replay

        replay = Replay(Path(one.path), rate=one.rate, batch=one.batch, loop=one.loop, max_mb=limit)
        return replay, _results(one, None)
    if one.kind == "folder":
        from skerry_agent.sources.folder import Folder

        folder = Folder(Path(one.path), every_s=one.every_s, keep_files=one.keep_files, max_mb=limit)
        return folder, _results(one, None)
    topic, publish = _topic(app, one, number)
    return topic, _results(one, publish)


def _topic(app: App, one: SourceSettings, number: int) -> tuple[Source, Callable[[str, bytes], None]]:
    from skerry_agent.sources.topic import Topic

    link: MqttLink | None = app.link
    own = bool(one.broker)
    if own:
        settings = LinkSettings(
            broker=one.broker,
            client_id=f"{app.settings.device.id}-source-{number}",
            username=one.username,
            password=one.password,
        )
        link = MqttLink(settings, lambda event: app.call(lambda: heard(event)))
    if link is None:
        raise InputError(
            "settings.invalid",
            f"cannot use the source {one.label}, field sources[{number}].broker: no hub is configured, so it needs "
            "a broker of its own",
        )
    chosen = link
    source = Topic(
        input_name=one.input,
        datatype=one.datatype,
        shape=one.shape,
        max_mb=one.max_file_mb,
        on_close=lambda: chosen.stop() if own else chosen.unsubscribe(one.topic),
    )

    def heard(event: LinkEvent) -> None:
        if isinstance(event, Message):
            source.take(event.topic, event.payload)

    chosen.subscribe(one.topic)
    if own:
        chosen.start()
    else:
        app.hub.others[one.topic] = source.take
    return source, chosen.publish


def _results(one: SourceSettings, publish: Any) -> Any:
    from skerry_agent.sources.results import ResultsFile, both, to_topic

    takers: list[Any] = []
    if one.results_file:
        takers.append(ResultsFile(Path(one.results_file), one.results_mb))
    if one.results_topic and publish:
        takers.append(to_topic(publish, one.results_topic))
    return both(takers)
