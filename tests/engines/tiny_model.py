"""A tiny Llama with random weights on disk, as Hugging Face lays models out: what the engine tests serve.

In: an empty directory. Out: weights (0.2 M parameters, 32-bit, so that greedy sampling has no near ties that a batch
could tip), a tokenizer whose every token is printable ASCII, and a chat template that spells out the first token.

Needs torch, transformers and tokenizers: the environment of the engine tests has them.
"""

import string
from pathlib import Path
from typing import Final

CONTEXT_TOKENS: Final = 1024
_FIRST, _LAST, _TURN = "<|first|>", "<|last|>", "<|turn|>"
# Common words and pairs of letters, so that text makes fewer tokens than it has characters.
_TEXT: Final = (
    "the and of to in is it was that for on are with as be at one have this from or had by but some what there we can "
    "out other were all your when up use word how said an each she which do their time if will way about many then"
)
_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('the role is not known: ' + message['role']) }}{% endif %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_tiny_model(directory: Path) -> None:
    """Fills `directory`; the same files every time."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in (_FIRST, _LAST, _TURN)])
    first, last = tokenizer.token_to_id(_FIRST), tokenizer.token_to_id(_LAST)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A", pair=f"{_FIRST} $A {_FIRST} $B", special_tokens=[(_FIRST, first)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_FIRST,
        eos_token=_LAST,
        pad_token=_LAST,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(directory)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that vLLM's kernels for CPUs have
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=first,
        eos_token_id=last,
        pad_token_id=last,
        initializer_range=0.2,  # wide, so that the likeliest token stands out
        tie_word_embeddings=False,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Printable ASCII, and the words above with their beginnings, each merged from what stands before it."""
    space = "\u0120"  # how byte-level tokenizers write a space
    newline = "\u010a"
    letters = [each for each in string.printable if each.isprintable() and each != " "] + [space, newline]
    tokens, merges = dict.fromkeys(letters), []
    for word in _TEXT.split():
        made = space
        for letter in word:
            if made + letter not in tokens:
                merges.append((made, letter))
                tokens[made + letter] = None
            made += letter
    return {token: number for number, token in enumerate(tokens)}, merges
