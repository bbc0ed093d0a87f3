"""The firmware profile that an agent starts from, and what it sets for engines. Kept light: a start waits for it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from skerry_agent.engines._devices import publish
from skerry_modules import profiles
from skerry_modules.profiles import Profile


def load_profile(name: str) -> Profile:
    """One profile, without reading all that are shipped; a path to a ``.toml`` of one's own works too.

    Raises:
        InputError: ``profile.unknown``, ``profile.invalid``.
    """
    path = Path(name) if name.endswith(".toml") else profiles.folder() / f"{name}.toml"
    if path.is_file():
        profile = profiles.parse(path.read_text(), source=str(path))
        if profile.name == name or name.endswith(".toml"):
            return profile
    return profiles.get(name)


def equip(profile: Profile, environment: MutableMapping[str, str]) -> None:
    """What engines of this class want set: they start as children and inherit it."""
    for name, value in profile.environment().items():
        environment.setdefault(name, value)
    publish(profile, environment)
