//! Commands that change clients and users, with the real binary, on both databases: their output, their
//! errors, and the resulting rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use fixtures::installation::{Installation, refused};
use fixtures::{Db, apply, on_both_databases};
use serde_json::Value;

impl Installation {
    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--format", "json"]].concat();
        serde_json::from_str(&self.done(&arguments)).unwrap()
    }

    fn refused(&self, arguments: &[&str], code: i32, sentence: &str) {
        refused(&self.run(arguments, &[]), code, sentence);
    }
}

/// Two concurrent operators: the second has read the client before the first one narrowed it. Only PostgreSQL
/// lets a test observe that a command waits.
#[test]
fn client_update_keeps_concurrent_changes_on_postgres() {
    let desk = Installation::on_postgres();
    let shop = ["client", "create", "--id", "shop", "--name", "Shop"];
    let more = [
        "--redirect-uri",
        "https://app.example/cb",
        "--scope",
        "openid profile",
    ];
    desk.done(&[&shop[..], &more].concat());
    let (mut first, mut watching) = (desk.look(), desk.look());
    first.execute("BEGIN; UPDATE clients SET scopes = 'openid' WHERE id = 'shop'");
    let mut second = desk.command(&["client", "update", "shop", "--name", "Corner Shop"], &[]);
    let second = second.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let waits = "SELECT count(*) AS n FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let begun = std::time::Instant::now();
    while watching.count(waits) == 0 {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(20),
            "it does not wait"
        );
    }
    first.execute("COMMIT");
    let output = second.wait_with_output().unwrap();
    refused(&output, 1, "changed by someone else in the meantime");
    let kept = "SELECT count(*) AS n FROM clients WHERE scopes = 'openid' AND name = 'Shop'";
    assert_eq!(desk.count(kept), 1);
    desk.done(&["client", "update", "shop", "--name", "Corner Shop"]);
}

/// With one ring, no client can register for the other algorithm, and a client without a choice gets the
/// available one.
#[apply(on_both_databases)]
#[test]
fn registration_for_omitted_algorithm_is_rejected(#[case] db: Db) {
    let desk = &Installation::on(db);
    let only = [("PORTCULLIS__KEYS__ALGORITHMS", "ES256")];
    let run = |arguments: &[&str]| desk.run(&[arguments, &["--format", "json"]].concat(), &only);
    let shop = ["client", "create", "--id", "shop", "--name", "Shop"];
    let shop = [&shop[..], &["--redirect-uri", "https://app.example/cb"]].concat();
    let api = ["resource", "create", "--name", "Orders", "--audience"];
    let api = [&api[..], &["https://api.example"]].concat();
    for arguments in [
        [&shop[..], &["--id-token-alg", "RS256"]].concat(),
        [&shop[..], &["--userinfo-alg", "RS256"]].concat(),
        [&api[..], &["--alg", "RS256"]].concat(),
    ] {
        refused(&run(&arguments), 1, "`keys.algorithms` leaves it out");
    }
    let made = run(&shop);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["id_token_signed_response_alg"], "ES256");
    assert!(run(&api).status.success());
    let update = ["client", "update", "shop", "--id-token-alg", "RS256"];
    refused(&run(&update), 1, "`keys.algorithms` leaves it out");
}

#[apply(on_both_databases)]
#[test]
fn client_commands_change_clients(#[case] db: Db) {
    let desk = &Installation::on(db);
    let api = "https://api.example";
    desk.done(&[
        "resource",
        "create",
        "--audience",
        api,
        "--name",
        "Orders",
        "--scope",
        "orders:read=See",
    ]);
    let callback = ["--redirect-uri", "https://app.example/cb"];
    let shop = ["client", "create", "--id", "shop", "--name", "Shop"];
    let first = desk.json(&[shop.as_slice(), &callback].concat());

    // An omitted option changes nothing, a list is replaced as a whole, and an empty value clears the field.
    let changed = desk.json(&[
        "client",
        "update",
        "shop",
        "--name",
        "Corner Shop",
        "--resource",
        api,
        "--serves",
        api,
    ]);
    assert_eq!(changed["client_name"], "Corner Shop");
    assert_eq!(
        (&changed["resources"], &changed["serves"]),
        (&serde_json::json!([api]), &serde_json::json!([api]))
    );
    assert_eq!(changed["redirect_uris"], first["redirect_uris"]);
    let changed = desk.json(&[
        "client",
        "update",
        "shop",
        "--resource",
        "",
        "--userinfo-alg",
        "ES256",
    ]);
    assert_eq!(changed["resources"], serde_json::json!([]));
    scopes_belong_to_somebody(desk, api);
    assert_eq!(changed["userinfo_signed_response_alg"], "ES256");
    desk.refused(
        &[
            "client",
            "update",
            "shop",
            "--serves",
            "https://nowhere.example",
        ],
        1,
        "not registered",
    );
    desk.refused(
        &[
            "client",
            "update",
            "shop",
            "--redirect-uri",
            "https://*.example",
        ],
        1,
        "wildcards",
    );
    desk.refused(
        &["client", "update", "shop", "--id-token-alg", "HS256"],
        2,
        "neither RS256 nor ES256",
    );
    desk.refused(
        &["client", "update", "unknown", "--name", "X"],
        1,
        "there is no client `unknown`",
    );

    // Client secrets.
    let second = desk.json(&[
        "client",
        "rotate-secret",
        "shop",
        "--label",
        "blue",
        "--expires-in",
        "90d",
    ]);
    assert!(
        second["client_secret"]
            .as_str()
            .unwrap()
            .starts_with("pcl_sec_")
    );
    assert_ne!(second["client_secret"], first["client_secret"]);
    assert!(second["old_secrets_end_at"].is_string() && second["expires_at"].is_string());
    desk.done(&[
        "client",
        "rotate-secret",
        "shop",
        "--label",
        "green",
        "--keep",
    ]);
    let secrets = desk.json(&["client", "get", "shop"])["client_secrets"].clone();
    let ends = |at: usize| secrets[at]["expires_at"].is_string();
    let labels: Vec<&str> = secrets
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["label"].as_str().unwrap())
        .collect();
    assert_eq!(
        (labels, ends(0), ends(1), ends(2)),
        (vec!["first", "blue", "green"], true, true, false)
    );
    let third = desk.json(&["client", "rotate-secret", "shop", "--compromised"]);
    assert!(third["old_secrets_end_at"].is_string());
    desk.refused(
        &["client", "rotate-secret", "shop", "--overlap", "8d"],
        2,
        "at most 7d",
    );
    desk.done(&[
        "client",
        "create",
        "--id",
        "phone",
        "--name",
        "Phone",
        "--public",
        "--redirect-uri",
        "http://127.0.0.1/cb",
    ]);
    desk.refused(&["client", "rotate-secret", "phone"], 1, "public client");
    desk.refused(
        &[
            "client",
            "update",
            "phone",
            "--auth-method",
            "client_secret_post",
        ],
        2,
        "no authentication method",
    );

    // Enable, disable, delete.
    desk.done(&["client", "disable", "shop"]);
    desk.refused(&["client", "disable", "shop"], 1, "nothing to do");
    assert!(desk.done(&["client", "list"]).contains("disabled"));
    desk.done(&["client", "enable", "shop"]);
    desk.refused(&["client", "delete", "shop"], 2, "--yes");
    desk.done(&["client", "delete", "shop", "--yes"]);
    desk.refused(&["client", "get", "shop"], 1, "there is no client `shop`");
    desk.refused(
        &[shop.as_slice(), &callback].concat(),
        1,
        "an identifier is never assigned twice",
    );
}

/// A scope that no token could contain is rejected, and the error suggests a similar one.
fn scopes_belong_to_somebody(desk: &Installation, api: &str) {
    let asks = |scope, resource| {
        let update = ["client", "update", "shop", "--scope", scope];
        [update.as_slice(), &["--resource", resource]].concat()
    };
    let mistakes = [
        (
            "openid orders:reed",
            api,
            "scope: `orders:reed` belongs to none of the client's resources; did you mean `orders:read`?",
        ),
        (
            "opened",
            "",
            "`opened` belongs to none of the client's resources; did you mean `openid`?",
        ),
        (
            "openid orders:read",
            "",
            "`orders:read` belongs to `https://api.example`, which is not among the client's resources",
        ),
    ];
    for (scope, resource, why) in mistakes {
        desk.refused(&asks(scope, resource), 1, why);
    }
    let changed = desk.json(&asks("openid orders:read", api));
    assert_eq!(changed["scope"], "openid orders:read");
    // When the API drops the scope, the other fields of the client can still be changed.
    desk.done(&["resource", "update", api, "--scope", "orders:write"]);
    desk.done(&["client", "update", "shop", "--require-pkce", "true"]);
    desk.done(&["resource", "update", api, "--scope", "orders:read"]);
    desk.done(&[
        "client",
        "update",
        "shop",
        "--scope",
        "openid",
        "--resource",
        "",
    ]);
}

#[apply(on_both_databases)]
#[test]
fn user_commands_lock_and_unlock_users(#[case] db: Db) {
    let desk = &Installation::on(db);
    let password = "four walls and a gate\n";
    desk.told(&["user", "create", "alice", "--password-stdin"], password);
    let state = || desk.json(&["user", "list"])[0]["disabled"].clone();
    let one = desk.json(&["user", "get", "alice"]);
    assert_eq!(
        (&one["username"], &one["admin"]),
        (&"alice".into(), &false.into())
    );
    desk.refused(&["user", "get", "unknown"], 1, "there is no user `unknown`");
    desk.done(&["user", "lock", "alice"]);
    assert_eq!(state(), true);
    desk.refused(&["user", "lock", "alice"], 1, "nothing to do");
    desk.done(&["user", "unlock", "alice"]);
    assert_eq!(state(), false);
    desk.refused(&["user", "unlock", "alice"], 1, "nothing to do");
    assert_eq!(
        desk.json(&["user", "list-sessions", "alice"]),
        serde_json::json!([])
    );
    desk.done(&["user", "revoke-sessions", "alice"]);
    desk.refused(
        &["user", "revoke-sessions", "alice", "--sid", "x"],
        1,
        "nothing to do",
    );
    desk.refused(
        &["user", "lock", "unknown"],
        1,
        "there is no user `unknown`",
    );
}

#[apply(on_both_databases)]
#[test]
fn throttle_clear_removes_counters(#[case] db: Db) {
    let desk = &Installation::on(db);
    let password = "gravel-otter-92-lamp\n";
    for name in ["alice", "bob"] {
        desk.told(&["user", "create", name, "--password-stdin"], password);
    }
    // Counters of alice and bob from one address, of its networks, and of another address.
    let fill = || {
        desk.execute("DELETE FROM throttles");
        for (key, user) in [
            ("account:a", "'alice'"),
            ("pair:a:192.0.2.1/32", "'alice'"),
            ("device:a:x", "'alice'"),
            ("account:b", "'bob'"),
            ("pair:b:192.0.2.1/32", "'bob'"),
            ("pair:b:192.0.2.10/32", "'bob'"),
            ("network:192.0.2.0/24", "NULL"),
            ("network:192.0.2.1/32", "NULL"),
            ("clients:192.0.2.1/32", "NULL"),
            ("network:2001:db8::/64", "NULL"),
        ] {
            desk.execute(&format!(
                "INSERT INTO throttles (key, failures, in_a_row, attempts, window_ends, next_at, last_at, expires_at, user_id)
                 SELECT '{key}', 5, 5, 5, 0, 0, 0, 0, (SELECT id FROM users WHERE username = {user})"
            ));
        }
    };
    let left = || desk.count("SELECT count(*) AS n FROM throttles");
    let clear = |arguments: &[&str]| desk.done(&[&["user", "clear-throttles"], arguments].concat());
    for (arguments, cleared) in [
        (&["alice"][..], 3),
        (&["--address", "192.0.2.1"], 5),
        (&["--address", "2001:db8::7"], 1),
        (&["--all"], 10),
    ] {
        fill();
        let said = clear(arguments);
        assert!(
            said.contains(&format!("cleared: {cleared}.")),
            "{arguments:?}: {said}"
        );
        assert_eq!(left(), 10 - cleared, "{arguments:?}");
    }
    let audited = "SELECT count(*) AS n FROM audit_events WHERE name = 'throttles.cleared' AND actor LIKE 'cli:%'";
    assert_eq!(desk.count(audited), 4);
    // A new password clears the counters of its user.
    fill();
    desk.told(
        &["user", "set-password", "bob", "--password-stdin"],
        password,
    );
    assert_eq!(left(), 7);
    desk.refused(
        &["user", "clear-throttles", "unknown"],
        1,
        "there is no user `unknown`",
    );
    for wrong in [&[][..], &["alice", "--all"]] {
        let run = desk.run(&[&["user", "clear-throttles"], wrong].concat(), &[]);
        assert_eq!(run.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn introspect_rejects_malformed_token() {
    let desk = Installation::new();
    // The first start creates the keys.
    drop(desk.serve(&[]));
    let told = desk.told(&["token", "introspect", "--format", "json"], "nonsense\n");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["active"], false);
    assert!(told["why"].is_string());
}

/// Writes an instance that acknowledged this position just now.
fn hears(desk: &Installation, instance: &str, seq: i64) {
    let now = portcullis::time::Clock::System.now().micros();
    desk.execute(&format!(
        "INSERT INTO feed_acks VALUES ('billing', '{instance}', 1, {seq}, '[]', 60, {now})"
    ));
}

#[apply(on_both_databases)]
#[test]
fn revoke_commands_write_revocations(#[case] db: Db) {
    let desk = &Installation::on(db);
    // The first start creates the keys.
    desk.serve(&[]).stop();
    let password = "four walls and a gate\n";
    desk.told(&["user", "create", "alice", "--password-stdin"], password);
    let api = "https://orders.example";
    desk.done(&[
        "resource",
        "create",
        "--audience",
        api,
        "--name",
        "Orders",
        "--max-age",
        "3s",
    ]);
    desk.done(&[
        "client",
        "create",
        "--id",
        "billing",
        "--name",
        "Billing",
        "--serves",
        api,
        "--grant-type",
        "client_credentials",
    ]);

    // The numbers are in the order of the commands.
    assert!(
        desk.done(&["revoke", "user:alice"])
            .contains("is revoked: 1:1 of the feed\n")
    );
    let json = desk.json(&[
        "revoke",
        "client:billing",
        "--reason",
        "secret seen in a log",
    ]);
    assert_eq!(
        (&json["revoked"], &json["position"]),
        (&true.into(), &"1:2".into())
    );
    assert!(
        desk.done(&["revoke", "token:0198c0de-0000-7000-8000-000000000003"])
            .contains("1:3")
    );
    assert_eq!(
        desk.count("SELECT count(*) AS n FROM revocations WHERE seq IS NULL"),
        0
    );
    assert_eq!(
        desk.count("SELECT count(*) AS n FROM audit_events WHERE name = 'revocation.done'"),
        3
    );

    // Targets that cannot be revoked.
    desk.refused(&["revoke", "user:unknown"], 1, "there is no user unknown");
    for nothing in ["client:unknown", "session:nothing", "grant:nothing"] {
        desk.refused(&["revoke", nothing], 1, "is unknown");
    }
    // In another folder there is no database, and the command creates none.
    if desk.database.is_none() {
        let elsewhere = Installation::new();
        elsewhere.refused(&["revoke", "user:alice"], 78, "there is no database at /");
        let there = [
            ["feed", "status"].as_slice(),
            &["client", "list"],
            &["client", "delete", "shop"],
            &["resource", "get", "urn:x"],
            &["user", "get", "alice"],
            &["user", "lock", "alice"],
            &["keys", "list"],
            &["setup", "link"],
        ];
        for command in there {
            elsewhere.refused(
                command,
                78,
                "run this command in the directory of the server",
            );
        }
        assert!(!elsewhere.folder.join("data").exists());
    }
    // A complete token on the command line is not mistaken for its identifier, and is not shown.
    for token in [
        "token:abc",
        "token:eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiJ4In0.c2ln",
    ] {
        let refused = desk.run(&["revoke", token], &[]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("pass it on stdin"), "{said}");
        assert!(!said.contains("eyJ"), "{said}");
    }
    desk.refused(
        &["revoke", "grant:x", "--client", "billing"],
        2,
        "--client requires user",
    );
    desk.refused(
        &["revoke", "user:alice", "--reason", " "],
        2,
        "--reason is empty",
    );
    for (wrong, why) in [
        ("alice", "KIND:VALUE"),
        ("key:x", "keys revoke"),
        ("group:x", "unknown kind `group`"),
        ("user:", "KIND:VALUE"),
    ] {
        let output = desk.run(&["revoke", wrong], &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(why),
            "{wrong}"
        );
    }

    // The instances that have applied it.
    assert!(
        desk.done(&["revoke", "user:alice", "--wait"])
            .contains("no instance is connected")
    );
    hears(desk, "billing-1", 99);
    let said = desk.done(&["revoke", "user:alice", "--wait=1s"]);
    assert!(
        said.contains("applied by 1 of 1 connected instances"),
        "{said}"
    );
    hears(desk, "billing-2", 2);
    let output = desk.run(&["revoke", "user:alice", "--wait=100ms"], &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(
        said.contains("applied by 1 of 2")
            && said.contains("waiting: billing billing-2; refuses at the latest at"),
        "{said}"
    );
    desk.done(&[
        "client",
        "create",
        "--id",
        "ledger",
        "--name",
        "Ledger",
        "--serves",
        api,
        "--grant-type",
        "client_credentials",
    ]);
    let output = desk.run(
        &[
            "revoke",
            "user:alice",
            "--wait=100ms",
            "--require",
            "registered",
        ],
        &[],
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("ledger (not connected)"));
    let status = desk.json(&["feed", "status"]);
    assert_eq!(
        status["subscribers"][1]["behind"],
        status["seq"].as_i64().unwrap() - 2
    );
    assert!(desk.done(&["feed", "status"]).contains("billing-2"));

    // A key as well.
    let kid = desk.json(&["keys", "list"])[0]["kid"]
        .as_str()
        .unwrap()
        .to_owned();
    let output = desk.run(
        &[
            "keys",
            "revoke",
            &kid,
            "--reason",
            "leaked",
            "--yes",
            "--wait=100ms",
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stdout).contains("applied by 1 of 2"));
}

#[apply(on_both_databases)]
#[test]
fn recover_returns_restored_database_to_service(#[case] db: Db) {
    let desk = &Installation::on(db);
    desk.serve(&[]).stop();
    let before = desk.count("SELECT count(*) AS n FROM signing_keys");
    desk.refused(&["recover"], 2, "--yes");
    desk.execute("UPDATE feed_head SET restored_at = 1");
    assert!(
        desk.done(&["feed", "status"])
            .contains("portcullis recover")
    );
    // A revocation without a number yet counts as applied by no instance.
    let token = "token:0198c0de-0000-7000-8000-000000000003";
    desk.refused(&["revoke", token, "--wait=1s"], 75, "portcullis recover");
    let numbered = "SELECT count(*) AS n FROM revocations WHERE kind = 'J' AND seq IS NOT NULL";
    assert_eq!(desk.count(numbered), 0);
    let said = desk.done(&["recover", "--yes"]);
    assert_eq!(desk.count(numbered), 1);
    assert!(
        said.contains("Feed epoch") && said.contains("are lost"),
        "{said}"
    );
    assert!(desk.count("SELECT epoch AS n FROM feed_head") > 1_700_000_000);
    assert_eq!(
        desk.count("SELECT count(*) AS n FROM feed_head WHERE restored_at IS NULL"),
        1
    );
    assert!(desk.count("SELECT count(*) AS n FROM signing_keys") > before);
    assert_eq!(
        desk.count("SELECT count(*) AS n FROM revocations WHERE kind = 'K' AND seq IS NOT NULL"),
        before
    );
    assert_eq!(
        desk.count("SELECT count(*) AS n FROM audit_events WHERE name = 'database.recovered'"),
        1
    );
    // A server starts on it, and signs.
    assert_eq!(desk.serve(&[]).stop(), Some(0));
    let first = desk.count("SELECT epoch AS n FROM feed_head");
    desk.done(&["recover", "--yes"]);
    assert!(
        desk.count("SELECT epoch AS n FROM feed_head") > first,
        "no epoch comes twice"
    );
}
