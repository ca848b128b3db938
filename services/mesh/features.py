"""What an engine may do beyond plain generation, by name: in a worker's heartbeat, and in what a request needs."""

from typing import Final

LOGPROBS: Final = "logprobs"
RESPONSE_FORMAT: Final = "response_format"
TOOLS: Final = "tools"


def features_needed(*, logprobs: bool, response_format: bool, tools: bool) -> tuple[str, ...]:
    """The names of what a request asks for, in their order."""
    needs = {LOGPROBS: logprobs, RESPONSE_FORMAT: response_format, TOOLS: tools}
    return tuple(name for name, needed in needs.items() if needed)
