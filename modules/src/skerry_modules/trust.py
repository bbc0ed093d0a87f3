"""Ed25519 signatures over typed payloads (DSSE), keys and their ids.

What is signed is the DSSE pre-authentication encoding, so that a signature on one kind of document (a module's
index) can never pass for another kind (a desired document).
Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md

Publishers sign where they pack; the hub holds no publisher's key. The hub signs desired documents with its own.
A key's id is the first 16 hex digits of the SHA-256 of its raw public bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from skerry_modules.errors import InputError, PeerError

if TYPE_CHECKING:  # every message imports this file; only those who sign or verify need the library's 8 MB
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MODULE_TYPE: Final = "application/vnd.skerry.module-index.v1+json"
DESIRED_TYPE: Final = "application/vnd.skerry.desired.v1+msgpack"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One detached signature: the signer's key id and 64 raw bytes (base64 in JSON)."""

    keyid: str
    sig: bytes


class PublicKey(msgspec.Struct, frozen=True):
    """A key that may sign; ``name`` is for people."""

    keyid: str
    raw: bytes
    name: str = ""

    def text(self) -> str:
        """``ed25519:<base64> <name>``: the form that key files and configurations hold."""
        return f"ed25519:{base64.b64encode(self.raw).decode()} {self.name}".strip()


class SigningKey:
    """A private key in memory. ``sign`` is its only use."""

    def __init__(self, private: Ed25519PrivateKey, name: str = "") -> None:
        from cryptography.hazmat.primitives import serialization

        self._private = private
        raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = PublicKey(key_id(raw), raw, name)

    @classmethod
    def generate(cls, name: str = "") -> SigningKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate(), name)

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        return Signature(self.public.keyid, self._private.sign(pre_auth_encoding(payload_type, payload)))

    def save(self, path: Path) -> None:
        """Write the key as PKCS#8 PEM with mode 0600; refuses to overwrite."""
        from cryptography.hazmat.primitives import serialization

        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    @classmethod
    def load(cls, path: Path, name: str = "") -> SigningKey:
        """Read a PEM written by :meth:`save` (or ``openssl genpkey -algorithm ed25519``).

        Raises:
            InputError: ``trust.bad_key``.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError("trust.bad_key", f"cannot read the signing key {path}: {error}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise InputError("trust.bad_key", f"cannot use {path}: it holds another kind of key; make an Ed25519 key")
        return cls(private, name)


def key_id(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def parse_public(text: str) -> PublicKey:
    """Read ``ed25519:<base64> [name]``.

    Raises:
        InputError: ``trust.bad_key``.
    """
    head, _, name = text.strip().partition(" ")
    kind, _, encoded = head.partition(":")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:  # no base64, or no ASCII
        raw = b""
    if kind != "ed25519" or len(raw) != 32:
        raise InputError("trust.bad_key", f"cannot read the public key {text[:80]!r}: use ed25519:<base64> [name]")
    return PublicKey(key_id(raw), raw, name.strip())


def pre_auth_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1: ``DSSEv1 SP len(type) SP type SP len(body) SP body``."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify(
    payload_type: str, payload: bytes, signatures: tuple[Signature, ...], trusted: dict[str, PublicKey]
) -> PublicKey:
    """Return the first trusted key whose signature holds.

    Raises:
        PeerError: ``trust.unsigned`` (none given), ``trust.unknown_key`` (none by a trusted key),
            ``trust.bad_signature`` (by a trusted key, but wrong).
    """
    if not signatures:
        raise PeerError(
            "trust.unsigned", "cannot accept an unsigned document: sign it with `skerry modules pack --key`"
        )
    known = [signature for signature in signatures if signature.keyid in trusted]
    if not known:
        ids = ", ".join(signature.keyid for signature in signatures)
        raise PeerError(
            "trust.unknown_key",
            f"cannot trust the signature by {ids}: add the publisher's key first, with `skerry keys trust`",
        )
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    message = pre_auth_encoding(payload_type, payload)
    for signature in known:
        key = trusted[signature.keyid]
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(signature.sig, message)
        except InvalidSignature:
            continue
        return key
    raise PeerError("trust.bad_signature", "cannot accept the document: its signature does not match its content")
