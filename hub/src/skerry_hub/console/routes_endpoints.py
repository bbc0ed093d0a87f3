"""Endpoints: the list, the page of one, the form with its preview, and what people do to one."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from skerry_hub import endpoints as service
from skerry_hub.console.forms_endpoints import EndpointForm
from skerry_hub.console.queries import endpoints as queries
from skerry_hub.console.queries import models as model_queries
from skerry_hub.console.routes import hub, number_of, pages, to
from skerry_hub.console.templating import environment, is_partial, now_ms, page
from skerry_modules.errors import InputError, SkerryError

router = APIRouter(include_in_schema=False)


@router.get("/endpoints")
def endpoints(request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.lines(session, now_ms())
        any_version = bool(model_queries.choices(session, limit=1))
    return page(
        request,
        "endpoints.html",
        title="Endpoints",
        section="endpoints",
        topics=("fleet", "device:*"),
        lines=found,
        any_version=any_version,
    )


@router.get("/endpoints/{name}")
def endpoint(name: str, request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.line(session, service.get(session, name), now_ms())
        members = queries.members(session, found, number_of(request))
    return page(
        request,
        "endpoint.html",
        title=name,
        section="endpoints",
        topics=("fleet", "device:*"),
        line=found,
        members=members,
        minutes=queries.WINDOW_S // 60,
        page_address=pages(request),
    )


# A name of its own could be "new": so the form of a new one does not stand below /endpoints.
@router.get("/new/endpoint")
def new_endpoint(request: Request) -> Response:
    given = request.query_params
    form = EndpointForm.read(given.get, given.getlist)
    return _form(request, form if "keep_before" in given else EndpointForm(name=form.name, split=form.split))


@router.get("/endpoints/{name}/edit")
def edit_endpoint(name: str, request: Request) -> Response:
    with hub(request).db.read() as session:
        row = service.get(session, name)
    split, shadow = service.routes_of(row.split), service.routes_of(row.shadow)
    return _form(request, EndpointForm.of(row.name, row.target, split, shadow, row.revision))


def _form(
    request: Request, form: EndpointForm, problem: SkerryError | None = None, status: int = 200, focus: str = ""
) -> Response:
    with hub(request).db.read() as session:
        choices = model_queries.choices(session)
        foreseen = queries.foresee(session, form) if choices else None
    title = "New endpoint" if form.is_new else f"Change {form.name}"
    return page(
        request,
        "endpoint_form.html",
        title=title,
        section="endpoints",
        status=status,
        form=form,
        choices=[f"{name}:{number}" for name, number in choices],
        problem=problem,
        foreseen=foreseen,
        focus=focus,
    )


@router.get("/new/endpoint/preview")
def preview(request: Request) -> Response:
    """The part of the form's page that says what would happen; the form asks for it after each change."""
    given = request.query_params
    with hub(request).db.read() as session:
        foreseen = queries.foresee(session, EndpointForm.read(given.get, given.getlist))
    text = environment().get_template("parts/endpoint_preview.html").render(foreseen=foreseen)
    return Response(text, media_type="text/html", headers={"Cache-Control": "no-store"})


@router.post("/endpoints")
async def put(request: Request) -> Response:
    """Set it, or give the form back with one row more or less."""
    given = await request.form()

    def one(name: str) -> str | None:
        value = given.get(name)
        return None if value is None else str(value)

    form = EndpointForm.read(one, lambda name: [str(value) for value in given.getlist(name)])
    order = one("rows") or ""
    edited = form.edited(order)
    if edited is not None:
        part = order.split("-")[1]
        focus = f"{part}-{len(getattr(edited, part)) - 1}" if order.startswith("add") else f"add-{part}"
        return await run_in_threadpool(_form, request, edited, focus=focus)
    return await run_in_threadpool(_put, request, form)


def _put(request: Request, form: EndpointForm) -> Response:
    try:
        with hub(request).db.session() as session:
            changed = service.put(
                session,
                form.name,
                routes=form.routes(),
                shadow=form.shadows(),
                target=form.target or "*",
                keep_before=form.keep_before,
                actor=request.state.identity.name,
                reason=form.reason,
                now=now_ms(),
            )
            _refuse_stale(changed, form)
    except InputError as error:
        # 200 for htmx, which shows the form again in place; a plain form submission gets the status that it is.
        return _form(request, form, problem=error, status=200 if is_partial(request) else 422)
    _tell(request, changed)
    return to(request, f"/endpoints/{form.name}")


def _refuse_stale(changed: service.Changed, form: EndpointForm) -> None:
    """A form that was opened before someone else's change must not undo that unseen; raised inside the transaction."""
    made = changed.endpoint
    assert made is not None  # put never removes
    before = int(form.revision) if form.revision.isascii() and form.revision.isdigit() else 0
    if made.revision == before + 1:
        return
    if not before:
        raise InputError(
            "endpoint.changed", f"cannot make the endpoint {form.name!r}: it exists; change that one, or choose a name"
        )
    raise InputError(
        "endpoint.changed",
        f"cannot set the endpoint {form.name!r}: it was changed while this form was open; "
        "look at its page, then change it again",
    )


@router.post("/endpoints/{name}/back")
async def back(name: str, request: Request) -> Response:
    reason = str((await request.form()).get("reason", ""))[:1000]

    def act(session: Session) -> service.Changed:
        return service.go_back(session, name, actor=request.state.identity.name, reason=reason.strip(), now=now_ms())

    await run_in_threadpool(_act, request, act)
    return RedirectResponse(f"/endpoints/{name}", status_code=303)


@router.post("/endpoints/{name}/delete")
async def delete(name: str, request: Request) -> Response:
    reason = str((await request.form()).get("reason", ""))[:1000]

    def act(session: Session) -> service.Changed:
        return service.remove(session, name, actor=request.state.identity.name, reason=reason.strip(), now=now_ms())

    await run_in_threadpool(_act, request, act)
    return to(request, "/endpoints")


def _act(request: Request, act: Callable[[Session], service.Changed]) -> None:
    """Do it in one transaction, then tell the devices. What cannot be done is the error handler's to say."""
    with hub(request).db.session() as session:
        changed = act(session)
    _tell(request, changed)


def _tell(request: Request, changed: service.Changed) -> None:
    hub(request).spread_desired(changed.devices)
    hub(request).bus.publish("fleet", *(f"device:{device}" for device in changed.devices))
