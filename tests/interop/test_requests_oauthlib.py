"""PyPI requests-oauthlib over oauthlib, unmodified."""

import os
import unittest

# Plain http is for the loopback issuer of this test.
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"

import requests
from oauthlib.oauth2.rfc6749.errors import InvalidGrantError
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from portcullis import AUDIENCE, Person, Server

CALLBACK = "http://127.0.0.1:5555/callback"


class RequestsOAuthlib(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.endpoint = {name: cls.server.metadata[f"{name}_endpoint"] for name in ("token", "userinfo", "revocation", "introspection")}

    def setUp(self):
        registered = self.server.client("--name", "Corner Shop", "--redirect-uri", CALLBACK)
        self.basic = HTTPBasicAuth(registered["client_id"], registered["client_secret"])
        self.session = OAuth2Session(
            registered["client_id"],
            redirect_uri=CALLBACK,
            scope=["openid", "profile", "orders:read"],
            pkce="S256",
            auto_refresh_url=self.endpoint["token"],
            token_updater=self.keep,
        )
        self.kept = []
        url, _ = self.session.authorization_url(self.server.metadata["authorization_endpoint"])
        answer = Person(self.server.issuer).answers(url)
        self.tokens = self.session.fetch_token(self.endpoint["token"], authorization_response=answer, auth=self.basic)

    def keep(self, tokens):
        self.kept.append(tokens)

    def introspected(self, token):
        """An API asks; this library has no words for it, so it is the bare request of RFC 7662."""
        api = self.server.client("--name", "Orders API", "--serves", AUDIENCE, "--grant-type", "client_credentials")
        basic = HTTPBasicAuth(api["client_id"], api["client_secret"])
        return requests.post(self.endpoint["introspection"], data={"token": token}, auth=basic, timeout=10).json()

    def revoke(self, token, kind):
        url, headers, body = self.session._client.prepare_token_revocation_request(self.endpoint["revocation"], token, kind)
        answer = requests.post(url, headers=headers, data=body, auth=self.basic, timeout=10)
        self.assertEqual((answer.status_code, answer.text), (200, ""))

    def test_userinfo(self):
        told = self.session.get(self.endpoint["userinfo"]).json()
        self.assertEqual((told["sub"], told["preferred_username"]), (self.server.sub, "alice"))

    def test_a_token_that_is_over_is_refreshed_on_the_way(self):
        self.session.token = {**self.tokens, "expires_in": -10, "expires_at": 1}
        self.session.auto_refresh_kwargs = {}
        told = self.session.get(self.endpoint["userinfo"], client_id=self.basic.username, client_secret=self.basic.password)
        self.assertEqual(told.json()["sub"], self.server.sub)
        self.assertEqual(len(self.kept), 1)
        self.assertNotEqual(self.kept[0]["refresh_token"], self.tokens["refresh_token"])

    def test_a_revoked_access_token_is_dead_and_its_grant_lives(self):
        self.assertTrue(self.introspected(self.tokens["access_token"])["active"])
        self.revoke(self.tokens["access_token"], "access_token")
        self.assertEqual(self.introspected(self.tokens["access_token"]), {"active": False})
        self.assertEqual(self.session.get(self.endpoint["userinfo"]).status_code, 401)
        self.session.refresh_token(self.endpoint["token"], auth=self.basic)
        self.assertEqual(self.session.get(self.endpoint["userinfo"]).status_code, 200)

    def test_a_revoked_refresh_token_ends_all(self):
        next_tokens = self.session.refresh_token(self.endpoint["token"], auth=self.basic)
        self.revoke(next_tokens["refresh_token"], "refresh_token")
        for tokens in (self.tokens, next_tokens):
            self.assertEqual(self.introspected(tokens["access_token"]), {"active": False})
        with self.assertRaises(InvalidGrantError):
            self.session.refresh_token(self.endpoint["token"], auth=self.basic)


if __name__ == "__main__":
    unittest.main()
