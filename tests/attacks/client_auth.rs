//! Rows of the catalogue: client authentication. Assertions are not implemented yet: A241 to A246 assert
//! the responses until then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis::admin::clients::{CreatedClient, Rules};
use portcullis::admin::{self, AdminError, Context, clients};
use portcullis::audit::Actor;
use portcullis::oauth::client::{AuthMethod, Client, ClientSecret, Registration};
use portcullis::oauth::client_auth::{read_credentials, verify};
use portcullis::oauth::request::params::Params;
use portcullis::secret::{Secret, base64url, sha256};
use serde_json::{Value, json};

use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::basic;
use crate::fixtures::server::{confidential, public};
use crate::fixtures::{Answer, Db, ISSUER, Server, TestClient, VERIFIER};
use crate::token_code::{Flow, median};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a235_refused_client_authentication_is_indistinguishable),
    row!(a236_malformed_basic_headers_are_rejected),
    row!(a237_two_client_credentials_are_rejected),
    row!(a238_unregistered_auth_methods_are_rejected),
    row!(a240_client_secret_check_is_cheap),
    row!(a241_client_assertions_are_rejected_with_any_alg),
    row!(a242_client_assertions_are_rejected_with_any_aud),
    row!(a244_client_assertions_with_invalid_claims_are_rejected),
    row!(a245_client_assertion_headers_fetch_no_keys),
    row!(a246_client_assertions_with_unknown_kid_are_rejected),
    row!(a263_sub_of_clients_and_users_are_disjoint),
    row!(a248_expired_client_secrets_are_rejected),
    row!(a517_noisy_neighbour_does_not_block_authenticated_clients),
];

const TOKEN: &str = "/oauth2/token";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Sends a token request for a code of `web` with other credentials.
async fn redeems_as(
    web: &TestClient,
    code: &str,
    headers: &[(&str, &str)],
    credentials: &[(&str, &str)],
) -> Answer {
    let mut fields = vec![
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", web.redirect_uri()),
        ("code_verifier", VERIFIER),
    ];
    fields.extend(credentials);
    web.posts_raw(TOKEN, headers, &fields).await
}

fn secret(web: &TestClient) -> &str {
    web.secret.as_ref().unwrap().expose()
}

/// Checks that the code can still be exchanged: failed authentication did not consume it.
async fn code_is_active(stage: &Stage, case: usize, web: &TestClient, code: &str) {
    let answer = web.redeems(code).await;
    stage.check(case, answer.status == 200, || {
        format!("the code is consumed: {}", summary(&answer))
    });
}

async fn a235_refused_client_authentication_is_indistinguishable(stage: &Stage) {
    const SAMPLES: usize = 60;
    const LIMIT: Duration = Duration::from_millis(5);
    let web = stage.server.shop().await;
    let other = stage.server.shop().await;
    let headers = [
        basic(web.id(), "wrong"),
        basic(web.id(), ""),
        basic(web.id(), secret(&other)),
        basic("unknown", "wrong"),
    ];
    let mut spread = Duration::MAX;
    // The best of six rounds counts, so that other load on the machine does not look like a leak.
    for attempt in 0..6 {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for round in 0..SAMPLES {
            for (n, header) in headers.iter().enumerate() {
                // The bucket of failures is not the subject here.
                stage.server.execute("DELETE FROM throttles");
                let started = Instant::now();
                let answer = redeems_as(&web, "pcl_ac_x", &[("Authorization", header)], &[]).await;
                times[n].push(started.elapsed());
                if attempt == 0 && round == 0 {
                    stage.expect(n + 1, json_error(&answer, 401, "invalid_client"));
                    stage.expect(n + 1, logged(&answer, "client.auth_failed", ""));
                    let challenge = answer.header("www-authenticate").unwrap_or_default();
                    stage.check(n + 1, challenge.starts_with("Basic"), || summary(&answer));
                }
            }
        }
        let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
        spread = spread.min(*medians.iter().max().unwrap() - *medians.iter().min().unwrap());
        if spread < LIMIT {
            break;
        }
    }
    stage.check(5, spread < LIMIT, || {
        format!("the medians are {spread:?} apart")
    });
    // Every refusal is counted, whatever is wrong with the credentials.
    let malformed = "Basic !".to_owned();
    let kinds: [(&[(&str, &str)], &[(&str, &str)]); 4] = [
        (&[("Authorization", &headers[1])], &[]),
        (&[("Authorization", &headers[3])], &[]),
        (&[("Authorization", &malformed)], &[]),
        (&[], &[]),
    ];
    for (case, (headers, fields)) in (6..).zip(kinds) {
        stage.server.execute("DELETE FROM throttles");
        let mut statuses = Vec::new();
        while statuses.last() != Some(&429) && statuses.len() < 80 {
            let answer = redeems_as(&web, "pcl_ac_x", headers, fields).await;
            statuses.push(answer.status);
        }
        stage.check(case, statuses.len() == 61, || format!("{statuses:?}"));
    }
}

async fn a236_malformed_basic_headers_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let web = &flow.web;
    let not_utf8 = STANDARD.encode([web.id().as_bytes(), b":\xff\xfe"].concat());
    let headers = [
        "Basic !!!not-base64!!!".to_owned(),
        format!("Basic {}", STANDARD.encode(web.id())),
        format!("Basic {not_utf8}"),
        basic(web.id(), "50%off"),
    ];
    for (case, header) in (1..).zip(&headers) {
        let answer = redeems_as(
            &web.at(&stage.node(case).base),
            &code,
            &[("Authorization", header)],
            &[],
        )
        .await;
        stage.check(case, matches!(answer.status, 400 | 401), || {
            summary(&answer)
        });
        let status = answer.status;
        stage.expect(
            case,
            json_error(
                &answer,
                status,
                if status == 401 {
                    "invalid_client"
                } else {
                    "invalid_request"
                },
            ),
        );
        stage.expect(case, logged(&answer, "client.auth_failed", ""));
    }
    let answer = redeems_as(
        web,
        &code,
        &[("Authorization", &basic(web.id(), &"x".repeat(75_000)))],
        &[],
    )
    .await;
    stage.check(5, answer.status == 431, || summary(&answer));
    code_is_active(stage, 5, web, &code).await;
}

async fn a237_two_client_credentials_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let web = &flow.web;
    let header = basic(web.id(), secret(web));
    let doubles: [&[(&str, &str)]; 3] = [
        &[("client_secret", secret(web))],
        &[
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", "e30.e30."),
        ],
        &[("client_id", "web2")],
    ];
    for (case, double) in (1..).zip(doubles) {
        let answer = redeems_as(
            &web.at(&stage.node(case).base),
            &code,
            &[("Authorization", &header)],
            double,
        )
        .await;
        stage.expect(case, json_error(&answer, 400, "invalid_request"));
        stage.expect(case, logged(&answer, "client.auth_failed", "multi"));
    }
    code_is_active(stage, 3, web, &code).await;
}

async fn a238_unregistered_auth_methods_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let spa = stage
        .server
        .register(public("spa", &["https://spa.example/cb"]))
        .await;
    let web = &flow.web;
    // 1. While `private_key_jwt` is not offered there is no such client, so its id is unknown.
    let answer = redeems_as(
        web,
        &code,
        &[],
        &[("client_id", "pkj"), ("client_secret", secret(web))],
    )
    .await;
    stage.expect(1, json_error(&answer, 401, "invalid_client"));
    stage.expect(1, logged(&answer, "client.auth_failed", ""));
    let (empty, guess) = (basic(spa.id(), ""), basic(spa.id(), "guess"));
    let others: [(usize, &[(&str, &str)], &[(&str, &str)]); 5] = [
        (
            2,
            &[],
            &[("client_id", web.id()), ("client_secret", secret(web))],
        ),
        (2, &[], &[("client_id", web.id())]),
        (
            3,
            &[],
            &[("client_id", spa.id()), ("client_secret", "guess")],
        ),
        (3, &[("Authorization", &guess)], &[]),
        (3, &[("Authorization", &empty)], &[]),
    ];
    for (case, headers, credentials) in others {
        let answer = redeems_as(web, &code, headers, credentials).await;
        stage.expect(case, json_error(&answer, 401, "invalid_client"));
        stage.check(
            case,
            answer.logged().iter().any(|(event, reason)| {
                event == "client.auth_failed" && (reason == "method" || reason == "malformed")
            }),
            || summary(&answer),
        );
    }
    code_is_active(stage, 3, web, &code).await;
}

async fn a240_client_secret_check_is_cheap(stage: &Stage) {
    let mut client = confidential("bench", "https://bench.example/cb");
    let secret = Secret::client_secret(&stage.server.app.entropy);
    let header = basic("bench", secret.expose());
    let now = stage.server.clock.now();
    let entropy = &stage.server.app.entropy;
    client.secrets = vec![ClientSecret::keep(&secret, "first", entropy, now)];
    let known = Arc::new(Registration {
        max_age: portcullis_verifier::MaxAge::STANDARD,
        client,
        resources: Vec::new(),
        feed_epoch: 1,
    });
    let mut samples = Vec::new();
    for _ in 0..300 {
        let credentials = read_credentials(&[header.as_bytes()], &Params::default()).unwrap();
        let known = Arc::clone(&known);
        let started = Instant::now();
        let here = Some(std::net::Ipv4Addr::LOCALHOST.into());
        let proven = verify(&credentials, &known.client, here, now);
        samples.push(started.elapsed());
        assert!(proven.is_ok());
    }
    // The limit of the policy applies to release builds; a debug build gets ten times as much.
    let limit = Duration::from_micros(if cfg!(debug_assertions) { 200 } else { 20 });
    let median = crate::token_code::median(&mut samples);
    stage.check(1, median < limit, || format!("a check takes {median:?}"));
    let web = stage.server.shop().await;
    let hash: String = sha256(web.secret.as_ref().unwrap().expose().as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let hex = if stage.db() == Db::Sqlite {
        "lower(hex(hash))"
    } else {
        "encode(hash, 'hex')"
    };
    let stored = stage.server.count(&format!(
        "SELECT count(*) AS n FROM client_secrets WHERE client_id = '{}' AND {hex} = '{hash}'",
        web.id()
    ));
    stage.check(2, stored == 1, || {
        "what is stored is not the SHA-256 of the secret".to_owned()
    });
}

/// Returns a compact JWS with this header, these claims and these signature bytes.
fn assertion(header: &Value, claims: &str, signature: &[u8]) -> String {
    format!(
        "{}.{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(claims.as_bytes()),
        base64url(signature)
    )
}

/// Claims of a valid assertion of `client`.
fn claims(stage: &Stage, client: &str) -> Value {
    let now = stage.server.clock.now().secs();
    json!({ "iss": client, "sub": client, "aud": ISSUER, "iat": now, "exp": now + 60, "jti": format!("{client}-{now}") })
}

/// Checks that the metadata does not offer assertions, and that this one is refused: for a confidential
/// client, for a public client, and without a `client_id`.
async fn refused(stage: &Stage, case: usize, assertion: &str) {
    let server = stage.node(case);
    let id = format!("pkj{case}");
    let pkj = stage
        .server
        .register(confidential(&id, "https://pkj.example/cb"))
        .await;
    let spa = stage
        .server
        .register(public(&format!("spa{case}"), &["https://spa.example/cb"]))
        .await;
    for client in [Some(pkj.id()), Some(spa.id()), None] {
        let mut credentials = vec![
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", assertion),
        ];
        credentials.extend(client.map(|id| ("client_id", id)));
        let answer = redeems_as(&pkj.at(&server.base), "pcl_ac_x", &[], &credentials).await;
        stage.expect(case, json_error(&answer, 401, "invalid_client"));
        stage.expect(case, logged(&answer, "client.auth_failed", ""));
    }
}

/// Checks that the metadata does not mention assertions.
async fn not_offered(stage: &Stage, case: usize) {
    let metadata = stage
        .server
        .browser()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let methods = metadata["token_endpoint_auth_methods_supported"].to_string();
    stage.check(case, !methods.contains("jwt"), || methods.clone());
    stage.check(
        case,
        metadata
            .get("token_endpoint_auth_signing_alg_values_supported")
            .is_none(),
        || metadata.to_string(),
    );
    stage.check(case, AuthMethod::parse("private_key_jwt").is_none(), || {
        "it can be registered".to_owned()
    });
}

async fn a241_client_assertions_are_rejected_with_any_alg(stage: &Stage) {
    not_offered(stage, 1).await;
    let good = claims(stage, "pkj").to_string();
    for (case, alg, signature) in [
        (1, "none", vec![]),
        (2, "HS256", vec![1; 32]),
        (3, "RS256", vec![1; 256]),
        (4, "ES256", vec![0; 64]),
    ] {
        refused(
            stage,
            case,
            &assertion(&json!({ "alg": alg, "typ": "JWT" }), &good, &signature),
        )
        .await;
    }
}

async fn a242_client_assertions_are_rejected_with_any_aud(stage: &Stage) {
    not_offered(stage, 1).await;
    let audiences = [
        json!([ISSUER, "https://other.example"]),
        json!(format!("{ISSUER}/oauth2/par")),
        json!("https://other.example"),
        json!(format!("{ISSUER}/x")),
        json!(format!("{ISSUER}{TOKEN}")),
    ];
    for (case, audience) in (1..).zip(audiences) {
        let mut claims = claims(stage, "pkj");
        claims["aud"] = audience;
        refused(
            stage,
            case,
            &assertion(&json!({ "alg": "ES256" }), &claims.to_string(), &[7; 64]),
        )
        .await;
    }
}

async fn a244_client_assertions_with_invalid_claims_are_rejected(stage: &Stage) {
    not_offered(stage, 1).await;
    let now = stage.server.clock.now().secs();
    let good = claims(stage, "pkj");
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims.to_string()
    };
    let endless = good.to_string().replace(&(now + 60).to_string(), "1e400");
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("exp");
    let odd = [
        without.to_string(),
        with("exp", json!(now + 3_600)),
        with("nbf", json!(now + 61)),
        with("iss", json!("other")),
        with("sub", json!("other")),
        with("exp", json!((now + 60).to_string())),
        with("exp", json!(-1)),
        endless,
    ];
    for (case, claims) in (1..).zip(odd) {
        refused(
            stage,
            case,
            &assertion(&json!({ "alg": "ES256" }), &claims, &[7; 64]),
        )
        .await;
    }
}

async fn a245_client_assertion_headers_fetch_no_keys(stage: &Stage) {
    not_offered(stage, 1).await;
    let sink = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    sink.set_nonblocking(true).unwrap();
    let url = format!("http://{}/keys", sink.local_addr().unwrap());
    let headers = [
        json!({ "alg": "ES256", "jwk": { "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" } }),
        json!({ "alg": "ES256", "jku": url }),
        json!({ "alg": "ES256", "x5u": url }),
        json!({ "alg": "ES256", "x5c": ["MIIB"] }),
        json!({ "alg": "ES256", "crit": ["x"], "x": 1 }),
    ];
    for (case, header) in (1..).zip(headers) {
        refused(
            stage,
            case,
            &assertion(&header, &claims(stage, "pkj").to_string(), &[7; 64]),
        )
        .await;
        stage.check(case, sink.accept().is_err(), || {
            "the server called out".to_owned()
        });
    }
}

async fn a246_client_assertions_with_unknown_kid_are_rejected(stage: &Stage) {
    not_offered(stage, 1).await;
    let pkj = stage
        .server
        .register(confidential("pkj", "https://pkj.example/cb"))
        .await;
    let good = claims(stage, "pkj").to_string();
    for n in 0..50 {
        let assertion = assertion(
            &json!({ "alg": "ES256", "kid": format!("k{n}") }),
            &good,
            &[7; 64],
        );
        let answer = redeems_as(
            &pkj.at(&stage.node(n).base),
            "pcl_ac_x",
            &[],
            &[
                ("client_id", pkj.id()),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", &assertion),
            ],
        )
        .await;
        stage.expect(1, json_error(&answer, 401, "invalid_client"));
    }
}

async fn a248_expired_client_secrets_are_rejected(stage: &Stage) {
    let hour = Duration::from_secs(3_600);
    let mut flow = Flow::begin(&stage.server).await;
    // A rotation as an operator's tool writes it: the old secret stays valid for 24 h.
    let (old, new) = (
        flow.web.clone(),
        Secret::client_secret(&stage.server.app.entropy),
    );
    let hash: String = sha256(new.expose().as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let blob = if stage.db() == Db::Sqlite {
        format!("X'{hash}'")
    } else {
        format!("'\\x{hash}'")
    };
    let (id, now) = (old.id().to_owned(), stage.server.clock.now());
    stage.server.execute(&format!(
        "UPDATE client_secrets SET expires_at = {} WHERE client_id = '{id}';
         INSERT INTO client_secrets (id, client_id, hash, label, created_at) VALUES ('second', '{id}', {blob}, 'second', {});",
        (now + 24 * hour).micros(),
        now.micros(),
    ));
    let mut rotated = old.clone();
    rotated.secret = Some(new);
    for (case, after, accepted) in [(2, 23, true), (3, 2, false)] {
        stage.server.advance(after * hour);
        let answer = old.at(&stage.node(case).base).redeems("pcl_ac_x").await;
        let (status, error) = if accepted {
            (400, "invalid_grant")
        } else {
            (401, "invalid_client")
        };
        stage.expect(case, json_error(&answer, status, error));
        if !accepted {
            stage.expect(case, logged(&answer, "client.auth_failed", "secret"));
        }
        stage.expect(
            case,
            json_error(&rotated.redeems("pcl_ac_x").await, 400, "invalid_grant"),
        );
    }
    // Expiry is exact to the microsecond and consumes no code.
    stage.server.execute(&format!(
        "UPDATE client_secrets SET expires_at = {} WHERE id = 'second'",
        stage.server.clock.now().micros()
    ));
    flow.alice = stage.server.enters("alice").await;
    let code = flow.code().await;
    let answer = rotated.redeems(&code).await;
    stage.expect(1, json_error(&answer, 401, "invalid_client"));
    stage.expect(1, logged(&answer, "client.auth_failed", "secret"));
    stage
        .server
        .execute("UPDATE client_secrets SET expires_at = NULL WHERE id = 'second'");
    code_is_active(stage, 1, &rotated, &code).await;
}

async fn a517_noisy_neighbour_does_not_block_authenticated_clients(stage: &Stage) {
    let server = Server::with(stage.db(), |_| {}).await;
    let (web, api) = (server.shop().await, server.api_server().await);
    let phone = server.phone().await;
    let tokens = web.redeems(&server.browser().allows(&web).await).await.ok();
    // The clients are not cached.
    server.advance(Duration::from_secs(60));
    let mut unknown = web.clone();
    unknown.client = confidential("unknown", "https://unknown.example/cb");
    let (mut failed, mut limited) = (0, 0);
    for _ in 0..400 {
        let answer = unknown.redeems("pcl_ac_nothing").await;
        match answer.status {
            401 => failed += 1,
            _ => {
                limited += 1;
                stage.expect(1, json_error(&answer, 429, "temporarily_unavailable"));
                // The headers describe the bucket that refused.
                stage.check(1, answer.header("ratelimit-remaining") == Some("0"), || {
                    format!("{:?}", answer.headers)
                });
            }
        }
    }
    stage.check(1, (failed, limited) == (60, 340), || {
        format!("{failed} failed, {limited} limited")
    });
    // The same on the other endpoints that clients call.
    for _ in 0..310 {
        unknown.introspects(tokens.access()).await;
    }
    let mut refresh = tokens.refresh().to_owned();
    for _ in 0..5 {
        let answer = web.refreshes(&refresh, &[]).await;
        stage.check(2, answer.status == 200, || summary(&answer));
        stage.check(2, answer.header("ratelimit-remaining") != Some("0"), || {
            format!("{:?}", answer.headers)
        });
        refresh = answer.ok().refresh().to_owned();
        let answer = api.introspects(tokens.access()).await;
        stage.check(3, answer.status == 200, || summary(&answer));
    }
    // Any caller can name a public client, and guess a secret.
    let answer = phone.redeems("pcl_ac_nothing").await;
    stage.expect(4, json_error(&answer, 429, "temporarily_unavailable"));
    stage.expect(4, logged(&answer, "ratelimit.hit", "ip"));
    let mut guess = web.clone();
    guess.secret = Some(Secret::client_secret(&server.app.entropy));
    let answer = guess.refreshes(&refresh, &[]).await;
    stage.expect(5, json_error(&answer, 429, "temporarily_unavailable"));
    // Beyond the budget, the database is read only so often.
    for _ in 0..300 {
        unknown.redeems("pcl_ac_nothing").await;
    }
    server.app.registrations.clear();
    let answer = web.refreshes(&refresh, &[]).await;
    stage.expect(6, json_error(&answer, 429, "temporarily_unavailable"));
    server.remove().await;
}

async fn a263_sub_of_clients_and_users_are_disjoint(stage: &Stage) {
    let server = &stage.server;
    let machine = server
        .resource_server("machine", "https://api.example")
        .await;
    let grant = ("grant_type", "client_credentials");
    for (case, scope) in (1..).zip(["openid", "offline_access", "orders:read openid"]) {
        let machine = machine.at(&stage.node(case).base);
        let answer = machine.posts(TOKEN, &[grant, ("scope", scope)]).await;
        stage.expect(case, json_error(&answer, 400, "invalid_scope"));
        stage.expect(case, logged(&answer, "token.rejected", "scope"));
    }
    let tokens = machine.posts(TOKEN, &[grant]).await.ok();
    let refresh = &tokens.0["refresh_token"];
    stage.check(4, refresh.is_null(), || refresh.to_string());
    // No path registers a client under an id that is, or may become, the `sub` of a user.
    let alice = server
        .write(|tx| Ok(tx.list_users()?.remove(0).id.into_string()))
        .await;
    let chosen = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (case, id) in (5..).zip([alice.as_str(), chosen, &chosen.to_uppercase()]) {
        let client = confidential(id, "https://app.example/cb");
        let created = create(stage, client).await;
        let refused = matches!(&created, Err(AdminError::Invalid(errors))
            if errors.0.iter().any(|error| error.field == "client_id"));
        stage.check(case, refused, || format!("{created:?}"));
    }
    // A generated id is a UUID, and never that of a user.
    let created = create(stage, confidential("", "https://app.example/cb")).await;
    let id = created.map(|created| created.client.id.into_string());
    let is_generated = matches!(&id, Ok(id) if portcullis::id::is_uuid(id) && *id != alice);
    stage.check(8, is_generated, || format!("{id:?}"));
}

async fn create(stage: &Stage, client: Client) -> Result<CreatedClient, AdminError> {
    let server = &stage.server;
    let rules = Rules::of(&server.config).unwrap();
    let ctx = Context::new(
        Actor::Operator,
        server.app.entropy.clone(),
        server.clock.now(),
    );
    admin::execute(&server.app.store, ctx, move |tx, ctx| {
        clients::create(tx, ctx, &rules, client, None)
    })
    .await
}
