#!/usr/bin/env python3
"""Draw the agent's lifecycle table as ``docs/lifecycle.md``: its diagram and its rows, so that they cannot differ.

python scripts/lifecycle-diagram.py          writes the page
python scripts/lifecycle-diagram.py --check  exits 1 if the page is not what the table says
"""

from __future__ import annotations

import sys
from pathlib import Path

from skerry_agent.rules.lifecycle import ORDER, TABLE, LifecycleSettings, Step, is_final, judge, phase
from skerry_modules.errors import CODES

PAGE = Path(__file__).parents[1] / "docs" / "lifecycle.md"

WORDS = {
    Step.WANT: "fetch the index, the object that names all others",
    Step.VERIFY: "check its digest, its publisher's signature, whether it can run here, whether the disk has room",
    Step.DOWNLOAD: "fetch the files that are not held yet",
    Step.INSTALL: "lay them out in a folder, checking each",
    Step.LOAD: "a worker process loads the model",
    Step.GOLDEN: "the golden inputs must give the expected outputs on this device",
    Step.WARM: "a few requests, so that the first real one is not slow",
    Step.SOAK: "live traffic, while the version before stays warm",
    Step.SERVE: "proven; the version before is kept as last-good",
    Step.ROLLBACK: "failed while it had the traffic; ends when the version before has it again",
}

HEAD = """# The life of a module version on a device

<!-- Made by scripts/lifecycle-diagram.py from agent/src/skerry_agent/rules/lifecycle.py: change that. -->

A version counts as a success only after the device itself has verified its signature, loaded it, passed its golden
test and soaked it under live traffic. Until then, and whenever any of that fails, the version before goes on serving,
and the hub is told why by a reason code (see [errors](errors.md)).

A restart of the device or the agent begins again at the first step, with what the disk holds: nothing is fetched
twice, everything is verified again, a proven version skips its soak. The clock of the network steps runs only while
the device is connected.
"""

RULES = """
## How failures are judged

- A failure that trying again cannot mend (a wrong signature, golden outputs that differ, no such engine) is final.
- Another one is tried again after a pause of {backoff:g} s that doubles each time up to {limit:g} s, from the step that
  the table names under *again*, until the step's *attempts* are used up.
- A device that restarts during a step more often than *restarts* allows gives the version up
  (`install.interrupted`): it may be the version that takes the device down.
- A version that ends undoes what it did, the last step first; then its files go, except for what another one needs.
- A failed version is tried again when the desired document raises its attempt (each assignment does), never before.
- A proven version that fails with no other to go back to is tried again every {revive:g} s.
"""


def diagram() -> str:
    """The table as a mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {ORDER[0]}"]
    for step, row in TABLE.items():
        if row.then is not step:
            lines.append(f"    {step} --> {row.then}")
        if row.again not in (step, row.then, Step.FAILED):
            passing = "failed under traffic" if row.again is Step.ROLLBACK else "may pass"
            lines.append(f"    {step} --> {row.again}: {passing}")
        if judge(step, "trust.unsigned", 1).to is Step.FAILED and step is not Step.ROLLBACK:
            lines.append(f"    {step} --> failed: {row.reason}")
    lines += [
        "    verify --> unschedulable: unschedulable.*",
        "    load --> unschedulable: unschedulable.operator",
        "    failed --> [*]",
        "    unschedulable --> [*]",
        "```",
    ]
    return "\n".join(lines)


def rows() -> str:
    """The table as a table."""
    settings = LifecycleSettings()
    head = "| step | what it does | phase | deadline | attempts | restarts | again | undo | when late |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for step, row in TABLE.items():
        deadline = {
            "": "–",
            "stall": "900 s without a new chunk, connected",
            "load_s": "the manifest's `load_timeout_s`",
            "soak_s": "the rollout's soak",
        }.get(row.deadline) or f"{getattr(settings, row.deadline, 0):g} s"
        again = "–" if step in (Step.SERVE, Step.ROLLBACK) else str(row.again)
        late = f"`{row.late}`" if row.late else "–"
        restarts = str(row.boots) if row.boots else "–"
        lines.append(
            f"| `{step}` | {WORDS[step]} | {phase(step)} | {deadline} | {row.attempts} | {restarts} | {again} "
            f"| {row.undo} | {late} |"
        )
    return "\n".join(lines)


def reasons() -> str:
    """Which reason codes are final."""
    families = ("unschedulable.", "trust.", "package.", "install.", "run.", "board.")
    families += ("resource.no_space", "resource.no_memory")
    lines = ["| reason | meaning | tried again |", "|---|---|---|"]
    for code, text in CODES.items():
        if code.startswith(families):
            again = "after a roll back only" if code.startswith("run.") else "no" if is_final(code) else "yes"
            lines.append(f"| `{code}` | {text} | {again} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    settings = LifecycleSettings()
    rules = RULES.format(backoff=settings.backoff_s, limit=settings.backoff_max_s, revive=settings.revive_s)
    return "\n".join((HEAD, diagram(), "", rows(), rules, "## Reason codes", "", reasons(), ""))


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
