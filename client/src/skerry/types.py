"""What the hub answers, as typed structs. Times are milliseconds since 1970, sizes bytes; unknown fields are ignored,
so that a newer hub can say more."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skerry_modules.environments import Lock
from skerry_modules.measurement import ModuleProfile


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    pass


class StoredProfile(_Answer, frozen=True, kw_only=True):
    """What a version was measured to need on one machine. ``device`` empty: a machine that is no device."""

    name: str
    version: int
    device: str
    profile: str
    simulated: bool
    memory_mb: int
    measured_by: str
    at: int
    body: ModuleProfile


class Command(_Answer, frozen=True, kw_only=True):
    """Something a device was told to do. ``state``: sent, running, done or failed; times in ms."""

    id: str
    device: str
    name: str
    state: str
    module: str = ""
    version: int = 0
    progress: float = 0.0
    code: str = ""
    message: str = ""
    data: dict[str, Any] = {}
    created_by: str = ""
    reason: str = ""
    created_at: int = 0
    deadline_at: int = 0
    updated_at: int = 0
    ended_at: int = 0

    @property
    def ended(self) -> bool:
        return self.ended_at > 0


class MissingObject(_Answer, frozen=True, kw_only=True):
    """An object that devices asked for and that the hub's store does not have; ``part_of``: files of some versions."""

    digest: str
    part_of: tuple[str, ...] = ()
    at: int = 0


class Status(_Answer, frozen=True, kw_only=True):
    """How the hub is. ``missing``: parts that its installation lacks."""

    version: str
    hub_key: str
    database: str
    broker: str
    broker_connected: bool
    devices: int
    devices_online: int
    models: int
    rollouts_active: int
    missing: tuple[str, ...] = ()
    objects_missing: tuple[MissingObject, ...] = ()


class File(_Answer, frozen=True, kw_only=True):
    path: str
    sha256: str
    size: int


class Version(_Answer, frozen=True, kw_only=True):
    """One model version: who registered it, why, and from which commit."""

    name: str
    version: int
    digest: str
    size: int
    engine: str
    tags: dict[str, str] = {}
    signer: str = ""
    git_commit: str = ""
    git_branch: str = ""
    git_remote: str = ""
    git_dirty: bool = False
    created_by: str = ""
    reason: str = ""
    created_at: int = 0


class EnvironmentVersion(_Answer, frozen=True, kw_only=True):
    """One lock of an environment. ``digest`` is what devices know it by; ``modules`` use it."""

    name: str
    version: int
    digest: str
    requirements: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    size: int = 0
    modules: tuple[str, ...] = ()
    created_by: str = ""
    created_at: int = 0


class EnvironmentDetail(EnvironmentVersion, frozen=True, kw_only=True):
    """With the lock itself."""

    lock: Lock


class Environment(_Answer, frozen=True, kw_only=True):
    """An environment by name; its versions are newest first."""

    name: str
    last_version: int
    created_at: int = 0
    versions: tuple[EnvironmentVersion, ...] = ()


class VersionDetail(Version, frozen=True, kw_only=True):
    """``holders``: who needs it, by why; empty means that it can be deleted."""

    manifest: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    files: tuple[File, ...] = ()
    environment: str = ""
    holders: dict[str, tuple[str, ...]] = {}


class Model(_Answer, frozen=True, kw_only=True):
    name: str
    description: str = ""
    last_version: int = 0
    created_at: int = 0
    latest: Version | None = None


class ModuleReport(_Answer, frozen=True, kw_only=True):
    """What a device reported of one module version."""

    module: str
    version: int
    digest: str
    phase: str
    step: str = ""
    role: str = ""
    reason: str = ""
    message: str = ""
    since: int = 0
    revision: int = 0
    progress: float = 0.0
    reported_at: int = 0


class Wanted(_Answer, frozen=True, kw_only=True):
    """What the hub wants a device to run."""

    module: str
    version: int
    soak_s: float = 0.0
    rollout: int | None = None
    at: int = 0


class Wishes(_Answer, frozen=True, kw_only=True):
    """All that the hub wants a device to run, as of a revision."""

    revision: int
    wanted: tuple[Wanted, ...] = ()


class Device(_Answer, frozen=True, kw_only=True):
    id: str
    profile: str
    description: str = ""
    tags: dict[str, str] = {}
    online: bool = False
    agent: str = ""
    boot: str = ""
    desired_revision: int = 0
    reported_revision: int = 0
    seen_at: int = 0
    created_at: int = 0
    facts: dict[str, Any] = {}
    modules: tuple[ModuleReport, ...] = ()


class NewDevice(_Answer, frozen=True, kw_only=True):
    """``config`` is the agent's configuration (TOML) with its password: the hub shows it this once."""

    device: Device
    config: str


class Modules(_Answer, frozen=True, kw_only=True):
    wanted: tuple[Wanted, ...] = ()
    reported: tuple[ModuleReport, ...] = ()


class Event(_Answer, frozen=True, kw_only=True):
    id: int
    device: str
    at: int
    received_at: int
    severity: str
    code: str
    message: str
    module: str = ""
    version: int = 0
    data: dict[str, Any] = {}


class AuditEntry(_Answer, frozen=True, kw_only=True):
    id: int
    at: int
    actor: str
    action: str
    subject: str
    reason: str = ""
    data: dict[str, Any] = {}


class HealthReport(_Answer, frozen=True, kw_only=True):
    id: int
    at: int
    health: dict[str, Any]


class TelemetryReport(_Answer, frozen=True, kw_only=True):
    id: int
    module: str
    version: int
    endpoint: str
    start_ms: int
    end_ms: int
    requests: int
    errors: int
    rejected: int
    p50_us: float
    p99_us: float


class Sample(_Answer, frozen=True, kw_only=True):
    id: str
    device: str
    module: str
    version: int
    digest: str
    at: int
    received_at: int
    reason: str
    probability: float
    file: str = ""


class SampleFile(_Answer, frozen=True, kw_only=True):
    key: str
    size: int


class Key(_Answer, frozen=True, kw_only=True):
    keyid: str
    text: str
    added_by: str = ""
    added_at: int = 0


TERMINAL: Final = ("succeeded", "rolled-back", "failed", "aborted")
"""States in which a rollout changes no more."""


class RolloutDevice(_Answer, frozen=True, kw_only=True):
    device: str
    wave: int
    step: str
    previous: int | None = None
    reason: str = ""
    message: str = ""
    assigned_at: int = 0
    finished_at: int = 0


class Rollout(_Answer, frozen=True, kw_only=True):
    id: int
    module: str
    version: int
    target: str
    state: str
    wave: int = 0
    message: str = ""
    plan: dict[str, Any] = {}
    created_by: str = ""
    reason: str = ""
    created_at: int = 0
    finished_at: int = 0
    waves: int = 1
    counts: dict[str, int] = {}

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


class RolloutDetail(Rollout, frozen=True, kw_only=True):
    devices: tuple[RolloutDevice, ...] = ()


class BatchShare(_Answer, frozen=True, kw_only=True):
    """What one device did and does of a batch job; ``hub``: the hub itself."""

    device: str
    online: bool = False
    serves: bool = False
    parts: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    scored: int = 0
    errors: int = 0
    progress: float = 0.0
    code: str = ""
    message: str = ""
    at: int = 0


class Batch(_Answer, frozen=True, kw_only=True):
    """A batch job. ``units`` are rows or files (``unit``) of the whole input; 0: not known yet."""

    id: int
    module: str
    version: int
    endpoint: str = ""
    target: str = ""
    source: str = ""
    input: str = ""
    columns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    rows: int = 0
    part_rows: int = 0
    state: str = ""
    progress: float = 0.0
    unit: str = ""
    units: int = 0
    scored: int = 0
    errors: int = 0
    parts: dict[str, int] = {}
    code: str = ""
    message: str = ""
    result_size: int = 0
    errors_size: int = 0
    created_by: str = ""
    reason: str = ""
    created_at: int = 0
    started_at: int = 0
    updated_at: int = 0
    ended_at: int = 0

    @property
    def ended(self) -> bool:
        return self.ended_at > 0


class BatchDetail(Batch, frozen=True, kw_only=True):
    shares: tuple[BatchShare, ...] = ()


class BatchPart(_Answer, frozen=True, kw_only=True):
    """One part of a batch job: what one device scores at once."""

    number: int
    state: str
    device: str = ""
    given: tuple[str, ...] = ()
    attempts: int = 0
    failures: int = 0
    first: int = 0
    units: int = 0
    progress: float = 0.0
    scored: int = 0
    errors: int = 0
    code: str = ""
    message: str = ""
    given_at: int = 0
    ended_at: int = 0


class EndpointRoute(_Answer, frozen=True, kw_only=True):
    """A version behind an endpoint; ``ready``: devices that have it loaded and well."""

    module: str
    version: int
    percent: float = 100.0
    ready: int = 0


class Agreement(_Answer, frozen=True, kw_only=True):
    """How a shadow compares with the live answers, in rows; ``dropped`` and ``failed`` in requests."""

    rows: int = 0
    agreed: int = 0
    within: int = 0
    worst: float = 0.0
    dropped: int = 0
    failed: int = 0


class EndpointTraffic(_Answer, frozen=True, kw_only=True):
    """What one version did for an endpoint; ``role`` is live or shadow, ``rate`` requests per second."""

    module: str
    version: int
    role: str
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    rate: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    agreement: Agreement | None = None


class EndpointMember(_Answer, frozen=True, kw_only=True):
    """A device that an endpoint's query matches; ``reason`` is a code where it cannot have it."""

    device: str
    reason: str = ""
    message: str = ""


class EndpointState(_Answer, frozen=True, kw_only=True):
    """An endpoint. ``traffic`` and the first ``members`` are there where one was asked for, not in lists."""

    name: str
    target: str
    split: tuple[EndpointRoute, ...] = ()
    shadow: tuple[EndpointRoute, ...] = ()
    before: tuple[EndpointRoute, ...] = ()
    devices: int = 0
    unschedulable: int = 0
    revision: int = 0
    changed_by: str = ""
    reason: str = ""
    created_at: int = 0
    changed_at: int = 0
    members: tuple[EndpointMember, ...] = ()
    traffic: tuple[EndpointTraffic, ...] = ()


class Candidate(_Answer, frozen=True, kw_only=True):
    """A device that a target matches; ``wave`` is −1 where it cannot run the version, ``obstacles`` say why."""

    device: str
    online: bool
    wave: int
    previous: int | None = None
    obstacles: tuple[dict[str, str], ...] = ()


class Preview(_Answer, frozen=True, kw_only=True):
    """What a rollout would do now. ``waves`` has the number of devices of each."""

    module: str
    version: int
    target: str
    waves: tuple[int, ...]
    unschedulable: int
    candidates: tuple[Candidate, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a rollout goes; what is left out is the hub's default.

    ``waves``: numbers of devices (``"1"``, ``"10"``) or shares (``"25%"``), each with all before included; the last one
    is everything, and is added where it is left out.
    """

    waves: tuple[str, ...] = ()
    soak_s: float | None = None
    wave_pause_s: float | None = None
    failure_threshold: float | None = None
    device_timeout_s: float | None = None
    offline_timeout_s: float | None = None
    on_failure: str | None = None
