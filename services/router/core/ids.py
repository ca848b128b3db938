"""Request ids: UUID version 7 (RFC 9562), so that ids made later sort later."""


def uuid7(unix_ms: int, random_bits: int) -> str:
    """The id of a moment.

    Args:
        unix_ms: milliseconds since 1970, below 2**48.
        random_bits: 74 random bits, 0 <= random_bits < 2**74.
    """
    assert 0 <= unix_ms < 1 << 48, unix_ms
    assert 0 <= random_bits < 1 << 74, random_bits
    high, low = random_bits >> 62, random_bits & ((1 << 62) - 1)
    digits = f"{(unix_ms << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
