"""Who is calling: a tenant's key, sent as `authorization: Bearer <key>` on gRPC and HTTP alike."""

from services.mesh.errors import Unauthenticated
from services.mesh.keys import KeyStore


def tenant_of(authorization: str, keys: KeyStore) -> str:
    """The tenant whose key `authorization` carries.

    Raises:
        Unauthenticated: there is no key, or nobody's.
    """
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("no key was sent; send it as `authorization: Bearer <key>`")
    tenant = keys.tenant_of(key.strip())
    if tenant is None:
        raise Unauthenticated("this mesh does not know the key; check it, or ask its operator for one")
    return tenant
