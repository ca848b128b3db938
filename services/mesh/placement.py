"""Placements: what a router signs so that a client may stream straight from one worker, once, for one request.

A placement is a JSON Web Token, HMAC-SHA256 under a key derived from the mesh's shared secret. The key id in its header
names the secret, so a secret is rotated by putting the new one first and keeping the old ones until their placements
have expired. It binds tenant, model, worker, request, limits, prices, promises and expiry; the worker takes all of
these from the token, never from the client. One use: the worker remembers a placement's id until it expires, and takes
none that was made for an earlier start of it.

    claim   meaning
    iss     router
    aud     worker
    epoch   of the worker: new at each of its starts
    sub     tenant
    jti     id of the placement; a request that is placed again gets another
    exp     expiry, seconds since 1970
    request, model, slo_class, workload, plan, price_book
    admitted  when the router let the request in, milliseconds since 1970
    resume  index of the token to begin with; those before it are at the client
    fund    most completion tokens the answer may have: the first funded slice
    until   its caller's deadline by the worker's clock, milliseconds since 1970; left out where there is none
    waited  seconds at the router before it had its place, which are part of its TTFT; left out where it went at once
    within  where it may be computed, where that is confined: for whoever plans
    funds   where budgets bound the request: tokens paid for, the budgets, and what is held of them
    prompt  prompt tokens as the router estimated them
    rates   nano-dollars per million tokens: input, cached input, output
    slo     TTFT promise in seconds, what each prompt token adds to it, TPOT promise
    prio    lower is sooner
    who     names of the caller's key, its team, and the conversation; left out where all are empty
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from services.mesh.errors import PlacementRefused, SettingInvalid
from services.mesh.events import Funding, Hold
from services.mesh.holds import Bound, RequestCredit
from services.mesh.pricing import Rates

_quoted: Final = json.encoder.encode_basestring_ascii  # a string as JSON writes it
METADATA_KEY: Final = "x-tokenworks-placement"
_ALGORITHM: Final = "HS256"
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_MOST_BEGUN: Final = 4096  # beginnings of tokens that a signer remembers
LEEWAY_MS: Final = 2_000  # the router may be wrong by this much about its worker's clock


@dataclass(slots=True, kw_only=True)  # not frozen: a frozen one costs three times as much to make
class PlacementClaims:
    """What a placement says; the module lists what each claim means."""

    id: str
    request_id: str
    router: str
    worker: str
    epoch: str
    tenant: str
    model: str
    slo_class: str
    workload: str
    plan: str
    price_book: str
    rates: Rates
    admitted_unix_ms: int
    resume_from: int
    funded_tokens: int
    prompt_tokens: int
    ttft_promise_s: float
    ttft_promise_s_per_prompt_token: float
    tpot_promise_s: float
    priority: int
    expires_unix_ms: int
    funds: "PlacementFunds | None" = None
    key: str = ""
    team: str = ""
    conversation: str = ""
    within: str = ""
    deadline_unix_ms: int = 0
    waited_s: float = 0.0

    def time_left_s(self, now_unix_ms: int) -> float | None:
        """Until the worker ends the stream whatever its client says, leeway included; None where nothing bounds it.

        Args:
            now_unix_ms: by the worker's clock.
        """
        return (self.deadline_unix_ms + LEEWAY_MS - now_unix_ms) / 1000 if self.deadline_unix_ms else None


@dataclass(frozen=True, slots=True)
class PlacementFunds:
    """The credit of a request that budgets bound; the worker asks the meter for more.

    Attributes:
        prompt_tokens, completion_tokens: what is paid for.
        funding: what is held for it, by whom.
    """

    prompt_tokens: int
    completion_tokens: int
    bounds: tuple[Bound, ...]
    funding: tuple[Funding, ...]


def placement_funds(credit: RequestCredit) -> PlacementFunds:
    """What a placement carries of a request's credit."""
    return PlacementFunds(credit.prompt_tokens, credit.completion_tokens, tuple(credit.bounds), credit.funding())


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    secret: bytes


def _derive(secret: str) -> _Key:
    derived = hmac.digest(secret.encode(), b"tokenworks placement v1", "sha256")
    return _Key(hashlib.sha256(derived).hexdigest()[:16], derived)


def _base64(part: str) -> bytes:
    """A part of a token, as RFC 7515 writes it."""
    return _base64_of(part.encode())


def _base64_of(part: bytes) -> bytes:
    return b2a_base64(part, newline=False).translate(_URL_SAFE).rstrip(b"=")


def _packed(funds: PlacementFunds) -> list[Any]:
    funding = [
        [each.funder, [[hold.budget, hold.subject, hold.window, hold.amount] for hold in each.holds]]
        for each in funds.funding
    ]
    return [funds.prompt_tokens, funds.completion_tokens, [list(bound) for bound in funds.bounds], funding]


def _unpacked(packed: list[Any]) -> PlacementFunds:
    prompt_tokens, completion_tokens, bounds, funding = packed
    return PlacementFunds(
        int(prompt_tokens),
        int(completion_tokens),
        tuple(Bound(*bound) for bound in bounds),
        tuple(
            Funding(
                funder=funder,
                holds=tuple(
                    Hold(budget=budget, subject=subject, window=window, amount=amount)
                    for budget, subject, window, amount in holds
                ),
            )
            for funder, holds in funding
        ),
    )


def _head(key: _Key) -> bytes:
    return _base64(json.dumps({"alg": _ALGORITHM, "kid": key.id, "typ": "JWT"}, separators=(",", ":")))


class PlacementSigner:
    """Signs with the first of the secrets.

    What a worker's placements of one class have in common stands first in a token, and is written and signed once:
    filled up with blanks, which JSON passes over, to where its encoding ends with a whole letter.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        """Raises SettingInvalid: there is no secret to sign with."""
        if not secrets or not secrets[0]:
            raise SettingInvalid("mesh.secret is empty, so placements cannot be signed; set the same secret everywhere")
        key = _derive(secrets[0])
        self._mac = hmac.new(key.secret, digestmod="sha256")
        # Put together here rather than by the library: a router does this for every direct request.
        self._head = _head(key)
        self._begun: dict[tuple[object, ...], tuple[bytes, hmac.HMAC]] = {}

    def sign(self, claims: PlacementClaims) -> str:
        """The token for these claims."""
        rates = claims.rates
        common = (
            claims.router,
            claims.worker,
            claims.epoch,
            claims.model,
            claims.slo_class,
            claims.plan,
            claims.price_book,
            rates.input_nusd_per_mtok,
            rates.cached_input_nusd_per_mtok,
            rates.output_nusd_per_mtok,
            claims.ttft_promise_s,
            claims.ttft_promise_s_per_prompt_token,
            claims.tpot_promise_s,
            claims.priority,
        )
        begun = self._begun.get(common)
        if begun is None:
            begun = self._begin(common, claims)
        rest = (
            f'"sub":{_quoted(claims.tenant)},"jti":{_quoted(claims.id)},"exp":{claims.expires_unix_ms / 1000!r},'
            f'"request":{_quoted(claims.request_id)},"workload":{_quoted(claims.workload)},'
            f'"admitted":{claims.admitted_unix_ms},"resume":{claims.resume_from},"fund":{claims.funded_tokens},'
            f'"prompt":{claims.prompt_tokens}'
        )
        if claims.funds is not None:
            rest += ',"funds":' + json.dumps(_packed(claims.funds), separators=(",", ":"))
        if claims.key or claims.team or claims.conversation:
            rest += f',"who":[{_quoted(claims.key)},{_quoted(claims.team)},{_quoted(claims.conversation)}]'
        if claims.within:
            rest += f',"within":{_quoted(claims.within)}'
        if claims.deadline_unix_ms:
            rest += f',"until":{claims.deadline_unix_ms}'
        if claims.waited_s:
            rest += f',"waited":{claims.waited_s!r}'
        encoded = _base64(rest + "}")
        mac = begun[1].copy()
        mac.update(encoded)
        return (b"%b%b.%b" % (begun[0], encoded, _base64_of(mac.digest()))).decode("ascii")

    def _begin(self, common: tuple[object, ...], claims: PlacementClaims) -> tuple[bytes, hmac.HMAC]:
        """The token up to what is the request's own, and what its signature is so far."""
        rates = claims.rates
        text = (
            f'{{"iss":{_quoted(claims.router)},"aud":{_quoted(claims.worker)},"epoch":{_quoted(claims.epoch)},'
            f'"model":{_quoted(claims.model)},"slo_class":{_quoted(claims.slo_class)},"plan":{_quoted(claims.plan)},'
            f'"price_book":{_quoted(claims.price_book)},"rates":[{rates.input_nusd_per_mtok},'
            f'{rates.cached_input_nusd_per_mtok},{rates.output_nusd_per_mtok}],"slo":[{claims.ttft_promise_s!r},'
            f'{claims.ttft_promise_s_per_prompt_token!r},{claims.tpot_promise_s!r}],"prio":{claims.priority},'
        )
        encoded = self._head + b"." + _base64(text + " " * (-len(text) % 3))
        mac = self._mac.copy()
        mac.update(encoded)
        if len(self._begun) >= _MOST_BEGUN:
            self._begun.clear()
        self._begun[common] = begun = encoded, mac
        return begun


class PlacementVerifier:
    """Checks placements for one worker and lets each be used once.

    Args:
        worker, epoch: the worker that placements must name, and its start.
        secrets: accepted ones, the current one first.
        remembered: how many unexpired placements are remembered at most; beyond it new ones are refused, so that a
            flood cannot push a used placement out of memory.
    """

    def __init__(self, worker: str, epoch: str, secrets: Sequence[str], remembered: int = 100_000) -> None:
        self._worker = worker
        self._epoch = epoch
        self._keys = {key.id: key for key in map(_derive, filter(None, secrets))}
        self._macs = {_head(key).decode(): hmac.new(key.secret, digestmod="sha256") for key in self._keys.values()}
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
        if claims.epoch != self._epoch:
            raise PlacementRefused(f"worker {self._worker!r} has started anew since the placement; ask for a new one")
        if claims.expires_unix_ms + LEEWAY_MS < now_unix_ms:
            late_ms = now_unix_ms - claims.expires_unix_ms
            raise PlacementRefused(f"the placement expired {late_ms} ms ago; ask the router for a new one")
        self._forget_expired(now_unix_ms)
        if claims.id in self._used:
            raise PlacementRefused(
                f"the placement of request {claims.request_id!r} was used already; ask for a new one"
            )
        if len(self._used) >= self._remembered:
            raise PlacementRefused("this worker remembers as many placements as it can; ask the router to relay")
        self._used[claims.id] = claims.expires_unix_ms
        return claims

    def _decode(self, token: str) -> PlacementClaims:
        try:
            payload = self._payload(token)
            ttft_s, ttft_s_per_prompt_token, tpot_s = map(float, payload["slo"])
            key, team, conversation = map(str, payload.get("who", ("", "", "")))
            return PlacementClaims(
                id=payload["jti"],
                request_id=payload["request"],
                router=payload["iss"],
                worker=payload["aud"],
                epoch=payload["epoch"],
                tenant=payload["sub"],
                model=payload["model"],
                slo_class=payload["slo_class"],
                workload=payload["workload"],
                plan=payload["plan"],
                price_book=payload["price_book"],
                rates=Rates(*map(int, payload["rates"])),
                admitted_unix_ms=int(payload["admitted"]),
                resume_from=int(payload["resume"]),
                funded_tokens=int(payload["fund"]),
                prompt_tokens=int(payload["prompt"]),
                ttft_promise_s=ttft_s,
                ttft_promise_s_per_prompt_token=ttft_s_per_prompt_token,
                tpot_promise_s=tpot_s,
                priority=int(payload["prio"]),
                expires_unix_ms=round(payload["exp"] * 1000),
                funds=_unpacked(payload["funds"]) if "funds" in payload else None,
                key=key,
                team=team,
                conversation=conversation,
                within=payload.get("within", ""),
                deadline_unix_ms=int(payload.get("until", 0)),
                waited_s=float(payload.get("waited", 0.0)),
            )
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise PlacementRefused(f"the placement is not genuine: {error}") from error

    def _payload(self, token: str) -> dict[str, Any]:
        """What a genuine token carries. Raises PlacementRefused, or what the libraries raise of one that is none."""
        signed, _, signature = token.rpartition(".")
        head, _, carried = signed.partition(".")
        ours = self._macs.get(head)
        if ours is None:
            return self._payload_of_foreign(token)
        # As `PlacementSigner` writes it: checked here for a third of what the library takes, before a first token.
        mac = ours.copy()
        mac.update(signed.encode("ascii"))
        if not hmac.compare_digest(_base64_of(mac.digest()), signature.encode("ascii")):
            raise PlacementRefused("the placement is not genuine: its signature is not of what it says")
        payload: dict[str, Any] = json.loads(urlsafe_b64decode(carried + "=="))
        return payload

    def _payload_of_foreign(self, token: str) -> dict[str, Any]:
        """As `_payload`, of a token with a header that is written in another way."""
        key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
        if key is None:
            raise PlacementRefused("the placement is signed with a key this worker does not know; get a new one")
        payload: dict[str, Any] = jwt.decode(
            token, key.secret, algorithms=[_ALGORITHM], options={"verify_aud": False, "verify_exp": False}
        )
        return payload

    def _forget_expired(self, now_unix_ms: int) -> None:
        # Expiries are nearly in order of use; the leeway keeps one that verify() would still accept.
        while self._used:
            used, expires_unix_ms = next(iter(self._used.items()))
            if expires_unix_ms + LEEWAY_MS >= now_unix_ms:
                return
            del self._used[used]
