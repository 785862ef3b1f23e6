//! Commands that change clients and users, with the real binary, on both databases: their output, their
//! errors, and the resulting rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

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
        refused(&run(&arguments), 2, "`keys.algorithms` leaves it out");
    }
    let made = run(&shop);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["id_token_signed_response_alg"], "ES256");
    assert!(run(&api).status.success());
    let update = ["client", "update", "shop", "--id-token-alg", "RS256"];
    refused(&run(&update), 2, "`keys.algorithms` leaves it out");
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
        2,
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
        2,
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
        desk.refused(&asks(scope, resource), 2, why);
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

/// Returns the exit codes of the table in the documentation.
fn documented_exit_codes() -> BTreeSet<i32> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("## Exit codes").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| row.split(' ').next()?.parse().ok())
        .collect()
}

/// Every command ends with a code of the table, and with `--format json` prints JSON or nothing.
#[test]
fn exit_codes_match_table() {
    let desk = &Installation::new();
    let old = desk.run(&["migrate", "status"], &[]);
    refused(&old, 1, "run `portcullis migrate up`");
    assert!(String::from_utf8_lossy(&old.stdout).contains("are missing"));
    desk.serve(&[]).stop();
    desk.write(
        "good.toml",
        "[scopes]\n\"orders:write\" = \"Change orders\"\n",
    );
    desk.write("bad.toml", "[[users]]\nusername = \"x\"\nemail = \"x\"\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let kid = desk.json(&["keys", "list"])[0]["kid"]
        .as_str()
        .unwrap()
        .to_owned();
    let api = "https://api.example";
    let rows: Vec<(String, i32)> = [
        ("serve --issuer nonsense", 78),
        ("serve --format json", 2),
        ("demo --port PORT", 1),
        ("setup link", 0),
        ("migrate up", 0),
        ("migrate status", 0),
        ("resource create --audience API --name Orders --scope orders:read", 0),
        ("resource create --audience nonsense --name Orders", 2),
        ("resource create --audience API --name Orders", 1),
        ("resource list", 0),
        ("resource get API", 0),
        ("resource get unknown", 1),
        ("resource update API --max-age 3s", 0),
        ("resource update API --max-age soon", 2),
        ("client create --id shop --name Shop --redirect-uri https://shop.example/cb", 0),
        ("client create --id shop --name Shop --redirect-uri https://shop.example/cb", 1),
        ("client create --name X --redirect-uri https://*.example/cb", 2),
        ("client create --name X --redirect-uri https://x.example/cb --auth-method none --auth-method odd", 2),
        ("client create --name X --redirect-uri https://x.example/cb --scope a\u{e9}", 2),
        ("client list", 0),
        ("client get shop", 0),
        ("client get unknown", 1),
        ("client update shop --name Shops", 0),
        ("client update shop --id-token-alg HS256", 2),
        ("client rotate-secret shop", 0),
        ("client rotate-secret shop --expires-in 99999999999d", 2),
        ("client disable shop", 0),
        ("client disable shop", 1),
        ("client enable shop", 0),
        ("client delete shop", 2),
        ("client delete shop --yes", 0),
        ("resource delete API --yes", 0),
        ("user create alice --generate-password", 0),
        ("user create alice --generate-password", 1),
        ("user create bob --generate-password --email nonsense", 2),
        ("user create bob --generate-password --claim nonsense", 2),
        ("user create bob --generate-password --claim odd=x", 2),
        ("user create bob", 2),
        ("user list", 0),
        ("user list --without-password", 0),
        ("user get alice", 0),
        ("user get unknown", 1),
        ("user lock alice", 0),
        ("user lock alice", 1),
        ("user unlock alice", 0),
        ("user list-sessions alice", 0),
        ("user revoke-sessions alice", 0),
        ("user clear-throttles --all", 0),
        ("user set-password alice --generate-password", 0),
        ("token introspect", 0),
        ("keys list", 0),
        ("keys plan", 0),
        ("keys rotate --yes", 0),
        ("keys rotate", 2),
        ("keys revoke KID --reason leaked --yes", 0),
        ("keys revoke KID --reason leaked", 2),
        ("keys import nosuch", 1),
        ("keys rewrap", 0),
        ("keys generate-kek --out second", 0),
        ("keys generate-kek --out second --if-missing", 0),
        ("keys generate-kek --out second", 2),
        ("revoke user:alice", 0),
        ("revoke user:unknown", 1),
        ("revoke group:x", 2),
        ("revoke user:alice --wait=100ms", 75),
        ("feed status", 0),
        ("backup copy.db", 0),
        ("backup copy.db", 2),
        ("restore copy.db", 2),
        ("restore copy.db --replace", 0),
        ("recover", 2),
        ("recover --yes", 0),
        ("healthcheck", 1),
        ("audit verify", 0),
        ("audit verify --expect nonsense", 2),
        ("audit tail", 0),
        ("apply good.toml", 0),
        ("apply bad.toml", 2),
        ("apply nosuch.toml", 2),
        ("config check", 0),
        ("config dump", 0),
        ("--config nosuch.toml config check", 78),
        ("doctor", 1),
        ("completion bash", 0),
        ("completion nonsense", 2),
        ("man", 0),
        ("man nonsense", 2),
        ("nonsense", 2),
    ]
    .into_iter()
    .map(|(row, code)| {
        let row = row.replace("PORT", &port).replace("API", api);
        (row.replace("KID", &kid), code)
    })
    .collect();
    let mut codes = BTreeSet::new();
    let mut run = BTreeSet::new();
    for (row, code) in &rows {
        if row.contains("--wait") {
            desk.done(&["resource", "create", "--audience", api, "--name", "Orders"]);
            let create = ["client", "create", "--id", "billing", "--name", "Billing"];
            let serves = ["--serves", api, "--grant-type", "client_credentials"];
            desk.done(&[&create[..], &serves].concat());
            hears(desk, "billing-1", 0);
        }
        let mut arguments: Vec<&str> = row.split(' ').collect();
        let has_data = !["serve", "demo", "completion", "man"].contains(&arguments[0]);
        if has_data {
            arguments.extend(["--format", "json"]);
        }
        let output = desk.run(&arguments, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{row}: {said}");
        if has_data {
            let printed = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
            let values: Result<Vec<Value>, _> = printed.collect();
            let values = values.unwrap_or_else(|why| panic!("{row}: {why}"));
            assert!(!values.is_empty() || *code != 0, "{row} prints nothing");
        }
        codes.insert(*code);
        run.insert(
            arguments
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        );
    }
    let nowhere = ("DATABASE_URL", "postgres://127.0.0.1:1/x?connect_timeout=2");
    assert_eq!(
        desk.run(&["user", "list"], &[nowhere]).status.code(),
        Some(69)
    );
    codes.insert(69);
    assert_eq!(codes, documented_exit_codes());
    for command in desk.commands() {
        assert!(
            run.iter().any(|run| run.starts_with(&command)),
            "{command:?} is not run"
        );
    }
}

#[apply(on_both_databases)]
#[test]
fn user_list_shows_accounts_without_password(#[case] db: Db) {
    let desk = &Installation::on(db);
    desk.write(
        "users.toml",
        "[[users]]\nusername = \"alice\"\n\n[[users]]\nusername = \"bob\"\n",
    );
    let said = desk.done(&["apply", "users.toml"]);
    let next = "cannot sign in yet: alice, bob. Set one with `portcullis user set-password NAME`";
    assert!(said.contains(next), "{said}");
    let root = ["user", "create", "root", "--admin", "--generate-password"];
    desk.done(&root);
    desk.done(&["user", "set-password", "bob", "--generate-password"]);
    desk.execute(
        "INSERT INTO audit_events (id, at, name, actor, target, detail)
         SELECT 'x', 1700000000000000, 'session.begun', 'user:' || id, 'session:x', '{}' FROM users WHERE username = 'bob'",
    );
    let list = desk.json(&["user", "list"]);
    let facts: Vec<String> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|user| {
            format!(
                "{} {} {} {}",
                user["username"], user["password"], user["admin"], user["last_sign_in"]
            )
        })
        .collect();
    assert_eq!(
        facts,
        [
            "\"alice\" false false null",
            "\"bob\" true false \"2023-11-14T22:13:20Z\"",
            "\"root\" true true null",
        ]
    );
    let table = desk.done(&["user", "list"]);
    assert!(
        table.contains("PASSWORD  ADMINISTRATOR  LAST SIGN-IN"),
        "{table}"
    );
    let left = desk.json(&["user", "list", "--without-password"]);
    assert_eq!(
        (left.as_array().unwrap().len(), &left[0]["username"]),
        (1, &"alice".into())
    );
}

#[apply(on_both_databases)]
#[test]
fn commands_warn_on_foreign_issuer(#[case] db: Db) {
    let desk = &Installation::on(db);
    desk.serve(&[]).stop();
    let other = ("PORTCULLIS__ISSUER", "https://id.example.com");
    let warned = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = desk.run(arguments, variables);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("config.other_issuer") && said.contains("http://localhost:8080")
    };
    let create = [
        "client",
        "create",
        "--name",
        "Shop",
        "--redirect-uri",
        "https://shop.example/cb",
    ];
    for command in [
        &["setup", "link"][..],
        &create,
        &["keys", "list"],
        &["token", "introspect"],
    ] {
        assert!(warned(command, &[other]), "{command:?}");
        assert!(!warned(command, &[]), "{command:?}");
    }
    // A server with the other issuer is then the one that commands are compared with.
    let running = desk.serve(&[other]);
    running.waits_for(|line| line.contains("config.other_issuer"));
    running.stop();
    assert!(!warned(&["setup", "link"], &[other]));
    assert_eq!(desk.count("SELECT count(*) AS n FROM served_issuer"), 1);
}

#[test]
fn secret_is_announced_as_shown_once() {
    let desk = &Installation::new();
    let create = [
        "client",
        "create",
        "--id",
        "shop",
        "--name",
        "Shop",
        "--redirect-uri",
    ];
    let create = [&create[..], &["https://shop.example/cb"]].concat();
    desk.write(
        "clients.toml",
        "[[clients]]\nclient_id = \"till\"\nclient_name = \"Till\"\nredirect_uris = [\"https://till.example/cb\"]\n",
    );
    for (command, name) in [
        (&create[..], "Client secret: pcl_sec_"),
        (
            &["client", "rotate-secret", "shop"],
            "Client secret: pcl_sec_",
        ),
        (&["apply", "clients.toml"], "Secret of till: pcl_sec_"),
        (
            &["user", "create", "alice", "--generate-password"],
            "Password of alice: ",
        ),
        (
            &["user", "set-password", "alice", "--generate-password"],
            "Password of alice: ",
        ),
    ] {
        let said = desk.done(command);
        let end = said.split_once(name).unwrap_or_else(|| panic!("{said}")).1;
        let lines: Vec<&str> = end.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "Store it now: it is not shown again.",
                "",
                "Issuer:     http://localhost:8080",
                "Discovery:  http://localhost:8080/.well-known/openid-configuration",
            ],
            "{said}"
        );
    }
    // A public client and a typed password have nothing to announce.
    let phone = [
        "client",
        "create",
        "--public",
        "--name",
        "Phone",
        "--redirect-uri",
        "http://127.0.0.1/cb",
    ];
    assert!(!desk.done(&phone).contains("not shown again"));
    let typed = ["user", "create", "bob", "--password-stdin"];
    assert!(
        !desk
            .told(&typed, "gravel-otter-92-lamp\n")
            .contains("not shown again")
    );
    let json = desk.json(&["client", "rotate-secret", "shop"]);
    assert_eq!(
        json["discovery"],
        "http://localhost:8080/.well-known/openid-configuration"
    );
}

#[test]
fn update_help_shows_no_defaults() {
    let desk = &Installation::new();
    for command in [["client", "update"], ["resource", "update"]] {
        let help = desk.done(&[&command[..], &["--help"]].concat());
        let own = help.split("Global options:").next().unwrap();
        assert!(!own.contains("[default"), "{help}");
        assert!(
            help.contains("An absent option leaves its field unchanged."),
            "{help}"
        );
    }
    let mut commands = desk.commands();
    commands.push(Vec::new());
    for command in commands {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = desk.done(&arguments);
        // It begins with what the command does, and the options of all commands come after its own.
        let first = help.lines().next().unwrap();
        assert!(!first.is_empty() && !first.starts_with("Usage"), "{help}");
        let global = help.find("Global options:").unwrap();
        assert!(help.find("--config <FILE>").unwrap() > global, "{help}");
        assert!(
            help.find("\nOptions:").is_none_or(|own| own < global),
            "{help}"
        );
        assert!(
            help.find("\nArguments:").is_none_or(|own| own < global),
            "{help}"
        );
    }
    for command in [&["client", "create"][..], &["apply"], &["revoke"]] {
        let help = desk.done(&[command, &["--help"]].concat());
        assert!(help.contains("\nExamples:\n  portcullis "), "{help}");
    }
}

/// Answers prompts on a terminal. Returns the exit code.
fn types(desk: &Installation, command: &str, answers: &[(&str, &str)]) -> Option<i32> {
    let line = format!("{} {command}", env!("CARGO_BIN_EXE_portcullis"));
    let ours = desk.command(&[], &[]);
    let mut terminal = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(&desk.folder)
        .env_clear()
        .envs(
            ours.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("PATH", "/usr/bin:/bin")
        .env("SHELL", "/bin/sh")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = terminal.stdin.take().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let mut shown = String::new();
    for (prompt, answer) in answers {
        while !shown.contains(prompt) {
            let mut bytes = [0; 1_024];
            let count = screen.read(&mut bytes).unwrap();
            assert!(count > 0, "no `{prompt}` in {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        keyboard
            .write_all(format!("{answer}\n").as_bytes())
            .unwrap();
    }
    let _ = screen.read_to_string(&mut shown);
    drop(keyboard);
    terminal.wait().unwrap().code()
}

#[test]
fn terminal_password_is_confirmed() {
    let desk = &Installation::new();
    let (prompt, again) = ("New password for dora: ", "Repeat the password: ");
    let (one, other) = ("gravel-otter-92-lamp", "gravel-otter-92-lamb");
    let users = || desk.count("SELECT count(*) AS n FROM users");
    desk.done(&["migrate", "up"]);
    let create = "user create dora";
    assert_eq!(
        types(desk, create, &[(prompt, one), (again, other)]),
        Some(2)
    );
    assert_eq!(users(), 0);
    assert_eq!(types(desk, create, &[(prompt, one), (again, one)]), Some(0));
    assert_eq!(users(), 1);
    let set = "user set-password dora";
    assert_eq!(types(desk, set, &[(prompt, one), (again, other)]), Some(2));
    assert_eq!(
        types(desk, set, &[(prompt, other), (again, other)]),
        Some(0)
    );
}

#[test]
fn messages_name_option_and_next_step() {
    let desk = &Installation::new();
    desk.done(&["migrate", "up"]);
    let callback = ["--redirect-uri", "https://a.example/cb"];
    let create = ["client", "create"];
    for (arguments, option) in [
        (&callback[..], "--name: "),
        (&["--name", "X"], "--redirect-uri: "),
        (&["--name", "X", "--grant-type", "odd"], "--grant-type: "),
        (
            &["--name", "X", "--userinfo-alg", "odd"],
            "--userinfo-alg: ",
        ),
        (
            &["--name", "X", "--allow-network", "odd"],
            "--allow-network: ",
        ),
        (
            &[
                "--name",
                "X",
                "--redirect-uri",
                "https://a.example/cb",
                "--resource",
                "https://odd",
            ],
            "--resource: ",
        ),
    ] {
        desk.refused(&[&create[..], arguments].concat(), 2, option);
    }
    desk.refused(
        &[
            "user",
            "create",
            "x",
            "--generate-password",
            "--claim",
            "odd=x",
        ],
        2,
        "--claim: ",
    );
    desk.done(&["keys", "generate-kek", "--out", "kek"]);
    desk.refused(&["keys", "generate-kek", "--out", "kek"], 2, "--if-missing");
    // A port that is in use leaves nothing behind.
    let elsewhere = Installation::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = elsewhere.run(&["serve", "--listen", &address], &[]);
    refused(
        &output,
        1,
        "choose another address with `--listen`, `listen.public` or PORT",
    );
    let management = [("PORTCULLIS__LISTEN__MANAGEMENT", address.as_str())];
    refused(
        &elsewhere.run(&["serve"], &management),
        1,
        "`listen.management`",
    );
    for folder in ["data", "keys"] {
        assert!(!elsewhere.folder.join(folder).exists(), "{folder}");
    }
    // The port alone is an address on this machine.
    let public = [("PORTCULLIS__LISTEN__PUBLIC", ":0")];
    let running = desk.serve(&public);
    assert!(
        running.started("listen").starts_with("127.0.0.1:")
            || running.started("listen").starts_with("[::1]:")
    );
    running.stop();
    let plan = desk.done(&["keys", "plan"]);
    assert!(
        plan.contains("1d 2h 1m 5s") && !plan.contains("93665s"),
        "{plan}"
    );
    desk.write("two.toml", "[scopes]\n\"a:b\" = \"A\"\n\n[[users]]\nusername = \"x\"\nname = \"X\"\nemail = \"x@y.example\"\n");
    let applied = desk.done(&["apply", "two.toml"]);
    assert!(applied.contains("Applied: 2 objects, "), "{applied}");
}

#[test]
fn completion_is_generated() {
    let desk = &Installation::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = desk.done(&["completion", shell]);
        for word in ["rotate-secret", "redirect-uri", "clear-throttles"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let page = desk.done(&["man"]);
    assert!(
        page.contains(".TH portcullis 1") && page.contains("healthcheck"),
        "{page}"
    );
    let page = desk.done(&["man", "client", "create"]);
    assert!(
        page.contains("redirect\\-uri") && page.contains("Name on the consent page"),
        "{page}"
    );
    desk.refused(
        &["man", "client", "unknown"],
        2,
        "there is no command `client unknown`",
    );
    // A shell accepts the script.
    desk.write("completion", &desk.done(&["completion", "bash"]));
    let mut shell = std::process::Command::new("bash");
    let checked = shell.args(["-n", "completion"]).current_dir(&desk.folder);
    assert!(checked.status().unwrap().success());
}

#[apply(on_both_databases)]
#[test]
fn new_clients_may_send_their_secret_either_way(#[case] db: Db) {
    let desk = Installation::on(db);
    let create = |id: &str, more: &[&str]| {
        let uri = ["--redirect-uri", "https://app.example/cb"];
        let shop = ["client", "create", "--id", id, "--name", "Shop"];
        desk.json(&[&shop[..], &uri, more].concat())
    };
    let method = |client: Value| client["token_endpoint_auth_method"].clone();
    assert_eq!(method(create("either", &[])), "client_secret");
    let basic = ["--auth-method", "client_secret_basic"];
    assert_eq!(method(create("basic", &basic)), "client_secret_basic");
    assert_eq!(method(create("phone", &["--public"])), "none");
    // The stored value, and changes of it.
    let get = |id| method(desk.json(&["client", "get", id]));
    assert_eq!(get("either"), "client_secret");
    for to in ["client_secret_post", "client_secret"] {
        desk.done(&["client", "update", "either", "--auth-method", to]);
        assert_eq!(get("either"), to);
    }
    let to_none = ["client", "update", "either", "--auth-method", "none"];
    desk.refused(&to_none, 2, "cannot become a public one");
    // A file without the field.
    let text = "[[clients]]\nclient_id = \"filed\"\nclient_name = \"Filed\"\nredirect_uris = [\"https://app.example/cb\"]\n";
    desk.write("clients.toml", text);
    desk.done(&["apply", "clients.toml"]);
    assert_eq!(get("filed"), "client_secret");
    // The id of a client is never one that a user may have.
    let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
    let taken = ["client", "create", "--id", uuid, "--name", "Shop"];
    desk.refused(&taken, 2, "must not be a UUID");
}
