"""An orders API behind a proxy that asks portcullis-guard. pip install fastapi uvicorn"""

import os
from dataclasses import dataclass
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

app = FastAPI(redirect_slashes=False)


@dataclass
class Caller:
    subject: str
    client: str
    scopes: list[str]


def caller(
    x_portcullis_subject: Annotated[str, Header()] = "",
    x_portcullis_client: Annotated[str, Header()] = "",
    x_portcullis_scope: Annotated[str, Header()] = "",
) -> Caller:
    """Returns the caller, as determined by the guard. Only the proxy can connect to this service, so
    the headers cannot be forged. A request without them did not pass the guard."""
    if not x_portcullis_subject:
        raise HTTPException(403)
    return Caller(x_portcullis_subject, x_portcullis_client, x_portcullis_scope.split())


@app.get("/orders")
def orders(caller: Annotated[Caller, Depends(caller)]):
    return {"orders_of": caller.subject, "may_write": "orders:write" in caller.scopes}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))
