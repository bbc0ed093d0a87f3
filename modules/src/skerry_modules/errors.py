"""The errors that hub, agent and client speak, by whose fault they are.

Four families answer "whose fault is it", because that decides what to do next:

* :class:`InputError`: the caller's input. The caller mends it; asking again unchanged is useless.
* :class:`PeerError`: a message or package from the other side is wrong, forged or out of order.
* :class:`ResourceError`: the device or server lacks something now (space, memory, network); later may do.
* :class:`BugError`: we broke a rule of our own. Reported whole, never swallowed.

Every error has a stable dotted ``code`` that an operator can look up in ``docs/errors.md`` (a test holds
that page to :data:`CODES`). Texts say "cannot …", name the thing, and end with what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar

CODES: dict[str, str] = {
    # -- the caller's input
    "manifest.unreadable": "The manifest is missing or is not TOML.",
    "manifest.invalid": "A field of the manifest is unknown, missing or of the wrong type.",
    "manifest.model_mismatch": "The model's inputs or outputs differ from what the manifest declares.",
    "manifest.golden_mismatch": "The golden file cannot be read, or its arrays are not what the manifest declares.",
    "module.unknown": "No such module, or no such version of it.",
    "module.in_use": "The version is desired, current or last-good on a device and cannot be deleted.",
    "module.exists": "The same content is registered already.",
    "device.unknown": "No such device.",
    "device.exists": "A device with this id exists.",
    "device.in_use": "The device is part of a running rollout and cannot be removed.",
    "device.invalid_id": "A device id must be 1 to 64 of a-z, 0-9, '.', '_' and '-'.",
    "environment.unknown": "No such environment, or no such version of it.",
    "environment.not_locked": "The module's environment has no lock: its wheels were never resolved.",
    "environment.unresolvable": "A package has no wheel for a kind of device that the module targets.",
    "environment.unavailable": "The package index cannot be reached, or no longer has a wheel that a lock names.",
    "profile.unknown": "No such firmware profile.",
    "profile.invalid": "A field of the firmware profile is unknown, missing or of the wrong type.",
    "query.invalid": "A tag query is not of the form TagName=TagValue.",
    "rollout.unknown": "No such rollout.",
    "rollout.empty_target": "The target query matches no device.",
    "endpoint.unknown": "No endpoint with this name.",
    "endpoint.changed": "The endpoint was changed, or made, by someone else meanwhile.",
    "endpoint.invalid": "The endpoint's name, split or shadows are not possible.",
    "rollout.conflict": "Another rollout runs for the same module on some of the same devices.",
    "rollout.invalid": "The rollout plan is not possible (waves, threshold or soak).",
    "rollout.wrong_state": "The rollout is not in a state that allows this.",
    "settings.invalid": "A setting is unknown, missing or of the wrong type.",
    "request.invalid": "The request's body or parameters are not what this address takes.",
    "request.too_large": "The request's body is over the limit.",
    "request.not_found": "Nothing stands at this address.",
    "request.method_not_allowed": "This address does not take this method.",
    "auth.missing": "This address needs a token.",
    "auth.denied": "The token does not give this right.",
    "auth.cross_site": "The request comes from another site's page.",
    "scoring.invalid_json": "The scoring request is not valid JSON.",
    "scoring.unknown_input": "The request names an input that the model does not have, or lacks one that it has.",
    "scoring.unknown_output": "The request asks for an output that the model does not have.",
    "scoring.wrong_shape": "An input's shape does not fit the model.",
    "scoring.wrong_datatype": "An input's datatype does not fit the model.",
    "scoring.bad_data": "An input's data does not match its declared shape, or cannot be converted.",
    "scoring.not_ready": "The module has no version ready to score.",
    "scoring.overloaded": "The queue is full; try again after the given time.",
    "scoring.deadline": "The request was not scored within its deadline.",
    "scoring.failed": "The model failed on this request.",
    "scoring.quarantined": "The request killed two workers and is not tried again.",
    "convert.unsupported": "The model, or an operator of it, cannot be converted to what was asked for.",
    "convert.untrusted": "The file holds a program (a pickle) and was not declared trusted.",
    "convert.broken_original": "The module to convert fails its own golden test.",
    "convert.samples": "The samples to calibrate or to judge with are missing or do not fit the model.",
    "convert.gate_failed": "The converted model differs too much from its original; nothing was written.",
    "batch.unknown": "No such batch job.",
    "batch.empty_target": "The target of a batch job matches no device.",
    "batch.not_held": "A device of the target does not serve the version that the job should be scored by.",
    "batch.input": "The input of a batch job is missing, empty, changed, or of a kind that cannot be scored.",
    "batch.not_allowed": "The device's settings do not let the hub have this path scored.",
    "batch.wrong_state": "The batch job is not in a state that allows this.",
    "batch.cancelled": "The batch job was cancelled.",
    "batch.lost": "A part of a batch job was given out too often without an answer.",
    "batch.failed": "The process that scores a part of a batch job ended without saying why.",
    # -- the peer's message or package
    "package.unreadable": "The package is not a Skerry package.",
    "package.unsafe_path": "A path in the package leaves its folder, or is not plain.",
    "package.unsafe_entry": "The package holds a link, a device or an entry that does not belong.",
    "package.too_many_files": "The package holds more files than the limit.",
    "package.too_large": "The package, or a file of it, is larger than the limit or than it declares.",
    "package.digest_mismatch": "Content does not match its SHA-256: it was damaged or changed.",
    "trust.unsigned": "The module carries no signature.",
    "trust.unknown_key": "The signature is by a key that this side does not trust.",
    "trust.bad_signature": "The signature does not match the content.",
    "trust.bad_key": "The key file cannot be read as an Ed25519 key.",
    "message.malformed": "The payload cannot be decoded as the message that its topic names.",
    "message.oversized": "The payload is over the limit for its kind.",
    "message.wrong_device": "The payload names another device than its topic.",
    "message.unsupported_version": "The payload's format version is newer than this side reads.",
    "message.unknown_topic": "The topic is not one of the protocol's.",
    "desired.stale": "The desired document is older than the one in force.",
    # -- the device's or server's resources
    "resource.no_space": "There is not enough disk space.",
    "resource.no_memory": "The module needs more memory than the device's profile leaves.",
    "resource.broker_unreachable": "The MQTT broker cannot be reached.",
    "resource.hub_unreachable": "The hub cannot be reached.",
    "resource.agent_unreachable": "No agent answers on this device.",
    "resource.object_missing": "The hub's store does not have an object any more that devices need.",
    "resource.database_in_use": "Another hub holds this database.",
    "resource.database_unreachable": "The database cannot be reached.",
    "resource.port_in_use": "The address to listen on is taken.",
    "resource.too_many_streams": "The hub keeps as many live connections open as it may.",
    "resource.missing_dependency": "A package that this feature needs is not installed.",
    "resource.spool_damaged": "The spool's database was damaged and begun anew.",
    "resource.state_damaged": "The newest saved state was damaged; the one before it is used.",
    "resource.state_in_use": "Another agent runs on this state folder.",
    # -- why a module cannot run, or stopped, on a device (also reason codes of module states)
    "unschedulable.engine": "The device has no engine of this kind.",
    "unschedulable.memory": "The module needs more memory than the profile leaves for modules.",
    "unschedulable.disk": "The module needs more disk than the profile leaves for modules.",
    "unschedulable.accelerator": "The device lacks an accelerator that the module needs.",
    "unschedulable.architecture": "The module does not support the device's processor architecture.",
    "unschedulable.python": "The module needs another Python than the device has.",
    "unschedulable.environment": "The module's environment was not locked for the device's Python, processor or glibc.",
    "unschedulable.operator": "The device's engine does not support an operator of the model.",
    "unschedulable.profile": "The module does not name the device's profile among its targets.",
    "install.download_timeout": "The module's objects did not arrive within the deadline.",
    "install.object_gone": "The hub does not have an object any more that the device needs.",
    "install.verify_failed": "The module's signature or content did not verify.",
    "install.unpack_failed": "The module could not be laid out on the device's disk.",
    "install.environment_failed": "The module's environment could not be built on the device.",
    "install.load_failed": "The engine could not load the model.",
    "install.load_timeout": "The model did not load within the deadline.",
    "install.golden_failed": "The golden test's outputs differ from those expected.",
    "install.golden_timeout": "The golden test did not end within the deadline.",
    "install.warm_failed": "The warm-up requests failed.",
    "install.soak_failed": "The module failed under live traffic during its soak.",
    "install.superseded": "A newer desired document replaced this version before it was done.",
    "install.interrupted": "The device restarted too often during this step.",
    "board.absent": "No FPGA board was found.",
    "board.busy": "Another process holds the FPGA board.",
    "board.wrong_metadata": "The overlay's .hwh does not belong to its .bit, or names what the design does not have.",
    "board.wrong_bitstream": "The design that runs on the board is not the one that the module names.",
    "board.stale_memory": "What the CPU wrote did not reach the board, or the board's results did not reach the CPU.",
    "board.wrong_order": "The board takes the bytes of a word in another order than the module packs them.",
    "board.misaligned": "A buffer does not start on a word of the DMA engine, which cannot realign.",
    "board.oversize": "A transfer is longer than the DMA engine's length register can say.",
    "board.dma_error": "The DMA engine reported an error.",
    "board.hang": "A transfer did not end within its deadline.",
    "run.crashed": "A worker ended while it served, and another takes its place.",
    "run.crash_loop": "The worker crashed too often.",
    "run.hang": "The worker stopped answering.",
    "run.errors": "The version failed on too many of its requests.",
    "run.rolled_back": "The version was rolled back to the one before.",
    "run.batching_off": "Requests are not scored together, though the module allows it: the device's test forbids it.",
    "run.engine_device": "The engine runs on another device than the module or profile asks for first.",
    # -- commands to a device, and measuring a module there
    "command.unknown": "The device's agent does not know the command.",
    "command.busy": "The device carries out another command that does not go together with this one.",
    "command.deadline": "The command did not end on the device within its deadline.",
    "command.interrupted": "The device's agent stopped while it carried out the command.",
    "command.offline": "The device is not connected, so that it cannot be told.",
    "command.no_answer": "The device did not answer the command in time.",
    "measure.failed": "No setting of the module could be measured.",
    "measure.not_installed": "The version is not installed on the device that should measure it.",
    # -- why a rollout counts a device as failed without the device's word
    "rollout.device_timeout": "The device did not prove the version within the wave's deadline.",
    "rollout.offline": "The device has not been seen for as long as the rollout waits.",
    # -- ours
    "internal.bug": "A rule of ours was broken. Please report it.",
}


class SkerryError(Exception):
    """An error with a stable code. Raise one of the four families, never this class itself.

    Args:
        code: a key of :data:`CODES`.
        message: "cannot …", the thing's name, then what to do.
        data: small, JSON-able facts for machines (field, line, limit, …).
    """

    family: ClassVar[str] = "error"

    def __init__(self, code: str, message: str, **data: Any) -> None:
        if code not in CODES:
            raise KeyError(f"error code {code!r} is not declared in skerry_modules.errors.CODES")
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return self.message  # which may have been told anew on its way up

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.code, self.message, self.data)


def _rebuild(kind: type[SkerryError], code: str, message: str, data: dict[str, Any]) -> SkerryError:
    return kind(code, message, **data)


class InputError(SkerryError):
    """The caller's input is wrong; the caller can mend it."""

    family = "input"


class PeerError(SkerryError):
    """A message or package from the other side is wrong, forged or out of order."""

    family = "peer"


class ResourceError(SkerryError):
    """Something is missing now: space, memory, network, a package. Later may do."""

    family = "resource"


class BugError(SkerryError):
    """A rule of ours is broken."""

    family = "bug"
