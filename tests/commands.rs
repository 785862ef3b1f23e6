//! Commands that change clients and people, by the real binary, on both databases: what they print,
//! what they refuse, and what is left in the database.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "cast/place.rs"]
#[allow(dead_code)]
mod place;
#[path = "cast/postgres.rs"]
#[allow(dead_code)]
mod postgres;

use place::{Place, refused};
use serde_json::Value;

impl Place {
    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--format", "json"]].concat();
        serde_json::from_str(&self.done(&arguments)).unwrap()
    }

    fn refused(&self, arguments: &[&str], code: i32, sentence: &str) {
        refused(&self.run(arguments, &[]), code, sentence);
    }
}

#[test]
fn clients_are_changed_on_sqlite() {
    clients_are_changed(&Place::new());
}

#[test]
fn clients_are_changed_on_postgres() {
    clients_are_changed(&Place::on_postgres());
}

#[test]
fn an_algorithm_that_is_left_out_is_refused_on_sqlite() {
    left_out(&Place::new());
}

#[test]
fn an_algorithm_that_is_left_out_is_refused_on_postgres() {
    left_out(&Place::on_postgres());
}

/// With one ring, nobody registers for the other, and who does not say gets what there is.
fn left_out(desk: &Place) {
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

fn clients_are_changed(desk: &Place) {
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

    // What is not given stays as it is; a list is replaced whole; an empty value empties it.
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
        &["client", "update", "nobody", "--name", "X"],
        1,
        "there is no client `nobody`",
    );

    // Secrets.
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

    // On, off, gone.
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
        "none is given out twice",
    );
}

#[test]
fn people_are_locked_on_sqlite() {
    people_are_locked(&Place::new());
}

#[test]
fn people_are_locked_on_postgres() {
    people_are_locked(&Place::on_postgres());
}

fn people_are_locked(desk: &Place) {
    let password = "four walls and a gate\n";
    desk.told(&["user", "create", "alice", "--password-stdin"], password);
    let state = || desk.json(&["user", "list"])[0]["disabled"].clone();
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
    desk.refused(&["user", "lock", "nobody"], 1, "there is no user `nobody`");
}

#[test]
fn a_token_that_is_none_is_said_to_be_none() {
    let desk = Place::new();
    // A first start makes the keys.
    drop(desk.serve(&[]));
    let told = desk.told(&["token", "introspect", "--format", "json"], "nonsense\n");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["active"], false);
    assert!(told["why"].is_string());
}
