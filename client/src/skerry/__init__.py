"""Skerry's Python API: register models, roll them out to devices, and watch them.

>>> import skerry
>>> hub = skerry.Client("http://127.0.0.1:8420")
>>> skerry.deploy("model.onnx", to="site=lab", client=hub)
>>> skerry.Endpoint("http://device:8090", "model")(images)

Every error is a :class:`SkerryError` with a stable ``code``.
"""

from skerry.client import Client
from skerry.deploying import Deployment, deploy
from skerry.endpoint import Endpoint
from skerry.types import Plan
from skerry_modules.errors import BugError, InputError, PeerError, ResourceError, SkerryError

__all__ = [
    "BugError",
    "Client",
    "Deployment",
    "Endpoint",
    "InputError",
    "PeerError",
    "Plan",
    "ResourceError",
    "SkerryError",
    "deploy",
]
