"""The hub's problem details (RFC 9457) back into the errors that they were, and what else can go wrong on the way."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skerry_modules.errors import CODES, BugError, InputError, PeerError, ResourceError, SkerryError

_FAMILIES: Final[dict[str, type[SkerryError]]] = {
    kind.family: kind for kind in (InputError, PeerError, ResourceError, BugError)
}


class _Problem(msgspec.Struct):
    code: str
    detail: str
    family: str = "input"
    data: dict[str, Any] = {}


def problem_of(status: int, body: bytes, url: str) -> SkerryError:
    """The error that the hub answered with."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ResourceError(
            "resource.hub_unreachable",
            f"cannot use what answers at {url} (status {status}): it is no Skerry hub; check SKERRY_URL or --url",
            status=status,
        )
    kind = _FAMILIES.get(problem.family, InputError)
    if problem.code not in CODES:  # a newer hub
        return kind("request.invalid", f"{problem.detail} [{problem.code}]", **problem.data)
    return kind(problem.code, problem.detail, **problem.data)


def unreachable(url: str, error: Exception) -> ResourceError:
    """Nothing answers."""
    return ResourceError(
        "resource.hub_unreachable",
        f"cannot reach the hub at {url}: {error or type(error).__name__}; start it with `skerry-hub serve`, "
        "or say where it is with SKERRY_URL or --url",
        url=url,
    )
