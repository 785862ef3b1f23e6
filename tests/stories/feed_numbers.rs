//! Numbers of the revocation feed: in commit order and without gaps, whichever node assigns them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::audit::{Actor, RevocationReason};
use portcullis::db::{Record, Store};
use portcullis::time::Timestamp;
use portcullis_verifier::Kind;
use tokio::sync::Notify;

use crate::fixtures::Look;
use crate::fixtures::server::start_of_time;
use crate::fixtures::{Db, Server};

async fn revokes(store: &Store, name: String) {
    let work = move |tx: &mut portcullis::db::Transaction<'_>| {
        let record = Record {
            kind: Kind::Session,
            value: &name,
            floor: 0,
            reason: &RevocationReason::Revoked,
            actor: &Actor::Operator,
        };
        tx.put_revocation(&record, start_of_time())
    };
    store.transaction(work).await.unwrap();
}

/// Returns the assigned numbers in order.
async fn numbers(store: &Store) -> Vec<i64> {
    let list = |tx: &mut portcullis::db::Transaction<'_>| {
        let head = tx.read_head()?;
        let records = tx.list_records(head.epoch, (0, head.seq), 1_000_000)?;
        Ok(records.into_iter().map(|(seq, _)| seq).collect())
    };
    store.read(list).await.unwrap()
}

/// Lets several nodes assign numbers while many transactions revoke, and asserts that a reader that follows
/// the head never finds a record behind its position.
async fn storm(server: &Server, nodes: &[&Server]) {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, done) = (server.app.store.clone(), Arc::clone(&done));
        actix_web::rt::spawn(async move {
            let (mut at, mut seen) = (0, BTreeSet::new());
            loop {
                let last = done.load(Ordering::SeqCst);
                let from = at;
                let tail = move |tx: &mut portcullis::db::Transaction<'_>| {
                    let head = tx.read_head()?;
                    Ok((
                        head.seq,
                        tx.list_records(head.epoch, (from, head.seq), 1_000_000)?,
                    ))
                };
                let (head, records) = store.read(tail).await.unwrap();
                for (seq, _) in records {
                    assert!(seen.insert(seq), "doubled: {seq}");
                }
                at = head;
                if last {
                    return (at, seen);
                }
            }
        })
    };
    let mut work = Vec::new();
    for writer in 0..WRITERS {
        let store = nodes[writer % nodes.len()].app.store.clone();
        work.push(actix_web::rt::spawn(async move {
            for number in 0..EACH {
                revokes(&store, format!("{writer}-{number}")).await;
            }
        }));
    }
    for task in work {
        task.await.unwrap();
    }
    for node in nodes {
        node.app.number_waiting().await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let (at, seen) = reader.await.unwrap();
    let all = i64::try_from(WRITERS * EACH + 1).unwrap();
    assert_eq!(at, all, "the record of dave is the first");
    assert_eq!(seen.len(), usize::try_from(all).unwrap(), "none skipped");
    assert_eq!(
        numbers(&server.app.store).await,
        (1..=all).collect::<Vec<_>>()
    );
}

#[actix_web::test]
async fn concurrent_revocations_are_numbered_in_order_on_sqlite() {
    let server = Server::start(Db::Sqlite).await;
    storm(&server, &[&server]).await;
}

#[actix_web::test]
async fn concurrent_revocations_are_numbered_in_order_on_three_nodes() {
    let server = Server::start(Db::Postgres).await;
    let (second, third) = (server.node().await, server.node().await);
    storm(&server, &[&server, &second, &third]).await;
}

/// The transaction that commits last gets the last number even if it began first, and no other transaction
/// waits for it.
#[actix_web::test]
async fn late_commit_gets_a_later_number() {
    let server = Server::start(Db::Postgres).await;
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (store, begun, go) = (
            server.app.store.clone(),
            Arc::clone(&begun),
            Arc::clone(&go),
        );
        actix_web::rt::spawn(async move {
            let wait = tokio::runtime::Handle::current();
            let work = move |tx: &mut portcullis::db::Transaction<'_>| {
                let record = Record {
                    kind: Kind::Session,
                    value: "early",
                    floor: 0,
                    reason: &RevocationReason::Revoked,
                    actor: &Actor::Operator,
                };
                // Its id is the smallest of all.
                tx.put_revocation(&record, Timestamp::from_secs(1))?;
                begun.notify_one();
                wait.block_on(go.notified());
                Ok(())
            };
            store.transaction(work).await.unwrap();
        })
    };
    begun.notified().await;
    for number in 0..50 {
        revokes(&server.app.store, format!("late-{number}")).await;
    }
    server.app.number_waiting().await.unwrap();
    assert_eq!(numbers(&server.app.store).await.len(), 51);
    go.notify_one();
    slow.await.unwrap();
    server.app.number_waiting().await.unwrap();
    let last = "SELECT seq AS n FROM revocations WHERE value = 'early'";
    assert_eq!(server.count(last), 52);
    assert_eq!(
        numbers(&server.app.store).await,
        (1..=52).collect::<Vec<_>>()
    );
}

/// A sequencer that is frozen while it holds the lock is disconnected, and the others continue.
#[actix_web::test]
async fn frozen_sequencer_is_disconnected() {
    let server = Server::start(Db::Postgres).await;
    let frozen = {
        let url = server.config.database_url();
        tokio::task::spawn_blocking(move || {
            let mut look = Look::at(&url);
            look.execute("SET idle_in_transaction_session_timeout = '2s'; BEGIN; UPDATE feed_head SET seq = seq");
            look
        })
        .await
        .unwrap()
    };
    revokes(&server.app.store, "meanwhile".to_owned()).await;
    let begun = std::time::Instant::now();
    while server.count(
        "SELECT count(*) AS n FROM revocations WHERE value = 'meanwhile' AND seq IS NOT NULL",
    ) == 0
    {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(3),
            "numbering does not go on"
        );
        // A round that found the lock taken gives up, and the next one is triggered here.
        let _ = server.app.number_waiting().await;
    }
    drop(frozen);
    assert_eq!(numbers(&server.app.store).await, vec![1, 2]);
}
