"""What the routes share: the hub, who asks, pages of lists, and the body limit."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from fastapi import Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from skerry_hub.app import Hub
from skerry_hub.auth import Identity
from skerry_modules.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


class Body(BaseModel):
    """A request's body: unknown fields are an error, so that a misspelled one is not silently dropped."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(
        description="Address of this hub that explains the code", examples=["/api/v1/errors/device.unknown"]
    )
    title: str = Field(description="What the code means")
    status: int = Field(examples=[404])
    detail: str = Field(description="What happened, and what to do")
    code: str = Field(description="Stable, dotted", examples=["device.unknown"])
    family: str = Field(description="Whose fault it is: input, peer, resource or bug", examples=["input"])
    data: dict[str, Any] = Field(description="Small facts for machines")
    instance: str | None = Field(None, description="The address that was asked for")


class Page(BaseModel, Generic[T]):
    """A part of a list. ``next`` is the cursor of the part after it, null at the end."""

    items: list[T]
    next: str | None = Field(None, description="Give it back as `cursor` to read on; null: this was the end")


class Paging(msgspec.Struct, frozen=True):
    """The caller's wish: how many, and after what."""

    limit: int
    after: list[Any]

    def page(self, rows: Sequence[R], view: Callable[[Sequence[R]], list[T]], key: Callable[[R], list[Any]]) -> Page[T]:
        """One page of rows that were asked for with ``limit + 1``: the one too many says that there is more."""
        shown = rows[: self.limit]
        cursor = encode_cursor(key(shown[-1])) if len(rows) > self.limit else None
        return Page(items=view(shown), next=cursor)


def hub_of(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


def identity_of(request: Request) -> Identity:
    identity: Identity = request.state.identity
    return identity


def actor_of(
    request: Request,
    x_skerry_actor: Annotated[
        str | None, Header(description="Who asks, for the audit log, where the hub runs without tokens")
    ] = None,
) -> str:
    return identity_of(request).name


def paging(
    hub: Annotated[Hub, Depends(hub_of)],
    limit: Annotated[int | None, Query(ge=1, description="Most items in the answer")] = None,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next` of the page before")] = None,
) -> Paging:
    settings = hub.settings
    return Paging(min(limit or settings.page_size, settings.page_max), decode_cursor(cursor) if cursor else [])


def encode_cursor(key: list[Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(cursor: str) -> list[Any]:
    """The inverse of :func:`encode_cursor`.

    Raises:
        InputError: ``request.invalid``.
    """
    try:
        key = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=list[str | int])
    except (binascii.Error, ValueError) as error:
        raise _bad_cursor() from error
    return list(key)


def after_text(paging: Paging) -> str:
    """The cursor of a list that is ordered by a name."""
    if not paging.after:
        return ""
    if len(paging.after) != 1 or not isinstance(paging.after[0], str) or "\0" in paging.after[0]:
        raise _bad_cursor()
    return paging.after[0]


def after_number(paging: Paging) -> int:
    """The cursor of a list that is ordered by a number, newest first; 0 at the start."""
    if not paging.after:
        return 0
    if len(paging.after) != 1 or not isinstance(paging.after[0], int) or not 0 < paging.after[0] < 1 << 63:
        raise _bad_cursor()
    return paging.after[0]


def after_version(paging: Paging) -> tuple[str, int] | None:
    """The cursor of a list of versions."""
    match paging.after:
        case []:
            return None
        case [str() as name, int() as version] if "\0" not in name and 0 < version < 1 << 31:
            return name, version
    raise _bad_cursor()


def _bad_cursor() -> InputError:
    return InputError("request.invalid", "cannot use the cursor: give back `next` of the page before as it is")


HubOf = Annotated[Hub, Depends(hub_of)]
Actor = Annotated[str, Depends(actor_of)]
Pages = Annotated[Paging, Depends(paging)]
