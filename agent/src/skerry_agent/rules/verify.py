"""The gate in front of everything that comes from outside: a document or an index is believed only after this.

The only place where the agent's rules check digests and signatures; what passed here carries its proof in its type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from skerry_modules import index as indexes
from skerry_modules import messages, trust
from skerry_modules.errors import PeerError
from skerry_modules.index import Index
from skerry_modules.messages import Desired, DesiredModule, Signed
from skerry_modules.trust import PublicKey, Signature


def read_index(
    data: bytes, digest: str, name: str, signatures: tuple[Signature, ...], publishers: Mapping[str, PublicKey]
) -> Index:
    """The index that ``digest`` names, signed by a publisher that this device trusts, for the module ``name``.

    Raises:
        PeerError: ``package.*`` for content, ``trust.*`` for signatures, ``trust.bad_signature`` too where a rightly
            signed index of another module was put in its place.
    """
    if hashlib.sha256(data).hexdigest() != digest:
        raise PeerError("package.digest_mismatch", f"cannot use the index {digest[:12]}: its content is damaged")
    try:
        indexes.verify_index(data, signatures, dict(publishers))
    except PeerError as error:
        raise _told_here(error, signatures, "hub.publishers") from error
    index = indexes.parse_index(data)
    if index.manifest.name != name:
        raise PeerError(
            "trust.bad_signature",
            f"cannot use the index {digest[:12]} as {name}: it is signed as {index.manifest.name}; register it anew",
        )
    return index


def read_desired(payload: bytes, device: str, hub_keys: Mapping[str, PublicKey]) -> Desired:
    """The desired document for this device, signed by its hub.

    Raises:
        PeerError: ``message.*``, ``trust.*``, ``message.wrong_device``.
    """
    signed: Signed = messages.decode("desired", payload)
    try:
        trust.verify(trust.DESIRED_TYPE, signed.payload, signed.signatures, dict(hub_keys))
    except PeerError as error:
        raise _told_here(error, signed.signatures, "hub.key") from error
    desired = messages.decode_desired(signed.payload)
    if desired.device != device:
        raise PeerError(
            "message.wrong_device",
            f"cannot follow a desired document for {desired.device[:64]!r}: this device is {device}",
        )
    return desired


def _told_here(error: PeerError, signatures: tuple[Signature, ...], setting: str) -> PeerError:
    """What a hub or a command line would be told to do about an unknown key does not help a device: its file does."""
    if error.code != "trust.unknown_key":
        return error
    ids = ", ".join(signature.keyid[:64] for signature in signatures[:4])
    return PeerError(
        error.code,
        f"cannot trust the signature by {ids}: {setting} in this device's configuration does not name that key; "
        "add it there and start the agent again",
    )


def is_sound(wanted: DesiredModule, max_index_bytes: int) -> str:
    """Why this entry of a document cannot be acted on, in words; empty if it can."""
    if len(wanted.digest) != 64 or set(wanted.digest) - set("0123456789abcdef"):
        return f"the digest {wanted.digest[:80]!r} is not a SHA-256"
    if not 0 < wanted.index_size <= max_index_bytes:
        return f"an index of {wanted.index_size} bytes is not possible; the limit is {max_index_bytes}"
    return ""
