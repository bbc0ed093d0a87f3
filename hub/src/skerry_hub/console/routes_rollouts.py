"""Rollouts: the list, the form with its preview, the page of one, and what people do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from skerry_hub.console.forms import RolloutForm, format_waves
from skerry_hub.console.queries import models as model_queries
from skerry_hub.console.queries import rollouts as rollout_queries
from skerry_hub.console.routes import hub, number_of, pages, to
from skerry_hub.console.templating import environment, is_partial, page
from skerry_hub.rollouts import Preview
from skerry_hub.rules.rollout import RolloutState
from skerry_modules.errors import InputError, SkerryError

router = APIRouter(include_in_schema=False)

GROUPS = {
    "working": ("assigned", "rolling-back"),
    "failed": ("failed",),
    "went-back": (rollout_queries.WENT_BACK,),
    "succeeded": ("succeeded",),
    "unschedulable": ("unschedulable",),
    "pending": ("pending",),
    "skipped": ("skipped",),
}
"""By what devices of a rollout can be filtered → what those are shown as."""


@router.get("/rollouts")
def rollouts(request: Request) -> Response:
    chosen = {name: request.query_params.get(name, "") for name in ("state", "module")}
    with hub(request).db.read() as session:
        found = rollout_queries.rollouts(session, **chosen, number=number_of(request))
    return page(
        request,
        "rollouts.html",
        title="Rollouts",
        section="rollouts",
        topics=("rollout:*", "fleet"),
        rollouts=found,
        chosen=chosen,
        states=["active", *RolloutState],
        page_address=pages(request),
    )


@router.get("/rollouts/new")
def new_rollout(request: Request) -> Response:
    return _form(request, RolloutForm.read(request.query_params))


def _form(request: Request, form: RolloutForm, problem: SkerryError | None = None, status: int = 200) -> Response:
    with hub(request).db.read() as session:
        choices = model_queries.choices(session)
    if not form.version and choices:
        form = RolloutForm.read({**form.__dict__, "version": f"{choices[0][0]}:{choices[0][1]}"})
    preview, preview_problem = _preview(request, form) if choices else (None, None)
    return page(
        request,
        "rollout_new.html",
        title="New rollout",
        section="rollouts",
        status=status,
        form=form,
        choices=choices,
        problem=problem,
        summary=_summary(preview),
        preview_problem=preview_problem,
    )


@router.get("/rollouts/preview")
def preview(request: Request) -> Response:
    """The part of the form's page that says what would happen; the form asks for it after each change."""
    found, problem = _preview(request, RolloutForm.read(request.query_params))
    text = environment().get_template("parts/preview.html").render(summary=_summary(found), preview_problem=problem)
    return Response(text, media_type="text/html", headers={"Cache-Control": "no-store"})


def _preview(request: Request, form: RolloutForm) -> tuple[Preview | None, SkerryError | None]:
    try:
        name, number = form.module()
        found = hub(request).rollouts.preview(module=name, version=number, target=form.target or "*", plan=form.plan())
    except InputError as error:
        return None, error
    return found, None


def _summary(preview: Preview | None, named: int = 5) -> dict[str, Any] | None:
    """Counts for people: devices by wave, and those that cannot, by reason."""
    if preview is None:
        return None
    blocked: dict[str, list[tuple[str, str]]] = {}  # code → (device, sentence)
    for one in preview.candidates:
        for code, sentence in one.obstacles[:1]:
            blocked.setdefault(code, []).append((one.device, sentence))
    able = [one for one in preview.candidates if not one.obstacles]
    return {
        "preview": preview,
        "matched": len(preview.candidates),
        "able": len(able),
        "offline": sum(not one.online for one in able),
        "canary": [one.device for one in able if one.wave == 0][:named],
        "blocked": [
            (code, len(found), found[0][1], [device for device, _ in found[:named]])
            for code, found in sorted(blocked.items(), key=lambda item: -len(item[1]))
        ],
    }


@router.post("/rollouts")
async def create(request: Request) -> Response:
    form = RolloutForm.read({key: str(value) for key, value in (await request.form()).items()})
    return await run_in_threadpool(_create, request, form)


def _create(request: Request, form: RolloutForm) -> Response:
    try:
        name, number = form.module()
        rollout = hub(request).rollouts.create(
            module=name,
            version=number,
            target=form.target or "*",
            plan=form.plan(),
            actor=request.state.identity.name,
            reason=form.reason,
        )
    except InputError as error:
        # 200 for htmx, which shows the form again in place; a plain form submission gets the status that it is.
        return _form(request, form, problem=error, status=200 if is_partial(request) else 422)
    return to(request, f"/rollouts/{rollout}")


@router.get("/rollouts/{number:int}")
def rollout(number: int, request: Request) -> Response:
    show = request.query_params.get("show", "")
    with hub(request).db.read() as session:
        found = rollout_queries.one(session, number)
        if found is None:
            raise InputError("rollout.unknown", f"cannot find rollout {number}: see `skerry rollouts list`")
        values: dict[str, Any] = {
            "waves": rollout_queries.waves(session, found),
            "reasons": rollout_queries.reasons(session, number),
            "cells": rollout_queries.cells(session, number),
            "devices": rollout_queries.devices(session, found, names=GROUPS.get(show, ()), number=number_of(request)),
            "timeline": rollout_queries.timeline(session, number),
        }
    return page(
        request,
        "rollout.html",
        title=f"Rollout {number}: {found.row.module}:{found.row.version}",
        section="rollouts",
        topics=(f"rollout:{number}", "fleet"),
        rollout=found,
        plan_waves=format_waves(found.plan.waves),
        show=show,
        groups=[name for name, of in GROUPS.items() if name == show or any(found.steps.get(step) for step in of)],
        page_address=pages(request),
        **values,
    )


@router.post("/rollouts/{number:int}/pause")
async def pause(number: int, request: Request) -> Response:
    return await _act(request, number, hub(request).rollouts.pause)


@router.post("/rollouts/{number:int}/resume")
async def resume(number: int, request: Request) -> Response:
    return await _act(request, number, hub(request).rollouts.resume)


@router.post("/rollouts/{number:int}/abort")
async def abort(number: int, request: Request) -> Response:
    form = await request.form()
    return await _act(request, number, hub(request).rollouts.abort, rollback=form.get("rollback") == "yes")


async def _act(request: Request, number: int, action: Callable[..., None], **arguments: Any) -> Response:
    """Do it, then show the rollout as it is now. What cannot be done is the error handler's to say."""
    reason = str((await request.form()).get("reason", ""))[:1000]
    await run_in_threadpool(action, number, actor=request.state.identity.name, reason=reason, **arguments)
    return RedirectResponse(f"/rollouts/{number}", status_code=303)
