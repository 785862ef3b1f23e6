//! F14: an attacker who can write to the database and lacks the KEK changes a row of the key table. The row
//! is never published and never signs, and a revoked key stays revoked.

use portcullis::app::{App, StartError};
use portcullis::key_manager::Act;
use portcullis::keys::{Alg, Generated, KeyView, Ring, SigningKey, Use};
use portcullis::secret::{Entropy, base64url, from_base64url};
use portcullis::time::{Clock, Timestamp};
use serde_json::Value;

use crate::fixtures::server::execute;
use crate::fixtures::{Db, apply, log, on_both_databases};
use crate::nodes::{Node, World};

const ES256: Ring = Ring::token(Alg::ES256);
/// The minimum number of kinds of changes.
const KINDS: usize = 64;

/// A kind of change.
struct Kind {
    name: String,
    statements: Vec<String>,
    /// The row names another KEK, so a node that starts on it fails and creates nothing.
    other_kek: bool,
}

/// The attacked row, and the rows that parts are taken from.
struct Rows {
    all: Vec<SigningKey>,
    victim: SigningKey,
    other: SigningKey,
}

impl Rows {
    async fn read(world: &World, node: &Node) -> Vec<SigningKey> {
        let table = node.app.key_manager.table();
        table.read(world.now()).await.unwrap().keys
    }

    /// Reads the rows. The key of this `generation` in the ring of access tokens is attacked, and parts are
    /// taken from `other`.
    async fn of(world: &World, node: &Node, generation: i64, other: i64) -> Self {
        let all = Self::read(world, node).await;
        let find = |generation| {
            let mut ring = ES256.among(&all);
            ring.find(|key| key.generation == generation)
                .unwrap()
                .clone()
        };
        let (victim, other) = (find(generation), find(other));
        Self { all, victim, other }
    }

    fn ring(&self, ring: Ring) -> &SigningKey {
        ring.among(&self.all).next().unwrap()
    }

    /// Restores all rows to their state before the change.
    fn restore(&self, world: &World) {
        let inserts = self.all.iter().map(insert);
        let all = std::iter::once("DELETE FROM signing_keys".to_owned())
            .chain(inserts)
            .chain(["UPDATE feed_head SET keys_version = keys_version + 1".to_owned()]);
        execute(&world.config, &all.collect::<Vec<_>>().join("; "));
    }
}

fn insert(row: &SigningKey) -> String {
    let at = |at: Option<Timestamp>| at.map_or("NULL".to_owned(), |at| at.micros().to_string());
    let reason = row.revoke_reason.as_ref();
    format!(
        "INSERT INTO signing_keys VALUES ('{}', '{}', '{}', '{}', {}, '{}', '{}', {}, {}, {}, {}, {}, {}, {})",
        row.kid,
        row.issuer,
        row.use_.as_str(),
        row.alg.name(),
        row.generation,
        row.public_jwk,
        row.sealed,
        row.publish_at.micros(),
        row.activate_at.micros(),
        at(row.retire_at),
        at(row.remove_at),
        at(row.revoked_at),
        reason.map_or("NULL".to_owned(), |reason| format!("'{reason}'")),
        row.created_at.micros(),
    )
}

/// The parts of a sealed value: version, KEK, nonce, and ciphertext with its tag.
const VERSION: usize = 0;
const KEK: usize = 1;
const NONCE: usize = 2;
const CIPHER: usize = 3;
/// The length of the GCM tag at the end of the ciphertext.
const TAG: usize = 16;

fn with_part(sealed: &str, part: usize, text: &str) -> String {
    let mut parts: Vec<&str> = sealed.split('.').collect();
    parts[part] = text;
    parts.join(".")
}

/// Returns a part with one bit flipped.
fn flipped(sealed: &str, part: usize, byte: usize, bit: u8) -> String {
    let mut bytes = from_base64url(sealed.split('.').nth(part).unwrap()).unwrap();
    bytes[byte] ^= 1 << bit;
    with_part(sealed, part, &base64url(&bytes))
}

fn length(sealed: &str, part: usize) -> usize {
    from_base64url(sealed.split('.').nth(part).unwrap())
        .unwrap()
        .len()
}

/// Returns every kind of change, as statements on the attacked row.
fn kinds(rows: &Rows) -> Vec<Kind> {
    let kid = &rows.victim.kid;
    let update = |what: &str| format!("UPDATE signing_keys SET {what} WHERE kid = '{kid}'");
    let kind = |name: &str, what: &str| Kind {
        name: name.to_owned(),
        statements: vec![update(what)],
        other_kek: false,
    };
    let mut kinds = sealed_values(rows)
        .into_iter()
        .map(|(name, sealed)| kind(&name, &format!("sealed = '{sealed}'")))
        .collect::<Vec<_>>();
    kinds.extend(
        public_halves(rows)
            .into_iter()
            .map(|(name, jwk)| kind(name, &format!("public_jwk = '{jwk}'"))),
    );
    kinds.extend(COLUMNS.map(|what| kind(what, what)));
    let instants = instants(rows);
    kinds.extend(instants.iter().map(|what| kind(what, what)));
    let foreign = with_part(&rows.victim.sealed, KEK, "00112233aabbccdd");
    kinds.push(Kind {
        other_kek: true,
        ..kind("another KEK named", &format!("sealed = '{foreign}'"))
    });
    kinds.push(Kind {
        name: "two rows swapped".to_owned(),
        statements: vec![
            update(&format!("sealed = '{}'", rows.other.sealed)),
            format!(
                "UPDATE signing_keys SET sealed = '{}' WHERE kid = '{}'",
                rows.victim.sealed,
                rows.ring(Ring::token(Alg::RS256)).kid
            ),
        ],
        other_kek: false,
    });
    kinds
}

/// Changes of the ciphertext, tag, nonce and format, and values of other rows.
fn sealed_values(rows: &Rows) -> Vec<(String, String)> {
    let sealed = rows.victim.sealed.as_str();
    let cipher = length(sealed, CIPHER);
    let mut values = Vec::new();
    for (n, byte) in [0, 1, (cipher - TAG) / 2].into_iter().enumerate() {
        // The ciphertext of a destroyed key is empty, so its tag is all there is.
        let bit = u8::try_from(n).unwrap();
        values.push((
            format!("bit {bit} of byte {byte} of the ciphertext"),
            flipped(sealed, CIPHER, byte, bit),
        ));
    }
    for (byte, bit) in [
        (0, 0),
        (1, 1),
        (3, 2),
        (6, 3),
        (8, 4),
        (11, 5),
        (14, 6),
        (15, 7),
    ] {
        values.push((
            format!("bit {bit} of byte {byte} of the tag"),
            flipped(sealed, CIPHER, cipher - TAG + byte, bit),
        ));
    }
    for (byte, bit) in [(0, 0), (5, 3), (11, 7)] {
        values.push((
            format!("bit {bit} of byte {byte} of the nonce"),
            flipped(sealed, NONCE, byte, bit),
        ));
    }
    let parts: Vec<&str> = sealed.split('.').collect();
    let odd = [
        ("another version", with_part(sealed, VERSION, "v2")),
        ("no version", parts[1..].join(".")),
        ("no KEK", with_part(sealed, KEK, "")),
        ("no nonce", with_part(sealed, NONCE, "")),
        ("no ciphertext", with_part(sealed, CIPHER, "")),
        ("no tag", {
            let bytes = from_base64url(parts[CIPHER]).unwrap();
            with_part(sealed, CIPHER, &base64url(&bytes[..cipher - TAG]))
        }),
        (
            "cut by four characters",
            sealed[..sealed.len() - 4].to_owned(),
        ),
        ("a character more", format!("{sealed}A")),
        ("a part more", format!("{sealed}.AA")),
        ("padding", format!("{sealed}=")),
        ("a space before", format!(" {sealed}")),
        ("a line end after", format!("{sealed}\n")),
        ("nothing", String::new()),
        ("no sealed value", "private".to_owned()),
        (
            "the value of the other generation",
            rows.other.sealed.clone(),
        ),
        (
            "the value of the RSA ring",
            rows.ring(Ring::token(Alg::RS256)).sealed.clone(),
        ),
        (
            "the value of the feed",
            rows.ring(Ring::FEED).sealed.clone(),
        ),
    ];
    values.extend(odd.map(|(name, value)| (name.to_owned(), value)));
    values
}

/// Returns another public key, or the same one in another format.
fn public_halves(rows: &Rows) -> Vec<(&'static str, String)> {
    let own: Value = serde_json::from_str(&rows.victim.public_jwk).unwrap();
    let with = |name: &str, value: &str| {
        let mut jwk = own.clone();
        jwk[name] = value.into();
        jwk.to_string()
    };
    let pair = Generated::new(Alg::ES256, 2_048, &Entropy::seeded(66)).unwrap();
    vec![
        (
            "the public half of the other generation",
            rows.other.public_jwk.clone(),
        ),
        (
            "an attacker's public half",
            serde_json::to_string(pair.public()).unwrap(),
        ),
        ("another kid in the public half", with("kid", "attacker")),
        ("another algorithm in the public half", with("alg", "RS256")),
        ("a private member in the public half", with("d", "AA")),
        (
            "a blank after the public half",
            format!("{} ", rows.victim.public_jwk),
        ),
        ("an empty object for the public half", "{}".to_owned()),
        ("no JSON for the public half", "x".to_owned()),
    ]
}

/// Every other column, except the timestamps of the schedule.
const COLUMNS: [&str; 10] = [
    "kid = 'attacker'",
    "kid = ''",
    "kid = kid || 'A'",
    "use = 'feed', generation = 77",
    "alg = 'RS256', generation = 78",
    "generation = 79",
    "generation = -1",
    "created_at = created_at + 1",
    "created_at = created_at - 1",
    "revoke_reason = 'x'",
];

/// Returns changes that make each timestamp earlier, later or absent.
fn instants(rows: &Rows) -> Vec<&'static str> {
    let always = [
        "publish_at = publish_at - 1",
        "publish_at = publish_at - 1, activate_at = activate_at - 1",
        "publish_at = 0",
        "publish_at = 0, activate_at = 0",
        "activate_at = activate_at + 1",
    ];
    let ended = [
        "retire_at = retire_at + 1",
        "retire_at = retire_at - 1",
        "remove_at = remove_at + 1",
        "remove_at = remove_at - 1",
        "remove_at = remove_at + 31536000000000",
        "retire_at = retire_at + 1, remove_at = remove_at + 1",
        "retire_at = NULL",
        "remove_at = NULL",
        "retire_at = NULL, remove_at = NULL",
        "retire_at = activate_at",
        "remove_at = retire_at",
        "retire_at = activate_at, remove_at = activate_at",
    ];
    let ended = ended
        .into_iter()
        .filter(|_| rows.victim.retire_at.is_some());
    always.into_iter().chain(ended).collect()
}

/// Starts a node, and returns it if the start succeeds.
async fn starts(world: &World) -> Result<App, StartError> {
    let clock = Clock::Settable(world.clock.clone());
    App::start_with(
        world.config.clone(),
        clock,
        Entropy::seeded(3),
        world.source.clone(),
    )
    .await
}

/// Returns what the server publishes of the keys.
fn shown(view: &KeyView) -> String {
    let bytes = |use_| String::from_utf8_lossy(&view.published(use_).bytes).into_owned();
    bytes(Use::Token) + &bytes(Use::Feed)
}

fn alerted(mark: usize) -> bool {
    log::since(mark).iter().any(|event| {
        let is = |name: &str, value: &str| event.get(name).is_some_and(|text| text == value);
        is("event", "key.corrupt") && is("severity", "critical")
    })
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn tampered_key_row_is_never_published_or_used(#[case] db: Db) {
    let world = World::new(db, |_| {}).await;
    let node = world.node(0).await;
    let rows = Rows::of(&world, &node, 1, 2).await;
    let (victim, other) = (&rows.victim, &rows.other);
    let kinds = kinds(&rows);
    assert!(kinds.len() >= KINDS, "{}", kinds.len());
    let good = node.app.keys().published(Use::Token).set.clone();
    for Kind {
        name,
        statements,
        other_kek,
    } in kinds
    {
        let mark = log::mark();
        execute(&world.config, &statements.join("; "));
        // A running node reports the row, and continues with the valid copy in memory.
        node.app.refresh_key_view().await.unwrap();
        assert!(alerted(mark), "no alert: {name}");
        if !name.starts_with("kid = ") {
            let signer = node.app.keys().signer(ES256).map(str::to_owned);
            assert_eq!(signer.as_deref(), Some(victim.kid.as_str()), "{name}");
        }
        let corrupt = node.app.key_metrics().rings;
        assert!(corrupt.iter().any(|ring| ring.corrupt > 0), "{name}");
        for token in node.signs().await {
            assert!(node.accepts(&token), "{name}");
        }
        // A node without a valid copy never publishes a row that does not open, and another key signs.
        let snapshot = node
            .app
            .key_manager
            .table()
            .read(world.now())
            .await
            .unwrap();
        let keychain = node.app.key_manager.table().keychain();
        let view = KeyView::build(
            &snapshot.keys,
            &snapshot.blocked,
            &keychain,
            None,
            world.now(),
        )
        .unwrap();
        let keys = &view.published(Use::Token).set.keys;
        assert!(keys.iter().all(|key| good.keys.contains(key)), "{name}");
        assert!(!shown(&view).contains(&victim.kid), "{name}");
        assert_eq!(view.signer(ES256), Some(other.kid.as_str()), "{name}");
        // The same through HTTP. A SQLite database belongs to one node.
        if db == Db::Postgres {
            match (starts(&world).await, other_kek) {
                (Ok(fresh), false) => {
                    assert!(!shown(&fresh.keys()).contains(&victim.kid), "{name}");
                    let kid = fresh.keys().signer(ES256).map(str::to_owned);
                    assert_eq!(kid.as_deref(), Some(other.kid.as_str()), "{name}");
                }
                (Err(StartError::Configuration(why)), true) => {
                    assert!(why.contains("not configured in `keys.kek`"), "{why}");
                }
                (outcome, _) => panic!("{name}: {:?}", outcome.err()),
            }
        }
        rows.restore(&world);
        node.app.refresh_key_view().await.unwrap();
        assert!(node.app.keys().corrupt().is_empty(), "as before: {name}");
    }
    inserted(&world, &node, victim).await;
}

/// Does the same with a revoked key, including changes that would undo the revocation. The key stays revoked
/// for a node that knew of the revocation, and for one that did not.
#[apply(on_both_databases)]
#[actix_web::test]
async fn revoked_key_stays_revoked_after_row_tampering(#[case] db: Db) {
    let world = World::new(db, |_| {}).await;
    let node = world.node(0).await;
    let before = Rows::of(&world, &node, 1, 2).await;
    let token = node.signs().await.remove(0);
    let kid = before.victim.kid.clone();
    let now = world.now();
    let act = Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    };
    let table = node.app.key_manager.table();
    table.revoke(&kid, "leaked", &act).await.unwrap();
    let rows = Rows::of(&world, &node, 1, 2).await;
    assert!(rows.victim.revoked_at.is_some());
    let undo = [
        "revoked_at = NULL",
        "revoked_at = NULL, revoke_reason = NULL",
        "revoked_at = 0",
        "revoked_at = revoked_at + 31536000000000",
    ];
    let undo = undo.map(|what| Kind {
        name: what.to_owned(),
        statements: vec![format!(
            "UPDATE signing_keys SET {what} WHERE kid = '{kid}'"
        )],
        other_kek: false,
    });
    // The complete row as it was before, including the private key.
    let old = Kind {
        name: "the old row put back".to_owned(),
        statements: vec![
            format!("DELETE FROM signing_keys WHERE kid = '{kid}'"),
            insert(&before.victim),
        ],
        other_kek: false,
    };
    let mut kinds = kinds(&rows);
    assert!(kinds.len() >= KINDS, "{}", kinds.len());
    kinds.extend(undo.into_iter().chain([old]));
    for Kind {
        name, statements, ..
    } in kinds
    {
        execute(&world.config, &statements.join("; "));
        node.app.refresh_key_view().await.unwrap();
        let snapshot = table.read(now).await.unwrap();
        let keychain = table.keychain();
        let fresh =
            KeyView::build(&snapshot.keys, &snapshot.blocked, &keychain, None, now).unwrap();
        for (who, view) in [("running", &*node.app.keys()), ("fresh", &fresh)] {
            assert_ne!(view.signer(ES256), Some(kid.as_str()), "{who}: {name}");
            assert!(view.signer(ES256).is_some(), "{who}: {name}");
            assert!(!shown(view).contains(&kid), "{who}: {name}");
            assert!(view.verify(&token, "at+jwt").is_none(), "{who}: {name}");
        }
        assert!(!node.accepts(&token), "{name}");
        rows.restore(&world);
    }
}

/// Asserts that the public key of an attacker is never published.
async fn inserted(world: &World, node: &Node, victim: &SigningKey) {
    let pair = Generated::new(Alg::ES256, 2_048, &Entropy::seeded(66)).unwrap();
    let row = SigningKey {
        kid: pair.public().thumbprint(),
        generation: 99,
        public_jwk: serde_json::to_string(pair.public()).unwrap(),
        retire_at: None,
        remove_at: None,
        ..victim.clone()
    };
    execute(&world.config, &insert(&row));
    node.app.refresh_key_view().await.unwrap();
    let view = node.app.keys();
    assert!(!shown(&view).contains(&row.kid));
    assert!(view.corrupt().contains_key(&row.kid));
    assert_eq!(view.signer(ES256), Some(victim.kid.as_str()));
}

/// Asserts that a key revoked by command stays revoked even if its row does not open.
async fn revoked_by_hand(db: Db) {
    let world = World::new(db, |_| {}).await;
    let node = world.node(0).await;
    let rows = Rows::of(&world, &node, 1, 2).await;
    let token = node.signs().await.remove(0);
    let kid = &rows.victim.kid;
    execute(
        &world.config,
        &format!("UPDATE signing_keys SET revoked_at = 5, sealed = 'broken' WHERE kid = '{kid}'"),
    );
    node.app.refresh_key_view().await.unwrap();
    assert_ne!(node.app.keys().signer(ES256), Some(kid.as_str()));
    assert!(!node.accepts(&token));
    rows.restore(&world);
    node.app.refresh_key_view().await.unwrap();
    assert_ne!(
        node.app.keys().signer(ES256),
        Some(kid.as_str()),
        "the node still rejects it"
    );
}

#[actix_web::test]
async fn key_revoked_in_sql_is_rejected() {
    for db in [Db::Sqlite, Db::Postgres] {
        revoked_by_hand(db).await;
    }
}
