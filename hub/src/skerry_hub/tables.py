"""Every table of the hub. Alembic migrations under ``migrations/`` are held to this file by a test.

Conventions: times are UTC milliseconds since 1970 as integers (one type on every database, no time zones to lose);
JSON is text written by msgspec; ids of things that people name are the names themselves. Rows on the ingest path
(telemetry, health, event, sample) are written by raw batched statements, never by the ORM.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary
from sqlmodel import Field, SQLModel

# SQLite makes a row id of its own only for INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")


class Model(SQLModel, table=True):
    """A model by name; ``last_version`` is what numbering continues from, even after a deletion."""

    name: str = Field(primary_key=True)
    description: str = ""
    last_version: int = 0
    created_at: int = Field(sa_type=BigInteger)


class ModelVersion(SQLModel, table=True):
    """One registered module. ``digest`` is the SHA-256 of the index; the index and files are in the object store."""

    __tablename__ = "model_version"
    name: str = Field(primary_key=True, foreign_key="model.name")
    version: int = Field(primary_key=True)
    digest: str = Field(index=True)
    index_size: int
    size: int = Field(sa_type=BigInteger)
    engine: str
    manifest: str  # JSON
    facts: str  # JSON of compatibility.ModelFacts
    signatures: str  # JSON
    signer: str = ""  # key id that verified at registration
    git_commit: str = ""
    git_branch: str = ""
    git_remote: str = ""
    git_dirty: bool = False
    created_by: str
    reason: str = ""
    created_at: int = Field(sa_type=BigInteger)


class VersionFile(SQLModel, table=True):
    """A file of a version."""

    __tablename__ = "version_file"
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    path: str = Field(primary_key=True)
    sha256: str = Field(index=True)
    size: int = Field(sa_type=BigInteger)


class VersionTag(SQLModel, table=True):
    __tablename__ = "version_tag"
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    key: str = Field(primary_key=True)
    value: str = ""
    __table_args__ = (Index("version_tag_by_value", "key", "value"),)


class Environment(SQLModel, table=True):
    """An environment of python modules by name; ``last_version`` is what numbering continues from."""

    name: str = Field(primary_key=True)
    last_version: int = 0
    created_at: int = Field(sa_type=BigInteger)


class EnvironmentVersion(SQLModel, table=True):
    """One lock. ``digest`` is its SHA-256 (``skerry_modules.environments.key_of``); its wheels are in the store."""

    __tablename__ = "environment_version"
    name: str = Field(primary_key=True, foreign_key="environment.name")
    version: int = Field(primary_key=True)
    digest: str = Field(index=True)
    lock: str  # JSON
    size: int = Field(sa_type=BigInteger)
    created_by: str
    created_at: int = Field(sa_type=BigInteger)


class EnvironmentUse(SQLModel, table=True):
    """Which environment a module version has."""

    __tablename__ = "environment_use"
    module: str = Field(primary_key=True)
    module_version: int = Field(primary_key=True)
    environment: str
    environment_version: int
    __table_args__ = (Index("environment_use_by_environment", "environment", "environment_version"),)


class Device(SQLModel, table=True):
    """A device. ``secret`` is the broker password's PBKDF2 hash, never the password."""

    id: str = Field(primary_key=True)
    profile: str
    secret: str = ""
    description: str = ""
    online: bool = False
    boot: str = ""
    epoch: str = ""
    agent: str = ""
    facts: str = "{}"  # JSON of compatibility.DeviceFacts, as last said in hello
    desired_revision: int = 0
    reported_revision: int = 0
    seen_at: int = Field(default=0, sa_type=BigInteger)
    presence_at: int = Field(default=0, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)


class DeviceTag(SQLModel, table=True):
    __tablename__ = "device_tag"
    device: str = Field(primary_key=True, foreign_key="device.id")
    key: str = Field(primary_key=True)
    value: str = ""
    __table_args__ = (Index("device_tag_by_value", "key", "value"),)


class Assignment(SQLModel, table=True):
    """What the hub wants a device to run of one module: the source of its desired document."""

    device: str = Field(primary_key=True, foreign_key="device.id")
    module: str = Field(primary_key=True)
    version: int
    soak_s: float = 0.0
    attempt: int = 0
    rollout: int | None = None
    at: int = Field(sa_type=BigInteger)


class Endpoint(SQLModel, table=True):
    """A name that clients call on devices; ``split``, ``shadow``, ``before``: JSON lists of ``messages.Route``."""

    name: str = Field(primary_key=True)
    target: str
    split: str
    shadow: str = "[]"
    before: str = "[]"  # the split before the last change: kept loaded for the way back
    revision: int = 0
    changed_by: str = ""
    reason: str = ""
    created_at: int = Field(sa_type=BigInteger)
    changed_at: int = Field(sa_type=BigInteger)  # also the attempt of its versions on devices


class EndpointDevice(SQLModel, table=True):
    """A device that an endpoint's query matches; ``reason`` is a code where it cannot have the endpoint."""

    __tablename__ = "endpoint_device"
    endpoint: str = Field(primary_key=True)
    device: str = Field(primary_key=True)
    reason: str = ""
    message: str = ""
    __table_args__ = (Index("endpoint_device_by_device", "device"),)


class DocumentDue(SQLModel, table=True):
    """A device whose wishes changed with those of many others: its document is still to be written."""

    __tablename__ = "document_due"
    device: str = Field(primary_key=True)


class DesiredDocument(SQLModel, table=True):
    """The signed document as it was last published, retained here so that any broker may lose it."""

    __tablename__ = "desired_document"
    device: str = Field(primary_key=True, foreign_key="device.id")
    revision: int
    payload: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    at: int = Field(sa_type=BigInteger)


class DeviceModule(SQLModel, table=True):
    """What a device reported of one module version (``messages.ModuleState``)."""

    __tablename__ = "device_module"
    device: str = Field(primary_key=True)
    module: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    digest: str
    phase: str
    step: str = ""
    role: str = ""
    reason: str = ""
    message: str = ""
    since: int = Field(default=0, sa_type=BigInteger)
    revision: int = 0
    progress: float = 0.0
    reported_at: int = Field(sa_type=BigInteger)


class Rollout(SQLModel, table=True):
    """A rollout; ``plan`` is JSON of ``rules.rollout.Plan``, ``state`` one of ``rules.rollout.RolloutState``."""

    id: int | None = Field(default=None, primary_key=True)
    module: str = Field(index=True)
    version: int
    target: str
    plan: str
    state: str = Field(index=True)
    wave: int = 0
    wave_started_at: int = Field(default=0, sa_type=BigInteger)
    ending: str = ""  # while rolling back: the state that it ends in
    message: str = ""
    created_by: str
    reason: str = ""
    created_at: int = Field(sa_type=BigInteger)
    finished_at: int = Field(default=0, sa_type=BigInteger)


class RolloutDevice(SQLModel, table=True):
    """One device's way through a rollout; ``step`` is one of ``rules.rollout.DeviceStep``."""

    __tablename__ = "rollout_device"
    rollout: int = Field(primary_key=True, foreign_key="rollout.id")
    device: str = Field(primary_key=True)
    wave: int
    step: str
    previous: int | None = None  # the version to go back to; None: remove the module
    revision: int = 0  # the desired revision that carries the assignment
    reason: str = ""
    message: str = ""
    assigned_at: int = Field(default=0, sa_type=BigInteger)
    finished_at: int = Field(default=0, sa_type=BigInteger)
    __table_args__ = (Index("rollout_device_by_device", "device"),)


class TelemetryRow(SQLModel, table=True):
    """One window of one module version on one device; distributions stay msgpack (``messages.Telemetry``)."""

    __tablename__ = "telemetry"
    id: int | None = Field(default=None, primary_key=True, sa_type=RowId)
    device: str
    module: str
    version: int
    endpoint: str
    start_ms: int = Field(sa_type=BigInteger)
    end_ms: int = Field(sa_type=BigInteger)
    requests: int
    errors: int
    rejected: int
    p50_us: float
    p99_us: float
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    role: str = Field(default="live", sa_column_kwargs={"server_default": "live"})  # live or shadow
    __table_args__ = (
        Index("telemetry_by_device", "device", "end_ms"),
        Index("telemetry_by_endpoint", "endpoint", "end_ms"),
    )


class HealthRow(SQLModel, table=True):
    __tablename__ = "health"
    id: int | None = Field(default=None, primary_key=True, sa_type=RowId)
    device: str
    at: int = Field(sa_type=BigInteger)
    cpu_percent: float
    memory_used: int = Field(sa_type=BigInteger)
    memory_total: int = Field(sa_type=BigInteger)
    disk_used: int = Field(sa_type=BigInteger)
    disk_total: int = Field(sa_type=BigInteger)
    temperature_c: float
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    __table_args__ = (Index("health_by_device", "device", "at"),)


class EventRow(SQLModel, table=True):
    __tablename__ = "event"
    id: int | None = Field(default=None, primary_key=True, sa_type=RowId)
    device: str
    at: int = Field(sa_type=BigInteger)
    received_at: int = Field(sa_type=BigInteger)
    severity: str
    code: str
    message: str
    module: str = ""
    version: int = 0
    data: str = "{}"
    __table_args__ = (Index("event_by_device", "device", "at"), Index("event_by_time", "received_at"))


class SampleRow(SQLModel, table=True):
    """A captured row: first with its ``body``, then, once compacted, with the Parquet file that holds it."""

    __tablename__ = "sample"
    id: str = Field(primary_key=True)
    device: str
    module: str = Field(index=True)
    version: int
    digest: str
    at: int = Field(sa_type=BigInteger)
    received_at: int = Field(sa_type=BigInteger)
    reason: str
    probability: float
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    file: str = ""  # key in the object store


class StreamMark(SQLModel, table=True):
    """The highest committed number of one stream of one spool: see ``skerry_modules.messages``."""

    __tablename__ = "stream_mark"
    device: str = Field(primary_key=True)
    epoch: str = Field(primary_key=True)
    stream: int = Field(primary_key=True)
    mark: int = Field(sa_type=BigInteger)
    lost: int = Field(default=0, sa_type=BigInteger)  # dropped by the device's spool, as its base told
    at: int = Field(sa_type=BigInteger)


class Audit(SQLModel, table=True):
    """Who did what, when and why. Rows are only ever added."""

    id: int | None = Field(default=None, primary_key=True, sa_type=RowId)
    at: int = Field(sa_type=BigInteger)
    actor: str
    action: str
    subject: str
    reason: str = ""
    data: str = "{}"
    __table_args__ = (Index("audit_by_time", "at"), Index("audit_by_subject", "subject"))


class CommandRow(SQLModel, table=True):
    """Something a device was told to do once, and how it ended; ``state`` is one of ``commands.CommandState``."""

    __tablename__ = "command"
    id: str = Field(primary_key=True)
    device: str
    name: str
    module: str = ""
    version: int = 0
    arguments: str = "{}"  # JSON
    state: str
    progress: float = 0.0
    code: str = ""
    message: str = ""
    data: str = "{}"  # JSON of the result's data, where it has no table of its own
    created_by: str
    reason: str = ""
    created_at: int = Field(sa_type=BigInteger)
    deadline_at: int = Field(sa_type=BigInteger)  # when the hub ends it if the device has not
    updated_at: int = Field(default=0, sa_type=BigInteger)
    ended_at: int = Field(default=0, sa_type=BigInteger)
    __table_args__ = (
        Index("command_by_device", "device", "created_at"),
        Index("command_by_version", "module", "version", "created_at"),
        Index("command_by_end", "ended_at", "deadline_at"),
    )


class ModuleProfileRow(SQLModel, table=True):
    """The newest profile of a version from one device, or from a machine that is none (``device`` empty)."""

    __tablename__ = "module_profile"
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    device: str = Field(primary_key=True)
    profile: str = Field(primary_key=True)  # the firmware profile; empty: unknown
    simulated: bool
    memory_mb: int
    body: str  # JSON of skerry_modules.measurement.ModuleProfile
    measured_by: str
    at: int = Field(sa_type=BigInteger)


class BatchRow(SQLModel, table=True):
    """A batch job; ``state`` is one of ``rules.batch.JobState``, JSON texts are lists."""

    __tablename__ = "batch"
    id: int | None = Field(default=None, primary_key=True)
    module: str = Field(index=True)
    version: int
    endpoint: str = ""  # by which the module was named; empty: by its own name
    target: str  # ``hub``, or a tag query
    source: str  # ``upload`` or ``device``
    input: str  # its name for people: the file's, or the path on the devices
    upload: str = ""  # object: the list of uploaded files; empty once the parts are made
    columns: str = "[]"
    keep: str = "[]"
    devices: str = "[]"
    rows: int  # of one request at most
    part_rows: int
    unit: str = ""  # ``rows`` or ``files``; empty: not known yet
    units: int = Field(default=0, sa_type=BigInteger)
    state: str = Field(index=True)
    progress: float = 0.0
    scored: int = Field(default=0, sa_type=BigInteger)  # rows
    errors: int = Field(default=0, sa_type=BigInteger)  # rows
    code: str = ""
    message: str = ""
    result: str = ""  # key in the object store; empty: not merged
    result_size: int = Field(default=0, sa_type=BigInteger)
    errors_file: str = ""  # key; empty: no row errors
    errors_size: int = Field(default=0, sa_type=BigInteger)
    created_by: str
    reason: str = ""
    created_at: int = Field(sa_type=BigInteger)
    started_at: int = Field(default=0, sa_type=BigInteger)
    updated_at: int = Field(default=0, sa_type=BigInteger)
    ended_at: int = Field(default=0, sa_type=BigInteger)
    __table_args__ = (Index("batch_by_end", "ended_at"),)


class BatchPart(SQLModel, table=True):
    """One part of a batch job: what one device scores at once; ``state`` is one of ``rules.batch.PartState``."""

    __tablename__ = "batch_part"
    batch: int = Field(primary_key=True, foreign_key="batch.id")
    number: int = Field(primary_key=True)
    state: str
    device: str = ""  # who has it, or had it last; ``hub``: the hub itself
    only: str = ""  # the one device that can score it; empty: any of the target
    given: str = "[]"  # devices that it was ever given to: their results are taken
    refused: str = "[]"  # devices that it failed on
    attempts: int = 0
    failures: int = 0
    command: str = ""  # id of the command that it was given by
    input: str = ""  # object
    input_size: int = Field(default=0, sa_type=BigInteger)
    kept: str = ""  # object: Parquet of the columns that go beside the scores
    first: int = Field(default=0, sa_type=BigInteger)  # number of its first row
    units: int = Field(default=0, sa_type=BigInteger)
    progress: float = 0.0
    scored: int = Field(default=0, sa_type=BigInteger)
    errors: int = Field(default=0, sa_type=BigInteger)
    result: str = ""  # object
    result_size: int = Field(default=0, sa_type=BigInteger)
    code: str = ""
    message: str = ""
    retry_at: int = Field(default=0, sa_type=BigInteger)
    given_at: int = Field(default=0, sa_type=BigInteger)
    ended_at: int = Field(default=0, sa_type=BigInteger)
    __table_args__ = (Index("batch_part_by_state", "batch", "state"), Index("batch_part_by_command", "command"))


class PublisherKey(SQLModel, table=True):
    """A public key whose signatures the hub accepts and devices are told to trust."""

    __tablename__ = "publisher_key"
    keyid: str = Field(primary_key=True)
    text: str
    added_by: str
    added_at: int = Field(sa_type=BigInteger)


class HubLease(SQLModel, table=True):
    """The one hub that may run on this database; it renews the lease, and a dead hub's lease runs out."""

    __tablename__ = "hub_lease"
    id: int = Field(primary_key=True)
    holder: str
    address: str
    expires_at: int = Field(sa_type=BigInteger)


__all__ = [
    "Assignment",
    "Audit",
    "BatchPart",
    "BatchRow",
    "CommandRow",
    "DesiredDocument",
    "Device",
    "DeviceModule",
    "DeviceTag",
    "DocumentDue",
    "Endpoint",
    "EndpointDevice",
    "Environment",
    "EnvironmentUse",
    "EnvironmentVersion",
    "EventRow",
    "HealthRow",
    "HubLease",
    "Model",
    "ModelVersion",
    "ModuleProfileRow",
    "PublisherKey",
    "Rollout",
    "RolloutDevice",
    "SampleRow",
    "StreamMark",
    "TelemetryRow",
    "VersionFile",
    "VersionTag",
]
