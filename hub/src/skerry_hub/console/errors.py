"""The one error page, and the short form of it that a live page shows in place.

``skerry_hub.app``'s error handler decides what the error is; this only dresses it.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse

from skerry_hub.console.templating import NAVIGATION, environment, is_partial, page
from skerry_modules.errors import CODES

TITLES: Final = {
    400: "That cannot be done",
    401: "A token is needed",
    403: "Not allowed",
    404: "Not found",
    405: "That cannot be done here",
    409: "Not now",
    413: "Too large",
    422: "That cannot be done",
    500: "Something broke here",
    503: "Not reachable now",
}


def wants_html(request: Request) -> bool:
    """Whether the one who asks is a person in a browser, outside the API."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, *, status: int, code: str, message: str) -> HTMLResponse:
    """A whole page; for htmx a notice in the page that is open, so that nothing typed is lost."""
    if code == "request.not_found":
        message = f"There is no page {request.url.path!r} on this hub. Check the address, or start from the overview."
    if is_partial(request):
        text = environment().get_template("parts/flash.html").render(code=code, message=message)
        return HTMLResponse(
            text, status_code=status, headers={"HX-Retarget": "#flash", "HX-Reswap": "innerHTML", "Vary": "HX-Request"}
        )
    section, up = _around(request.url.path)
    return page(
        request,
        "error.html",
        title=TITLES.get(status, "Error"),
        section=section,
        up=up,
        status=status,
        error_status=status,
        code=code,
        message=message,
        meaning=CODES.get(code, ""),
    )


def _around(path: str) -> tuple[str, tuple[str, str, str] | None]:
    """The section an address lies below, and its list (address, label, icon): where to look for what is not there."""
    for section, address, label, icon in NAVIGATION[1:]:
        if path.startswith(f"{address}/"):
            return section, (address, label, icon)
    return "", None


def not_found(request: Request) -> HTMLResponse:
    return error_page(request, status=404, code="request.not_found", message="")
