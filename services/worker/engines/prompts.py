"""From a request to the token ids that a real model starts from, and how many it may make.

In: an `EngineRequest`. Out: an `EncodedRequest`, or the error that tells why there is none. The model's own tokenizer
and chat template do the work, so text, chat and token ids give the same tokens.

What was delivered before a break is replayed as the ids it had, where they are of this tokenizer. A token id means
nothing to another one: what came from an engine with an unlike tokenizer goes on from its text, if that comes back from
this tokenizer unchanged, and keeps the index it had reached. Ids of no known tokenizer are taken as this one's.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.mesh.errors import InvalidRequest, PromptTooLong, ResumeRefused
from services.worker.core.tokenizer_print import PROBE, fingerprint
from services.worker.engine import ChatMessage, EngineRequest, Prompt

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """A model's tokenizer and chat template, wherever they run."""

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a text; `special`: with the model's first token, and special tokens that are spelt out."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a chat in the model's own template, ready for the assistant's answer.

        Raises:
            InvalidRequest: the template refuses it, e.g. a role it does not know.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine says of the model it loaded.

    Attributes:
        vocabulary: token ids go from 0 to one less; 0 where it is not known.
        context_tokens: of one request, prompt and answer together.
    """

    vocabulary: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """What the engine is given.

    Attributes:
        token_ids: prompt and resumed tokens, >= 1.
        prompt_tokens: of these, without the resumed ones, of which there are `resume_from` unless another tokenizer
            made them.
        max_tokens: still to be made; <= 0 when all were made before the break.
        held_text: text of the resumed tokens that was not shown yet, because a stop string may begin with it.
    """

    token_ids: tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    held_text: str


class PromptEncoder:
    """Encodes requests for one loaded model.

    Attributes:
        fingerprint: the tokenizer's; empty before `find_fingerprint`, or where it has none.
    """

    def __init__(self, tokenizer: Tokenizer, model: str, loaded: LoadedModel) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._loaded = loaded
        self.fingerprint = ""

    async def find_fingerprint(self) -> str:
        """What the tokenizer's ids are known by (`core/tokenizer_print.py`); empty where it cannot take the probe."""
        try:
            self.fingerprint = fingerprint(await self._tokenizer.tokenize(PROBE, special=False))
        except Exception as error:  # of a tokenizer that knows too few characters
            log.warning("%s: its tokenizer has no fingerprint: %s", self._model, error)
        return self.fingerprint

    async def encode(self, request: EngineRequest) -> EncodedRequest:
        """Makes the token ids that the request starts from, and checks that there is room for more.

        Raises:
            InvalidRequest: no token at all, an unknown token id, a chat that the template refuses.
            PromptTooLong: no room for one token more.
            ResumeRefused: the delivered tokens cannot be known for certain.
        """
        context = self._loaded.context_tokens
        prompt_ids = await self._prompt_ids(request.prompt)
        resumed_ids = await self._resumed_ids(request)
        token_ids = prompt_ids + resumed_ids
        if len(token_ids) >= context:
            resumed = f" and {len(resumed_ids)} resumed ones" if resumed_ids else ""
            raise PromptTooLong(
                f"the prompt's {len(prompt_ids)} tokens{resumed} leave no room in the context of {context} tokens "
                f"that {self._model} has here; send at most {context - 1}"
            )
        held_text = ""
        if resumed_ids and request.sampling.stop and not self._is_foreign(request):
            made = await self._tokenizer.detokenize(resumed_ids)
            if made.startswith(request.resumed_text):
                held_text = made[len(request.resumed_text) :]
        max_tokens = min(request.sampling.max_tokens - request.resume_from, context - len(token_ids))
        return EncodedRequest(token_ids, len(prompt_ids), max_tokens, held_text)

    async def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.token_ids is not None:
            token_ids = prompt.token_ids
            self._check_ids(token_ids)
        elif prompt.chat is not None:
            token_ids = await self._tokenizer.encode_chat(prompt.chat)
        else:
            token_ids = await self._tokenizer.tokenize(prompt.text or "", special=True)
        if not token_ids:
            raise InvalidRequest("the prompt is empty: it needs at least one token")
        return token_ids

    async def _resumed_ids(self, request: EngineRequest) -> tuple[int, ...]:
        if request.resume_from == 0:
            return ()
        if self._is_foreign(request):
            return await self._ids_of_foreign_text(request)
        if len(request.resumed_token_ids) == request.resume_from:
            self._check_ids(request.resumed_token_ids)
            return request.resumed_token_ids
        token_ids = await self._tokenizer.tokenize(request.resumed_text, special=False)
        if len(token_ids) != request.resume_from:
            raise ResumeRefused(
                f"request {request.request_id} cannot go on at token {request.resume_from}: "
                f"{len(request.resumed_token_ids)} ids are known, and the text makes {len(token_ids)} tokens here"
            )
        return token_ids

    async def _ids_of_foreign_text(self, request: EngineRequest) -> tuple[int, ...]:
        token_ids = await self._tokenizer.tokenize(request.resumed_text, special=False)
        if await self._tokenizer.detokenize(token_ids) != request.resumed_text:
            raise ResumeRefused(
                f"request {request.request_id} cannot go on at token {request.resume_from}: another tokenizer made what"
                f" was delivered, and its text does not come back unchanged from that of {self._model} here"
            )
        return token_ids

    def _is_foreign(self, request: EngineRequest) -> bool:
        """Another tokenizer made what was delivered."""
        return request.resumed_tokenizer not in ("", self.fingerprint)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        vocabulary = self._loaded.vocabulary
        if not vocabulary:
            return
        wrong = next((each for each in token_ids if not 0 <= each < vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"token id {wrong} is not one of {self._model}'s, which go from 0 to {vocabulary - 1}")
