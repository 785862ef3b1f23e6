//! The networks from which a client may authenticate.

use crate::fixtures::client::basic;
use crate::fixtures::{Answer, Db, Server, TestClient, apply, on_both_databases};

/// Sends a token request of a client from an address.
async fn asks(client: &TestClient, path: &str, address: &str) -> Answer {
    let secret = client.secret.as_ref().map(|secret| secret.expose());
    let proof = basic(client.id(), secret.unwrap_or_default());
    let mut headers = vec![("X-Forwarded-For", address)];
    let mut fields = vec![
        ("grant_type", "refresh_token"),
        ("refresh_token", "x"),
        ("token", "x"),
    ];
    match secret {
        Some(_) => headers.push(("Authorization", proof.as_str())),
        None => fields.push(("client_id", client.id())),
    }
    client.posts_raw(path, &headers, &fields).await
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_authenticates_only_from_its_networks(#[case] db: Db) {
    let server = Server::behind_proxy(db).await;
    let rs = server
        .resource_server("rs", crate::fixtures::server::AUDIENCE)
        .await;
    let (shop, phone) = (server.shop().await, server.phone().await);
    for client in [&shop, &rs, &phone] {
        let id = client.client.id.clone();
        server
            .alter(&id, |client| {
                client.allow_networks = vec![
                    "10.0.0.0/8".parse().unwrap(),
                    "2001:db8::/32".parse().unwrap(),
                ];
                client.deny_networks = vec!["10.9.0.0/16".parse().unwrap()];
            })
            .await;
    }
    let places = [
        (&shop, "/oauth2/token"),
        (&phone, "/oauth2/token"),
        (&shop, "/oauth2/revoke"),
        (&rs, "/oauth2/introspect"),
    ];
    for (client, path) in places {
        for inside in ["10.1.2.3", "2001:db8::7"] {
            let answer = asks(client, path, inside).await;
            assert_ne!(answer.status, 401, "{path} from {inside}: {}", answer.body);
        }
        for outside in ["10.9.1.1", "192.0.2.1", "2001:db9::1"] {
            let answer = asks(client, path, outside).await;
            answer.refused("invalid_client", "client.auth_failed", "network");
        }
    }
    // A caller that does not know the secret learns nothing about the networks.
    let mut thief = shop.clone();
    thief.secret = rs.secret.clone();
    let answer = asks(&thief, "/oauth2/token", "192.0.2.1").await;
    answer.refused("invalid_client", "client.auth_failed", "secret");
}
