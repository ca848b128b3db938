"""Which earlier requests one goes on from, where its client names no session: by the beginnings of its prompt. Pure.

In: requests, each with its prompt's chain of links (`mesh/prefix_chain`). Out: the name of a conversation, from its
second turn on. A prompt goes on from an earlier one of the same workload and key when it begins with all of that one
that has links, and is no shorter: so do an agent's turns, whose prompts hold all that was said before. Prompts too
short for a link are nobody's. Each router knows what came to it.
"""

from collections import OrderedDict
from typing import Final

from services.router.core.request import Asked

_MOST: Final = 20_000
_LOOKED_BACK: Final = 32  # links of a prompt, from its end: a turn rarely adds more


class Conversations:
    """The latest prompts of the latest conversations."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._latest: OrderedDict[tuple[str, str, int], tuple[str, int]] = OrderedDict()  # its name, its prompt's size
        self._begun = 0

    def __len__(self) -> int:
        return len(self._latest)

    def of(self, asked: Asked) -> str:
        """The conversation that a request goes on with; empty where it begins one."""
        links, size = asked.prompt.chain.links, asked.prompt.chain.size
        if not links:
            return ""
        workload, key = asked.workload, asked.key
        name, goes_on = "", False
        for link in links[: -_LOOKED_BACK - 1 : -1]:
            before = self._latest.get((workload, key, link))
            if before is not None and size >= before[1]:
                name, goes_on = before[0], True
                del self._latest[workload, key, link]
                break
        if not name:
            self._begun += 1
            name = f"~{links[0] & 0xFFFFFFFF:08x}.{self._begun}"
        latest = (workload, key, links[-1])
        self._latest[latest] = name, size
        self._latest.move_to_end(latest)
        if len(self._latest) > self._most:
            self._latest.popitem(last=False)
        return name if goes_on else ""
