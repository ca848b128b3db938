"""Whether an answer can be gone on with from what its client says it has. Pure."""

from collections.abc import Sequence

from services.mesh.errors import ResumeRefused


def check_resumed(resume_from: int, ids: int, text: str, *, features: Sequence[str]) -> None:
    """Lets a resume pass, or says why not.

    Args:
        resume_from: > 0; index of the next token.
        ids, text: how many token ids the client sent, and the text it has.
        features: what the request asks for beyond plain generation, see `mesh/features.py`.

    Raises:
        ResumeRefused: what was delivered is not told, or the answer could not be gone on with unaltered.
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
