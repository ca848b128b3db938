"""Placements: what a router signs so that a client may stream straight from one worker, once, for one request.

A placement is a JSON Web Token, HMAC-SHA256 under a key derived from the mesh's shared secret. The key id in its header
names the secret, so a secret is rotated by putting the new one first and keeping the old ones until their placements
have expired. It binds tenant, model, worker, request, limits and expiry; the worker takes all of these from the token,
never from the client. One use: the worker remembers a placement's id until it expires.

    claim   meaning
    iss     router
    aud     worker
    sub     tenant
    jti     id of the placement: the request id
    exp     expiry, seconds since 1970
    model, slo_class, workload, plan, price_book
    fund    most completion tokens that may be generated: the first funded slice
    prompt  prompt tokens as the router estimated them
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from services.mesh.errors import PlacementRefused, SettingInvalid

METADATA_KEY: Final = "x-tokenworks-placement"
_ALGORITHM: Final = "HS256"
_LEEWAY_MS: Final = 2_000  # clocks of routers and workers may differ by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementClaims:
    """What a placement says; times in milliseconds since 1970."""

    request_id: str
    router: str
    worker: str
    tenant: str
    model: str
    slo_class: str
    workload: str
    plan: str
    price_book: str
    funded_tokens: int
    prompt_tokens: int
    expires_unix_ms: int


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    secret: bytes


def _derive(secret: str) -> _Key:
    derived = hmac.digest(secret.encode(), b"tokenworks placement v1", "sha256")
    return _Key(hashlib.sha256(derived).hexdigest()[:16], derived)


class PlacementSigner:
    """Signs with the first of the secrets."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """Raises SettingInvalid: there is no secret to sign with."""
        if not secrets or not secrets[0]:
            raise SettingInvalid("mesh.secret is empty, so placements cannot be signed; set the same secret everywhere")
        self._key = _derive(secrets[0])

    def sign(self, claims: PlacementClaims) -> str:
        """The token for these claims."""
        payload = {
            "iss": claims.router,
            "aud": claims.worker,
            "sub": claims.tenant,
            "jti": claims.request_id,
            "exp": claims.expires_unix_ms / 1000,
            "model": claims.model,
            "slo_class": claims.slo_class,
            "workload": claims.workload,
            "plan": claims.plan,
            "price_book": claims.price_book,
            "fund": claims.funded_tokens,
            "prompt": claims.prompt_tokens,
        }
        return jwt.encode(payload, self._key.secret, algorithm=_ALGORITHM, headers={"kid": self._key.id})


class PlacementVerifier:
    """Checks placements for one worker and lets each be used once.

    Args:
        worker: the worker that placements must name.
        secrets: accepted secrets, the current one first.
        remembered: how many unexpired placements are remembered at most; beyond it new ones are refused, so that a
            flood cannot push a used placement out of memory.
    """

    def __init__(self, worker: str, secrets: Sequence[str], remembered: int = 100_000) -> None:
        self._worker = worker
        self._keys = {key.id: key for key in map(_derive, filter(None, secrets))}
        self._remembered = remembered
        self._used: OrderedDict[str, int] = OrderedDict()

    def verify(self, token: str, now_unix_ms: int) -> PlacementClaims:
        """The claims of a token that is genuine, ours, unexpired and unused; it is used from here on.

        Raises:
            PlacementRefused: says which of these it is not.
        """
        if not self._keys:
            raise PlacementRefused("this worker has no mesh.secret, so it takes no placements; ask the router to relay")
        claims = self._decode(token)
        if claims.worker != self._worker:
            raise PlacementRefused(f"the placement is for worker {claims.worker!r}, this is {self._worker!r}")
        if claims.expires_unix_ms + _LEEWAY_MS < now_unix_ms:
            late_ms = now_unix_ms - claims.expires_unix_ms
            raise PlacementRefused(f"the placement expired {late_ms} ms ago; ask the router for a new one")
        self._forget_expired(now_unix_ms)
        if claims.request_id in self._used:
            raise PlacementRefused(
                f"the placement of request {claims.request_id!r} was used already; ask for a new one"
            )
        if len(self._used) >= self._remembered:
            raise PlacementRefused("this worker remembers as many placements as it can; ask the router to relay")
        self._used[claims.request_id] = claims.expires_unix_ms
        return claims

    def _decode(self, token: str) -> PlacementClaims:
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                raise PlacementRefused("the placement is signed with a key this worker does not know; get a new one")
            payload: dict[str, Any] = jwt.decode(
                token, key.secret, algorithms=[_ALGORITHM], options={"verify_aud": False, "verify_exp": False}
            )
            return PlacementClaims(
                request_id=payload["jti"],
                router=payload["iss"],
                worker=payload["aud"],
                tenant=payload["sub"],
                model=payload["model"],
                slo_class=payload["slo_class"],
                workload=payload["workload"],
                plan=payload["plan"],
                price_book=payload["price_book"],
                funded_tokens=int(payload["fund"]),
                prompt_tokens=int(payload["prompt"]),
                expires_unix_ms=round(payload["exp"] * 1000),
            )
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise PlacementRefused(f"the placement is not genuine: {error}") from error

    def _forget_expired(self, now_unix_ms: int) -> None:
        # Expiries are nearly in order of use; the leeway keeps one that verify() would still accept.
        while self._used:
            request_id, expires_unix_ms = next(iter(self._used.items()))
            if expires_unix_ms + _LEEWAY_MS >= now_unix_ms:
                return
            del self._used[request_id]
