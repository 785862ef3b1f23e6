"""A verifier in one file, and its check against the vectors. Requires the package `cryptography`."""

import base64
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

HERE = Path(__file__).parent


class Rejected(Exception):
    """The first check that failed."""


def reject_unless(condition, verdict):
    if not condition:
        raise Rejected(verdict)


def decode(text, verdict="malformed"):
    reject_unless(re.fullmatch(r"[A-Za-z0-9_-]*", text) and len(text) % 4 != 1, verdict)
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    reject_unless(base64.urlsafe_b64encode(data).decode().rstrip("=") == text, verdict)
    return data


class Pairs(list):
    """The members of a JSON object in order, including duplicates."""


def not_a_number(text):
    raise ValueError(text)


def finite(text):
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number


def parse(data, verdict):
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=Pairs,
                          parse_constant=not_a_number, parse_float=finite)
    except (ValueError, RecursionError):
        raise Rejected(verdict) from None


def plain(value):
    """Converts objects to dictionaries, where duplicates do not matter."""
    if isinstance(value, Pairs):
        return {name: plain(inner) for name, inner in value}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def members(pairs, known, verdict):
    """Returns the known members, and rejects duplicates among them."""
    names = [name for name, _ in pairs if name in known]
    reject_unless(len(names) == len(set(names)), verdict)
    return {name: plain(value) for name, value in pairs if name in known}


def is_count(value):
    return type(value) is int and 0 <= value < 2**64


def number(text):
    return int.from_bytes(decode(text), "big")


class Keys:
    def __init__(self, jwks):
        self.keys = {jwk["kid"]: jwk for jwk in jwks["keys"]}

    def check(self, kid, alg, message, signature, other_alg):
        reject_unless(kid in self.keys, "unknown_key")
        jwk = self.keys[kid]
        reject_unless(jwk["alg"] == alg, other_alg)
        signature = decode(signature)
        try:
            if alg == "ES256":
                reject_unless(len(signature) == 64, "signature")
                r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
                numbers = ec.EllipticCurvePublicNumbers(number(jwk["x"]), number(jwk["y"]), ec.SECP256R1())
                numbers.public_key().verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
            else:
                key = rsa.RSAPublicNumbers(number(jwk["e"]), number(jwk["n"])).public_key()
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):
            raise Rejected("signature") from None


def verify_jws(jws, keys, allowed, types, max_bytes):
    """Verifies a JWS and returns its payload."""
    reject_unless(jws, "missing")
    reject_unless(len(jws.encode()) <= max_bytes, "too_large")
    reject_unless(jws.count(".") == 2, "malformed")
    head, body, signature = jws.split(".")
    header, payload = decode(head), decode(body)
    header = parse(header, "malformed")
    reject_unless(isinstance(header, Pairs), "malformed")
    header = members(header, {"alg", "typ", "kid", "crit"}, "malformed")
    texts = {name: header.get(name, "") for name in ("alg", "typ", "kid")}
    reject_unless(all(isinstance(text, str) for text in texts.values()), "malformed")
    reject_unless(texts["alg"] in allowed, "algorithm")
    reject_unless(texts["typ"].lower() in types, "type")
    reject_unless("crit" not in header, "malformed")
    keys.check(texts["kid"], texts["alg"], f"{head}.{body}".encode(), signature, "algorithm")
    return payload


REV = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(?:\.(0|[1-9][0-9]*))?")
TEXTS = {"iss", "sub", "client_id", "jti"}
OPTIONAL_TEXTS = {"scope", "grant_id", "sid", "acr"}


def claims_of(payload):
    reject_unless(payload.lstrip(b" \t\r\n")[:1] == b"{", "malformed")
    pairs = parse(payload, "malformed")
    claims = members(pairs, TEXTS | OPTIONAL_TEXTS | {"aud", "iat", "exp", "nbf", "rev", "auth_time"}, "claims")
    reject_unless(all(isinstance(claims.get(name), str) for name in TEXTS), "claims")
    reject_unless(all(isinstance(claims.get(name) or "", str) for name in OPTIONAL_TEXTS), "claims")
    reject_unless(is_count(claims.get("iat")) and is_count(claims.get("exp")), "claims")
    for name in ("nbf", "auth_time"):
        reject_unless(claims.get(name) is None or is_count(claims[name]), "claims")
    aud = claims.get("aud")
    claims["aud"] = aud[0] if isinstance(aud, list) and len(aud) == 1 else aud
    reject_unless(isinstance(claims["aud"], str), "claims")
    rev = claims.get("rev")
    reject_unless(isinstance(rev, str) and REV.fullmatch(rev), "claims")
    reject_unless(all(int(part) < 2**64 for part in rev.split(".")), "claims")
    return claims


def verify(token, keys, file, now, need):
    types = {"at+jwt", "application/at+jwt"}
    claims = claims_of(verify_jws(token, keys, file["algorithms"], types, 16 * 1024))
    reject_unless(claims["iss"] == file["issuer"], "issuer")
    reject_unless(claims["aud"] == file["audience"], "audience")
    reject_unless(now < claims["exp"] + file["leeway"], "expired")
    valid_from = max(claims["iat"], claims.get("nbf") or 0)
    reject_unless(valid_from <= now + file["leeway"], "not_yet_valid")
    granted = (claims.get("scope") or "").split(" ")
    reject_unless(all(scope in granted for scope in need.get("scope", [])), "scope")
    one_of = need.get("one_of")
    reject_unless(one_of is None or any(scope in granted for scope in one_of), "scope")
    reject_unless(not need.get("acr") or claims.get("acr") in need["acr"], "step_up")
    within = need.get("authenticated_within")
    auth_time = claims.get("auth_time")
    reject_unless(within is None or (auth_time is not None and now - auth_time <= within), "step_up")


def digest(kind, value):
    return hashlib.sha256(kind.encode() + b"\0" + value.encode()).digest()[:16]


def records_of(encoded):
    packed = decode(encoded, "rejected")
    reject_unless(len(packed) % 25 == 0, "rejected")
    records = [struct.unpack(">c16sII", packed[at:at + 25]) for at in range(0, len(packed), 25)]
    for kind, _, floor, _ in records:
        reject_unless(kind in (b"J", b"S", b"G", b"K", b"U", b"C"), "rejected")
        reject_unless(floor == 0 or kind in (b"U", b"C"), "rejected")
    return records


class Follower:
    """Applies frames of a feed. All times are in microseconds."""

    def __init__(self, issuer, keys):
        self.issuer, self.keys = issuer, keys
        self.epoch = None
        self.reset()

    def reset(self):
        self.seq, self.floors, self.as_of, self.since = 0, {}, 0, 0

    def apply(self, jws, wall, boot):
        frame = self.verify_frame(jws)
        reject_unless(abs(frame["iat"] - wall // 1_000_000) <= 30, "skew")
        reject_unless(wall // 1_000_000 < frame["exp"] + 30, "skew")
        reject_unless(frame["after"] <= frame["last"], "rejected")
        reject_unless(len(frame["records"]) <= frame["last"] - frame["after"], "rejected")
        reject_unless(self.epoch is None or frame["epoch"] >= self.epoch, "rollback")
        if frame["epoch"] != self.epoch:
            self.epoch = frame["epoch"]
            self.reset()
        reject_unless(frame["after"] <= self.seq, "gap")
        for _, name, floor, _ in frame["records"]:
            self.floors[name] = max(floor, self.floors.get(name, 0))
        self.seq = max(self.seq, frame["last"])
        as_of = frame["as_of_us"]
        if as_of is not None and as_of > self.as_of:
            self.as_of, self.since = as_of, boot - max(0, frame["at_us"] - as_of)

    def verify_frame(self, jws):
        try:
            types = {"revocation-frame+jwt", "application/revocation-frame+jwt"}
            payload = verify_jws(jws, self.keys, ["ES256", "RS256"], types, 4 * 1024 * 1024)
            pairs = parse(payload, "rejected")
            reject_unless(isinstance(pairs, Pairs), "rejected")
        except Rejected:
            raise Rejected("rejected") from None
        counts = {"v", "iat", "exp", "epoch", "after", "last", "at_us"}
        frame = members(pairs, counts | {"iss", "records", "as_of_us", "jwks_etag"}, "rejected")
        reject_unless(all(is_count(frame.get(name)) for name in counts), "rejected")
        reject_unless(frame.get("iss") == self.issuer and frame["v"] == 1, "rejected")
        reject_unless(isinstance(frame.get("jwks_etag"), str), "rejected")
        reject_unless(isinstance(frame.get("records"), str), "rejected")
        frame.setdefault("as_of_us", None)
        reject_unless(frame["as_of_us"] is None or is_count(frame["as_of_us"]), "rejected")
        frame["records"] = records_of(frame["records"])
        return frame

    def position(self):
        return None if self.epoch is None else f"{self.epoch}:{self.seq}"

    def age(self, wall, boot):
        return max(boot - self.since, wall - self.as_of - 30_000_000) if self.as_of else None

    def judge(self, kid, claims, age):
        numbers = [int(part) for part in claims["rev"].split(".")]
        if self.epoch is not None and numbers[0] < self.epoch:
            return "revoked"
        values = [("K", kid), ("J", claims["jti"]), ("S", claims.get("sid")), ("G", claims.get("grant_id"))]
        is_revoked = any(value is not None and digest(kind, value) in self.floors for kind, value in values)
        is_revoked |= numbers[1] < self.floors.get(digest("C", claims["client_id"]), 0)
        is_revoked |= len(numbers) == 3 and numbers[2] < self.floors.get(digest("U", claims["sub"]), 0)
        if is_revoked:
            return "revoked"
        is_fresh = age is not None and age <= 60_000_000 and numbers[0] == self.epoch
        return "ok" if is_fresh else "stale"


def outcome(attempt):
    try:
        attempt()
        return None
    except Rejected as rejected:
        return str(rejected)


class Checks:
    def __init__(self):
        self.count, self.failures = 0, []

    def equal(self, what, actual, expected):
        self.count += 1
        if actual != expected:
            self.failures.append(f"{what}: got {actual!r}, expected {expected!r}")


def check_tokens(checks):
    file = json.loads((HERE / "tokens.json").read_text("utf-8"))
    keys = Keys(file["jwks"])
    for case in file["cases"]:
        now, need = case.get("now", file["now"]), case.get("need", {})
        verdict = outcome(lambda: verify(case["token"], keys, file, now, need)) or "ok"
        checks.equal(case["name"], verdict, case["verdict"])


def check_records(checks):
    file = json.loads((HERE / "records.json").read_text("utf-8"))
    for case in file["records"]:
        packed = case["kind"].encode() + digest(case["kind"], case["value"])
        packed += struct.pack(">II", case["floor"], case["expires"])
        checks.equal(case["value"], packed.hex(), case["packed"])
    for case in file["lists"]:
        rejected = outcome(lambda: records_of(case["encoded"]))
        length = None if rejected else len(records_of(case["encoded"]))
        checks.equal(case["name"], length, case["length"])


def check_frames(checks):
    file = json.loads((HERE / "frames.json").read_text("utf-8"))
    for story in file["stories"]:
        follower = Follower(file["issuer"], Keys(file["jwks"]))
        wall, boot = file["now"] * 1_000_000, 1_000_000_000
        for at, step in enumerate(story["steps"]):
            wall, boot = wall + step["elapse"] * 1_000_000, boot + step["elapse"] * 1_000_000
            if step["frame"] is not None:
                rejected = outcome(lambda: follower.apply(step["frame"], wall, boot))
                checks.equal(f"{story['name']}, {at}", rejected or "applied", step["outcome"])
            checks.equal(f"{story['name']}, {at}", follower.position(), step["position"])
            checks.equal(f"{story['name']}, {at}", follower.age(wall, boot), step["age_us"])
        for at, token in enumerate(story["tokens"]):
            verdict = follower.judge(token["kid"], token["claims"], follower.age(wall, boot))
            checks.equal(f"{story['name']}, token {at}", verdict, token["verdict"])


def main():
    checks = Checks()
    check_tokens(checks)
    check_records(checks)
    check_frames(checks)
    for failure in checks.failures:
        print(failure, file=sys.stderr)
    print(f"{checks.count} checks, {len(checks.failures)} failed")
    return 1 if checks.failures or checks.count < 250 else 0


if __name__ == "__main__":
    sys.exit(main())
