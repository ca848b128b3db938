"""The tokenizer and chat template of the model that vLLM loaded, as `PromptEncoder` asks for them.

In: texts, chats, token ids. Out: token ids, text. It is a tokenizer of Hugging Face's, or one that behaves like it.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from services.mesh.errors import InvalidRequest
from services.worker.engine import ChatMessage


class VllmTokenizer:
    """Implements `prompts.Tokenizer`, in a thread of its own.

    Attributes:
        special_ids: of tokens that have no part in a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        # vLLM uses its own in the event loop's thread, and one must not be used by two threads at once.
        self._tokenizer = copy.deepcopy(tokenizer)
        self.special_ids: Final = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm-tokenizer")

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(await self._call(self._tokenizer.encode, text, add_special_tokens=special))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return str(await self._call(self._tokenizer.decode, list(token_ids), skip_special_tokens=True))

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        # The template spells out the model's first token: tokenizing its text as a text would add another one.
        return tuple(await self._template(chat, tokenize=True, return_dict=False))

    async def render(self, chat: Sequence[ChatMessage]) -> str:
        """The text of a chat in the model's template; without the first token of a text, which `tokenize` adds."""
        text, first = str(await self._template(chat, tokenize=False)), self._tokenizer.bos_token
        if first and self._tokenizer.bos_token_id in await self.tokenize("", special=True):
            return text.removeprefix(first)
        return text

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _template(self, chat: Sequence[ChatMessage], **options: Any) -> Any:
        apply = self._tokenizer.apply_chat_template
        messages = [message.as_openai() for message in chat]
        try:
            return await self._call(apply, messages, add_generation_prompt=True, **options)
        except Exception as error:  # templates are code of the model's makers, and raise what they like
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
