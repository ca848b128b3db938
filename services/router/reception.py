"""What a request is taken for when it comes, relayed or direct: its id and class, its conversation, where it may go.

In: a request from an edge, and whose it is. Out: `Asked`, the same in plain values. What runs away is known here too,
and gets shorter answers.
"""

from collections.abc import Mapping
from random import Random

from services.mesh.clock import Clock
from services.mesh.confines import ANYWHERE, Confines
from services.router.core.conversations import Conversations
from services.router.core.ids import uuid7
from services.router.core.request import Asked
from services.router.core.restraints import Restraints
from services.router.requests import asked_of
from tokenworks.v1 import inference_pb2 as wire


class Reception:
    """Receives the requests of one router.

    Args:
        default_slo_class: of requests that name none.
        confines: of tenants, by name.

    Attributes:
        restraints: what runs away and is held back; the feed writes it.
    """

    def __init__(self, default_slo_class: str, confines: Mapping[str, Confines], *, clock: Clock, rng: Random) -> None:
        self.restraints = Restraints()
        self._default_slo_class = default_slo_class
        self._confines = confines
        self._clock = clock
        self._rng = rng
        self._conversations = Conversations()

    def receive(self, request: wire.GenerateRequest, tenant: str, *, key: str, team: str, within: Confines) -> Asked:
        """The request in plain values.

        Args:
            request: its `request_id` and `slo_class` are filled in here where they are empty, and its `max_tokens` is
                lowered where its scope runs away.
            key, team: of the caller, by name, for budgets.
            within: where the caller's key, beside its tenant, has its requests computed.
        """
        if not request.request_id:
            request.request_id = uuid7(self._clock.unix_ms(), self._rng.getrandbits(74))
        if not request.slo_class:
            request.slo_class = self._default_slo_class
        confines = self._confines.get(tenant, ANYWHERE).both(within)
        asked = asked_of(request, tenant, key=key, team=team, confines=confines)
        if not asked.session_id and not asked.resume_from:
            asked.conversation = self._conversations.of(asked)
        if self.restraints:
            self._shorten(asked, request)
        return asked

    def _shorten(self, asked: Asked, request: wire.GenerateRequest) -> None:
        cap_tokens = self.restraints.cap_tokens(asked, self._clock.monotonic_s())
        if cap_tokens and (not asked.sampling.max_tokens or asked.sampling.max_tokens > cap_tokens):
            request.sampling.max_tokens = asked.sampling.max_tokens = cap_tokens
