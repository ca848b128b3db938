"""Who is calling: a tenant by its key, `authorization: Bearer <key>` on gRPC and HTTP alike; or who knows the mesh."""

import hmac
from collections.abc import Sequence

from services.mesh.errors import Unauthenticated
from services.mesh.keys import KeyRecord, KeyStore


def bearer_of(authorization: str) -> str:
    """What `authorization` carries; empty where it is none of that form."""
    scheme, _, shown = authorization.strip().partition(" ")
    return shown.strip() if scheme.lower() == "bearer" else ""


def is_secret(shown: bytes, secrets: Sequence[str]) -> bool:
    """Whether it is one of the mesh's secrets."""
    # Each is compared, whichever fits: how long it takes tells nothing.
    known = [hmac.compare_digest(shown, secret.encode()) for secret in secrets]
    return any(known)


def caller_of(authorization: str, keys: KeyStore) -> KeyRecord:
    """Whose key `authorization` carries, and what goes for that key.

    Raises:
        Unauthenticated: there is no key, or nobody's.
    """
    key = bearer_of(authorization)
    if not key:
        raise Unauthenticated("no key was sent; send it as `authorization: Bearer <key>`")
    record = keys.record_of(key)
    if record is None:
        raise Unauthenticated("this mesh does not know the key; check it, or ask its operator for one")
    return record
