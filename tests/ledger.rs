//! Tests of the storage layer on both databases, including concurrent transactions.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::sync::Arc;
use std::time::Duration;

use fixtures::server::{confidential, start_of_time, sweep};
use fixtures::{Db, Server, apply, on_both_databases};
use portcullis::accounts::consent::Consent;
use portcullis::accounts::session::{Acr, Amr, Factor, Login, Session};
use portcullis::accounts::throttle::{Attempt, Verdict, failed_client};
use portcullis::accounts::user::Username;
use portcullis::audit::{Actor, RevocationReason};
use portcullis::db::{Error, Transaction};
use portcullis::id::{AuthorizationId, ClientId, ConsentId, Sid, UserId};
use portcullis::oauth::client::Client;
use portcullis::oauth::code::Code;
use portcullis::oauth::grant::{Grant, GrantLifetimes, NewGrant};
use portcullis::oauth::request::next_action::{Authorization, Stage};
use portcullis::oauth::request::scope::Scope;
use portcullis::secret::{Entropy, Hash, Secret};
use portcullis::time::Timestamp;

const NOW: u64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

/// A signed-in alice, a client, and a grant with its code.
struct Scene {
    client: Client,
    session: Session,
    grant: Grant,
    code: Code,
}

async fn scene(server: &fixtures::Server) -> Scene {
    let entropy = Entropy::seeded(42);
    let client = server.shop().await.client;
    let alice = alice(server).await;
    let login = Login {
        sid: Sid::new(&entropy, now()),
        user_id: alice,
        user_epoch: 1,
        auth_time: now(),
        acr: Acr::Password,
        amr: Amr::new(vec![Factor::Password]),
    };
    let session = Session {
        id_hash: Hash::of("cookie"),
        login: login.clone(),
        seen_at: now(),
        expires_at: now() + Duration::from_secs(3_600),
    };
    let consent = consent(&login.user_id, &client.id, &entropy);
    let given = NewGrant {
        client_id: client.id.clone(),
        client_epoch: client.auth_epoch,
        login: &login,
        consent_id: Some(consent.id.clone()),
        scope: Scope::parse("openid").unwrap(),
        resources: Vec::new(),
        feed_epoch: 1,
    };
    let life = GrantLifetimes {
        idle: Duration::from_secs(600),
        absolute: Duration::from_secs(1_200),
    };
    let grant = Grant::new(given, life, &entropy, now());
    let code = Code {
        hash: Secret::code(&entropy).hash(),
        grant_id: grant.id.clone(),
        client_id: client.id.clone(),
        redirect_uri: "https://app.example/cb".to_owned(),
        redirect_uri_sent: true,
        challenge: None,
        nonce: Some("n".to_owned()),
        expires_at: now() + Duration::from_secs(60),
    };
    let stored = (session.clone(), consent, grant.clone(), code.clone());
    server
        .write(move |tx| {
            tx.put_session(&stored.0)?;
            tx.put_consent(&stored.1)?;
            tx.put_grant(&stored.2)?;
            tx.put_code(&stored.3)
        })
        .await;
    Scene {
        client,
        session,
        grant,
        code,
    }
}

async fn alice(server: &fixtures::Server) -> UserId {
    let name = Username::parse("alice").unwrap();
    server
        .write(move |tx| Ok(tx.find_credentials(&name)?.unwrap().0.id))
        .await
}

fn consent(user: &UserId, client: &ClientId, entropy: &Entropy) -> Consent {
    Consent {
        id: ConsentId::new(entropy, now()),
        user_id: user.clone(),
        client_id: client.clone(),
        scope: "openid".to_owned(),
        client_shape: Hash::of("shape"),
        granted_at: now(),
        expires_at: now() + Duration::from_secs(3_600),
    }
}

/// Runs `work` in 32 concurrent tasks, and returns how many succeed.
async fn race(
    server: &fixtures::Server,
    work: impl Fn(&mut Transaction<'_>) -> Result<bool, Error> + Send + Sync + 'static,
) -> usize {
    let work = Arc::new(work);
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (store, work) = (server.app.store.clone(), Arc::clone(&work));
            actix_web::rt::spawn(
                async move { store.transaction(move |tx| work(tx)).await.unwrap() },
            )
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.unwrap());
    }
    winners
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_code_redemptions_succeed_once(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let hash = scene.code.hash.clone();
    assert_eq!(
        race(&server, move |tx| Ok(tx.take_code(&hash, now())?.is_some())).await,
        1
    );
    let hash = scene.code.hash.clone();
    let used = server
        .write(move |tx| tx.find_used_code(&hash))
        .await
        .unwrap();
    assert_eq!(
        (used.grant_id, used.nonce),
        (scene.grant.id, Some("n".to_owned()))
    );
    let unknown = server
        .write(|tx| tx.take_code(&Hash::of("unknown"), now()))
        .await;
    assert!(unknown.is_none());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_grant_revocations_write_one_record(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let id = scene.grant.id.clone();
    assert_eq!(
        race(&server, move |tx| tx.revoke_grant(
            &id,
            &RevocationReason::Revoked,
            &Actor::System,
            now()
        ))
        .await,
        1
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        1
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_authorization_claims_succeed_once(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let begun = Authorization {
        id: AuthorizationId::new(&Entropy::seeded(5), now()),
        client_id: Some(scene.client.id.clone()),
        params: "x=1".to_owned(),
        browser: None,
        user_id: None,
        sid: None,
        login_sid: None,
        stage: Stage::Begun,
        scope: None,
        created_at: now(),
        expires_at: now() + Duration::from_secs(600),
        taken_at: None,
    };
    let (id, other) = (begun.id.clone(), Hash::of("another browser"));
    server
        .write(move |tx| tx.put_authorization(&begun, &"192.0.2.1".parse().unwrap()))
        .await;
    let bound = id.clone();
    assert_eq!(
        race(&server, move |tx| tx.bind_authorization(&bound, &other)).await,
        1
    );
    let late = id.clone();
    assert!(
        !server
            .write(move |tx| tx.take_authorization(&late, now() + Duration::from_secs(600)))
            .await
    );
    let taken = id.clone();
    assert_eq!(
        race(&server, move |tx| tx.take_authorization(&taken, now())).await,
        1
    );
    let login = scene.session.login.clone();
    let after = server
        .write(move |tx| tx.record_decision(&id, (&login.user_id, &login.sid), None, now()))
        .await;
    assert!(!after, "an answered authorization goes nowhere");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn grant_is_active_only_while_its_dependencies_are(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let id = scene.grant.id.clone();
    let is_active = |at: Timestamp| {
        let id = id.clone();
        let store = server.app.store.clone();
        async move {
            store
                .read(move |tx| tx.find_active_grant(&id, at))
                .await
                .unwrap()
                .is_some()
        }
    };
    assert!(is_active(now()).await);
    assert!(
        !is_active(now() + Duration::from_secs(600)).await,
        "unused for too long"
    );

    let (grant, client) = (scene.grant.id.clone(), scene.client.id.clone());
    let breaks = [
        (
            "UPDATE sessions SET ended_at = 1",
            "UPDATE sessions SET ended_at = NULL",
        ),
        (
            "UPDATE consents SET ended_at = 1",
            "UPDATE consents SET ended_at = NULL",
        ),
        (
            "UPDATE users SET auth_epoch = 2 WHERE username = 'alice'",
            "UPDATE users SET auth_epoch = 1 WHERE username = 'alice'",
        ),
        (
            "UPDATE users SET disabled_at = 1 WHERE username = 'alice'",
            "UPDATE users SET disabled_at = NULL WHERE username = 'alice'",
        ),
        (
            &format!("UPDATE clients SET auth_epoch = 2 WHERE id = '{client}'"),
            &format!("UPDATE clients SET auth_epoch = 1 WHERE id = '{client}'"),
        ),
        (
            &format!("UPDATE clients SET disabled_at = 1 WHERE id = '{client}'"),
            &format!("UPDATE clients SET disabled_at = NULL WHERE id = '{client}'"),
        ),
        (
            "UPDATE feed_head SET epoch = 2",
            "UPDATE feed_head SET epoch = 1",
        ),
        (
            &format!("UPDATE grants SET ended_at = 1 WHERE id = '{grant}'"),
            &format!("UPDATE grants SET ended_at = NULL WHERE id = '{grant}'"),
        ),
    ];
    for (broken, mended) in breaks {
        server.execute(broken);
        assert!(!is_active(now()).await, "{broken}");
        server.execute(mended);
        assert!(is_active(now()).await, "{mended}");
    }
    server.execute("UPDATE sessions SET ended_at = 1");
    server.execute(if server.db == fixtures::Db::Sqlite {
        "UPDATE grants SET offline = 1"
    } else {
        "UPDATE grants SET offline = true"
    });
    assert!(
        is_active(now()).await,
        "an offline grant outlives its session"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn ended_session_revokes_its_grants_once(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let sid = scene.session.login.sid.clone();
    assert_eq!(
        race(&server, move |tx| tx.revoke_session(
            &sid,
            &RevocationReason::Logout,
            &Actor::System,
            now()
        ))
        .await,
        1
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'S'"),
        1
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM grants WHERE ended_at IS NULL"),
        0
    );
    let found = server
        .write(|tx| tx.find_session(&Hash::of("cookie")))
        .await;
    assert!(found.is_none());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn session_lookup_requires_current_user_epoch(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let (session, name) = server
        .write(|tx| tx.find_session(&Hash::of("cookie")))
        .await
        .unwrap();
    assert_eq!(
        (session.login.sid, name.as_str()),
        (scene.session.login.sid.clone(), "alice")
    );
    let user = scene.session.login.user_id.clone();
    server
        .write(move |tx| {
            let reason = RevocationReason::Stated("test".to_owned());
            tx.revoke_all_for_user(&user, &reason, &Actor::Operator, now())
        })
        .await;
    assert!(
        server
            .write(|tx| tx.find_session(&Hash::of("cookie")))
            .await
            .is_none()
    );
    assert_eq!(server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'U' AND floor = 2 AND reason = 'test'"), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn extended_consent_keeps_its_id(#[case] db: Db) {
    let server = Server::start(db).await;
    let scene = scene(&server).await;
    let mut more = consent(
        &scene.session.login.user_id,
        &scene.client.id,
        &Entropy::seeded(77),
    );
    more.scope = "openid profile".to_owned();
    let (user, client) = (more.user_id.clone(), more.client_id.clone());
    server.write(move |tx| tx.put_consent(&more)).await;
    let standing = server
        .write(move |tx| tx.find_consent(&user, &client))
        .await
        .unwrap();
    assert_eq!(Some(standing.id), scene.grant.consent_id);
    assert_eq!(standing.scope, "openid profile");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn duplicate_username_is_rejected(#[case] db: Db) {
    let server = Server::start(db).await;
    let client = confidential("twice", "https://app.example/cb");
    server.register(client.clone()).await;
    let second = server
        .app
        .store
        .transaction(move |tx| tx.put_client(&client))
        .await;
    assert!(matches!(second, Err(Error::Duplicate(_))), "{second:?}");
    let absent = server
        .write(|tx| tx.find_client(&ClientId::from("unknown")))
        .await;
    assert!(absent.is_none());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn failed_transaction_rolls_back_and_refusal_commits(#[case] db: Db) {
    let server = Server::start(db).await;
    let entropy = Entropy::seeded(3);
    let first = server.app.store.transaction(move |tx| {
        tx.put_scope_description("orders:read", "kept?")?;
        Err::<(), _>(Error::Statement(portcullis::id::uuid(
            &entropy,
            start_of_time(),
        )))
    });
    assert!(first.await.is_err());
    assert_eq!(server.count("SELECT count(*) AS n FROM scopes"), 0);
    let refused: Result<(), &str> = server
        .write(|tx| {
            tx.put_scope_description("orders:read", "kept")?;
            Ok(Err("refused"))
        })
        .await;
    assert!(refused.is_err());
    assert_eq!(server.count("SELECT count(*) AS n FROM scopes"), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn panic_in_transaction_leaves_others_unaffected(#[case] db: Db) {
    let server = Server::start(db).await;
    let panicked = server
        .app
        .store
        .transaction(|_| -> Result<(), Error> { panic!("on purpose") })
        .await;
    assert!(panicked.is_err());
    server
        .write(|tx| tx.put_scope_description("orders:read", "still here"))
        .await;
    assert_eq!(server.count("SELECT count(*) AS n FROM scopes"), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn expired_authorizations_are_deleted_in_batches(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let entropy = Entropy::seeded(8);
    for _ in 0..5 {
        let begun = Authorization {
            id: AuthorizationId::new(&entropy, now()),
            client_id: Some(shop.client.id.clone()),
            params: String::new(),
            browser: None,
            user_id: None,
            sid: None,
            login_sid: None,
            stage: Stage::Begun,
            scope: None,
            created_at: now(),
            expires_at: now(),
            taken_at: None,
        };
        server
            .write(move |tx| tx.put_authorization(&begun, &"192.0.2.1".parse().unwrap()))
            .await;
    }
    let later = now() + Duration::from_secs(3_601);
    assert_eq!(
        server
            .write(move |tx| tx.drop_expired_authorizations(3, later))
            .await,
        3
    );
    assert_eq!(
        server
            .write(move |tx| tx.drop_expired_authorizations(3, later))
            .await,
        2
    );
}

#[actix_web::test]
async fn returning_database_is_used_at_once() {
    let server = fixtures::Server::start(fixtures::Db::Postgres).await;
    let store = &server.app.store;
    let asked = |server: &fixtures::Server| {
        let store = server.app.store.clone();
        async move { store.read(|tx| tx.feed_epoch()).await }
    };
    assert!(asked(&server).await.is_ok());
    let url = server.config.database_url();
    let name = fixtures::postgres::name(&url);
    fixtures::postgres::execute(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    ));
    // Each open connection is found broken once, and is not used again.
    assert!(matches!(asked(&server).await, Err(Error::Unavailable(_))));
    for _ in 1..server.config.database.pool_size {
        let _ = asked(&server).await;
    }
    assert!(asked(&server).await.is_ok());
    let written = store.transaction(|tx| tx.put_scope_description("orders:read", "written"));
    assert!(written.await.is_ok());
}

/// Returns the sum of a column over the counters of one kind.
fn counted(server: &fixtures::Server, what: &str, kind: &str) -> i64 {
    server.count(&format!(
        "SELECT CAST(coalesce(sum({what}), 0) AS BIGINT) AS n FROM throttles WHERE key LIKE '{kind}:%'"
    ))
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_login_attempts_are_throttled_at_five(#[case] db: Db) {
    let server = Server::start(db).await;
    let attempt = Attempt::from_anywhere("unknown", None, [192, 0, 2, 1].into());
    let tried = attempt.clone();
    let admitted = race(&server, move |tx| {
        Ok(tx.admit(&tried, now())? == Verdict::Admitted)
    });
    assert_eq!(admitted.await, 5);
    // While these attempts are pending none has failed, and the others are told that the server is busy.
    assert_eq!(
        (
            counted(&server, "failures", "%"),
            counted(&server, "in_progress", "pair")
        ),
        (0, 5)
    );
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, now())).await,
        Verdict::Busy
    );
    // One was not evaluated and the others failed, so there is room for one attempt again.
    let refunded = attempt.clone();
    server.write(move |tx| tx.refund_attempt(&refunded)).await;
    for _ in 0..4 {
        let failed = attempt.clone();
        assert!(
            !server
                .write(move |tx| tx.record_failure(&failed, now()))
                .await
        );
    }
    let failures = ["pair", "account", "network"].map(|kind| counted(&server, "failures", kind));
    assert_eq!(
        (failures, counted(&server, "in_progress", "%")),
        ([4, 4, 8], 0)
    );
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, now())).await,
        Verdict::Admitted
    );
    let failed = attempt.clone();
    server
        .write(move |tx| tx.record_failure(&failed, now()))
        .await;
    let waits = Verdict::Wait(Duration::from_secs(1));
    let tried = attempt.clone();
    assert_eq!(server.write(move |tx| tx.admit(&tried, now())).await, waits);
    assert_eq!(counted(&server, "attempts", "account"), 7);
    // A success after the delay resets only the counter of this pair.
    let later = now() + Duration::from_secs(1);
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, later)).await,
        Verdict::Admitted
    );
    server
        .write(move |tx| tx.record_success(&attempt, attempt.account()))
        .await;
    let rows = server.count("SELECT count(*) AS n FROM throttles WHERE key LIKE 'pair:%'");
    assert_eq!((rows, counted(&server, "failures", "account")), (0, 5));
    assert_eq!(
        (
            counted(&server, "in_a_row", "account"),
            counted(&server, "in_progress", "%")
        ),
        (0, 0)
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn pending_success_keeps_other_delays(#[case] db: Db) {
    let server = Server::start(db).await;
    let [slow, quick] =
        ["slow", "quick"].map(|name| Attempt::from_anywhere(name, None, [192, 0, 2, 1].into()));
    let begun = slow.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&begun, now())).await,
        Verdict::Admitted
    );
    for n in 0..29 {
        let attempt = Attempt::from_anywhere(&format!("name-{n}"), None, [192, 0, 2, 1].into());
        server
            .write(move |tx| {
                tx.admit(&attempt, now())?;
                tx.record_failure(&attempt, now())
            })
            .await;
    }
    let tried = quick.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, now())).await,
        Verdict::Busy
    );
    let late = Attempt::from_anywhere("late", None, [192, 0, 2, 1].into());
    assert!(
        server
            .write(move |tx| tx.record_failure(&late, now()))
            .await,
        "the thirtieth is the spray"
    );
    server
        .write(move |tx| tx.record_success(&slow, slow.account()))
        .await;
    let wait = Verdict::Wait(Duration::from_secs(600));
    assert_eq!(server.write(move |tx| tx.admit(&quick, now())).await, wait);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn earlier_clock_reading_is_not_delayed_by_later_one(#[case] db: Db) {
    let server = Server::start(db).await;
    // Two concurrent attempts: the second has read its clock before the first, and gets the row after it.
    let first = Attempt::from_anywhere("first", None, [192, 0, 2, 1].into());
    let second = Attempt::from_anywhere("second", None, [192, 0, 2, 1].into());
    let later = now() + Duration::from_millis(300);
    let begun = first.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&begun, later)).await,
        Verdict::Admitted
    );
    assert_eq!(
        server.write(move |tx| tx.admit(&second, now())).await,
        Verdict::Admitted
    );
    server
        .write(move |tx| tx.record_success(&first, first.account()))
        .await;
    assert_eq!(server.count("SELECT max(next_at) AS n FROM throttles"), 0);
    let third = Attempt::from_anywhere("third", None, [192, 0, 2, 1].into());
    assert_eq!(
        server.write(move |tx| tx.admit(&third, now())).await,
        Verdict::Admitted
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn instants_stored_by_wrong_clock_cause_no_delay(#[case] db: Db) {
    let server = Server::start(db).await;
    let attempt = Attempt::from_anywhere("unknown", None, [192, 0, 2, 1].into());
    for _ in 0..5 {
        let failed = attempt.clone();
        server
            .write(move |tx| tx.record_failure(&failed, now()))
            .await;
    }
    let far = (now() + Duration::from_secs(100 * 86_400)).micros();
    server.execute(&format!(
            "UPDATE throttles SET next_at = {far}, window_ends = {far}, in_progress = 9, in_progress_until = {far}"
        ));
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, now())).await,
        Verdict::Admitted
    );
    assert_eq!(server.count("SELECT max(next_at) AS n FROM throttles"), 0);
    // Abandoned attempts count as failures, so they are kept.
    assert_eq!(
        (
            counted(&server, "failures", "pair"),
            counted(&server, "in_progress", "pair")
        ),
        (9, 1)
    );
    server
        .write(move |tx| tx.record_failure(&attempt, now()))
        .await;
    let longest = (now() + Duration::from_secs(900)).micros();
    assert!(server.count("SELECT max(next_at) AS n FROM throttles") <= longest);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn attempts_of_a_stopped_node_become_failures(#[case] db: Db) {
    let server = Server::start(db).await;
    let attempt = Attempt::from_anywhere("unknown", None, [192, 0, 2, 1].into());
    for _ in 0..5 {
        let begun = attempt.clone();
        assert_eq!(
            server.write(move |tx| tx.admit(&begun, now())).await,
            Verdict::Admitted
        );
    }
    let soon = now() + Duration::from_secs(9);
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, soon)).await,
        Verdict::Busy
    );
    let later = now() + Duration::from_secs(10);
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, later)).await,
        Verdict::Admitted
    );
    assert_eq!(
        (
            counted(&server, "failures", "pair"),
            counted(&server, "in_progress", "pair")
        ),
        (5, 1)
    );
    // One attempt at a time from here on.
    let tried = attempt.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, later)).await,
        Verdict::Busy
    );
    let failed = attempt.clone();
    server
        .write(move |tx| tx.record_failure(&failed, later))
        .await;
    let wait = Verdict::Wait(Duration::from_secs(2));
    assert_eq!(
        server.write(move |tx| tx.admit(&attempt, later)).await,
        wait
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn failure_series_ends_with_known_device_or_new_password(#[case] db: Db) {
    let server = Server::start(db).await;
    let alice = alice(&server).await;
    let tries = |server: &fixtures::Server, at: Timestamp, host: u8, user: Option<&UserId>| {
        let attempt = Attempt::from_anywhere("alice", user, [10, host, host, 1].into());
        let store = server.app.store.clone();
        async move {
            store
                .transaction(move |tx| {
                    let verdict = tx.admit(&attempt, at)?;
                    if verdict == Verdict::Admitted {
                        tx.record_failure(&attempt, at)?;
                    }
                    Ok(verdict)
                })
                .await
                .unwrap()
        }
    };
    let minute = |n: u8| now() + Duration::from_secs(31 * u64::from(n));
    for n in 0..100 {
        let verdict = tries(&server, minute(n), n, Some(&alice)).await;
        assert_eq!(verdict, Verdict::Admitted, "failure {n}");
    }
    assert_eq!(
        tries(&server, minute(101), 101, Some(&alice)).await,
        Verdict::Exhausted
    );
    let device = Hash::of("a browser");
    let (known, user) = (device.clone(), alice.clone());
    server
        .write(move |tx| tx.put_known_device(&known, &user, now()))
        .await;
    let (known, asked) = (device.clone(), Username::parse("alice"));
    assert!(
        server
            .write(move |tx| tx.is_known_device(&known, asked.as_ref(), now()))
            .await
    );
    assert!(
        !server
            .write(move |tx| tx.is_known_device(&device, Username::parse("bob").as_ref(), now()))
            .await
    );
    let own = Attempt::from_known_device("alice", Some(&alice), "a browser");
    assert_eq!(
        server.write(move |tx| tx.admit(&own, minute(103))).await,
        Verdict::Admitted
    );
    let user = alice.clone();
    server.write(move |tx| tx.clear_user_throttles(&user)).await;
    assert_eq!(
        tries(&server, minute(105), 105, Some(&alice)).await,
        Verdict::Admitted
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn failure_series_is_per_user(#[case] db: Db) {
    let server = Server::start(db).await;
    // The same for a name that no user has. A user who gets that name later is not charged for earlier
    // failures.
    let ghost = Attempt::from_anywhere("ghost", None, [192, 0, 2, 1].into());
    let failed = ghost.clone();
    server
        .write(move |tx| tx.record_failure(&failed, now()))
        .await;
    server.execute("UPDATE throttles SET in_a_row = 100 WHERE key LIKE 'account:%'");
    let tried = ghost.clone();
    assert_eq!(
        server.write(move |tx| tx.admit(&tried, now())).await,
        Verdict::Exhausted
    );
    let user = alice(&server).await;
    let named = Attempt::from_anywhere("ghost", Some(&user), [192, 0, 2, 1].into());
    assert_eq!(
        server.write(move |tx| tx.admit(&named, now())).await,
        Verdict::Admitted
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn throttle_counters_are_cleared_separately(#[case] db: Db) {
    let server = Server::start(db).await;
    let user = alice(&server).await;
    let fail = async |name: &str, user: Option<&UserId>, host: u8| {
        let attempt = Attempt::from_anywhere(name, user, [192, 0, 2, host].into());
        server
            .write(move |tx| tx.record_failure(&attempt, now()))
            .await;
    };
    let keys = || server.count("SELECT count(*) AS n FROM throttles");
    fail("alice", Some(&user), 1).await;
    fail("ghost", None, 2).await;
    let failed = failed_client([192, 0, 2, 2].into());
    server
        .write(move |tx| tx.count_failure(&failed, now()))
        .await;
    assert_eq!(keys(), 3 + 3 + 1 + 1);
    // The counters of her account and of her pair with the address. Those of the networks stay.
    assert_eq!(
        server.write(move |tx| tx.clear_user_throttles(&user)).await,
        2
    );
    assert_eq!(keys(), 6);
    // The counters of the address, its /24, its clients, and the pair with the other name.
    assert_eq!(
        server
            .write(|tx| tx.clear_address_throttles([192, 0, 2, 2].into()))
            .await,
        4
    );
    assert_eq!((keys(), counted(&server, "failures", "account")), (2, 1));
    assert_eq!(server.write(|tx| tx.clear_throttles()).await, 2);
    assert_eq!(keys(), 0);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn failing_clients_share_a_budget_and_old_counters_expire(#[case] db: Db) {
    let server = Server::start(db).await;
    let bucket = failed_client([192, 0, 2, 1].into());
    let racing = bucket.clone();
    for _ in 0..2 {
        let racing = racing.clone();
        race(&server, move |tx| {
            Ok(tx.count_failure(&racing, now())?.is_none())
        })
        .await;
    }
    assert_eq!(server.count("SELECT failures AS n FROM throttles"), 60);
    let later = now() + Duration::from_secs(60);
    let again = bucket.clone();
    assert_eq!(
        server
            .write(move |tx| tx.count_failure(&again, later))
            .await,
        None
    );
    let counters = || server.count("SELECT count(*) AS n FROM throttles");
    let soon = later + Duration::from_secs(3_600);
    server.write(move |tx| sweep(tx, soon)).await;
    assert_eq!(counters(), 1);
    let days = later + Duration::from_secs(2 * 86_400);
    server.write(move |tx| sweep(tx, days)).await;
    assert_eq!(counters(), 0);
}

/// Returns the tables with their columns, whether these may be null, and unique indexes, one per line.
const POSTGRES_SCHEMA: &str = "
    SELECT 'column ' || table_name || '.' || column_name || ' '
        || CASE data_type WHEN 'text' THEN 'text' WHEN 'bytea' THEN 'bytes' ELSE 'number' END
        || CASE is_nullable WHEN 'YES' THEN ' null' ELSE '' END AS line
    FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name NOT LIKE '\\_\\_%'
    UNION
    SELECT 'index ' || t.relname || ' ' || i.relname
    FROM pg_index x
    JOIN pg_class t ON t.oid = x.indrelid
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE n.nspname = 'public' AND NOT x.indisprimary AND t.relname NOT LIKE '\\_\\_%'
        AND i.relname NOT LIKE '%\\_key'";

const SQLITE_SCHEMA: &str = "
    SELECT 'column ' || t.name || '.' || c.name || ' '
        || CASE upper(c.type) WHEN 'TEXT' THEN 'text' WHEN 'BLOB' THEN 'bytes' ELSE 'number' END
        || CASE WHEN c.\"notnull\" = 1 OR c.pk > 0 THEN '' ELSE ' null' END AS line
    FROM sqlite_master t JOIN pragma_table_info(t.name) c
    WHERE t.type = 'table' AND t.name NOT LIKE '\\_\\_%' ESCAPE '\\' AND t.name NOT LIKE 'sqlite%'
    UNION
    SELECT 'index ' || tbl_name || ' ' || name
    FROM sqlite_master
    WHERE type = 'index' AND sql IS NOT NULL AND tbl_name NOT LIKE '\\_\\_%' ESCAPE '\\'";

#[actix_web::test]
async fn both_migration_folders_produce_the_same_schema() {
    let schema = async |db, query: &str| {
        let config = fixtures::server::fresh_database(db).await;
        let lines = fixtures::look::Look::at(&config.database_url()).lines(query);
        lines.into_iter().collect::<std::collections::BTreeSet<_>>()
    };
    let sqlite = schema(fixtures::Db::Sqlite, SQLITE_SCHEMA).await;
    let postgres = schema(fixtures::Db::Postgres, POSTGRES_SCHEMA).await;
    assert!(sqlite.len() > 100, "{sqlite:?}");
    let only = |one: &std::collections::BTreeSet<String>, other| {
        one.difference(other).cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        (only(&sqlite, &postgres), only(&postgres, &sqlite)),
        (vec![], vec![]),
        "only in SQLite, only in PostgreSQL"
    );
}

/// `.cargo/config.toml` sets the option. A build without it works, but prepares each statement with a bound LIMIT again.
#[actix_web::test]
async fn sqlite_keeps_statements_with_bound_limits_prepared() {
    let config = fixtures::server::fresh_database(Db::Sqlite).await;
    let options = fixtures::look::Look::at(&config.database_url())
        .lines("SELECT compile_options AS line FROM pragma_compile_options");
    assert!(options.iter().any(|option| option == "ENABLE_QPSG"));
}
