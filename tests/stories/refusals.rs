//! The log line of a refused request names the client, and what was received and registered.

use portcullis::oauth::client::GrantType;

use crate::fixtures::client::basic;
use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Db, Server, apply, log, on_both_databases};

/// Asserts that the refusal was logged with this event, client, received value and registered value.
#[track_caller]
fn logs(answer: &Answer, event: &str, client: &str, received: &str, registered: &str) {
    let id = answer.header("x-request-id").unwrap();
    let lines = log::of(id);
    let line = lines.iter().find(|line| line["event"] == event);
    let line = line.unwrap_or_else(|| panic!("{event}: {lines:?}"));
    let field = |name: &str| line.get(name).map_or("", String::as_str);
    assert_eq!(field("client_id"), client, "{line:?}");
    assert_eq!(field("received"), received, "{line:?}");
    assert_eq!(field("registered"), registered, "{line:?}");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refusals_log_registered_and_received_value(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("shop", "https://own.example.com/cb?tenant=1");
    client.grant_types.push(GrantType::ClientCredentials);
    let all = client.scopes.to_string();
    let shop = server.register(client).await;
    let secret = shop.secret.as_ref().unwrap().expose().to_owned();
    let mut visitor = server.browser();
    let api = crate::fixtures::server::AUDIENCE;

    // Client authentication: the method used and the method registered; another reason names the client.
    let in_form = [
        ("grant_type", "client_credentials"),
        ("client_id", "shop"),
        ("client_secret", secret.as_str()),
    ];
    let answer = shop.posts_raw("/oauth2/token", &[], &in_form).await;
    logs(
        &answer,
        "client.auth_failed",
        "shop",
        "client_secret_post",
        "client_secret_basic",
    );
    let header = basic("shop", "wrong");
    let answer = shop
        .posts_raw("/oauth2/token", &[("Authorization", &header)], &[])
        .await;
    logs(&answer, "client.auth_failed", "shop", "", "");
    // A client that does not exist is not named: the value may be a misplaced secret.
    let header = basic("unknown", "wrong");
    let answer = shop
        .posts_raw("/oauth2/token", &[("Authorization", &header)], &[])
        .await;
    logs(&answer, "client.auth_failed", "", "", "");

    // Redirect URIs, without query and user part.
    let bare = "https://own.example.com/cb";
    for (sent, received) in [
        (
            "https://own.example.com/cbx?code=secret",
            "https://own.example.com/cbx",
        ),
        ("https://user:secret@own.example.com/cb", bare),
    ] {
        let answer = visitor.get(&shop.request(&[("redirect_uri", sent)])).await;
        logs(&answer, "redirect_uri.mismatch", "shop", received, bare);
    }
    let answer = visitor.get(&shop.request(&[("redirect_uri", "")])).await;
    logs(&answer, "authz.rejected", "shop", "", bare);

    // Scopes, resources and PKCE of an authorization request.
    let scope = [("scope", "openid groups orders:read")];
    let answer = visitor.get(&shop.request(&scope)).await;
    logs(&answer, "authz.rejected", "shop", "groups", &all);
    let resource = [("resource", "https://other.example")];
    let answer = visitor.get(&shop.request(&resource)).await;
    logs(
        &answer,
        "authz.rejected",
        "shop",
        "https://other.example",
        api,
    );
    let answer = visitor.get(&shop.request(&[("code_challenge", "")])).await;
    logs(
        &answer,
        "authz.rejected",
        "shop",
        "no code_challenge",
        "require_pkce=true",
    );
    let answer = visitor
        .get(&shop.request(&[("code_challenge_method", "plain")]))
        .await;
    logs(&answer, "authz.rejected", "shop", "plain", "S256");

    // Token requests.
    let machine = ("grant_type", "client_credentials");
    let answer = shop
        .posts("/oauth2/token", &[machine, ("scope", "groups orders:read")])
        .await;
    logs(&answer, "authz.rejected", "shop", "groups", &all);
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    let other = ("redirect_uri", "https://own.example.com/other?x=secret");
    let answer = shop.redeems_with(&code, &[other]).await;
    logs(
        &answer,
        "token.rejected",
        "shop",
        "https://own.example.com/other",
        bare,
    );
    let code = alice.allows(&shop).await;
    let tokens = shop.redeems(&code).await.ok();
    let answer = shop
        .refreshes(tokens.refresh(), &[("scope", "openid orders:read")])
        .await;
    logs(&answer, "token.rejected", "shop", "orders:read", "openid");
    let web = server.shop().await;
    let answer = web.posts("/oauth2/token", &[machine]).await;
    let granted = "authorization_code refresh_token";
    logs(
        &answer,
        "token.rejected",
        web.id(),
        "client_credentials",
        granted,
    );

    // Logout.
    let bye =
        "/oauth2/end_session?client_id=shop&post_logout_redirect_uri=https://x.test/bye%3Fa=b";
    let answer = visitor.get(bye).await;
    let registered = "https://app.example/bye";
    logs(
        &answer,
        "logout.bad_redirect",
        "shop",
        "https://x.test/bye",
        registered,
    );
}
