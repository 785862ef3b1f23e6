//! The tokens that a code is exchanged for.

use std::time::Duration;

use portcullis::keys::Alg;
use portcullis::secret::{base64url, sha256};
use portcullis_verifier::Need;

use super::Flow;
use crate::expect::summary;
use crate::fixtures::ISSUER;
use crate::fixtures::client::header;
use crate::fixtures::server::AUDIENCE;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a200_id_token_claims_are_exact),
    row!(a201_access_token_claims_are_exact),
    row!(a535_a_login_yields_no_token_for_an_api),
];

async fn a200_id_token_claims_are_exact(stage: &Stage) {
    let began = stage.server.clock.now().secs();
    let mut flow = Flow::begin(&stage.server).await;
    stage.server.advance(Duration::from_secs(100));
    let nonce = "n-\u{fc}\"'<>&+% =/\u{1f600}";
    let code = flow
        .alice
        .allows_request(&flow.web.request(&[("nonce", nonce)]))
        .await;
    let tokens = flow.web.redeems(&code).await.ok();
    let id = tokens.id_claims();
    stage.check(1, id["nonce"] == nonce, || id["nonce"].to_string());
    stage.check(2, id["aud"] == flow.web.id(), || id["aud"].to_string());
    let at_hash = base64url(&sha256(tokens.access().as_bytes())[..16]);
    stage.check(3, id["at_hash"] == at_hash.as_str(), || {
        format!("got {}, want {at_hash}", id["at_hash"])
    });
    stage.check(
        4,
        id["auth_time"] == began && id["iat"] == began + 100,
        || id.to_string(),
    );
    let alice = format!(
        "SELECT count(*) AS n FROM users WHERE username = 'alice' AND id = '{}'",
        id["sub"].as_str().unwrap()
    );
    stage.check(
        5,
        id["sub"] == tokens.access_claims()["sub"] && stage.server.count(&alice) == 1,
        || id["sub"].to_string(),
    );
    let bearer = format!("Bearer {}", tokens.access());
    let told = stage
        .server
        .browser()
        .send(
            "GET",
            "/oauth2/userinfo",
            &[("Authorization", &bearer)],
            None,
        )
        .await;
    stage.check(
        5,
        told.status == 200 && told.json()["sub"] == id["sub"],
        || summary(&told),
    );
    stage.check(
        6,
        id.get("azp").is_none_or(|azp| azp == flow.web.id()),
        || id["azp"].to_string(),
    );
}

async fn a201_access_token_claims_are_exact(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let code = alice
        .allows_request(&web.request(&[("scope", "openid profile email orders:read")]))
        .await;
    let tokens = web.redeems(&code).await.ok();
    let (access, claims, id) = (
        header(tokens.access()),
        tokens.access_claims(),
        tokens.id_claims(),
    );
    stage.check(
        1,
        access["typ"] == "at+jwt" && access["alg"] == Alg::ES256.name(),
        || access.to_string(),
    );
    for name in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"] {
        stage.check(2, claims.get(name).is_some(), || {
            format!("no {name} in {claims}")
        });
    }
    stage.check(
        3,
        claims["aud"] == AUDIENCE && claims["client_id"] == web.id(),
        || claims.to_string(),
    );
    let personal = [
        "email",
        "email_verified",
        "name",
        "given_name",
        "family_name",
        "preferred_username",
        "nickname",
        "picture",
        "phone_number",
        "ip",
        "ip_address",
    ];
    stage.check(
        4,
        personal.iter().all(|name| claims.get(name).is_none()),
        || claims.to_string(),
    );
    let text = claims.to_string();
    stage.check(
        4,
        ["alice", "mail.example", "127.0.0.1"]
            .iter()
            .all(|word| !text.contains(word)),
        || text.clone(),
    );
    let id_header = header(tokens.0["id_token"].as_str().unwrap());
    stage.check(
        5,
        id_header["typ"] != "at+jwt" && id["aud"] != AUDIENCE,
        || format!("{id_header} {id}"),
    );
    // The API accepts neither in place of the other.
    let now = stage.server.clock.now().secs();
    let need = portcullis_verifier::Need::any();
    stage.check(
        6,
        stage
            .server
            .api()
            .verify_at(tokens.access(), &need, now)
            .is_ok(),
        || "the API refuses the access token".to_owned(),
    );
    stage.check(
        7,
        stage
            .server
            .api()
            .verify_at(tokens.0["id_token"].as_str().unwrap(), &need, now)
            .is_err(),
        || "the API accepts the ID token".to_owned(),
    );
}

async fn a535_a_login_yields_no_token_for_an_api(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let api = stage.server.api();
    let now = stage.server.clock.now().secs();
    let identity = "openid profile email";
    // The scope of the request; its `resource`; the scopes that the user allows; the audience.
    let cases: [(&str, &str, Option<&[&str]>, &str); 5] = [
        (identity, "", None, ISSUER),
        (identity, AUDIENCE, None, AUDIENCE),
        ("openid orders:read", "", None, AUDIENCE),
        // The user allows no scope of the API.
        ("openid orders:read", "", Some(&["openid"]), ISSUER),
        ("openid orders:read", AUDIENCE, Some(&["openid"]), AUDIENCE),
    ];
    for (case, (scope, resource, allowed, audience)) in (1..).zip(cases) {
        let request = [
            ("scope", scope),
            ("resource", resource),
            ("prompt", "consent"),
        ];
        let page = flow.alice.opens(&flow.web.request(&request)).await;
        let (authorization, csrf) = (page.hidden("authorization"), page.hidden("csrf"));
        let mut fields = vec![
            ("authorization", authorization.as_str()),
            ("csrf", &csrf),
            ("decision", "allow"),
        ];
        let offered = page.values("scope");
        let allowed = |scope: &&str| allowed.is_none_or(|allowed| allowed.contains(scope));
        let ticked = offered.iter().map(String::as_str).filter(allowed);
        fields.extend(ticked.map(|scope| ("scope", scope)));
        let answer = flow.alice.post("/consent", &fields).await;
        let answer = match answer.own_redirect() {
            Some(next) => flow.alice.opens(&next).await,
            None => answer,
        };
        let code = answer.callback("code").unwrap();
        let tokens = flow.web.redeems(&code).await.ok();
        let claims = tokens.access_claims();
        stage.check(case, claims["aud"] == audience, || claims.to_string());
        // A service that checks `aud` and no scope.
        let accepted = api.verify_at(tokens.access(), &Need::any(), now).is_ok();
        stage.check(case, accepted == (audience == AUDIENCE), || {
            claims.to_string()
        });
        let bearer = format!("Bearer {}", tokens.access());
        let told = (stage.node(case).browser())
            .send(
                "GET",
                "/oauth2/userinfo",
                &[("Authorization", &bearer)],
                None,
            )
            .await;
        stage.check(case, told.status == 200, || summary(&told));
        // A refresh changes nothing.
        let again = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
        let claims = again.access_claims();
        stage.check(case, claims["aud"] == audience, || claims.to_string());
    }
}
