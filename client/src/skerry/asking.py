"""How a hub is asked: addresses, pages of lists, files, nudges, and its errors as ours.

Every error is a :class:`~skerry_modules.errors.SkerryError` with the code that the hub gave. A hub that cannot be
reached is ``resource.hub_unreachable``. Nothing is tried again here: whoever calls knows whether it may be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from skerry.problems import problem_of, unreachable
from skerry_modules import package
from skerry_modules.errors import ResourceError

DEFAULT_URL: Final = "http://127.0.0.1:8420"
TIMEOUT_S: Final = 30.0
"""How long the hub may take to answer, seconds; an upload or download may take as long as bytes flow."""
POLL_S: Final = 2.0
"""How often a watched thing is looked at when the hub sends no nudge, seconds."""

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Asking:
    """The connection to a hub; :class:`skerry.client.Client` has what can be asked."""

    def __init__(self, url: str = "", token: str = "", *, actor: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.url = (url or os.environ.get("SKERRY_URL", "") or DEFAULT_URL).rstrip("/")
        token = token or os.environ.get("SKERRY_TOKEN", "")
        headers = {"User-Agent": "skerry-client"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if actor or (actor := _user()):
            headers["X-Skerry-Actor"] = actor
        try:
            self._http = httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, ValueError) as error:
            raise unreachable(self.url, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- watching ----------------------------------------------------------------------------------------------------

    def nudges(self, *topics: str) -> Iterator[None]:
        """Yield at once, then whenever something of these topics changes, and every :data:`POLL_S` anyway.

        A lost stream is opened again: what was missed shows at the next look. A hub that is away ends it with
        ``resource.hub_unreachable`` only where the caller's own question finds it so.
        """
        while True:
            yield
            started = time.monotonic()
            try:
                with self._http.stream(
                    "GET",
                    "stream",
                    params=query_of({"topic": list(topics)}),
                    timeout=httpx.Timeout(TIMEOUT_S, read=POLL_S),
                ) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            yield
            except httpx.ReadTimeout:
                continue
            except httpx.TransportError:
                pass
            time.sleep(max(0.0, started + POLL_S - time.monotonic()))

    # -- how it is asked ---------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[T], **query: Any) -> T:
        return self._send("GET", path, kind, params=query_of(query))

    def _list(self, path: str, kind: type[T], *, limit: int = 0, **query: Any) -> Iterator[T]:
        """Every item over all pages, or the first ``limit``."""
        cursor, count = "", 0
        while True:
            size = min(limit - count, 1000) if limit else 1000
            page = self._send("GET", path, dict[str, Any], params=query_of({**query, "limit": size, "cursor": cursor}))
            for item in page["items"]:
                yield self._convert(item, kind)
                count += 1
                if limit and count >= limit:
                    return
            cursor = page.get("next") or ""
            if not cursor:
                return

    def _send(self, method: str, path: str, kind: type[T], **request: Any) -> T:
        content = self._ask(method, path, **request)
        try:
            return self._convert(msgspec.json.decode(content), kind)
        except msgspec.DecodeError as error:
            raise _not_a_hub(self.url, error) from error

    def _delete(self, path: str, reason: str = "") -> None:
        self._ask("DELETE", path, params=query_of({"reason": reason}))

    def _ask(self, method: str, path: str, **request: Any) -> bytes:
        try:
            answer = self._http.request(method, path, **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise unreachable(self.url, error) from error
        if not answer.is_success:
            raise problem_of(answer.status_code, answer.content, self.url)
        return answer.content

    def _blocks(self, path: str, start: int) -> Iterator[bytes]:
        """A file's bytes from ``start`` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if not answer.is_success:
                    raise problem_of(answer.status_code, answer.read(), self.url)
                yield from answer.iter_bytes(package.BLOCK_BYTES)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise unreachable(self.url, error) from error

    def _convert(self, value: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise _not_a_hub(self.url, error) from error

    def _fetch(self, path: str, target: Path, progress: Progress | None) -> Path:
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    raise problem_of(answer.status_code, answer.read(), self.url)
                total, done = int(answer.headers.get("content-length", 0)), 0
                with partial.open("wb") as file:
                    for block in answer.iter_bytes(package.BLOCK_BYTES):
                        file.write(block)
                        done += len(block)
                        if progress:
                            progress(done, total)
            partial.replace(target)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise unreachable(self.url, error) from error
        finally:
            partial.unlink(missing_ok=True)
        return target


def query_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ("", None, [])}


def part_of(text: str) -> str:
    """One part of an address: a name with a slash must not become another address."""
    return quote(text, safe="")


def parts_of(path: str) -> str:
    """A path of several parts."""
    return quote(path, safe="/")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return ""


def _not_a_hub(url: str, error: Exception) -> ResourceError:
    return ResourceError(
        "resource.hub_unreachable",
        f"cannot understand what answers at {url}: {error}; is it a Skerry hub of this version?",
    )
