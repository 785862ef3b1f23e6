//! The command `apply` with the real binary, on both databases: what it creates, keeps and rejects.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use fixtures::installation::{Installation, refused};
use fixtures::{Db, apply, on_both_databases};
use serde_json::{Value, json};

const ALL: &str = r#"
[[resources]]
audience = "https://orders.example"
name = "Orders"
scope = "orders:read orders:write"
access_ttl = "10m"

[scopes]
"orders:read" = "See your orders"

[[clients]]
client_id = "shop"
client_name = "Shop"
redirect_uris = ["https://shop.example/cb"]
scope = "openid orders:read"
resources = ["https://orders.example"]
allow_networks = ["10.0.0.0/8"]

[[clients]]
client_id = "phone"
client_name = "Phone"
token_endpoint_auth_method = "none"
redirect_uris = ["http://127.0.0.1/cb"]
disabled = true

[[users]]
username = "Alice"
name = "Alice Example"
email = "alice@mail.example"
claims = { given_name = "Alice", address = { locality = "Berne" } }
"#;

impl Installation {
    fn apply(&self, text: &str, more: &[&str]) -> Value {
        self.write("all.toml", text);
        let arguments = [&["apply", "all.toml", "--format", "json"], more].concat();
        serde_json::from_str(&self.done(&arguments)).unwrap()
    }

    #[track_caller]
    fn refuses(&self, text: &str, more: &[&str], code: i32, sentence: &str) {
        self.write("all.toml", text);
        let arguments = [&["apply", "all.toml"], more].concat();
        refused(&self.run(&arguments, &[]), code, sentence);
    }

    fn client(&self, id: &str) -> Value {
        let shown = self.done(&["client", "get", id, "--format", "json"]);
        serde_json::from_str(&shown).unwrap()
    }

    fn audited(&self, name: &str) -> i64 {
        self.count(&format!(
            "SELECT count(*) AS n FROM audit_events WHERE name = '{name}'"
        ))
    }
}

fn changes(applied: &Value) -> Vec<String> {
    let changes = applied["changes"].as_array().unwrap().iter();
    let told = |change: &Value| {
        let text = |name: &str| change[name].as_str().unwrap().to_owned();
        format!("{} {} {}", text("change"), text("kind"), text("name"))
    };
    changes.map(told).collect()
}

#[apply(on_both_databases)]
#[test]
fn description_is_applied(#[case] db: Db) {
    let desk = &Installation::on(db);
    // A dry run shows the changes and makes none.
    let shown = desk.apply(ALL, &["--dry-run"]);
    let all = [
        "create resource https://orders.example",
        "create scope orders:read",
        "create client shop",
        "create client phone",
        "create user alice",
    ];
    assert_eq!(
        (changes(&shown), &shown["applied"]),
        (all.map(str::to_owned).to_vec(), &json!(false))
    );
    assert_eq!(desk.count("SELECT count(*) AS n FROM audit_events"), 0);
    assert_eq!(desk.count("SELECT count(*) AS n FROM clients"), 0);

    // The changes are made, and the secret of the only confidential client is shown.
    let version = "SELECT config_version AS n FROM feed_head";
    let before = desk.count(version);
    let applied = desk.apply(ALL, &[]);
    assert_eq!(changes(&applied), all);
    assert_eq!(applied["applied"], true);
    let secrets = applied["client_secrets"].as_object().unwrap();
    assert_eq!(secrets.keys().collect::<Vec<_>>(), ["shop"]);
    assert!(secrets["shop"].as_str().unwrap().starts_with("pcl_sec_"));
    assert!(desk.count(version) > before, "the nodes are not told");
    let shop = desk.client("shop");
    assert_eq!(shop["scope"], "openid orders:read");
    assert_eq!(shop["allow_networks"], json!(["10.0.0.0/8"]));
    assert_eq!(desk.client("phone")["disabled"], true);
    let users: Value =
        serde_json::from_str(&desk.done(&["user", "list", "--format", "json"])).unwrap();
    assert_eq!(users[0]["claims"]["address"]["locality"], "Berne");
    for (name, count) in [
        ("resource.created", 1),
        ("scope.described", 1),
        ("client.created", 2),
        ("client.disabled", 1),
        ("user.created", 1),
    ] {
        assert_eq!(desk.audited(name), count, "{name}");
    }

    // A second run has nothing to do, and writes no audit event.
    let again = desk.apply(ALL, &[]);
    assert_eq!(changes(&again), Vec::<String>::new());
    assert_eq!(desk.audited("client.created"), 2);

    // Settings that an operator made outside the file stay, and those in the file win.
    desk.done(&[
        "client",
        "update",
        "shop",
        "--consent",
        "skip",
        "--name",
        "Another",
    ]);
    let changed = desk.apply(ALL, &[]);
    let difference = json!([{ "change": "update", "kind": "client", "name": "shop", "fields": {
        "client_name": { "before": "Another", "after": "Shop" } } }]);
    assert_eq!(changed["changes"], difference);
    assert_eq!(desk.client("shop")["consent"], "skip");

    // An empty value clears the field. The text format is a table.
    let table = ALL
        .replace("allow_networks = [\"10.0.0.0/8\"]", "allow_networks = []")
        .replace("access_ttl = \"10m\"", "access_ttl = \"\"")
        .replace("alice@mail.example", "a@mail.example");
    desk.write("all.toml", &table);
    let told = desk.done(&["apply", "all.toml"]);
    for words in [
        vec![
            "update",
            "resource",
            "https://orders.example",
            "access_ttl",
            "10m",
            "–",
        ],
        vec![
            "update",
            "client",
            "shop",
            "allow_networks",
            "[\"10.0.0.0/8\"]",
            "[]",
        ],
        vec![
            "update",
            "user",
            "alice",
            "email",
            "alice@mail.example",
            "a@mail.example",
        ],
    ] {
        let line = |line: &&str| line.split_whitespace().collect::<Vec<_>>() == words;
        assert!(
            told.lines().any(|l| line(&l)),
            "{words:?} is not in\n{told}"
        );
    }
    assert!(told.ends_with("Applied: 3 objects, 3 fields.\n"), "{told}");
    assert_eq!(desk.done(&["apply", "all.toml"]), "Nothing to change.\n");
    // A node starts with what was applied.
    let _running = desk.serve(&[]);
}

#[apply(on_both_databases)]
#[test]
fn undescribed_objects_are_removed_only_with_prune(#[case] db: Db) {
    let desk = &Installation::on(db);
    desk.apply(ALL, &[]);
    let password = "four walls and a gate\n";
    desk.told(
        &["user", "create", "root", "--admin", "--password-stdin"],
        password,
    );
    desk.told(&["user", "create", "bob", "--password-stdin"], password);
    let alone = "[[users]]\nusername = \"alice\"\n";
    assert_eq!(changes(&desk.apply(alone, &[])), Vec::<String>::new());

    // Prunes only the kinds that the file contains, and never an administrator.
    desk.refuses(alone, &["--prune"], 2, "--yes");
    let pruned = desk.apply(alone, &["--prune", "--yes"]);
    assert_eq!(changes(&pruned), ["lock user bob"]);
    assert_eq!(desk.audited("user.disabled"), 1);
    assert_eq!(desk.client("shop")["client_id"], "shop");

    // An API that a client still names stays. Together with the client it is deleted.
    let nothing = "resources = []\n";
    desk.refuses(
        nothing,
        &["--prune", "--yes"],
        2,
        "`https://orders.example` cannot be removed: the client `shop` still names it",
    );
    let nothing = "resources = []\nclients = []\nscopes = {}\n";
    let shown = desk.apply(nothing, &["--prune", "--dry-run"]);
    let gone = [
        "delete scope orders:read",
        "delete client phone",
        "delete client shop",
        "delete resource https://orders.example",
    ];
    let mut told = changes(&shown);
    told[1..3].sort();
    assert_eq!(told, gone);
    desk.apply(nothing, &["--prune", "--yes"]);
    assert_eq!(desk.done(&["client", "list", "--format", "json"]), "[]\n");
    assert_eq!(desk.audited("client.deleted"), 2);
    assert_eq!(desk.audited("resource.deleted"), 1);

    // All or nothing: an id that was used before makes the whole command fail.
    desk.refuses(ALL, &[], 1, "an identifier is never assigned twice");
    assert_eq!(desk.count("SELECT count(*) AS n FROM resources"), 0);
    assert_eq!(desk.audited("resource.created"), 1);
}

#[test]
fn invalid_description_is_rejected_with_its_location() {
    let desk = Installation::new();
    desk.done(&["migrate", "up"]);
    let client = |more: &str| {
        format!(
            "[[clients]]\nclient_id = \"x\"\nclient_name = \"X\"\nredirect_uris = [\"https://x.example/cb\"]\n{more}\n"
        )
    };
    let user = |more: &str| format!("[[users]]\nusername = \"x\"\n{more}\n");
    let api = |more: &str| {
        format!("[[resources]]\naudience = \"https://x.example\"\nname = \"X\"\n{more}\n")
    };
    let long = "x".repeat(65);
    let cases = [
        (
            client("colour = \"red\""),
            "all.toml:5: near `colour`: unknown field `colour`",
        ),
        (
            client("require_pkce = \"yes\""),
            "all.toml:5: near `\"yes\"`: invalid type: string \"yes\", expected a boolean",
        ),
        (
            client("consent = \"never\""),
            "all.toml:5: near `\"never\"`: unknown variant `never`",
        ),
        (
            client("serves = [\"https://no.example\"]"),
            "all.toml:1: client `x`: serves: the resource `https://no.example` is not registered",
        ),
        (
            client("scope = \"openid reports\""),
            "client `x`: scope: `reports` belongs to none of the client's resources",
        ),
        (
            client("allow_networks = [\"10.0.0.1/8\"]"),
            "all.toml:1: client `x`: allow_networks: `10.0.0.1/8` is an address inside its network",
        ),
        (
            client("grant_types = [\"password\"]"),
            "client `x`: grant_types: unsupported grant type `password`",
        ),
        (
            client("scope = \"a\\\"b\""),
            "client `x`: scope: invalid scope `a\"b`",
        ),
        (
            client("cors_origins = [\"https://a.example/\"]"),
            "client `x`: cors_origins: `https://a.example/` is not an origin",
        ),
        (
            client("policy_uri = \"http://a.example\""),
            "client `x`: policy_uri: expected an https URL",
        ),
        (
            client("id_token_signed_response_alg = \"HS256\""),
            "id_token_signed_response_alg: `HS256` is neither RS256 nor ES256",
        ),
        (
            client("").replace("\"X\"", &format!("\"{long}\"")),
            "client `x`: client_name: must have 1 to 64 characters",
        ),
        (
            client("").replace("https://x.example/cb", "https://*.example"),
            "client `x`: redirect_uris: redirect URI `https://*.example` has a character",
        ),
        (
            client("").replace("\"x\"", "\"a b\""),
            "client `a b`: client_id: must have 1 to 128 printable ASCII characters",
        ),
        (
            "[[clients]]\nclient_name = \"X\"\n".to_owned(),
            "missing field `client_id`",
        ),
        (
            format!("{}{}", client(""), client("")),
            "all.toml:6: duplicate entry `x`",
        ),
        (
            api("access_ttl = \"61m\""),
            "all.toml:1: resource `https://x.example`: access_ttl: expected more than 0s and at most 60m",
        ),
        (
            api("access_ttl = \"soon\""),
            "access_ttl: invalid duration `soon`",
        ),
        (
            api("scope = \"openid\""),
            "scope: `openid` belongs to the identity provider itself",
        ),
        (
            "[scopes]\n\"a b\" = \"Two\"\n".to_owned(),
            "all.toml: scopes: invalid scope `a b`",
        ),
        (
            "[scopes]\na = \"\"\n".to_owned(),
            "all.toml: scopes: `a` must have 1 to 256 characters",
        ),
        (
            "[scopes]\na = 1\n".to_owned(),
            "all.toml:2: near `1`: invalid type: integer `1`, expected a string",
        ),
        (
            user("email = \"unknown\""),
            "all.toml:1: user `x`: email: `unknown` is not an e-mail address",
        ),
        (
            user("claims = { is_admin = \"true\" }"),
            "claims: `is_admin` is not a standard claim",
        ),
        (
            user("admin = true"),
            "all.toml:3: near `admin`: unknown field `admin`",
        ),
        (
            user("initial_password_hash = \"$2b$12$x\""),
            "initial_password_hash: is not an Argon2id hash",
        ),
        (
            "[[users]]\nusername = \"a b\"\n".to_owned(),
            "user `a b`: username: invalid user name",
        ),
        (
            "[[users]]\nusername = \"x\"\n[[users]]\nusername = \"X\"\n".to_owned(),
            "all.toml:3: user `X`: username: another spelling",
        ),
        (
            "[client]\n".to_owned(),
            "all.toml:1: near `client]`: unknown field `client`",
        ),
        ("clients = [\n".to_owned(), "all.toml:"),
    ];
    for (text, sentence) in cases {
        desk.refuses(&text, &[], 2, sentence);
    }
    refused(
        &desk.run(&["apply", "none.toml"], &[]),
        2,
        "none.toml: No such file",
    );
    assert_eq!(desk.count("SELECT count(*) AS n FROM audit_events"), 0);
}

#[test]
fn several_files_form_one_description() {
    let desk = Installation::new();
    desk.write("a.toml", "[[clients]]\nclient_id = \"x\"\nclient_name = \"X\"\nredirect_uris = [\"https://x.example/cb\"]\nresources = [\"https://api.example\"]\n");
    desk.write(
        "b.toml",
        "[[resources]]\naudience = \"https://api.example\"\nname = \"API\"\n",
    );
    desk.done(&["apply", "a.toml", "b.toml"]);
    refused(
        &desk.run(&["apply", "a.toml", "a.toml"], &[]),
        2,
        "a.toml:1: duplicate entry `x`",
    );
    let phc = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let text = format!("[[users]]\nusername = \"carol\"\ninitial_password_hash = \"{phc}\"\n");
    let applied = desk.apply(&text, &[]);
    assert!(
        !applied.to_string().contains("argon2id"),
        "a hash is no one's business"
    );
    assert_eq!(
        desk.count(&format!(
            "SELECT count(*) AS n FROM passwords WHERE phc = '{phc}'"
        )),
        1
    );
    // The file sets only the first password. A password that the user has chosen since stays.
    desk.told(
        &["user", "set-password", "carol", "--password-stdin"],
        "four walls and a gate\n",
    );
    assert_eq!(changes(&desk.apply(&text, &[])), Vec::<String>::new());
    assert_eq!(
        desk.count(&format!(
            "SELECT count(*) AS n FROM passwords WHERE phc = '{phc}'"
        )),
        0
    );
}

/// The example of the documentation, verbatim.
#[test]
fn documented_example_can_be_applied() {
    let desk = Installation::new();
    let page = include_str!("../docs/apply.md");
    let example = page
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let applied = desk.apply(example, &[]);
    assert_eq!(applied["changes"].as_array().unwrap().len(), 7);
    assert_eq!(applied["client_secrets"].as_object().unwrap().len(), 2);
    assert_eq!(changes(&desk.apply(example, &[])), Vec::<String>::new());
}
