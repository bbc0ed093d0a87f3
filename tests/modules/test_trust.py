"""Signatures: any other byte, any other kind of document, any other key is refused, each with its own code."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_modules import trust
from skerry_modules.errors import InputError, PeerError
from skerry_modules.trust import DESIRED_TYPE, MODULE_TYPE, Signature, SigningKey

KEY, OTHER = SigningKey.generate("mine"), SigningKey.generate("other")
TRUSTED = {KEY.public.keyid: KEY.public}
PAYLOAD = b'{"the":"index"}'


def refused(kind: str, payload: bytes, *signatures: Signature) -> str:
    with pytest.raises(PeerError) as caught:
        trust.verify(kind, payload, signatures, TRUSTED)
    assert caught.value.message.startswith("cannot ")
    return caught.value.code


@given(st.binary(max_size=200))
def test_what_was_signed_verifies(payload: bytes) -> None:
    mine, others = KEY.sign(MODULE_TYPE, payload), OTHER.sign(MODULE_TYPE, payload)
    assert trust.verify(MODULE_TYPE, payload, (others, mine), TRUSTED) == KEY.public


@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_the_content_is_refused(at: int, flip: int) -> None:
    changed = bytearray(PAYLOAD)
    changed[at] ^= flip
    assert refused(MODULE_TYPE, bytes(changed), KEY.sign(MODULE_TYPE, PAYLOAD)) == "trust.bad_signature"


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_flipped_byte_of_the_signature_is_refused(at: int, flip: int) -> None:
    good = KEY.sign(MODULE_TYPE, PAYLOAD)
    changed = bytearray(good.sig)
    changed[at] ^= flip
    assert refused(MODULE_TYPE, PAYLOAD, Signature(good.keyid, bytes(changed))) == "trust.bad_signature"


@given(st.binary(max_size=100))
def test_garbage_is_no_signature(garbage: bytes) -> None:
    assert refused(MODULE_TYPE, PAYLOAD, Signature(KEY.public.keyid, garbage)) == "trust.bad_signature"


def test_a_signature_on_another_kind_of_document_is_refused() -> None:
    assert refused(DESIRED_TYPE, PAYLOAD, KEY.sign(MODULE_TYPE, PAYLOAD)) == "trust.bad_signature"


def test_no_signature_an_unknown_key_and_a_borrowed_key_id_are_refused() -> None:
    foreign = OTHER.sign(MODULE_TYPE, PAYLOAD)
    assert refused(MODULE_TYPE, PAYLOAD) == "trust.unsigned"
    assert refused(MODULE_TYPE, PAYLOAD, foreign) == "trust.unknown_key"
    assert refused(MODULE_TYPE, PAYLOAD, Signature(KEY.public.keyid, foreign.sig)) == "trust.bad_signature"


@given(st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_no_two_documents_share_an_encoding(kind: str, body: bytes, other: str, others: bytes) -> None:
    same = trust.pre_auth_encoding(kind, body) == trust.pre_auth_encoding(other, others)
    assert same == ((kind, body) == (other, others))


def test_a_key_survives_its_file_which_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path, "mine").public == KEY.public
    with pytest.raises(FileExistsError):
        OTHER.save(path)


def test_a_public_key_survives_its_text() -> None:
    assert trust.parse_public(KEY.public.text()) == KEY.public


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 44, "ed25519:%%%", "x" * 200])
def test_what_is_no_public_key_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(InputError, match="use ed25519:<base64>") as caught:
        trust.parse_public(text)
    assert caught.value.code == "trust.bad_key"


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_signing_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read the signing key"):
        SigningKey.load(path)
    with pytest.raises(InputError, match="cannot read the signing key"):
        SigningKey.load(tmp_path / "missing.pem")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    pem = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(InputError, match="another kind of key"):
        SigningKey.load(tmp_path / "key.pem")
