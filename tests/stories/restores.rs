//! A database that was restored from a backup, on a machine that has no record of the time since.

use std::time::{Duration, Instant};

use crate::fixtures::backup::Backup;
use crate::fixtures::server::sweep;
use crate::fixtures::{Db, Server, TestClient, Tokens, apply, log, on_both_databases};

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// Signs alice in without the page, and exchanges a code for tokens.
async fn tokens(server: &Server, shop: &TestClient) -> Tokens {
    let mut alice = server.enters("alice").await;
    let code = alice.allows_request(&shop.request(&[])).await;
    shop.redeems(&code).await.ok()
}

/// Begins a new epoch, as the command does.
async fn recover(server: &Server) {
    let now = server.clock.now();
    let act = portcullis::key_manager::Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    };
    let renewal = server
        .app
        .key_manager
        .table()
        .renewal("restored", &act)
        .await
        .unwrap();
    let work = move |tx: &mut portcullis::db::Transaction<'_>| {
        tx.recover(now)?;
        renewal.run(tx, &act)
    };
    server.write(work).await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn restore_without_mark_blocks_issuance(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let revoked = tokens(&server, &shop).await;
    server.app.number_waiting().await.unwrap();
    let (server, backup) = Backup::of(server).await;
    let shop = shop.at(&server.base);
    server.advance(minutes(10));
    assert_eq!(shop.revokes(revoked.refresh()).await.status, 200);
    let lost = tokens(&server, &shop).await;
    server.advance(minutes(2));
    server.stop().await;
    // The copy runs on a machine without a high-water mark, and contains no evidence that data was lost.
    let restored = backup.restored().await;
    let shop = shop.at(&restored.base);
    assert!(!restored.app.feed.is_restored());
    // The first token of the lost time is that evidence: the server stops issuing before it answers.
    shop.refreshes(lost.refresh(), &[])
        .await
        .refused("invalid_grant", "db.restored", "grant_lost");
    assert!(restored.app.feed.is_restored());
    for token in [&revoked, &lost] {
        assert_eq!(shop.refreshes(token.refresh(), &[]).await.status, 503);
    }
    // After the recovery the same tokens are revoked, and are no evidence any more.
    recover(&restored).await;
    for token in [&revoked, &lost] {
        shop.refreshes(token.refresh(), &[]).await.refused(
            "invalid_grant",
            "token.rejected",
            "grant_ended",
        );
    }
    assert!(!restored.app.feed.is_restored());
    tokens(&restored, &shop).await;
    // Neither are they after a restart, which finds the recovery and not the lost time.
    let restored = restored.restarted().await;
    shop.at(&restored.base)
        .refreshes(lost.refresh(), &[])
        .await
        .refused("invalid_grant", "token.rejected", "grant_ended");
    assert!(!restored.app.feed.is_restored());
    restored.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn swept_grant_from_before_downtime_is_not_evidence(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    server.advance(minutes(1));
    let ended = tokens(&server, &shop).await;
    server.app.number_waiting().await.unwrap();
    assert_eq!(shop.revokes(ended.refresh()).await.status, 200);
    let mut server = server;
    server.unfollow().await;
    server.app.number_waiting().await.unwrap();
    server.advance(minutes(20));
    let server = server.restarted().await;
    assert_eq!(server.count("SELECT count(*) AS n FROM downtimes"), 1);
    let now = server.clock.now();
    server.write(move |tx| sweep(tx, now)).await;
    assert_eq!(server.count("SELECT count(*) AS n FROM grants"), 0);
    shop.at(&server.base)
        .refreshes(ended.refresh(), &[])
        .await
        .refused("invalid_grant", "token.rejected", "grant_ended");
    assert!(!server.app.feed.is_restored());
}

/// A clock that is one day ahead at the start records the coming day as downtime. Once the clock is right, a
/// grant that is created and deleted on that day is not evidence of a restore.
#[actix_web::test]
async fn downtime_of_fast_clock_is_trimmed() {
    let mut server = Server::start(crate::fixtures::Db::Sqlite).await;
    let shop = server.shop().await;
    server.unfollow().await;
    server.app.number_waiting().await.unwrap();
    server.advance(minutes(24 * 60));
    let server = server.restarted().await;
    assert_eq!(server.count("SELECT count(*) AS n FROM downtimes"), 1);
    server.set_back(minutes(24 * 60 - 5));
    let late = format!(
        "SELECT count(*) AS n FROM downtimes WHERE ended > {}",
        server.clock.now().micros()
    );
    let begun = Instant::now();
    while server.count(&late) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "not trimmed");
        tokio::task::yield_now().await;
    }
    let shop = shop.at(&server.base);
    server.advance(minutes(5));
    let ended = tokens(&server, &shop).await;
    assert_eq!(shop.revokes(ended.refresh()).await.status, 200);
    server.advance(minutes(20));
    let now = server.clock.now();
    server.write(move |tx| sweep(tx, now)).await;
    shop.refreshes(ended.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
    assert!(!server.app.feed.is_restored());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn revocation_is_in_the_high_water_mark_after_settle(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut server = server;
    server.unfollow().await;
    server.signs_out_everywhere("bob").await;
    server.app.settle_feed().await.unwrap();
    let mark = crate::fixtures::backup::mark(&server.config);
    assert!(mark.contains(" 1 2 "), "{mark}");
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE seq IS NULL"),
        0
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn closed_store_rejects_work_and_leaves_no_wal(#[case] db: Db) {
    let server = Server::start(db).await;
    let store = server.app.store.clone();
    let config = server.config.clone();
    server.stop().await;
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(store.read(|tx| tx.read_head()).await.is_err());
    assert!(store.transaction(|tx| tx.read_head()).await.is_err());
    for suffix in ["-wal", "-shm"] {
        let name = format!("portcullis.db{suffix}");
        assert!(!config.data_dir.0.join(&name).exists(), "{name}");
    }
}

/// The event is counted by every node, and not only by the one that found the evidence.
#[actix_web::test]
async fn every_node_logs_that_the_database_was_restored() {
    let server = Server::start(Db::Postgres).await;
    let other = server.node().await;
    let mark = log::mark();
    server.app.note_restored("subscriber").await.unwrap();
    let begun = Instant::now();
    while !other.app.feed.is_restored() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        other.app.poll().await.unwrap();
    }
    let learned = log::since(mark).into_iter().any(|event| {
        event.get("event").is_some_and(|name| name == "db.restored")
            && event.get("reason").is_some_and(|reason| reason == "marked")
    });
    assert!(learned);
    other.stop().await;
    server.remove().await;
}
