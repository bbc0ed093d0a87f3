"""The hub's API as Python: one method per thing to ask, typed answers, and the hub's own errors.

Every error is a :class:`~skerry_modules.errors.SkerryError` with the code that the hub gave. A hub that cannot be
reached is ``resource.hub_unreachable``. Nothing is tried again here (whoever calls knows whether it may be),
except uploads and downloads of batch jobs, which go on where they broke off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import httpx

from skerry.asking import TIMEOUT_S, Progress, part_of, parts_of, query_of
from skerry.batches import BatchCalls
from skerry.bodies import plan_body, route_body
from skerry.git import GitState
from skerry.types import (
    AuditEntry,
    Command,
    Device,
    EndpointMember,
    EndpointRoute,
    EndpointState,
    Environment,
    EnvironmentDetail,
    Event,
    HealthReport,
    Key,
    Model,
    Modules,
    NewDevice,
    Plan,
    Preview,
    Rollout,
    RolloutDetail,
    Sample,
    SampleFile,
    Status,
    StoredProfile,
    TelemetryReport,
    Version,
    VersionDetail,
    Wishes,
)
from skerry_modules import package
from skerry_modules.measurement import ModuleProfile, to_builtins

REGISTER_S: Final = 600.0
"""How long the hub may take to check a package once it has all of it, seconds: it hashes every byte."""


class Client(BatchCalls):
    """A hub.

    Args:
        url: its address; by default ``SKERRY_URL``, else this machine's.
        token: by default ``SKERRY_TOKEN``.
        actor: who acts, for the audit log of a hub without tokens; by default the user's name.
    """

    # -- the hub -----------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._get("status", Status)

    def keys(self) -> list[Key]:
        """Publishers whose packages the hub accepts."""
        return list(self._list("keys", Key))

    def trust_key(self, text: str) -> Key:
        """Accept a publisher's packages from now on. ``text`` is ``ed25519:<base64> [name]``."""
        return self._send("POST", "keys", Key, json={"text": text})

    def distrust_key(self, keyid: str) -> None:
        self._delete(f"keys/{part_of(keyid)}")

    def profiles(self) -> list[dict[str, Any]]:
        """The firmware profiles that devices may have."""
        return list(self._list("profiles", dict[str, Any]))

    def events(self, *, device: str = "", severities: Iterable[str] = (), limit: int = 100) -> list[Event]:
        """What devices told, newest first."""
        return list(self._list("events", Event, limit=limit, device=device, severity=list(severities)))

    def audit(self, *, subject: str = "", limit: int = 100) -> list[AuditEntry]:
        """Who did what, newest first."""
        return list(self._list("audit", AuditEntry, limit=limit, subject=subject))

    # -- models ------------------------------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        return list(self._list("models", Model))

    def model(self, name: str) -> Model:
        return self._get(f"models/{part_of(name)}", Model)

    def versions(self, *, model: str = "", tags: Iterable[str] = ()) -> list[Version]:
        """Versions that bear all of the tags (``TagName=TagValue``)."""
        return list(self._list("versions", Version, model=model, tag=list(tags)))

    def version(self, name: str, version: int) -> VersionDetail:
        return self._get(f"models/{part_of(name)}/versions/{version}", VersionDetail)

    def register(
        self,
        path: Path,
        *,
        name: str = "",
        reason: str = "",
        git: GitState | None = None,
        tags: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> VersionDetail:
        """Register a package file as the next version of its model.

        Args:
            path: what :func:`skerry_modules.package.write_package` wrote.
            name: the model; by default the name in the package's manifest.
            reason: why, for the record.
            git: the commit that it was made from.
            tags: on the new version.
            progress: called as bytes leave.

        Raises:
            SkerryError: ``module.exists`` (``data["version"]`` says which), ``trust.*``, ``package.*``, ``manifest.*``.
        """
        if not name:
            with package.read_package(path) as reader:
                name = reader.index.manifest.name
        source = git or GitState()
        query: dict[str, Any] = {"reason": reason, "tag": [f"{key}={value}" for key, value in (tags or {}).items()]}
        if source.commit:
            query |= {
                "git_commit": source.commit,
                "git_branch": source.branch,
                "git_remote": source.remote,
                "git_dirty": source.dirty,
            }
        size = path.stat().st_size
        headers = {"Content-Type": package.MEDIA_TYPE, "Content-Length": str(size)}
        with path.open("rb") as file:
            return self._send(
                "POST",
                f"models/{part_of(name)}/versions",
                VersionDetail,
                params=query_of(query),
                content=_blocks(file, size, progress),
                headers=headers,
                timeout=httpx.Timeout(TIMEOUT_S, read=REGISTER_S),
            )

    def tag(self, name: str, version: int, tags: Mapping[str, str]) -> Version:
        """Replace a version's tags."""
        return self._send("PUT", f"models/{part_of(name)}/versions/{version}/tags", Version, json={"tags": dict(tags)})

    def download(self, name: str, version: int, target: Path, *, progress: Progress | None = None) -> Path:
        """The package, byte for byte as it was registered. The file appears whole or not at all."""
        return self._fetch(f"models/{part_of(name)}/versions/{version}/package", target, progress)

    def download_file(self, name: str, version: int, path: str, target: Path) -> Path:
        """One file of a version."""
        return self._fetch(f"models/{part_of(name)}/versions/{version}/files/{parts_of(path)}", target, None)

    def delete_version(self, name: str, version: int, *, reason: str = "") -> None:
        self._delete(f"models/{part_of(name)}/versions/{version}", reason)

    def delete_model(self, name: str, *, reason: str = "") -> None:
        self._delete(f"models/{part_of(name)}", reason)

    # -- what versions were measured to need ---------------------------------------------------------------------------

    def profiles_of(self, name: str, version: int) -> list[StoredProfile]:
        """The newest profile of a version from each machine, newest first."""
        found = self._get(f"models/{part_of(name)}/versions/{version}/profiles", dict[str, Any])
        return [self._convert(item, StoredProfile) for item in found["items"]]

    def add_profile(self, name: str, version: int, profile: ModuleProfile) -> StoredProfile:
        """Keep what was measured on a machine that is no device."""
        body = {"profile": to_builtins(profile)}
        return self._send("POST", f"models/{part_of(name)}/versions/{version}/profiles", StoredProfile, json=body)

    def measure(self, name: str, version: int, device: str, **wishes: Any) -> Command:
        """Have a device measure a version that is installed there; :meth:`command` tells how it goes."""
        body = {"device": device, **wishes}
        return self._send("POST", f"models/{part_of(name)}/versions/{version}/profiles/measure", Command, json=body)

    def command(self, command: str) -> Command:
        return self._get(f"commands/{part_of(command)}", Command)

    # -- environments ------------------------------------------------------------------------------------------------

    def environments(self) -> list[Environment]:
        """All environments with their versions, newest first."""
        return list(self._list("environments", Environment))

    def environment(self, name: str) -> Environment:
        return self._get(f"environments/{part_of(name)}", Environment)

    def environment_version(self, name: str, version: int) -> EnvironmentDetail:
        """One version with its lock."""
        return self._get(f"environments/{part_of(name)}/versions/{version}", EnvironmentDetail)

    def fetch_wheel(self, name: str, version: int, sha256: str, target: Path) -> Path:
        """One wheel of an environment; the caller checks its hash."""
        return self._fetch(f"environments/{part_of(name)}/versions/{version}/wheels/{sha256}", target, None)

    # -- devices -----------------------------------------------------------------------------------------------------

    def devices(self, *, tags: Iterable[str] = ()) -> list[Device]:
        return list(self._list("devices", Device, tag=list(tags)))

    def device(self, device: str) -> Device:
        return self._get(f"devices/{part_of(device)}", Device)

    def add_device(
        self, device: str, *, profile: str, tags: Mapping[str, str] | None = None, description: str = ""
    ) -> NewDevice:
        """Register a device. The answer holds its configuration with a password that is shown this once."""
        body = {"id": device, "profile": profile, "tags": dict(tags or {}), "description": description}
        return self._send("POST", "devices", NewDevice, json=body)

    def renew_password(self, device: str) -> NewDevice:
        """A new configuration with a new password; the old one ends."""
        return self._send("POST", f"devices/{part_of(device)}/password", NewDevice)

    def tag_device(self, device: str, tags: Mapping[str, str]) -> Device:
        """Replace a device's tags."""
        return self._send("PUT", f"devices/{part_of(device)}/tags", Device, json={"tags": dict(tags)})

    def remove_device(self, device: str, *, reason: str = "") -> None:
        self._delete(f"devices/{part_of(device)}", reason)

    def device_modules(self, device: str) -> Modules:
        return self._get(f"devices/{part_of(device)}/modules", Modules)

    def assign_module(self, device: str, name: str, version: int, *, soak_s: float = 0.0, reason: str = "") -> Wishes:
        """Want a version on one device, outside any rollout. Asked again, a device that gave up tries again."""
        body = {"version": version, "soak_s": soak_s, "reason": reason}
        return self._send("PUT", f"devices/{part_of(device)}/modules/{part_of(name)}", Wishes, json=body)

    def unassign_module(self, device: str, name: str, *, reason: str = "") -> Wishes:
        """Want no version of a module on one device any more; what only it used goes with it there."""
        query = {"reason": reason}
        return self._send("DELETE", f"devices/{part_of(device)}/modules/{part_of(name)}", Wishes, params=query)

    def health(self, device: str, *, limit: int = 100) -> list[HealthReport]:
        return list(self._list(f"devices/{part_of(device)}/health", HealthReport, limit=limit))

    def telemetry(self, device: str, *, module: str = "", limit: int = 100) -> list[TelemetryReport]:
        return list(self._list(f"devices/{part_of(device)}/telemetry", TelemetryReport, limit=limit, module=module))

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollouts(self, *, limit: int = 100) -> list[Rollout]:
        return list(self._list("rollouts", Rollout, limit=limit))

    def rollout(self, rollout: int) -> RolloutDetail:
        return self._get(f"rollouts/{rollout}", RolloutDetail)

    def preview_rollout(self, module: str, version: int, target: str, plan: Plan | None = None) -> Preview:
        """What starting it would do, before anything is sent."""
        body = {"module": module, "version": version, "target": target, "plan": plan_body(plan)}
        return self._send("POST", "rollouts/preview", Preview, json=body)

    def start_rollout(
        self, module: str, version: int, target: str, plan: Plan | None = None, *, reason: str = ""
    ) -> RolloutDetail:
        """Start a rollout to the devices that match ``target`` (``TagName=TagValue,…``, or ``*``)."""
        body = {"module": module, "version": version, "target": target, "plan": plan_body(plan), "reason": reason}
        return self._send("POST", "rollouts", RolloutDetail, json=body)

    def pause_rollout(self, rollout: int, *, reason: str = "") -> RolloutDetail:
        return self._send("POST", f"rollouts/{rollout}/pause", RolloutDetail, json={"reason": reason})

    def resume_rollout(self, rollout: int, *, reason: str = "") -> RolloutDetail:
        return self._send("POST", f"rollouts/{rollout}/resume", RolloutDetail, json={"reason": reason})

    def abort_rollout(self, rollout: int, *, reason: str = "", rollback: bool = True) -> RolloutDetail:
        """Stop for good. Devices that had proven the version go back too, unless ``rollback`` is false."""
        body = {"reason": reason, "rollback": rollback}
        return self._send("POST", f"rollouts/{rollout}/abort", RolloutDetail, json=body)

    # -- endpoints ---------------------------------------------------------------------------------------------------

    def endpoints(self) -> list[EndpointState]:
        return list(self._list("endpoints", EndpointState))

    def endpoint(self, name: str, *, window_s: int = 300) -> EndpointState:
        """One endpoint with its devices, and what its versions did in the last ``window_s`` seconds."""
        return self._get(f"endpoints/{part_of(name)}", EndpointState, window_s=window_s)

    def endpoint_devices(self, name: str, *, unschedulable: bool = False) -> list[EndpointMember]:
        """All devices that an endpoint's query matches, or those that cannot have it."""
        path = f"endpoints/{part_of(name)}/devices"
        return list(self._list(path, EndpointMember, unschedulable=unschedulable))

    def set_endpoint(
        self,
        name: str,
        *,
        split: Iterable[EndpointRoute],
        shadow: Iterable[EndpointRoute] = (),
        target: str,
        keep_before: bool = True,
        reason: str = "",
    ) -> EndpointState:
        """Make or change an endpoint on all devices that match ``target``."""
        body = {
            "split": [route_body(one) for one in split],
            "shadow": [route_body(one) for one in shadow],
            "target": target,
            "keep_before": keep_before,
            "reason": reason,
        }
        return self._send("PUT", f"endpoints/{part_of(name)}", EndpointState, json=body)

    def turn_endpoint_back(self, name: str, *, reason: str = "") -> EndpointState:
        """The split before the last change again."""
        return self._send("POST", f"endpoints/{part_of(name)}/back", EndpointState, json={"reason": reason})

    def delete_endpoint(self, name: str, *, reason: str = "") -> None:
        self._delete(f"endpoints/{part_of(name)}", reason)

    # -- watching ----------------------------------------------------------------------------------------------------

    def watch_rollout(self, rollout: int) -> Iterator[RolloutDetail]:
        """The rollout whenever it changes, until it has ended."""
        seen: RolloutDetail | None = None
        for _ in self.nudges(f"rollout:{rollout}", "fleet"):
            now = self.rollout(rollout)
            if now != seen:
                yield now
            if now.ended:
                return
            seen = now

    # -- samples -----------------------------------------------------------------------------------------------------

    def samples(
        self, *, module: str = "", version: int | None = None, device: str = "", limit: int = 100
    ) -> list[Sample]:
        """Captured samples, newest first."""
        return list(self._list("samples", Sample, limit=limit, module=module, version=version, device=device))

    def sample_files(self, *, module: str = "") -> list[SampleFile]:
        """The Parquet files that hold them."""
        return list(self._list("samples/files", SampleFile, module=module))

    def download_samples(self, key: str, target: Path, *, progress: Progress | None = None) -> Path:
        return self._fetch(f"samples/files/{parts_of(key)}", target, progress)


def _blocks(file: IO[bytes], size: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    while block := file.read(package.BLOCK_BYTES):
        yield block
        done += len(block)
        if progress:
            progress(done, size)
