"""PyPI Authlib with requests, unmodified; tokens verified with joserfc."""

import os
import secrets
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

# Plain http is for the loopback issuer of this test.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

import requests
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.jwk import KeySet

from portcullis import AUDIENCE, Person, Server

CALLBACK = "http://127.0.0.1:5555/callback"


class Flow:
    """One sign-in by an Authlib client: the request, and what has to be remembered for its answer."""

    def __init__(self, server, registered, redirect_uri=CALLBACK, **parameters):
        self.server = server
        # A client that may use both ways picks one of them.
        method = registered["token_endpoint_auth_method"]
        method = "client_secret_basic" if method == "client_secret" else method
        self.session = OAuth2Session(
            registered["client_id"],
            registered["client_secret"],
            token_endpoint_auth_method=method,
            scope="openid orders:read",
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
        )
        self.verifier = secrets.token_urlsafe(48)
        self.nonce = secrets.token_urlsafe(16)
        self.url, self.state = self.session.create_authorization_url(
            server.metadata["authorization_endpoint"], code_verifier=self.verifier, nonce=self.nonce, **parameters
        )

    def redeem(self, answer, verifier=None):
        """Reads the answer's issuer (RFC 9207) and error, which a plain session leaves to us, and redeems the code."""
        query = parse_qs(urlsplit(answer).query)
        if query["iss"] != [self.server.issuer]:
            raise ValueError("the answer is of another issuer")
        if "error" in query:
            raise OAuthError(query["error"][0])
        return self.session.fetch_token(
            self.server.metadata["token_endpoint"],
            authorization_response=answer,
            state=self.state,
            code_verifier=verifier or self.verifier,
        )


class Authlib(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.keys = KeySet.import_key_set(requests.get(cls.server.metadata["jwks_uri"], timeout=10).json())

    def register(self, *options):
        return self.server.client("--name", "Corner Shop", "--redirect-uri", CALLBACK, *options)

    def verify(self, flow, tokens):
        """The ID token as the client verifies it, the access token as an API does."""
        id_token = jwt.decode(tokens["id_token"], self.keys, algorithms=["RS256"])
        client_id = flow.session.client_id
        claims = CodeIDToken(
            id_token.claims,
            id_token.header,
            options={"iss": {"value": self.server.issuer}, "aud": {"value": client_id}},
            params={"nonce": flow.nonce, "client_id": client_id, "access_token": tokens["access_token"]},
        )
        claims.validate(leeway=5)
        self.assertEqual(claims["sub"], self.server.sub)

        access = jwt.decode(tokens["access_token"], self.keys, algorithms=["ES256"])
        self.assertEqual(access.header["typ"], "at+jwt")
        jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": self.server.issuer},
            aud={"essential": True, "value": AUDIENCE},
            sub={"essential": True, "value": self.server.sub},
            client_id={"essential": True, "value": client_id},
            exp={"essential": True},
        ).validate(access.claims)

    def test_a_confidential_client(self):
        flow = Flow(self.server, self.register())
        self.verify(flow, flow.redeem(Person(self.server.issuer).answers(flow.url)))

    def test_client_secret_post(self):
        flow = Flow(self.server, self.register("--auth-method", "client_secret_post"))
        self.verify(flow, flow.redeem(Person(self.server.issuer).answers(flow.url)))

    def test_a_public_client_answered_on_a_loopback_port_of_the_moment(self):
        # Registered without a port, as a native app has to (RFC 8252 §7.3).
        registered = self.server.client("--name", "Pocket App", "--public", "--redirect-uri", "http://127.0.0.1/cb")
        arrived = []

        class App(BaseHTTPRequestHandler):
            def do_GET(self):
                arrived.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        app = HTTPServer(("127.0.0.1", 0), App)
        self.addCleanup(app.server_close)
        threading.Thread(target=app.handle_request, daemon=True).start()
        here = f"http://127.0.0.1:{app.server_port}"
        flow = Flow(self.server, registered, f"{here}/cb")
        requests.get(Person(self.server.issuer).answers(flow.url), timeout=10)
        self.verify(flow, flow.redeem(here + arrived[0]))

    def test_another_code_verifier_is_invalid_grant(self):
        flow = Flow(self.server, self.register())
        answer = Person(self.server.issuer).answers(flow.url)
        with self.assertRaises(OAuthError) as refused:
            flow.redeem(answer, verifier=secrets.token_urlsafe(48))
        self.assertEqual(refused.exception.error, "invalid_grant")

    def test_what_the_person_denies_reaches_the_client(self):
        flow = Flow(self.server, self.register())
        with self.assertRaises(OAuthError) as refused:
            flow.redeem(Person(self.server.issuer).answers(flow.url, "deny"))
        self.assertEqual(refused.exception.error, "access_denied")

    def test_the_request_carries_the_challenge_of_the_verifier(self):
        flow = Flow(self.server, self.register())
        sent = parse_qs(urlsplit(flow.url).query)
        self.assertEqual(sent["code_challenge"], [create_s256_code_challenge(flow.verifier)])
        self.assertEqual(sent["code_challenge_method"], ["S256"])


if __name__ == "__main__":
    unittest.main()
