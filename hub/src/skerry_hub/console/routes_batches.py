"""Batch jobs: the list, the page of one with its progress by part and device, and cancelling it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from skerry_hub import batches as service
from skerry_hub.console.queries import batches as queries
from skerry_hub.console.routes import hub, number_of, pages
from skerry_hub.console.templating import now_ms, page
from skerry_hub.rules.batch import JobState

router = APIRouter(include_in_schema=False)


@router.get("/batches")
def batches(request: Request) -> Response:
    chosen = {name: request.query_params.get(name, "") for name in ("state", "module")}
    with hub(request).db.read() as session:
        found = queries.lines(session, **chosen, number=number_of(request))
    return page(
        request,
        "batches.html",
        title="Batch jobs",
        section="batches",
        topics=("batches",),
        lines=found,
        chosen=chosen,
        states=["active", *JobState],
        page_address=pages(request),
    )


@router.get("/batches/{number:int}")
def batch(number: int, request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.one(session, number, now=now_ms(), shares=number_of(request))
    row = found.line.row
    return page(
        request,
        "batch.html",
        title=f"Batch job {number}: {row.module}:{row.version}",
        section="batches",
        topics=(f"batch:{number}", "fleet"),
        found=found,
        page_address=pages(request),
    )


@router.post("/batches/{number:int}/cancel")
async def cancel(number: int, request: Request) -> Response:
    reason = str((await request.form()).get("reason", ""))[:1000].strip()
    await run_in_threadpool(_cancel, request, number, reason)
    return RedirectResponse(f"/batches/{number}", status_code=303)


def _cancel(request: Request, number: int, reason: str) -> None:
    """What cannot be done is the error handler's to say."""
    with hub(request).db.session() as session:
        service.cancel(session, number, actor=request.state.identity.name, reason=reason, now=now_ms())
    hub(request).bus.publish(f"batch:{number}")
