"""Who is calling: a tenant's key, sent as `authorization: Bearer <key>` on gRPC and HTTP alike."""

from services.mesh.errors import Unauthenticated
from services.mesh.keys import KeyRecord, KeyStore


def caller_of(authorization: str, keys: KeyStore) -> KeyRecord:
    """Whose key `authorization` carries, and what goes for that key.

    Raises:
        Unauthenticated: there is no key, or nobody's.
    """
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("no key was sent; send it as `authorization: Bearer <key>`")
    record = keys.record_of(key.strip())
    if record is None:
        raise Unauthenticated("this mesh does not know the key; check it, or ask its operator for one")
    return record


def tenant_of(authorization: str, keys: KeyStore) -> str:
    """The tenant whose key `authorization` carries. Raises as `caller_of` does."""
    return caller_of(authorization, keys).tenant
