//! Signing in: the authorization code flow.

use std::time::Duration;

use portcullis_verifier::{Need, Rejected};

use crate::cast::Server;
use crate::cast::client::header;
use crate::cast::server::{AUDIENCE, ISSUER, PASSWORD};
use crate::story;

story! {
    async fn alice_signs_in_and_the_api_accepts_her_token(server: Server) {
        let shop = server.shop().await;
        let mut alice = server.browser();

        let back = alice.signs_in(&shop, "Alice").await;
        assert_eq!(back.status, 303);
        assert_eq!(back.callback("state").as_deref(), Some("st-4711"));
        assert_eq!(back.callback("iss").as_deref(), Some(ISSUER));

        let tokens = shop.redeems(&back.callback("code").unwrap()).await.ok();
        let now = server.clock.now().secs();
        let claims = server.api().verify_at(tokens.access(), &Need::any(), now).unwrap();
        assert_eq!((claims.iss.as_str(), claims.aud.as_str(), claims.scope.as_str()), (ISSUER, AUDIENCE, "openid"));
        let id = tokens.id_claims();
        assert_eq!((id["nonce"].as_str(), id["aud"].as_str()), (Some("n-0815"), Some(shop.id())));
        assert_eq!(id["sub"].as_str(), Some(claims.sub.as_str()));
        let late = server.api().verify_at(tokens.access(), &Need::any(), now + 331);
        assert!(matches!(late, Err(Rejected::Expired)));
    }
}
