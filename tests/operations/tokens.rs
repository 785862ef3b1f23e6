//! The result of `token introspect` beside a running server.

use std::time::{Duration, Instant};

use portcullis::oauth::client::GrantType;
use portcullis::secret::Secret;
use portcullis::time::Clock;
use serde_json::Value;

use crate::fixtures::TestClient;
use crate::fixtures::client::claims;
use crate::fixtures::server::{AUDIENCE, confidential};
use crate::fixtures::{Db, apply, on_both_databases};
use crate::installation::Installation;
use crate::site::{Site, base};

fn json(printed: &str) -> Value {
    serde_json::from_str(printed).unwrap()
}

#[apply(on_both_databases)]
#[test]
fn introspect_reports_an_expired_token_at_once(#[case] db: Db) {
    let installation = Installation::on(db);
    let site = Site::open(installation);
    let installation = &site.installation;
    installation.done(&["resource", "update", AUDIENCE, "--access-ttl", "3s"]);
    let create = [
        "client",
        "create",
        "--name",
        "Robot",
        "--grant-type",
        "client_credentials",
    ];
    let more = [
        "--resource",
        AUDIENCE,
        "--scope",
        "orders:read",
        "--format",
        "json",
    ];
    let made = json(&installation.done(&[&create[..], &more].concat()));
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let running = installation.serve(&[]);
    let mut client = confidential(&text("client_id"), "https://robot.example/cb");
    client.grant_types = vec![GrantType::ClientCredentials];
    let secret = Secret::from_text(text("client_secret"));
    let robot = TestClient::new(&base(&running), client, Some(secret));
    let token = actix_web::rt::System::new().block_on(async {
        let fields = [("grant_type", "client_credentials")];
        robot
            .posts("/oauth2/token", &fields)
            .await
            .ok()
            .access()
            .to_owned()
    });
    let exp = claims(&token)["exp"].as_u64().unwrap();
    // The token is active until `exp`, and never from then on.
    let (begun, mut expired) = (Instant::now(), 0);
    while expired < 3 {
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "it does not expire"
        );
        let before = Clock::System.now().secs();
        let told = json(&installation.told(&["token", "introspect", "--format", "json"], &token));
        let after = Clock::System.now().secs();
        if told["active"] == true {
            assert!(before < exp, "active {} s after it expired", before - exp);
        } else {
            assert!(after >= exp, "{told}");
            assert!(told["why"].as_str().unwrap().contains("expired"), "{told}");
            expired += 1;
        }
    }
    assert_eq!(running.stop(), Some(0));
}
