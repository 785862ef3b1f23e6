"""The server under test, and a person at a browser, as in portcullis.mjs and person.mjs."""

import html
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

import requests

USERNAME = "alice"
PASSWORD = "gravel-otter-92-lamp"
AUDIENCE = "https://api.example"

HERE = Path(__file__).resolve().parent
BINARY = os.environ.get("PORTCULLIS_BIN") or str(HERE / "../../target/debug/portcullis")


class Server:
    """`portcullis serve` on a temporary SQLite database, set up by its own command line."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="portcullis-interop-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.issuer = f"http://localhost:{port}"
        # Nothing is inherited: DATABASE_URL, PORT and RUST_LOG would be settings.
        self.env = {
            "PATH": os.environ["PATH"],
            "PORTCULLIS__ISSUER": self.issuer,
            "PORTCULLIS__LISTEN__PUBLIC": f"localhost:{port}",
            "PORTCULLIS__LISTEN__MANAGEMENT": "127.0.0.1:0",
            "PORTCULLIS__DATA_DIR": f"{self.folder}/data",
            "PORTCULLIS__KEYS__KEK": f"file:{self.folder}/kek",
        }
        self.command("resource", "create", "--audience", AUDIENCE, "--name", "Orders", "--scope", "orders:read")
        person = self.command("user", "create", USERNAME, "--name", "Alice", "--password-stdin", stdin=PASSWORD)
        self.sub = person[0]["sub"]
        self.log = open(f"{self.folder}/log", "w+")
        self.process = subprocess.Popen([BINARY, "serve"], env=self.env, cwd=self.folder, stderr=self.log)
        self.metadata = self._discovered()

    def _discovered(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                return requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).json()
            except requests.ConnectionError:
                time.sleep(0.05)
        self.process.kill()
        self.log.seek(0)
        raise RuntimeError(f"the server does not start:\n{self.log.read()}")

    def command(self, *words, stdin=None):
        done = subprocess.run(
            [BINARY, *words, "--format", "json"],
            env=self.env, cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=30,
        )
        if done.returncode:
            raise RuntimeError(f"portcullis {' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def client(self, *options):
        scope = ["--resource", AUDIENCE, "--scope", "openid profile email orders:read"]
        return self.command("client", "create", *scope, *options)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Person:
    """Keeps cookies, and posts the forms of our pages."""

    def __init__(self, issuer):
        self.issuer = issuer
        self.http = requests.Session()

    def answers(self, url, decision="allow"):
        """Signs in and decides, whatever of it is asked. Returns the address at which the client is answered."""
        page = self._send("GET", url)
        if 'id="login-submit"' in page.text:
            page = self._submit("/login", page, [("username", USERNAME), ("password", PASSWORD)])
        if 'id="consent-allow"' in page.text:
            scopes = [(name, value) for name, value in inputs(page.text) if name == "scope"]
            page = self._submit("/consent", page, [*scopes, ("decision", decision)])
        assert page.is_redirect, f"{page.status_code} {page.text}"
        return page.headers["Location"]

    def _submit(self, path, page, fields):
        hidden = [(name, value) for name, value in inputs(page.text) if name in ("authorization", "csrf")]
        headers = {"Origin": self.issuer, "Sec-Fetch-Site": "same-origin"}
        return self._send("POST", self.issuer + path, data=hidden + fields, headers=headers)

    def _send(self, method, url, **more):
        answer = self.http.request(method, url, allow_redirects=False, timeout=10, **more)
        while to := onward(answer):
            if not to.startswith(f"{self.issuer}/"):
                break
            answer = self.http.get(to, allow_redirects=False, timeout=10)
        return answer


def onward(answer):
    """Where a browser goes by itself: the redirect, or the refresh of a page that continues."""
    if answer.is_redirect:
        return requests.compat.urljoin(answer.url, answer.headers["Location"])
    refresh = re.search(r'http-equiv="refresh" content="0; url=([^"]*)"', answer.text)
    return refresh and requests.compat.urljoin(answer.url, html.unescape(refresh[1]))


def inputs(page):
    """Names and values of all inputs of a page."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "input":
                attributes = dict(attrs)
                found.append((attributes.get("name"), attributes.get("value", "")))

    Reader().feed(page)
    return found
