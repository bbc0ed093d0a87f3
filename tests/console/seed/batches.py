"""Batch jobs of the seeded fleet: one at work with a part in every state, one done, one failed, one on the hub."""

from __future__ import annotations

import json
from typing import Any

from sqlmodel import SQLModel

from skerry_hub import tables as t

MINUTE = 60_000
ROWS = 2_000
"""Of one part."""
MESSAGES = {
    "batch.input": "cannot score march.csv: it has no column for the input image; see --column",
    "run.hang": "the worker answered nothing for 60 s",
}


def rows(now: int, devices: list[str]) -> dict[type[SQLModel], list[dict[str, Any]]]:
    """Rows of the two tables; the job at work is scored by the lab's cameras."""
    lab = [device for device in devices if device.startswith("cam-lab")]
    if len(lab) < 8:  # a fleet of a test that is not about batches
        return {}
    done = {"state": "done", "progress": 1.0, "result": "batches/1.parquet", "result_size": 1_804_311}
    jobs = [
        _job(1, now - 2_900 * MINUTE, input="night-images.parquet", devices=lab, units=36_000, scored=36_000, **done),
        _job(2, now - 300 * MINUTE, input="march.csv", devices=lab[:4], state="failed", units=8_000)
        | {
            "code": "batch.input",
            "message": MESSAGES["batch.input"],
            "progress": 0.25,
            "errors": 0,
        },
        _job(3, now - 40 * MINUTE, input="golden", target="hub", devices=[], units=640, scored=640, **done),
        _job(4, now - 6 * MINUTE, input="harbour-week-46.parquet", devices=lab, state="running", units=120_000)
        | {"progress": 0.43, "scored": 51_214, "errors": 37, "keep": json.dumps(["frame"])},
    ]
    parts = [_part(now, 1, number, lab[number % 5], "done") for number in range(18)]
    parts += [_part(now, 2, 0, lab[0], "done"), _part(now, 2, 1, lab[1], "failed", code="batch.input")]
    parts += [_part(now, 2, number, "", "cancelled") for number in (2, 3)]
    parts += [_part(now, 3, 0, "hub", "done")]
    parts += [_part(now, 4, number, *_at_work(number, lab)) for number in range(60)]
    return {t.BatchRow: jobs, t.BatchPart: parts}


def _at_work(number: int, lab: list[str]) -> tuple[str, str]:
    if number < 24:
        return lab[number % 6], "done"
    if number < 30:
        return lab[number % 6], "running"
    return ("", "queued") if number > 30 else (lab[7], "failed")


def _job(number: int, at: int, *, input: str, devices: list[str], units: int, **more: Any) -> dict[str, Any]:
    ended = more.get("state") in ("done", "failed")
    return {
        "id": number,
        "module": "digits",
        "version": 3,
        "endpoint": "",
        "target": "site=lab,kind=cam",
        "source": "upload",
        "input": input,
        "upload": "",
        "columns": "[]",
        "keep": "[]",
        "devices": json.dumps(devices),
        "rows": 1024,
        "part_rows": ROWS,
        "unit": "rows",
        "units": units,
        "state": "running",
        "progress": 0.0,
        "scored": 0,
        "errors": 0,
        "code": "",
        "message": "",
        "result": "",
        "result_size": 0,
        "errors_file": "",
        "errors_size": 0,
        "created_by": "jonas",
        "reason": "labels for the next version",
        "created_at": at,
        "started_at": at + 2_000,
        "updated_at": at + 3 * MINUTE,
        "ended_at": at + 3 * MINUTE if ended else 0,
    } | more


def _part(now: int, batch: int, number: int, device: str, state: str, code: str = "run.hang") -> dict[str, Any]:
    failed = state == "failed"
    return {
        "batch": batch,
        "number": number,
        "state": state,
        "device": device,
        "only": "",
        "given": "[]",
        "refused": "[]",
        "attempts": 1,
        "failures": 3 if failed else 0,
        "command": "",
        "input": "",
        "input_size": 150_000,
        "kept": "",
        "first": number * ROWS,
        "units": ROWS,
        "progress": {"done": 1.0, "running": 0.1 + number % 6 / 8}.get(state, 0.0),
        "scored": {"done": ROWS - number % 3, "running": 400}.get(state, 0),
        "errors": number % 3 if state == "done" else 0,
        "result": "",
        "result_size": 0,
        "code": code if failed else "",
        "message": MESSAGES[code] if failed else "",
        "retry_at": 0,
        "given_at": now - (60 - number) * 9_000 if device else 0,
        "ended_at": now - (60 - number) * 6_000 if state in ("done", "failed") else 0,
    }
