"""A random language model of 0.3 MB in GGUF, for engines that read it: made in a moment, the same bytes every time.

In: a path. Out: a file that llama.cpp loads: llama architecture, two layers, a byte-level BPE tokenizer of printable
ASCII and some words, and a chat template. What it says means nothing, but depends on all that was said before; every
token is text.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np

_ALIGNMENT: Final = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3  # kinds of token

CONTEXT_TOKENS: Final = 4096  # that the model claims to be trained for
_HIDDEN: Final = 64
_HEADS: Final = 2
_KV_HEADS: Final = 1
_HEAD_DIM: Final = _HIDDEN // _HEADS
_FEED_FORWARD: Final = 128
_LAYERS: Final = 2

_SPECIALS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS: Final = (
    " the of and to in is that it was for on are as with they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these would"
)
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TOOL_TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\nCall one of {% for tool in tools %}{{ tool | tojson }}{% endfor %} as "
    '<tool_call>{"name": "n", "arguments": {}}</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_gguf(path: Path, chat_template: str = _CHAT_TEMPLATE) -> None:
    """Writes the model to `path`; a file that is there is replaced."""
    tokens, merges = _vocabulary()
    metadata: list[tuple[str, int, Any]] = [
        ("general.architecture", _STRING, "llama"),
        ("general.name", _STRING, "tiny-random"),
        ("llama.context_length", _U32, CONTEXT_TOKENS),
        ("llama.embedding_length", _U32, _HIDDEN),
        ("llama.block_count", _U32, _LAYERS),
        ("llama.feed_forward_length", _U32, _FEED_FORWARD),
        ("llama.attention.head_count", _U32, _HEADS),
        ("llama.attention.head_count_kv", _U32, _KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5),
        ("llama.rope.dimension_count", _U32, _HEAD_DIM),
        ("llama.vocab_size", _U32, len(tokens)),
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.pre", _STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, tokens)),
        ("tokenizer.ggml.token_type", _ARRAY, (_I32, [_CONTROL if t in _SPECIALS else _NORMAL for t in tokens])),
        ("tokenizer.ggml.merges", _ARRAY, (_STRING, merges)),
        ("tokenizer.ggml.bos_token_id", _U32, tokens.index(_SPECIALS[0])),
        ("tokenizer.ggml.eos_token_id", _U32, tokens.index(_SPECIALS[2])),
        ("tokenizer.ggml.add_bos_token", _BOOL, False),
        ("tokenizer.chat_template", _STRING, chat_template),
    ]
    tensors = _tensors(len(tokens))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in metadata)
    offset = 0
    for name, tensor in tensors.items():
        # Dimensions go from the one that varies fastest; 0 is the type F32.
        shape = tensor.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += _padded(tensor.nbytes)
    head += bytes(_padded(len(head)) - len(head))
    body = b"".join(t.tobytes() + bytes(_padded(t.nbytes) - t.nbytes) for t in tensors.values())
    path.write_bytes(head + body)


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges in the GPT-2 alphabet, where a space is written Ġ and a line feed Ċ."""
    tokens = [*_SPECIALS, "Ċ", "Ġ", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    merges: list[str] = []
    for word in _WORDS.split():
        left = "Ġ"
        for letter in word:
            if left + letter not in tokens:
                tokens.append(left + letter)
                merges.append(f"{left} {letter}")
            left += letter
    return tokens, merges


def _tensors(vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(20_26)

    def normal(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(_HIDDEN, np.float32)
    tensors = {
        "token_embd.weight": normal(vocabulary, _HIDDEN, 8.0),
        "output_norm.weight": ones,
        "output.weight": normal(vocabulary, _HIDDEN, 3.0),
    }
    for layer in range(_LAYERS):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ones,
            f"blk.{layer}.attn_q.weight": normal(_HIDDEN, _HIDDEN, 2.0),
            f"blk.{layer}.attn_k.weight": normal(_KV_HEADS * _HEAD_DIM, _HIDDEN, 2.0),
            f"blk.{layer}.attn_v.weight": normal(_KV_HEADS * _HEAD_DIM, _HIDDEN, 3.0),
            f"blk.{layer}.attn_output.weight": normal(_HIDDEN, _HIDDEN, 3.0),
            f"blk.{layer}.ffn_norm.weight": ones,
            f"blk.{layer}.ffn_gate.weight": normal(_FEED_FORWARD, _HIDDEN, 2.0),
            f"blk.{layer}.ffn_up.weight": normal(_FEED_FORWARD, _HIDDEN, 2.0),
            f"blk.{layer}.ffn_down.weight": normal(_HIDDEN, _FEED_FORWARD, 2.0),
        }
    return tensors


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        item_kind, items = value
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(_value(item_kind, item) for item in items)
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}[kind], value)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
