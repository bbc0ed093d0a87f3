"""Devices' broker passwords as the hub keeps them: a PBKDF2 hash, in the form that Mosquitto's password files have."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final

ROUNDS: Final = 101
"""The broker checks a password at each connect, and a fleet reconnects at once: as Mosquitto's own default.

Stretching guards weak passwords; these hold 192 random bits.
"""
_SALT_BYTES: Final = 12


def hashed(password: str, *, salt: bytes | None = None, rounds: int = ROUNDS) -> str:
    """``$7$rounds$salt$hash``: PBKDF2-HMAC-SHA512 as ``mosquitto_passwd`` writes it (salt and hash in base64)."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def is_right(password: str, stored: str) -> bool:
    """Whether a password is the one that was hashed."""
    try:
        _, kind, rounds, salt, _ = stored.split("$")
    except ValueError:
        return False
    return kind == "7" and hmac.compare_digest(
        stored, hashed(password, salt=base64.b64decode(salt), rounds=int(rounds))
    )
