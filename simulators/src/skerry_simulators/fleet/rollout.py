"""What a light device runs, and how it comes to a new version: download for real, the other steps by the clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from skerry_modules import messages
from skerry_modules.messages import DesiredModule, ModulePhase, ModuleState

STEP_S: Final = 0.05
"""How long a light device takes for each step that it only pretends."""


@dataclass
class Candidate:
    """A version on its way."""

    wanted: DesiredModule
    revision: int
    step: str = "download"
    missing: list[tuple[str, int]] = field(default_factory=list)  # objects still to fetch: digest, size
    since: int = 0
    indexed: bool = False


@dataclass
class Module:
    """One module of one device: what serves, what comes, what failed."""

    current: DesiredModule | None = None
    since: int = 0
    revision: int = 0
    candidate: Candidate | None = None
    failed: tuple[DesiredModule, str, str] | None = None

    def states(self) -> list[ModuleState]:
        """As the hub is told."""
        found: list[ModuleState] = []
        if self.current is not None:
            found.append(_state(self.current, ModulePhase.HEALTHY, ("serve", "current"), self.since, self.revision))
        if self.candidate is not None:
            one = self.candidate
            found.append(
                _state(one.wanted, ModulePhase.TRANSITIONING, (one.step, "candidate"), one.since, one.revision)
            )
        if self.failed is not None and (
            self.candidate is None or self.candidate.wanted.version != self.failed[0].version
        ):
            wanted, reason, text = self.failed
            found.append(
                ModuleState(
                    name=wanted.name,
                    version=wanted.version,
                    digest=wanted.digest,
                    phase=ModulePhase.FAILED,
                    step="golden",
                    reason=reason,
                    message=text,
                    revision=self.revision,
                    since=self.since,
                )
            )
        return found

    def wants(self, wanted: DesiredModule, revision: int, now_ms: int) -> bool:
        """Take a wish; whether there is something to do."""
        self.revision = revision
        if self.candidate is not None and self.candidate.wanted.digest == wanted.digest:
            self.candidate.revision = revision
            return False
        if self.current is not None and self.current.digest == wanted.digest:
            self.candidate = None
            if self.failed is not None and self.failed[0].version == wanted.version:
                self.failed = None
            return False
        if self.failed is not None and self.failed[0] == wanted:
            return False  # gave up on this very wish
        missing = [(wanted.digest, wanted.index_size)]
        self.candidate = Candidate(wanted, revision, missing=missing, since=now_ms)
        return True

    def promote(self, now_ms: int) -> None:
        assert self.candidate is not None
        self.current, self.since, self.candidate, self.failed = self.candidate.wanted, now_ms, None, None

    def fail(self, reason: str, text: str, now_ms: int) -> None:
        assert self.candidate is not None
        self.failed, self.candidate = (self.candidate.wanted, reason, text), None
        if self.current is None:
            self.since = now_ms


def _state(
    wanted: DesiredModule, phase: ModulePhase, place: tuple[str, str], since: int, revision: int
) -> messages.ModuleState:
    return ModuleState(
        name=wanted.name,
        version=wanted.version,
        digest=wanted.digest,
        phase=phase,
        step=place[0],
        role=place[1],
        since=since,
        revision=revision,
    )
