"""Which commit a module is made from: read with git itself, and empty where there is none. Never an error."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

TIMEOUT_S: Final = 10.0
"""The longest that one question to git may take, seconds: a huge tree must not stop a deployment."""


class GitState(msgspec.Struct, frozen=True, kw_only=True):
    """``dirty``: tracked files differ from the commit, or the module's folder holds files that are in no commit."""

    commit: str = ""
    branch: str = ""
    remote: str = ""
    dirty: bool = False


def capture(folder: Path) -> GitState:
    """The state of the work tree that ``folder`` stands in."""
    commit = _ask(folder, "rev-parse", "HEAD")
    if not commit:
        return GitState()
    changed = _ask(folder, "status", "--porcelain", "--untracked-files=no")
    new = _ask(folder, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return GitState(
        commit=commit,
        branch=_ask(folder, "branch", "--show-current"),
        remote=without_password(_ask(folder, "config", "--get", "remote.origin.url")),
        dirty=bool(changed or new),
    )


def without_password(remote: str) -> str:
    """The address without the user and password that CI systems put into it: it is stored and shown."""
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return remote
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _ask(folder: Path, *question: str) -> str:
    # A hook or pager of the user's must not run, and status must not take the index lock of another git.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *question],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
