"""A tokenizer's fingerprint: equal where token ids mean the same, whichever engine and file format it was loaded from.

In: the ids that a tokenizer makes of a fixed text. Out: a short name. Pure. Two tokenizers that cut this text alike, in
several scripts, with numbers, code and space, and number its pieces alike, are one tokenizer for all that resuming asks
of them.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Final

PROBE: Final = (
    "The quick brown fox doesn't jump over 1,234,567 lazy dogs; HTTP/2 isn't far.\n\n"
    "def mean(values: list[float]) -> float:\n\treturn sum(values) / len(values)  # 3.14159\n"
    "Zażółć gęślą jaźń. Größe, naïveté, œuvre. Съешь ещё этих мягких булок. 我能吞下玻璃而不伤身体。"
    " いろはにほへと。 نص عربي. हिन्दी. 🦊🚀 \u2003 ∑ x² ≤ ∞ ~~~ {}[]<|>"
    " internationalization antidisestablishmentarianism"
)


def fingerprint(ids: Sequence[int]) -> str:
    """The name of the tokenizer that makes `ids` of `PROBE`, special tokens left out; empty where there are none.

    Args:
        ids: each < 2^32.
    """
    if not ids:
        return ""
    return hashlib.blake2b(array("I", ids).tobytes(), digest_size=8, person=b"tokenizer").hexdigest()
