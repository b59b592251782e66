from __future__ import annotations

import base64
import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import signing
from relay.errors import BadInput, BadSignature, TooLarge

GOLDEN_SECRET = "test_secret_do_not_use_in_production"
GOLDEN_BODY = b'{"type":"call.session_started","created_at":1778198400000000000}'
GOLDEN_SIGNATURE = "9c65b50bfdf1e8205ba673103a21d3fda71d6969f9003c0f2cdaf43467f6ab07"

STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LIMIT = 10_000


# -- Stream's scheme ----------------------------------------------------------------------------


def test_the_golden_vector_of_stream_is_signed_and_verified() -> None:
    assert signing.stream_signature(GOLDEN_BODY, GOLDEN_SECRET) == GOLDEN_SIGNATURE
    signing.verify_stream(GOLDEN_BODY, GOLDEN_SIGNATURE, [GOLDEN_SECRET])


@given(st.binary(), st.text(min_size=1), st.text(min_size=1))
def test_any_of_the_secrets_will_do(body: bytes, old: str, new: str) -> None:
    signing.verify_stream(body, signing.stream_signature(body, old), [new, old])


@given(st.binary(), st.binary(), st.text(min_size=1))
def test_the_signature_of_one_body_is_not_that_of_another(
    body: bytes, other: bytes, secret: str
) -> None:
    signature = signing.stream_signature(body, secret)
    if body != other:
        with pytest.raises(BadSignature) as caught:
            signing.verify_stream(other, signature, [secret])
        assert caught.value.reason == "bad_signature"


@given(st.none() | st.text() | st.text("0123456789abcdefABCDEF", min_size=60, max_size=66))
def test_no_header_makes_it_raise_anything_but_a_bad_signature(header: str | None) -> None:
    with pytest.raises(BadSignature):
        signing.verify_stream(GOLDEN_BODY, header, ["another"])


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "signature_missing"),
        ("", "signature_missing"),
        (GOLDEN_SIGNATURE.upper(), "signature_malformed"),
        ("sha256=" + GOLDEN_SIGNATURE, "signature_malformed"),
        (GOLDEN_SIGNATURE + "\n", "signature_malformed"),
        ("0" * 64, "bad_signature"),
    ],
)
def test_a_bad_signature_says_in_which_way(header: str | None, reason: str) -> None:
    with pytest.raises(BadSignature) as caught:
        signing.verify_stream(GOLDEN_BODY, header, [GOLDEN_SECRET])
    assert caught.value.reason == reason
    assert GOLDEN_SECRET not in caught.value.message


def test_without_a_secret_nothing_verifies() -> None:
    with pytest.raises(BadSignature):
        signing.verify_stream(GOLDEN_BODY, GOLDEN_SIGNATURE, [])


# -- Standard Webhooks --------------------------------------------------------------------------


def test_the_example_of_the_standard_is_signed_and_verified() -> None:
    # Source: the Standard Webhooks specification's reference libraries.
    said = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signing.standard_signature(*said, STANDARD_SECRET) == signature
    webhook_id, timestamp, body = said
    listed = f"v1a,AAAA v1,AAAA {signature}"
    signing.verify_standard(body, webhook_id, timestamp, listed, [STANDARD_SECRET])


@given(st.text(), st.text(), st.binary(), st.text())
def test_no_header_of_the_standard_raises_anything_else(
    webhook_id: str, timestamp: str, body: bytes, signatures: str
) -> None:
    with pytest.raises(BadSignature):
        signing.verify_standard(body, webhook_id, timestamp, signatures, [STANDARD_SECRET])


@given(st.binary(min_size=16))
def test_each_of_id_timestamp_and_body_is_signed(key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    signature = signing.standard_signature("id", "1", b"body", secret)
    signing.verify_standard(b"body", "id", "1", signature, [STANDARD_SECRET, secret])
    for body, webhook_id, timestamp in [
        (b"b", "id", "1"),
        (b"body", "i", "1"),
        (b"body", "id", "2"),
    ]:
        with pytest.raises(BadSignature):
            signing.verify_standard(body, webhook_id, timestamp, signature, [secret])


def test_only_the_first_eight_signatures_are_tried() -> None:
    signature = signing.standard_signature("id", "1", b"body", STANDARD_SECRET)
    signing.verify_standard(b"body", "id", "1", "v1,x " * 7 + signature, [STANDARD_SECRET])
    with pytest.raises(BadSignature):
        signing.verify_standard(b"body", "id", "1", "v1,x " * 8 + signature, [STANDARD_SECRET])


@pytest.mark.parametrize("signatures", ["", "v1", "v2,abc", "v1a,abc"])
def test_a_list_without_an_entry_of_our_version_is_malformed(signatures: str) -> None:
    with pytest.raises(BadSignature) as caught:
        signing.verify_standard(b"", "id", "1", signatures, [STANDARD_SECRET])
    assert caught.value.reason == "signature_malformed"


@pytest.mark.parametrize("secret", ["whsec_%%%", "whsec_abc", "not base64!", "ä"])
def test_a_secret_must_be_base64(secret: str) -> None:
    with pytest.raises(ValueError, match=r"ASCII|base64"):
        signing.standard_key(secret)


@given(st.text())
def test_any_text_has_a_standard_form_with_its_bytes_as_the_key(secret: str) -> None:
    assert signing.standard_key(signing.standard_secret(secret)) == secret.encode()


def test_the_prefix_of_a_secret_may_be_missing() -> None:
    bare = STANDARD_SECRET.removeprefix("whsec_")
    assert signing.standard_key(bare) == signing.standard_key(STANDARD_SECRET)


# -- gzip ---------------------------------------------------------------------------------------


@given(st.binary(max_size=1000))
def test_a_body_comes_out_as_it_was_gzipped_or_not(body: bytes) -> None:
    assert signing.inflated(gzip.compress(body), LIMIT) == body
    if not body.startswith(b"\x1f\x8b"):
        assert signing.inflated(body, LIMIT) == body


@given(st.binary())
def test_any_bytes_after_the_magic_are_a_body_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(BadInput, TooLarge):
        signing.inflated(b"\x1f\x8b" + data, LIMIT)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_limit_is_exact(pack: type[bytes]) -> None:
    assert signing.inflated(pack(b"x" * LIMIT), LIMIT) == b"x" * LIMIT
    with pytest.raises(TooLarge, match="more than 10000 bytes") as caught:
        signing.inflated(pack(b"x" * (LIMIT + 1)), LIMIT)
    assert caught.value.reason == "body_too_large"


def test_a_bomb_is_never_unpacked() -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b"\0" * 1_000_000) for _ in range(100)) + packer.flush()
    with pytest.raises(TooLarge):
        signing.inflated(bomb, LIMIT)


@pytest.mark.parametrize(
    "damage",
    [
        lambda z: z[:-1],
        lambda z: z[:10],
        lambda z: z[:2],
        lambda z: z + b"tail",
        lambda z: z + z,
        lambda z: z[:-8] + b"\0" * 8,
    ],
    ids=["cut", "header only", "magic only", "tail", "twice", "wrong checksum"],
)
def test_a_damaged_gzip_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(BadInput) as caught:
        signing.inflated(damage(gzip.compress(GOLDEN_BODY)), LIMIT)
    assert caught.value.reason == "bad_gzip"
