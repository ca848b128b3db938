"""Whether an answer can be gone on with from what its client says it has. Pure.

A token is billed once, however often it is delivered, so a client that asks again for what it got long ago would get it
for nothing. What a break can have lost on the way is little; and no request breaks for ever.
"""

from collections.abc import Sequence
from typing import Final

from services.mesh.errors import ResumeRefused, TokenworksError
from services.router.core.records import DecisionRecord

_MAY_BE_LOST: Final = 512  # tokens handed over that a broken connection did not bring
_MOST_ASKS: Final = 9  # the first, and eight after breaks


def check_asks(request_id: str, earlier: DecisionRecord | None) -> None:
    """Raises ResumeRefused: the request was asked for too often; `earlier` is this router's record of it."""
    if earlier is not None and earlier.asks >= _MOST_ASKS:
        raise ResumeRefused(
            f"request {request_id!r} was asked for {earlier.asks} times; send it anew with another request_id"
        )


def cannot_go_on(features: Sequence[str], error: TokenworksError) -> ResumeRefused:
    """What a request gets whose answer another engine cannot go on with unaltered, after its own failed."""
    return ResumeRefused(
        f"what one engine began with {', '.join(features)} another cannot go on with unaltered, and the one that made"
        f" it failed ({error}); send the request anew with another request_id"
    )


def check_resumed(
    resume_from: int, ids: int, text: str, *, features: Sequence[str], earlier: DecisionRecord | None
) -> None:
    """Lets a resume pass, or says why not.

    Args:
        resume_from: > 0; index of the next token.
        ids, text: how many token ids the client sent, and the text it has.
        features: what the request asks for beyond plain generation, see `mesh/features.py`.
        earlier: this router's record of the request; None where another one had it.

    Raises:
        ResumeRefused: what was delivered is not told, or was delivered long ago; or the answer could not be gone on
            with unaltered.
    """
    if ids not in (0, resume_from):
        raise ResumeRefused(
            f"resume_from = {resume_from}, but resumed_token_ids has {ids}; send the id of each token, or none"
        )
    if not ids and not text:
        raise ResumeRefused(
            f"resume_from = {resume_from}, but neither resumed_token_ids nor resumed_text says what those tokens are;"
            " send them, or send the request anew with another request_id"
        )
    if features:
        raise ResumeRefused(
            f"an answer with {', '.join(features)} can't be gone on with in the middle; send the request anew with"
            " another request_id"
        )
    if earlier is not None:
        check_asks(earlier.asked.request_id, earlier)
        if resume_from + _MAY_BE_LOST < earlier.delivered:
            raise ResumeRefused(
                f"resume_from = {resume_from}, but {earlier.delivered} tokens were delivered; go on from what came"
                " last, or send the request anew with another request_id"
            )
