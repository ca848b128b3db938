"""gRPC's framing, metadata and statuses: what goes in comes out, and what is not theirs is told so."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.grpc_wire import (
    MalformedMessage,
    Messages,
    OversizedMessage,
    framed,
    headers_of,
    message_header,
    message_of,
    metadata_of,
    timeout_s,
)


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(1, 50), min_size=1))
def test_messages_are_the_same_however_their_bytes_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    data, found, reader, at = b"".join(map(framed, sent)), [], Messages(300), 0
    while data:
        size = cuts[at % len(cuts)]
        at += 1
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == sent
    assert reader.held_bytes == 0


@given(st.binary(max_size=2000))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    reader = Messages(100, b"gzip")
    try:
        found = reader.feed(data)
    except (MalformedMessage, OversizedMessage):
        return
    assert all(len(each) <= 100 for each in found)
    assert reader.held_bytes <= len(data)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_messages_are_inflated_within_the_limit(encoding: bytes, compress: object) -> None:
    assert callable(compress)

    def wrapped(message: bytes) -> bytes:
        squeezed: bytes = compress(message)
        return b"\x01" + len(squeezed).to_bytes(4, "big") + squeezed

    assert Messages(1000, encoding).feed(wrapped(b"a" * 1000)) == [b"a" * 1000]
    with pytest.raises(OversizedMessage):
        Messages(1000, encoding).feed(wrapped(b"a" * 1001))
    with pytest.raises(MalformedMessage, match="grpc-encoding is ''"):
        Messages(1000).feed(wrapped(b"a"))


def test_a_message_over_the_limit_is_refused_before_it_is_held() -> None:
    with pytest.raises(OversizedMessage) as caught:
        Messages(100).feed(b"\x00\x00\x00\x00\x65")
    assert caught.value.size == 101


def test_timeouts_have_grpcs_units() -> None:
    assert [timeout_s(each) for each in (b"2H", b"3M", b"4S", b"5m", b"6u", b"1n", b"")] == [
        7200, 180, 4, 0.005, 6e-6, 1e-9, None,
    ]  # fmt: skip
    for wrong in (b"x", b"5", b"5x", b"-1S", b"123456789S", b"\xff\xffS"):
        with pytest.raises(MalformedMessage):
            timeout_s(wrong)


@given(st.text())
def test_a_statuss_message_reads_back(text: str) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    header = message_header(encodable)
    assert header.isascii()
    assert message_of(header) == encodable


def test_metadata_reads_back_without_what_is_grpcs_own() -> None:
    metadata = (("authorization", "Bearer x"), ("some-bin", b"\x00\xff\x10"))
    headers = [(b":path", b"/x"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), *headers_of(metadata)]
    assert metadata_of(headers) == metadata
