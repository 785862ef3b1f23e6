-- Sign-in: applications, APIs, people, their logins, and the code flow between them.
-- Instants are epoch microseconds. Lists are JSON arrays in TEXT, scopes are space-separated.

CREATE TABLE clients (
    id                       TEXT   PRIMARY KEY,
    name                     TEXT   NOT NULL,
    kind                     TEXT   NOT NULL CHECK (kind IN ('confidential', 'public')),
    auth_method              TEXT   NOT NULL CHECK (auth_method IN ('client_secret_basic', 'client_secret_post', 'none')),
    redirect_uris            TEXT   NOT NULL,
    grant_types              TEXT   NOT NULL,
    scopes                   TEXT   NOT NULL,
    resources                TEXT   NOT NULL,
    cors_origins             TEXT   NOT NULL,
    post_logout_redirect_uris TEXT  NOT NULL,
    id_token_alg             TEXT   NOT NULL CHECK (id_token_alg IN ('RS256', 'ES256')),
    consent                  TEXT   NOT NULL CHECK (consent IN ('remember', 'always', 'skip')),
    require_pkce             BOOLEAN NOT NULL,
    allow_localhost_redirect BOOLEAN NOT NULL,
    client_uri               TEXT,
    policy_uri               TEXT,
    tos_uri                  TEXT,
    auth_epoch               BIGINT NOT NULL DEFAULT 1,
    disabled_at              BIGINT,
    created_at               BIGINT NOT NULL
);

CREATE TABLE client_secrets (
    id           TEXT   PRIMARY KEY,
    client_id    TEXT   NOT NULL REFERENCES clients (id),
    hash         BLOB  NOT NULL,
    label        TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT,
    last_used_at BIGINT
);
CREATE INDEX client_secrets_client ON client_secrets (client_id);

CREATE TABLE resources (
    id         TEXT   PRIMARY KEY,
    audience   TEXT   NOT NULL UNIQUE,
    name       TEXT   NOT NULL,
    scopes     TEXT   NOT NULL,
    access_ttl BIGINT,
    alg        TEXT   NOT NULL CHECK (alg IN ('RS256', 'ES256')),
    max_age    BIGINT,
    created_at BIGINT NOT NULL
);

CREATE TABLE scopes (
    name        TEXT PRIMARY KEY,
    description TEXT NOT NULL
);

CREATE TABLE users (
    id             TEXT   PRIMARY KEY,
    username       TEXT   NOT NULL UNIQUE,
    name           TEXT,
    email          TEXT,
    email_verified BOOLEAN NOT NULL,
    claims         TEXT   NOT NULL,
    auth_epoch     BIGINT NOT NULL DEFAULT 1,
    disabled_at    BIGINT,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL
);

CREATE TABLE passwords (
    user_id TEXT   PRIMARY KEY REFERENCES users (id),
    phc     TEXT   NOT NULL,
    set_at  BIGINT NOT NULL
);

CREATE TABLE sessions (
    id_hash    BLOB  PRIMARY KEY,
    sid        TEXT   NOT NULL UNIQUE,
    user_id    TEXT   NOT NULL REFERENCES users (id),
    user_epoch BIGINT NOT NULL,
    auth_time  BIGINT NOT NULL,
    acr        TEXT   NOT NULL,
    amr        TEXT   NOT NULL,
    seen_at    BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at   BIGINT
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE authorizations (
    id         TEXT   PRIMARY KEY,
    client_id  TEXT   NOT NULL REFERENCES clients (id),
    params     TEXT   NOT NULL,
    browser    BLOB,
    user_id    TEXT,
    sid        TEXT,
    state      TEXT   NOT NULL CHECK (state IN ('begun', 'signed_in', 'consented', 'denied')),
    scope      TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    taken_at   BIGINT
);
CREATE INDEX authorizations_expiry ON authorizations (expires_at);

CREATE TABLE consents (
    id         TEXT   PRIMARY KEY,
    user_id    TEXT   NOT NULL REFERENCES users (id),
    client_id  TEXT   NOT NULL REFERENCES clients (id),
    scope      TEXT   NOT NULL,
    client_shape BLOB NOT NULL,
    granted_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at   BIGINT
);
CREATE UNIQUE INDEX consents_standing ON consents (user_id, client_id) WHERE ended_at IS NULL;

CREATE TABLE grants (
    id           TEXT   PRIMARY KEY,
    client_id    TEXT   NOT NULL REFERENCES clients (id),
    user_id      TEXT   NOT NULL REFERENCES users (id),
    sid          TEXT   NOT NULL,
    consent_id   TEXT,
    offline      BOOLEAN NOT NULL,
    scope        TEXT   NOT NULL,
    resources    TEXT   NOT NULL,
    cnf_jkt      TEXT,
    auth_time    BIGINT NOT NULL,
    acr          TEXT   NOT NULL,
    amr          TEXT   NOT NULL,
    client_epoch BIGINT NOT NULL,
    user_epoch   BIGINT NOT NULL,
    feed_epoch   BIGINT NOT NULL,
    generation   BIGINT NOT NULL,
    rotated_at   BIGINT NOT NULL,
    idle_until   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    ended_at     BIGINT
);
CREATE INDEX grants_user ON grants (user_id, client_id);
CREATE INDEX grants_sid ON grants (sid);
CREATE INDEX grants_expiry ON grants (expires_at);

CREATE TABLE codes (
    hash         BLOB  PRIMARY KEY,
    grant_id     TEXT   NOT NULL REFERENCES grants (id),
    client_id    TEXT   NOT NULL,
    redirect_uri TEXT   NOT NULL,
    redirect_uri_sent BOOLEAN NOT NULL,
    challenge    TEXT,
    nonce        TEXT,
    expires_at   BIGINT NOT NULL,
    used_at      BIGINT
);
CREATE INDEX codes_expiry ON codes (expires_at);
CREATE INDEX codes_grant ON codes (grant_id);

CREATE TABLE signing_keys (
    kid           TEXT   PRIMARY KEY,
    issuer        TEXT   NOT NULL,
    use           TEXT   NOT NULL CHECK (use IN ('token', 'feed')),
    alg           TEXT   NOT NULL CHECK (alg IN ('RS256', 'ES256')),
    generation    BIGINT NOT NULL,
    public_jwk    TEXT   NOT NULL,
    sealed        TEXT   NOT NULL,
    publish_at    BIGINT NOT NULL,
    activate_at   BIGINT NOT NULL,
    retire_at     BIGINT,
    remove_at     BIGINT,
    revoked_at    BIGINT,
    revoke_reason TEXT,
    created_at    BIGINT NOT NULL,
    UNIQUE (issuer, use, alg, generation),
    CHECK (publish_at <= activate_at),
    CHECK (activate_at <= retire_at),
    CHECK (retire_at <= remove_at)
);

CREATE TABLE server_secrets (
    id         TEXT   PRIMARY KEY,
    generation BIGINT NOT NULL UNIQUE,
    sealed     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

-- The blocklist: an act that ends something inserts its record in the same transaction.
CREATE TABLE revocations (
    id         TEXT   PRIMARY KEY,
    kind       TEXT   NOT NULL CHECK (kind IN ('J', 'S', 'G', 'K', 'U', 'C')),
    value      TEXT   NOT NULL,
    floor      BIGINT NOT NULL,
    token_exp  BIGINT,
    reason     TEXT   NOT NULL,
    actor      TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    epoch      BIGINT,
    seq        BIGINT,
    expires_at BIGINT,
    UNIQUE (epoch, seq)
);
CREATE INDEX revocations_waiting ON revocations (id) WHERE seq IS NULL;

CREATE TABLE feed_head (
    one            BIGINT PRIMARY KEY CHECK (one = 1),
    epoch          BIGINT NOT NULL,
    seq            BIGINT NOT NULL,
    beat           BIGINT NOT NULL,
    keys_version   BIGINT NOT NULL,
    config_version BIGINT NOT NULL,
    longest_life   BIGINT NOT NULL
);
INSERT INTO feed_head VALUES (1, 1, 0, 0, 0, 0, 0);

CREATE TABLE audit_events (
    id         TEXT   PRIMARY KEY,
    at         BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    actor      TEXT   NOT NULL,
    target     TEXT   NOT NULL,
    reason     TEXT,
    detail     TEXT   NOT NULL
);
CREATE INDEX audit_events_at ON audit_events (at);
