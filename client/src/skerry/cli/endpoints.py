"""``skerry endpoints``: names that clients call on devices, and the versions behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from skerry.cli import output
from skerry.cli.context import hub
from skerry.cli.output import Json, Reason
from skerry.client import Client
from skerry.types import EndpointRoute, EndpointState, EndpointTraffic
from skerry_modules.errors import InputError

app = typer.Typer(help="Endpoints: traffic splits and shadows of model versions on devices.", no_args_is_help=True)

TOLD = 20
"""Devices that cannot have an endpoint which are named."""

Name = Annotated[str, typer.Argument(help="The endpoint's name.")]


@app.command("set")
def set_endpoint(
    context: typer.Context,
    name: Name,
    split: Annotated[
        list[str], typer.Option("--split", "-s", help="NAME:VERSION=PERCENT that answer, comma-separated or repeated.")
    ],
    to: Annotated[str, typer.Option("--to", help="Devices: TagName=TagValue,… or *. \\[default: as it is]")] = "",
    shadow: Annotated[
        list[str] | None,
        typer.Option("--shadow", help="NAME:VERSION[=PERCENT] that score copies, and never answer."),
    ] = None,
    way_back: Annotated[
        bool, typer.Option("--way-back/--no-way-back", help="Keep the split before loaded, to go back at once.")
    ] = True,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Make or change an endpoint. Devices take the new split up whole, when its versions are ready there."""
    routes, shadows = parse_routes(split), parse_routes(shadow or [])
    with hub(context) as client:
        target = to or client.endpoint(name).target
        found = client.set_endpoint(
            name, split=routes, shadow=shadows, target=target, keep_before=way_back, reason=reason
        )
        found = _whole(client, found) if json else found
    if json:
        output.emit(found)
        return
    output.say(f"{name} is {_text(found.split)} on {found.devices} device{'' if found.devices == 1 else 's'}")
    _say_unschedulable(found)


@app.command("list")
def list_endpoints(context: typer.Context, json: Json = False) -> None:
    """All endpoints."""
    with hub(context) as client:
        found = client.endpoints()
    if json:
        output.emit(found)
        return
    rows = [
        (one.name, _text(one.split), _text(one.shadow) or "–", one.target, one.devices, output.when(one.changed_at))
        for one in found
    ]
    output.table(
        ("endpoint", "split", "in shadow", "devices that match", "devices", "changed"),
        rows,
        empty="No endpoints: each module's own name is one, to its current version.",
    )


@app.command()
def show(
    context: typer.Context,
    name: Name,
    window: Annotated[int, typer.Option("--window", help="Seconds of traffic to sum up.")] = 300,
    json: Json = False,
) -> None:
    """One endpoint: versions with shares, requests, latency, errors, and how shadows agree."""
    with hub(context) as client:
        one = client.endpoint(name, window_s=window)
        one = _whole(client, one) if json else one
    if json:
        output.emit(one)
        return
    output.facts(
        [
            ("endpoint", one.name),
            ("devices", f"{one.devices} that match {one.target}"),
            ("way back", _text(one.before)),
            (
                "changed",
                f"{output.when(one.changed_at)} by {one.changed_by}" + (f": {one.reason}" if one.reason else ""),
            ),
        ]
    )
    traffic = {(each.module, each.version, each.role): each for each in one.traffic}
    rows = [
        _row(one, route, role, traffic.pop((route.module, route.version, role), None))
        for role, routes in (("live", one.split), ("shadow", one.shadow))
        for route in routes
    ]
    rows += [_row(one, None, each.role, each) for each in traffic.values()]
    columns = ("version", "role", "share", "ready", "requests/s", "p50", "p99", "errors", "agreement")
    output.table(columns, rows, empty="Nothing stands behind it.")
    _say_unschedulable(one)


@app.command()
def back(context: typer.Context, name: Name, reason: Reason = "", json: Json = False) -> None:
    """Go back to the split before the last change; its versions are still loaded."""
    with hub(context) as client:
        found = client.turn_endpoint_back(name, reason=reason)
        found = _whole(client, found) if json else found
    if json:
        output.emit(found)
    else:
        output.say(f"{name} is {_text(found.split)} again on {found.devices} device{'' if found.devices == 1 else 's'}")


@app.command()
def delete(
    context: typer.Context,
    name: Name,
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Take an endpoint off all devices. Clients that call it get 404, or their module's current version."""
    output.confirm(f"Delete the endpoint {name}? Clients that call it are not answered any more.", yes=yes)
    with hub(context) as client:
        client.delete_endpoint(name, reason=reason)
    if json:
        output.emit({"deleted": name})
    else:
        output.say(f"{name} is deleted")


def parse_routes(texts: Sequence[str]) -> list[EndpointRoute]:
    """``["digits:2=90,digits:3=10"]`` as routes; a share left out is 100.

    Raises:
        InputError: ``endpoint.invalid``.
    """
    found = []
    for part in ",".join(texts).split(",") if texts else ():
        reference, equals, share = part.strip().partition("=")
        module, colon, version = reference.partition(":")
        percent = _number(share.removesuffix("%")) if equals else 100.0
        if not module or not colon or not version.isdecimal() or percent is None:
            raise InputError(
                "endpoint.invalid", f"cannot read {part!r} as a version with its share; write NAME:VERSION=PERCENT"
            )
        found.append(EndpointRoute(module=module, version=int(version), percent=percent))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _row(
    one: EndpointState, route: EndpointRoute | None, role: str, traffic: EndpointTraffic | None
) -> tuple[str, ...]:
    named = route or traffic
    assert named is not None
    share = f"{route.percent:g} %" if route else "none now"
    ready = f"{route.ready} of {one.devices}" if route else "–"
    if traffic is None:
        return (f"{named.module}:{named.version}", role, share, ready, "0", "–", "–", "0", "–")
    return (
        f"{named.module}:{named.version}",
        role,
        share,
        ready,
        f"{traffic.rate:.3g}",
        f"{traffic.p50_us / 1000:.3g} ms",
        f"{traffic.p99_us / 1000:.3g} ms",
        str(traffic.errors),
        agreement_text(traffic),
    )


def agreement_text(traffic: EndpointTraffic) -> str:
    """How a shadow compares, in short; a dash for what answers."""
    found = traffic.agreement
    if found is None:
        return "–"
    text = "nothing compared yet"
    if found.rows:
        text = (
            f"{100 * found.agreed / found.rows:.2f} % of {found.rows} rows, "
            f"{100 * found.within / found.rows:.2f} % within tolerance, largest difference {found.worst:.3g}"
        )
    more = [f"{count} {what}" for what, count in (("dropped", found.dropped), ("failed", found.failed)) if count]
    return "; ".join([text, *more])


def _text(routes: Sequence[EndpointRoute]) -> str:
    return ", ".join(f"{one.module}:{one.version} {one.percent:g} %" for one in routes)


def _whole(client: Client, one: EndpointState) -> EndpointState:
    """With all its devices: the hub's answer holds the first only."""
    if len(one.members) >= one.devices + one.unschedulable:
        return one
    return msgspec.structs.replace(one, members=tuple(client.endpoint_devices(one.name)))


def _say_unschedulable(one: EndpointState) -> None:
    told = [member for member in one.members if member.reason][:TOLD]
    for member in told:
        output.say(f"{member.device} cannot have it: {member.message} ({member.reason})")
    if one.unschedulable > len(told):
        output.say(f"and {one.unschedulable - len(told)} more; `skerry endpoints show {one.name} --json` names them")
