"""Frames and headers, as RFC 9113 and RFC 7541 define them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.datapath import http2

FRAMES = st.tuples(st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=300))


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=10), st.lists(st.integers(0, 3000), max_size=20))
def test_frames_are_read_as_written_wherever_they_are_cut(
    frames: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(http2.frame(*each) for each in frames)
    reader, at, got = http2.FrameReader(), 0, []
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        got += list(reader.feed(data[at:cut]))
        at = cut
    assert [tuple(each) for each in got] == frames


def test_a_frame_of_64_kib_has_its_length_in_three_bytes() -> None:
    assert http2.frame(http2.DATA, 0, 1, b"x" * 65_536)[:3] == b"\x01\x00\x00"


def test_headers_are_literals_whose_long_values_have_continued_lengths() -> None:
    assert http2.header_block([("te", "trailers")]) == b"\x00\x02te\x08trailers"
    # RFC 7541, C.1.2 with a prefix of 7 bits: 1337 - 127 = 1210 = 9 * 128 + 58.
    assert http2.header_block([("x", "v" * 1337)])[3:6] == bytes((127, 58 | 0x80, 9))
    assert http2.header_block([("x", "v" * 127)])[3:5] == bytes((127, 0))


def test_a_grpc_message_has_its_length_before_it() -> None:
    assert http2.grpc_message(b"abc") == b"\x00\x00\x00\x00\x03abc"
