"""The codec chain: what goes in comes out, for its own place only; limits, keys, digests and failures."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_celery.codec import (
    AesGcm,
    Codec,
    Deflate,
    Place,
    chain_of,
    digest,
    failure_of,
    rebuild,
)
from durable_celery.errors import CodecError, ConfigurationError, PayloadError, RemoteError, StepTimeoutError

PLACE = Place("w-1", "call", 3)
OLD, NEW = os.urandom(32), os.urandom(16)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def sealing(*codecs: Any, **options: Any) -> Codec:
    return Codec(1_000_000, codecs or (Deflate(above=50), AesGcm({"k1": OLD})), **options)


@given(json_values)
def test_values_come_back_from_any_chain(value: Any) -> None:
    for codec in (Codec(), sealing(Deflate(above=0)), sealing(AesGcm({"k": OLD})), sealing()):
        assert codec.decode(codec.encode(value, "v", PLACE), PLACE) == value


def test_stored_form_is_plain_json_without_a_codec() -> None:
    assert Codec().encode([["o-1", 12], {}], "v", PLACE) == '[["o-1",12],{}]'
    assert Codec().digest('[["o-1",12],{}]', PLACE) == digest('[["o-1",12],{}]')
    assert len(list(Codec().digests("[]", PLACE))) == 1


def test_small_payloads_are_not_compressed_and_large_ones_are() -> None:
    codec = sealing(Deflate(above=100))
    assert codec.encode("small", "v", PLACE) == '"small"'
    large = codec.encode("x" * 10_000, "v", PLACE)
    assert large.startswith("~z~")
    assert len(large) < 200
    assert not codec.hides


def test_compressed_bomb_is_refused_when_it_is_read() -> None:
    text = sealing(Deflate(above=0)).encode("x" * 900_000, "v", PLACE)
    with pytest.raises(CodecError, match="larger than 1000 bytes"):
        sealing(Deflate(limit=1000)).decode(text, PLACE)


def test_limit_is_held_against_the_json_text_before_the_chain() -> None:
    codec = Codec(100, (Deflate(above=10), AesGcm({"k": OLD})))
    with pytest.raises(PayloadError, match="102 characters, the limit is 100"):
        codec.encode("x" * 100, "v", PLACE)
    assert len(codec.encode("x" * 98, "v", PLACE)) > 0


@pytest.mark.parametrize(
    "other",
    [
        Place("w-2", "call", 3),
        Place("w-1", "call", 4),
        Place("w-1", "call", 3, run=2),
        Place("w-1", "outcome", 3),
        Place("w-1", "override", 3),
        Place("w-1", "signal", 3, name="x"),
        Place("w-1/1.3", "call", 3),
    ],
    ids=str,
)
def test_encrypted_payload_opens_at_its_own_place_only(other: Place) -> None:
    codec = sealing()
    text = codec.encode("secret", "v", PLACE)
    with pytest.raises(CodecError, match="tag is wrong"):
        codec.decode(text, other)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_flipped_bit_is_noticed(at: int, flip: int) -> None:
    import base64

    codec = sealing(AesGcm({"k1": OLD}))
    mark, names, data = codec.encode("x" * 100, "v", PLACE).split("~")
    raw = bytearray(base64.b64decode(data))
    raw[at % len(raw)] ^= flip
    with pytest.raises(CodecError):
        codec.decode("~".join([mark, names, base64.b64encode(raw).decode()]), PLACE)


@pytest.mark.parametrize(
    "text",
    ["~", "~aes", "~aes~", "~aes~!!", "~aes~AA==", "~aes~//8=", "~nobody~AAAA", "~aes.aes~AAAA", "[", None, "12"],
)
def test_texts_that_the_chain_did_not_write_are_refused(text: str | None) -> None:
    with pytest.raises(CodecError):
        sealing().decode(text, PLACE)


def test_plain_payloads_are_refused_under_encryption_unless_old_ones_are_to_be_read() -> None:
    plain, packed = '{"a":1}', sealing(Deflate(above=0)).encode("x" * 100, "v", PLACE)
    for text in (plain, packed):
        with pytest.raises(CodecError, match=r"not encrypted|does not hide"):
            sealing().decode(text, PLACE)
    assert sealing(accepts_plain=True).decode(plain, PLACE) == {"a": 1}


def test_two_encryptions_of_one_value_differ_and_its_digest_does_not() -> None:
    codec = sealing()
    assert codec.encode("s", "v", PLACE) != codec.encode("s", "v", PLACE)
    assert codec.digest('"s"', PLACE) == codec.digest('"s"', PLACE)
    assert codec.digest('{"a":1,"b":2}', PLACE) == codec.digest('{"b":2,"a":1}', PLACE)


def test_digest_tells_nothing_without_the_key_not_even_that_two_places_have_equal_arguments() -> None:
    codec, stranger = sealing(), sealing(AesGcm({"k1": NEW}))
    assert digest("[7]") not in codec.digest("[7]", PLACE)
    assert codec.digest("[7]", PLACE) != stranger.digest("[7]", PLACE)
    assert codec.digest("[7]", PLACE) != codec.digest("[7]", Place("w-2", "call", 3))


def test_keys_rotate_old_payloads_open_and_old_digests_are_known_again() -> None:
    before, after = sealing(AesGcm({"k1": OLD})), sealing(AesGcm({"k2": NEW, "k1": OLD}))
    text, old = before.encode("s", "v", PLACE), before.digest("[1]", PLACE)
    assert after.decode(text, PLACE) == "s"
    assert after.digest("[1]", PLACE, like=old) == old
    assert after.digest("[1]", PLACE).startswith("k2:")
    assert old in after.digests("[1]", PLACE)
    with pytest.raises(CodecError, match="no key 'k2' here, only k1"):
        before.decode(after.encode("s", "v", PLACE), PLACE)
    with pytest.raises(CodecError, match="k2"):
        before.digest("[1]", PLACE, like=after.digest("[1]", PLACE))


def test_missing_codec_is_named() -> None:
    with pytest.raises(CodecError, match="codec 'aes' is missing in this process"):
        Codec().decode(sealing(AesGcm({"k": OLD})).encode("s", "v", PLACE), PLACE)


def test_codec_that_raises_is_no_error_of_the_value() -> None:
    class Away:
        name, hides = "kms", True

        def encode(self, _data: bytes, _place: Place) -> bytes:
            raise ConnectionError("the key service is away")

        decode = encode

    with pytest.raises(CodecError, match=r"kms failed to encode it .*key service is away"):
        sealing(Away()).encode("s", "v", PLACE)


@pytest.mark.parametrize(
    ("setting", "story"),
    [
        ("nowhere.codec", "cannot be imported"),
        ("os.path", "is no codec"),
        ("plain", "cannot be imported"),
        (object(), "is no codec"),
        (AesGcm, "could not be made"),
        ([Deflate(), Deflate()], "two codecs have one name"),
        (AesGcm({"k:1": OLD}), "key ids"),
    ],
)
def test_setting_that_names_no_codec_is_refused_at_once(setting: object, story: str) -> None:
    with pytest.raises(ConfigurationError, match=story):
        chain_of(setting)


def test_setting_takes_objects_paths_and_classes() -> None:
    names = [codec.name for codec in chain_of(["durable_celery.codec:Deflate", AesGcm({"k": OLD})])]
    assert names == ["z", "aes"]
    assert chain_of(None) == ()


@pytest.mark.parametrize("keys", [{}, {"k": b"short"}, {"": OLD}, {"k": "no base64!"}, {"k" * 65: OLD}])
def test_keys_that_cannot_be_keys_are_refused_without_showing_them(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AesGcm(keys)
    assert "short" not in str(caught.value)
    assert "no base64!" not in str(caught.value)


def test_keys_never_show_in_a_codec_s_repr() -> None:
    assert repr(AesGcm({"k2": OLD, "k1": NEW})) == "AesGcm(keys k2, k1)"


# -- failures ----------------------------------------------------------------------------------------------------------


def forged(**form: Any) -> str:
    whole = {"type": "x", "module": "builtins", "name": "ValueError", "message": "m", "args": ["m"], "traceback": ""}
    return Codec().encode(whole | form, "failure")


@pytest.mark.parametrize(
    "form",
    [
        {"module": "os", "name": "system", "args": ["touch /tmp/never"]},
        {"module": "builtins", "name": "eval", "args": ["1/0"]},
        {"module": "builtins", "name": "exit", "args": []},
        {"module": "builtins", "name": "SystemExit", "args": [1]},
        {"module": "builtins", "name": "KeyboardInterrupt", "args": []},
        {"module": "subprocess", "name": "Popen", "args": [["true"]]},
        {"module": "builtins", "name": "ValueError.__init__.__globals__", "args": []},
        {"module": "builtins", "name": "ValueError.__class__.__call__", "args": []},
        {"module": "builtins", "name": "", "args": []},
        {"module": "antigravity", "name": "Error", "args": []},
        {"module": "wsgiref.handlers", "name": "SimpleHandler", "args": []},
        {"module": ["os"], "name": "x"},
        {"module": "builtins", "name": ["ValueError"]},
        {"module": "builtins", "name": "ValueError", "args": {"a": 1}},
        {"module": "builtins", "name": "UnicodeDecodeError", "args": ["wrong"]},
        {"module": None, "name": None, "args": None},
        {"type": ["x"], "message": {"y": 1}, "name": "Nobody", "traceback": 7},
    ],
    ids=lambda form: f"{form.get('module')}.{form.get('name')}",
)
def test_hostile_failures_come_back_as_remote_errors_and_run_nothing(form: dict[str, Any]) -> None:
    loaded = set(sys.modules)
    error = rebuild(forged(**form), Codec())
    assert type(error) is RemoteError
    assert set(sys.modules) == loaded, "nothing is imported for a failure"


@given(st.dictionaries(st.sampled_from(["type", "module", "name", "message", "args", "traceback"]), json_values))
def test_no_recorded_failure_breaks_its_reader(form: dict[str, Any]) -> None:
    assert isinstance(rebuild(Codec().encode(form, "f"), Codec()), Exception)


@given(json_values)
def test_payload_that_is_no_failure_is_read_as_an_unknown_one(value: Any) -> None:
    assert isinstance(rebuild(Codec().encode(value, "f"), Codec()), Exception)


def test_failures_are_sealed_with_message_arguments_and_traceback() -> None:
    codec = sealing()
    text = failure_of(ValueError("the secret", {"card": "4111"}), codec, PLACE)
    assert text.startswith("~")
    assert rebuild(text, codec, PLACE).args == ("the secret", {"card": "4111"})
    with pytest.raises(CodecError):
        rebuild(text, codec, Place("w-2", "outcome", 3))


def test_only_a_timeout_of_the_store_is_read_in_plain_under_encryption() -> None:
    codec = sealing()
    timeout = failure_of(StepTimeoutError("late"), Codec())
    assert isinstance(rebuild(timeout, codec, PLACE), StepTimeoutError)
    with pytest.raises(CodecError, match="not encrypted"):
        rebuild(failure_of(ValueError("forged"), Codec()), codec, PLACE)
    with pytest.raises(CodecError):
        rebuild("{", codec, PLACE)


def test_timeout_in_plain_cannot_smuggle_another_class() -> None:
    form = forged(type="durable_celery.errors.StepTimeoutError", module="builtins", name="ValueError")
    error = rebuild(form, sealing(), PLACE)
    assert isinstance(error, StepTimeoutError | RemoteError)
