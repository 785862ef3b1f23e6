//! The audit log of changes and sign-ins, and its seals.

use std::time::Duration;

use portcullis::audit::{Actor, Event, KEPT, Name, Row, Target};
use portcullis::db::Seal;
use portcullis::time::Timestamp;

use crate::fixtures::{Db, Server, apply, on_both_databases};

impl Server {
    /// Returns all events by name. The clock of a test does not advance by itself, so they have no order.
    async fn audited(&self) -> Vec<Row> {
        let rows = self.app.store.read(|tx| tx.last_audit(1_000)).await;
        let mut rows = rows.unwrap();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }

    /// Seals the waiting events, as each node does.
    async fn seals(&self) -> Vec<Seal> {
        let app = self.app.clone();
        self.write(move |tx| tx.seal_audit(&app.secret)).await
    }

    async fn notes(&self, count: usize, at: Timestamp) {
        self.write(move |tx| {
            for _ in 0..count {
                tx.put_audit(&event(at))?;
            }
            Ok(())
        })
        .await;
    }
}

fn event(at: Timestamp) -> Event {
    Event {
        at,
        name: Name::UserUpdated,
        actor: Actor::Operator,
        target: Target::User("x".into()),
        reason: None,
        detail: serde_json::json!({}),
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn sign_in_flow_writes_audit_events(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    let tokens = shop.redeems(&code).await.ok();
    shop.revokes(tokens.access()).await;
    shop.revokes(tokens.refresh()).await;
    let page = alice.get("/oauth2/end_session").await;
    alice
        .post("/oauth2/end_session", &[("csrf", &page.hidden("csrf"))])
        .await;
    let names: Vec<String> = server
        .audited()
        .await
        .into_iter()
        .map(|row| row.name)
        .filter(|name| !name.starts_with("key."))
        .collect();
    assert_eq!(
        names,
        [
            "consent.given",
            "revocation.done",
            "revocation.done",
            "session.begun",
            "session.ended"
        ]
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn second_user_sign_in_ends_first_session_with_reason(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut browser = server.browser();
    browser.signs_in(&shop, "alice").await;
    let page = browser.opens(&shop.request(&[("prompt", "login")])).await;
    browser
        .fills_in(&page, "bob", crate::fixtures::server::PASSWORD)
        .await;
    let rows = server.audited().await;
    let ended: Vec<&Row> = rows
        .iter()
        .filter(|row| row.name == "session.ended")
        .collect();
    assert_eq!(
        (ended.len(), ended[0].reason.as_deref()),
        (1, Some("another person signed in"))
    );
    assert_eq!(
        rows.iter()
            .filter(|row| row.name == "session.begun")
            .count(),
        2
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn change_without_audit_event_rolls_back(#[case] db: Db) {
    let server = Server::start(db).await;
    server.execute("DROP TABLE audit_waiting");
    let shop = server.shop().await;
    let mut alice = server.browser();
    let page = alice.opens(&shop.request(&[])).await;
    let answer = alice
        .fills_in(&page, "alice", crate::fixtures::server::PASSWORD)
        .await;
    assert_eq!(answer.status, 503);
    assert_eq!(server.count("SELECT count(*) AS n FROM sessions"), 0);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_sealers_build_one_chain(#[case] db: Db) {
    let server = Server::start(db).await;
    server.notes(50, server.clock.now()).await;
    let sealers: Vec<_> = (0..8)
        .map(|_| {
            let (store, app) = (server.app.store.clone(), server.app.clone());
            actix_web::rt::spawn(async move {
                loop {
                    let node = app.clone();
                    let sealed = store
                        .transaction(move |tx| tx.seal_audit(&node.secret))
                        .await
                        .unwrap();
                    if sealed.is_empty() && !store.read(|tx| tx.has_unsealed_audit()).await.unwrap()
                    {
                        break;
                    }
                }
            })
        })
        .collect();
    for sealer in sealers {
        sealer.await.unwrap();
    }
    let events = server.count("SELECT count(*) AS n FROM audit_events");
    let seals = server
        .app
        .store
        .read(|tx| tx.list_seals(0, 1_000))
        .await
        .unwrap();
    assert_eq!(seals.len() as i64, events);
    let mut previous = Vec::new();
    for (seal, seq) in seals.into_iter().zip(1..) {
        let row = seal.row.unwrap();
        assert_eq!(
            (seal.seq, &seal.mac),
            (seq, &server.app.secret.audit_seal(seq, &previous, &row))
        );
        previous = seal.mac;
    }
    assert_eq!(server.count("SELECT count(*) AS n FROM audit_waiting"), 0);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn expired_audit_events_are_deleted_and_chain_continues(#[case] db: Db) {
    let server = Server::start(db).await;
    server.seals().await;
    let old = server.count("SELECT count(*) AS n FROM audit_events");
    server
        .notes(3, server.clock.now() + Duration::from_secs(300 * 86_400))
        .await;
    server.seals().await;
    let later = server.clock.now() + KEPT + Duration::from_secs(2 * 86_400);
    assert_eq!(
        server
            .write(move |tx| tx.sweep_audit(later - Duration::from_secs(86_400 + 1)))
            .await,
        0,
        "not yet a day"
    );
    assert_eq!(
        server.write(move |tx| tx.sweep_audit(later)).await as i64,
        old
    );
    assert_eq!(server.write(move |tx| tx.sweep_audit(later)).await, 0);
    assert_eq!(server.seals().await.len(), 1);
    let seals = server
        .app
        .store
        .read(|tx| tx.list_seals(0, 1_000))
        .await
        .unwrap();
    assert_eq!(
        (seals[0].seq, seals[0].row.is_none(), seals.len()),
        (old, true, 5)
    );
    let (row, before) = (seals[1].row.clone().unwrap(), &seals[0].mac);
    assert_eq!(
        seals[1].mac,
        server.app.secret.audit_seal(old + 1, before, &row)
    );
    let event = seals[4].row.clone().unwrap();
    assert_eq!(event.name, "audit.swept");
    assert!(
        event.detail.contains(&format!("\"through\":{old}")),
        "{}",
        event.detail
    );
}

#[test]
fn audit_page_lists_every_event_name() {
    let page = include_str!("../../docs/audit.md");
    for name in Name::ALL {
        assert!(
            page.contains(&format!("`{}`", name.as_str())),
            "{}",
            name.as_str()
        );
    }
}
