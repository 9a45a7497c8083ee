"""A key that is sealed for one host opens there, for its cluster and unaltered; what is handed in is judged."""

from __future__ import annotations

import base64
import secrets

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from _utils import cluster_keys as keys


@pytest.fixture(scope="module", name="pairs")
def two_pairs():
    """Private keys of two hosts."""
    return [keys.new_private(), keys.new_private()]


@pytest.fixture(scope="module", name="publics")
def their_public_halves(pairs):
    return [keys.public_half(pair) for pair in pairs]


@pytest.fixture(name="key")
def a_key():
    return secrets.token_bytes(256)


def pem(key):
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def test_a_sealed_key_opens_with_its_recipients_key_alone(pairs, publics, key):
    entry = keys.seal(key, "c", publics[0])
    assert keys.unseal(entry, "c", pairs[0]) == key
    with pytest.raises(ValueError, match="does not open with this host's key"):
        keys.unseal(entry, "c", pairs[1])


@pytest.mark.parametrize("length", [128, 255, 318])
def test_a_key_of_another_cluster_opens_whatever_its_length(pairs, publics, length):
    content = secrets.token_bytes(length)
    assert keys.unfit(content, {"hv1": publics[0]}) == ""
    assert keys.unseal(keys.seal(content, "c", publics[0]), "c", pairs[0]) == content


@pytest.mark.parametrize(
    ("length", "told"),
    [
        (319, "has 319 bytes, and at most 318 can be sealed for hv1, hv2"),
        (127, "has 127 bytes, and corosync takes 128 to"),
    ],
)
def test_a_key_that_cannot_be_sealed_says_why(publics, length, told):
    assert keys.unfit(bytes(length), {"hv1": publics[0], "hv2": publics[1]}).startswith(told)


def test_one_with_a_longer_key_of_its_own_has_more_room(publics):
    longer = pem(rsa.generate_private_key(public_exponent=65537, key_size=4096))
    assert keys.unfit(bytes(446), {"hv1": longer}) == ""
    told = "has 446 bytes, and at most 318 can be sealed for hv2"
    assert keys.unfit(bytes(446), {"hv1": longer, "hv2": publics[1]}) == told


def test_what_corosync_does_not_take_is_refused(pairs, publics):
    with pytest.raises(ValueError, match="it has 64 bytes, and corosync takes 128 to 4096"):
        keys.unseal(keys.seal(bytes(64), "c", publics[0]), "c", pairs[0])


def test_it_opens_for_its_cluster_alone(pairs, publics, key):
    with pytest.raises(ValueError, match="does not open"):
        keys.unseal(keys.seal(key, "c", publics[0]), "d", pairs[0])


def test_an_altered_one_is_refused(pairs, publics, key):
    entry = keys.seal(key, "c", publics[0])
    blob = bytearray(base64.b64decode(entry["blob"]))
    blob[10] ^= 1
    with pytest.raises(ValueError, match="does not open"):
        keys.unseal({**entry, "blob": base64.b64encode(blob).decode()}, "c", pairs[0])
    with pytest.raises(ValueError, match="another key than it says"):
        keys.unseal({**entry, "key": "0" * 64}, "c", pairs[0])


def test_nothing_of_the_key_shows_in_what_is_sealed(publics, key):
    text = str(keys.seal(key, "c", publics[0]))
    assert key.hex() not in text
    assert base64.b64encode(key).decode()[:40] not in text


def test_what_a_host_hands_in_is_accepted(publics, key):
    assert keys.handed_in({"public": publics[0], "sealed": {}}) == ""
    assert keys.handed_in({"public": publics[0], "sealed": {"hv2": keys.seal(key, "c", publics[1])}}) == ""


def test_what_is_no_public_key_is_refused(publics):
    short = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    other = pem(ec.generate_private_key(ec.SECP256R1()))
    for wrong in ("", "x" * 5000, publics[0][:-80], short, other, 7, None):
        assert keys.handed_in({"public": wrong, "sealed": {}}).startswith("public: it is no")


@pytest.mark.parametrize(
    "over",
    [{"for": "x"}, {"key": "A" * 64}, {"blob": "!" * 512}, {"blob": "QUJD"}, {"more": "1"}, {"blob": 7}],
)
def test_what_is_no_sealed_key_is_refused(publics, key, over):
    entry = {**keys.seal(key, "c", publics[1]), **over}
    told = keys.handed_in({"public": publics[0], "sealed": {"hv2": entry}})
    assert told == "sealed has an entry that is no sealed key of a minion"


@pytest.mark.parametrize("name", ["../x", "", "a b", "-a", "x" * 64, 7])
def test_a_name_that_is_no_minion_id_is_refused(publics, key, name):
    sealed = {name: keys.seal(key, "c", publics[1])}
    assert "no sealed key of a minion" in keys.handed_in({"public": publics[0], "sealed": sealed})


@pytest.mark.parametrize("entry", [None, [], {"public": "x"}, {"public": "x", "sealed": {}, "more": 1}])
def test_what_has_another_form_is_refused(entry):
    assert keys.handed_in(entry) == "it is no mapping of public and sealed"


def test_a_private_key_that_is_none_is_not_quoted():
    with pytest.raises(ValueError, match="no RSA private key") as caught:
        keys.public_half(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    assert "c2VjcmV0" not in str(caught.value)


def test_who_needs_it_sealed_and_who_has_no_more_claim(publics, key):
    there = {"hv2": keys.seal(key, "c", publics[0]), "hv3": keys.seal(key, "c", publics[1])}
    assert keys.stale(there, key, {"hv2": publics[0], "hv3": publics[1]}) == ([], [])
    assert keys.stale(there, key, {"hv2": publics[1], "hv4": publics[1]}) == (["hv2", "hv4"], ["hv3"])
    assert keys.stale(there, b"another", {"hv2": publics[0]}) == (["hv2"], ["hv3"])
