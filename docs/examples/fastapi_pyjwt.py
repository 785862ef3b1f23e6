"""An orders API that verifies access tokens itself (RFC 9068). pip install fastapi uvicorn "PyJWT[crypto]" """

import json
import os
from typing import Annotated
from urllib.request import urlopen

import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

ISSUER = os.environ.get("ISSUER", "https://id.example.com")
AUDIENCE = os.environ.get("AUDIENCE", "https://orders.example.com")

with urlopen(f"{ISSUER}/.well-known/openid-configuration", timeout=5) as answer:
    metadata = json.load(answer)
# Fetches the keys when needed and caches them, so there is no call per request.
keys = jwt.PyJWKClient(metadata["jwks_uri"], lifespan=300, timeout=5)
app = FastAPI(redirect_slashes=False)


def refusal(status, error=None):
    detail = f', error="{error}"' if error else ""
    return HTTPException(status, headers={"WWW-Authenticate": f'Bearer realm="{AUDIENCE}"{detail}'})


def needs(scope):
    """Requires a valid access token with the given scope."""

    def claims(authorization: Annotated[str, Header()] = "") -> dict:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise refusal(401)
        try:
            found = jwt.decode_complete(
                token,
                keys.get_signing_key_from_jwt(token),
                algorithms=["ES256", "RS256"],  # never choose the algorithm by the token's header
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=30,
                options={"require": ["sub", "client_id", "exp", "iat", "jti"], "strict_aud": True},
            )
        except jwt.PyJWKClientConnectionError:
            # Without the keys, the token cannot be verified: 503, not 401.
            raise HTTPException(503, headers={"Retry-After": "2"}) from None
        except (jwt.InvalidTokenError, jwt.PyJWKClientError):
            raise refusal(401, "invalid_token") from None
        # `typ` rejects ID tokens. A token that is bound to a key (`cnf`) needs proof of possession, which
        # this service does not check.
        if found["header"].get("typ") != "at+jwt" or "cnf" in found["payload"]:
            raise refusal(401, "invalid_token")
        if scope not in found["payload"].get("scope", "").split(" "):
            raise refusal(403, "insufficient_scope")
        return found["payload"]

    return Depends(claims)


@app.get("/orders")
def orders(caller: Annotated[dict, needs("orders:read")]):
    return {"orders_of": caller["sub"], "may_write": "orders:write" in caller["scope"].split(" ")}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))
