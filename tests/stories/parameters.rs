//! Compares the parameters that the specifications define with those that each endpoint reads, and checks
//! that an error names the parameter that caused it.

use crate::fixtures::{
    Answer, Db, Server, TestClient, VERIFIER, apply, challenge, on_both_databases,
};

/// How a response shows that the server reads a parameter.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// The request is rejected with this value.
    Wrong(&'static str),
    /// The request is rejected when the parameter is included twice (RFC 6749 §3.1, §3.2).
    Twice,
    /// The server ignores the parameter, for this reason: the response is the same as without it.
    Ignored(&'static str),
}

use Use::{Ignored, Twice, Wrong};

/// A row of a parameter table: the name, the specification that defines it, and how the test uses it.
type Parameter = (&'static str, &'static str, Use);

const AUTHORIZATION: &[Parameter] = &[
    ("response_type", "RFC 6749 4.1.1", Wrong("token")),
    ("client_id", "RFC 6749 4.1.1", Wrong("unknown")),
    (
        "redirect_uri",
        "RFC 6749 4.1.1",
        Wrong("https://evil.example/cb"),
    ),
    ("scope", "RFC 6749 4.1.1", Wrong("unknown")),
    ("state", "RFC 6749 4.1.1", Wrong("\u{e4}")),
    ("code_challenge", "RFC 7636 4.3", Wrong("short")),
    ("code_challenge_method", "RFC 7636 4.3", Wrong("plain")),
    ("resource", "RFC 8707 2.1", Wrong("https://unknown.example")),
    (
        "response_mode",
        "Multiple Response Types 2.1",
        Wrong("fragment"),
    ),
    ("nonce", "OIDC Core 3.1.2.1", Twice),
    ("prompt", "OIDC Core 3.1.2.1", Wrong("unknown")),
    ("max_age", "OIDC Core 3.1.2.1", Wrong("-1")),
    ("id_token_hint", "OIDC Core 3.1.2.1", Wrong("unknown")),
    ("login_hint", "OIDC Core 3.1.2.1", Twice),
    ("claims", "OIDC Core 5.5", Wrong("{")),
    ("request", "OIDC Core 6.1", Wrong("x")),
    (
        "request_uri",
        "OIDC Core 6.2, RFC 9126 4",
        Wrong("https://app.example/request"),
    ),
    (
        "display",
        "OIDC Core 3.1.2.1",
        Ignored("pages fit every display"),
    ),
    (
        "ui_locales",
        "OIDC Core 3.1.2.1",
        Ignored("there is one language"),
    ),
    (
        "claims_locales",
        "OIDC Core 5.2",
        Ignored("claims have no languages"),
    ),
    (
        "acr_values",
        "OIDC Core 3.1.2.1",
        Ignored("a voluntary wish; there is one acr"),
    ),
    (
        "registration",
        "OIDC Core 7.2.1",
        Ignored("for self-issued providers"),
    ),
    ("dpop_jkt", "RFC 9449 10", Ignored("not offered")),
    (
        "authorization_details",
        "RFC 9396 2",
        Ignored("not offered"),
    ),
];

const CODE: &[Parameter] = &[
    ("grant_type", "RFC 6749 4.1.3", Wrong("password")),
    ("code", "RFC 6749 4.1.3", Wrong("unknown")),
    (
        "redirect_uri",
        "RFC 6749 4.1.3",
        Wrong("https://evil.example/cb"),
    ),
    ("client_id", "RFC 6749 4.1.3", Wrong("unknown")),
    ("client_secret", "RFC 6749 2.3.1", Wrong("unknown")),
    ("code_verifier", "RFC 7636 4.5", Wrong("unknown")),
    ("resource", "RFC 8707 2.2", Wrong("https://unknown.example")),
    ("client_assertion", "RFC 7521 4.2", Wrong("x")),
    (
        "client_assertion_type",
        "RFC 7521 4.2",
        Ignored("means nothing without client_assertion"),
    ),
    (
        "authorization_details",
        "RFC 9396 6",
        Ignored("not offered"),
    ),
];

const REFRESH: &[Parameter] = &[
    ("grant_type", "RFC 6749 6", Wrong("password")),
    ("refresh_token", "RFC 6749 6", Wrong("unknown")),
    ("scope", "RFC 6749 6", Wrong("orders:write")),
    ("resource", "RFC 8707 2.2", Wrong("https://unknown.example")),
    ("client_id", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_secret", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_assertion", "RFC 7521 4.2", Wrong("x")),
    (
        "client_assertion_type",
        "RFC 7521 4.2",
        Ignored("means nothing without client_assertion"),
    ),
    (
        "authorization_details",
        "RFC 9396 6",
        Ignored("not offered"),
    ),
];

const CLIENT_CREDENTIALS: &[Parameter] = &[
    ("grant_type", "RFC 6749 4.4.2", Wrong("password")),
    ("scope", "RFC 6749 4.4.2", Wrong("unknown")),
    ("resource", "RFC 8707 2.2", Wrong("https://unknown.example")),
    ("client_id", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_secret", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_assertion", "RFC 7521 4.2", Wrong("x")),
    (
        "client_assertion_type",
        "RFC 7521 4.2",
        Ignored("means nothing without client_assertion"),
    ),
    (
        "authorization_details",
        "RFC 9396 6",
        Ignored("not offered"),
    ),
];

const REVOCATION: &[Parameter] = &[
    ("token", "RFC 7009 2.1", Twice),
    (
        "token_type_hint",
        "RFC 7009 2.1",
        Ignored("the token shows its type"),
    ),
    ("client_id", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_secret", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_assertion", "RFC 7521 4.2", Wrong("x")),
    (
        "client_assertion_type",
        "RFC 7521 4.2",
        Ignored("means nothing without client_assertion"),
    ),
];

const INTROSPECTION: &[Parameter] = &[
    ("token", "RFC 7662 2.1", Twice),
    (
        "token_type_hint",
        "RFC 7662 2.1",
        Ignored("the token shows its type"),
    ),
    ("client_id", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_secret", "RFC 6749 2.3.1", Wrong("unknown")),
    ("client_assertion", "RFC 7521 4.2", Wrong("x")),
    (
        "client_assertion_type",
        "RFC 7521 4.2",
        Ignored("means nothing without client_assertion"),
    ),
];

const USERINFO: &[Parameter] = &[("access_token", "RFC 6750 2.2", Wrong("unknown"))];

const LOGOUT: &[Parameter] = &[
    ("id_token_hint", "RP-Initiated Logout 2", Twice),
    ("client_id", "RP-Initiated Logout 2", Twice),
    ("post_logout_redirect_uri", "RP-Initiated Logout 2", Twice),
    ("state", "RP-Initiated Logout 2", Twice),
    (
        "logout_hint",
        "RP-Initiated Logout 2",
        Ignored("the session names its user"),
    ),
    (
        "ui_locales",
        "RP-Initiated Logout 2",
        Ignored("there is one language"),
    ),
];

type Fields = Vec<(String, String)>;

fn fields(fields: &[(&str, &str)]) -> Fields {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    fields.iter().map(owned).collect()
}

/// Returns the request with the parameter used as its row says. Returns `None` for an ignored parameter that
/// the request contains already, because leaving it out is the same.
fn probe(mut good: Fields, (name, _, used): &Parameter) -> Fields {
    let of = |value: &str| ((*name).to_owned(), value.to_owned());
    match used {
        Wrong(value) => {
            good.retain(|(known, _)| known != name);
            good.push(of(value));
        }
        Twice => {
            good.retain(|(known, _)| known != name);
            good.extend([of("x"), of("x")]);
        }
        Ignored(_) => good.push(of("x")),
    }
    good
}

/// Returns a value that distinguishes kinds of responses.
fn kind(answer: &Answer) -> (u16, Option<String>) {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let error = body["error"].as_str().map(str::to_owned);
    // An inactive token counts as a rejection.
    let inactive = (body["active"] == false).then(|| "inactive".to_owned());
    (
        answer.status,
        answer.callback("error").or(error).or(inactive),
    )
}

fn is_refused((status, error): &(u16, Option<String>)) -> bool {
    *status >= 400 || error.is_some()
}

/// Sends a request for each row. `send` begins in the same state each time.
async fn compare(
    endpoint: &str,
    table: &[Parameter],
    mut send: impl AsyncFnMut(Option<&Parameter>) -> Answer,
) {
    let good = kind(&send(None).await);
    assert!(!is_refused(&good), "{endpoint}: {good:?}");
    let mut wrong = Vec::new();
    for row in table {
        let found = kind(&send(Some(row)).await);
        let is_right = match row.2 {
            Ignored(reason) => !reason.is_empty() && found == good,
            Wrong(_) | Twice => is_refused(&found),
        };
        if !is_right {
            wrong.push(format!("{row:?}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{endpoint}: {wrong:#?}");
}

fn query(fields: &Fields) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

async fn post(client: &TestClient, path: &str, headers: &[(&str, &str)], sent: &Fields) -> Answer {
    let sent: Vec<(&str, &str)> = sent
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    client.posts_raw(path, headers, &sent).await
}

fn with(good: Fields, row: Option<&Parameter>) -> Fields {
    match row {
        Some(row) => probe(good, row),
        None => good,
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn every_endpoint_reads_its_specified_parameters(#[case] db: Db) {
    let server = Server::start(db).await;
    // This client sends its secret in the form, so that each of its credentials is a form parameter.
    let mut client = crate::fixtures::server::confidential("web", "https://app.example/cb");
    client.auth_method = portcullis::oauth::client::AuthMethod::Post;
    let machine = portcullis::oauth::client::GrantType::ClientCredentials;
    client.grant_types.push(machine);
    let web = server.register(client).await;
    let api = server
        .resource_server("api", crate::fixtures::server::AUDIENCE)
        .await;
    let own = |web: &TestClient, more: &[(&str, &str)]| {
        let secret = web.secret.as_ref().unwrap().expose().to_owned();
        let mut all = fields(&[("client_id", web.id()), ("client_secret", &secret)]);
        all.extend(fields(more));
        all
    };
    let mut alice = server.browser();
    alice.signs_in(&web, "alice").await;

    compare("authorize", AUTHORIZATION, async |row| {
        let sent = with(web.parameters(&[]), row);
        alice
            .clone()
            .get(&format!("/oauth2/authorize?{}", query(&sent)))
            .await
    })
    .await;
    compare("token, code", CODE, async |row| {
        let code = alice.clone().allows(&web).await;
        let good = own(
            &web,
            &[
                ("grant_type", "authorization_code"),
                ("code", &code),
                ("redirect_uri", "https://app.example/cb"),
                ("code_verifier", VERIFIER),
            ],
        );
        post(&web, "/oauth2/token", &[], &with(good, row)).await
    })
    .await;
    compare("token, refresh", REFRESH, async |row| {
        let tokens = web.redeems(&alice.clone().allows(&web).await).await.ok();
        let good = own(
            &web,
            &[
                ("grant_type", "refresh_token"),
                ("refresh_token", tokens.refresh()),
            ],
        );
        post(&web, "/oauth2/token", &[], &with(good, row)).await
    })
    .await;
    compare("token, client", CLIENT_CREDENTIALS, async |row| {
        let good = own(&web, &[("grant_type", "client_credentials")]);
        post(&web, "/oauth2/token", &[], &with(good, row)).await
    })
    .await;
    compare("revoke", REVOCATION, async |row| {
        let good = own(&web, &[("token", "unknown")]);
        post(&web, "/oauth2/revoke", &[], &with(good, row)).await
    })
    .await;
    let url = web.request(&[("scope", "openid orders:read"), ("prompt", "consent")]);
    let page = alice.opens(&url).await;
    let back = alice.decides(&page, "allow").await;
    let tokens = web.redeems(&back.callback("code").unwrap()).await.ok();
    compare("introspect", INTROSPECTION, async |row| {
        let secret = api.secret.as_ref().unwrap().expose().to_owned();
        let basic = crate::fixtures::client::basic(api.id(), &secret);
        let good = fields(&[("token", tokens.access())]);
        post(
            &api,
            "/oauth2/introspect",
            &[("Authorization", &basic)],
            &with(good, row),
        )
        .await
    })
    .await;
    compare("userinfo", USERINFO, async |row| {
        let good = fields(&[("access_token", tokens.access())]);
        post(&web, "/oauth2/userinfo", &[], &with(good, row)).await
    })
    .await;
    compare("end_session", LOGOUT, async |row| {
        let good = fields(&[("client_id", web.id())]);
        alice
            .clone()
            .get(&format!("/oauth2/end_session?{}", query(&with(good, row))))
            .await
    })
    .await;
    // Each parameter of logout has an effect of its own: see tests/attacks/logout.rs.
    let read: Vec<&str> = LOGOUT
        .iter()
        .filter(|row| !matches!(row.2, Ignored(_)))
        .map(|row| row.0)
        .collect();
    assert_eq!(read, portcullis::oauth::logout::READ);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn missing_code_challenge_is_named(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&web, "alice").await;
    let good = challenge(VERIFIER);
    for (changed, reason, text) in [
        (
            &[("code_challenge", ""), ("code_challenge_method", "")][..],
            "require_pkce",
            "code_challenge is required (PKCE, S256).",
        ),
        (
            &[("code_challenge", "")],
            "require_pkce",
            "code_challenge is required (PKCE, S256).",
        ),
        (
            &[("code_challenge_method", "")],
            "pkce",
            "code_challenge_method must be S256.",
        ),
        (
            &[("code_challenge_method", "plain")],
            "pkce",
            "code_challenge_method must be S256.",
        ),
        (
            &[("code_challenge", &good[..42])],
            "pkce",
            "code_challenge must be the SHA-256 of the code verifier in base64url, 43 characters.",
        ),
        (
            &[("response_type", "")],
            "response_type",
            "response_type is required.",
        ),
        (
            &[("response_mode", "fragment")],
            "response_mode",
            "response_mode must be query or form_post.",
        ),
        (&[("scope", "")], "scope", "scope is required."),
        (
            &[("prompt", "none login")],
            "prompt",
            "prompt has an unknown value, or combines none with another value.",
        ),
        (
            &[("max_age", "soon")],
            "max_age",
            "max_age must be a number of seconds.",
        ),
        (
            &[("id_token_hint", "x")],
            "id_token_hint",
            "id_token_hint is not an ID token of this server.",
        ),
    ] {
        let answer = alice.get(&web.request(changed)).await;
        let described = answer.callback("error_description");
        assert_eq!(described.as_deref(), Some(text), "{changed:?}");
        assert!(
            answer
                .logged()
                .contains(&("authz.rejected".into(), reason.into())),
            "{changed:?}"
        );
        let id = answer.header("x-request-id").unwrap();
        let lines = crate::fixtures::log::of(id);
        assert!(
            lines
                .iter()
                .any(|line| line.get("description").is_some_and(|found| found == text)),
            "{lines:?}"
        );
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn missing_token_parameters_are_named(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    for (path, sent, text) in [
        ("/oauth2/token", &[][..], "grant_type is required."),
        (
            "/oauth2/token",
            &[("grant_type", "authorization_code")],
            "code is required.",
        ),
        (
            "/oauth2/token",
            &[("grant_type", "refresh_token")],
            "refresh_token is required.",
        ),
        (
            "/oauth2/token?x=1",
            &[("grant_type", "refresh_token")],
            "Parameters must be in the body, not in the URL.",
        ),
        (
            "/oauth2/token",
            &[("grant_type", "x"), ("grant_type", "x")],
            "A parameter is included more than once.",
        ),
        ("/oauth2/revoke", &[], "token is required."),
        (
            "/oauth2/token",
            &[("client_id", "other"), ("grant_type", "x")],
            "The request must use one method of client authentication and one client_id.",
        ),
    ] {
        let answer = web.posts(path, sent).await;
        let body = answer.json();
        assert_eq!(body["error"], "invalid_request", "{path} {sent:?}");
        assert_eq!(body["error_description"], text, "{path} {sent:?}");
    }
}
