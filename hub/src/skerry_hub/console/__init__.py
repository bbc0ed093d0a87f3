"""The web console: server-rendered pages that stay live, with every asset inside the package.

:func:`mount` adds it to the hub's app. The pages read with :mod:`skerry_hub.console.queries` and act only through the
hub's services, as the API does. Not handled here: who may ask (:mod:`skerry_hub.auth`), what an error is (the app's
one handler, which dresses it with :func:`skerry_hub.console.errors.error_page`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


def mount(app: FastAPI) -> None:
    """Add the console's pages, assets and headers to ``app``; ``app.state.hub`` is asked at each request."""
    from skerry_hub.console import (
        routes,
        routes_batches,
        routes_devices,
        routes_endpoints,
        routes_environments,
        routes_models,
        routes_rollouts,
    )
    from skerry_hub.console.pulse import Pulse
    from skerry_hub.console.security import ConsoleHeaders

    app.state.console_pulse = Pulse()
    areas = (routes_devices, routes_endpoints, routes_environments, routes_models, routes_rollouts, routes_batches)
    for module in (routes, *areas):
        app.include_router(module.router)
    app.add_middleware(ConsoleHeaders)
