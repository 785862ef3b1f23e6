//! Row A462: marked secrets are entered everywhere and appear nowhere: not in the log at its most verbose
//! level, in metrics, in the database or on error pages.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use portcullis::secret::Entropy;
use std::os::unix::fs::PermissionsExt;

use crate::fixtures::client::basic;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, Db, Look, apply, on_both_databases};
use crate::installation::Installation;
use crate::site::{Site, asks, base, management};

/// The values to search for, each with a name for the failure message.
type Marks = Vec<(String, String)>;

const CANARY: &str = "Canary9x7Canary9x7Canary9x7Canary9x7Canary9";

/// Uses every kind of valid secret once, each marked.
async fn right_ones(site: &Site, public: &str, marks: &mut Marks) {
    let mut mark = |name: &str, value: &str| marks.push((name.to_owned(), value.to_owned()));
    let web = site.web(public);
    let mut alice = Browser::new(public);
    let login = alice.opens(&web.request(&[])).await;
    mark("form token", &login.hidden("csrf"));
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let answer = alice.decides(&consent, "allow").await;
    let code = answer.callback("code").unwrap();
    let tokens = web.redeems(&code).await.ok();
    let next = web.refreshes(tokens.refresh(), &[]).await.ok();
    web.redeems(&code).await;
    alice.asks_userinfo("GET", next.access()).await;
    web.revokes(next.refresh()).await;
    mark("code", &code);
    for tokens in [&tokens, &next] {
        mark("access token", tokens.access());
        mark("refresh token", tokens.refresh());
    }
    mark("ID token", tokens.0["id_token"].as_str().unwrap());
    for (name, value) in &alice.cookies {
        mark(name, value);
    }
    assert!(alice.cookies.len() >= 3, "{:?}", alice.cookies);
    alice.signs_out().await;
}

/// Sends wrong secrets in every field for secrets, and in other fields where users enter them by mistake.
async fn wrong_ones(site: &Site, public: &str, said: &mut Vec<String>) {
    let web = site.web(public);
    let fields = [
        "code",
        "refresh_token",
        "client_secret",
        "code_verifier",
        "password",
        "client_assertion",
        "token",
        "access_token",
        "id_token_hint",
        "csrf",
    ];
    let mut keep = |answer: Answer| {
        assert!(answer.status < 500, "{answer:?}");
        if answer.status >= 400 {
            said.push(answer.body);
        }
    };
    for path in [
        "/oauth2/token",
        "/oauth2/revoke",
        "/oauth2/introspect",
        "/oauth2/userinfo",
        "/oauth2/authorize",
        "/oauth2/end_session",
        "/login",
        "/consent",
        "/nothing",
    ] {
        let bearer = format!("Bearer {CANARY}");
        let secret = basic(&site.client_id, CANARY);
        let cookies = format!("__Host-sid={CANARY}; __Host-ix={CANARY}; __Host-dev={CANARY}");
        let given: Vec<(&str, &str)> = [
            ("client_id", site.client_id.as_str()),
            ("grant_type", "authorization_code"),
        ]
        .into_iter()
        .chain(fields.map(|field| (field, CANARY)))
        .collect();
        for header in [
            ("Authorization", &bearer),
            ("Authorization", &secret),
            ("Cookie", &cookies),
        ] {
            keep(web.posts_raw(path, &[(header.0, header.1)], &given).await);
        }
        for field in fields {
            let given = [("grant_type", "refresh_token"), (field, CANARY)];
            keep(web.posts(path, &given).await);
            let query = format!("{path}?{field}={CANARY}");
            let headers = [("Cookie", cookies.as_str()), ("Referer", query.as_str())];
            keep(
                Browser::new(public)
                    .send("GET", &query, &headers, None)
                    .await,
            );
        }
    }
}

/// Sends secrets while the database fails.
async fn in_broken_statements(site: &Site, public: &str, said: &mut Vec<String>) {
    let web = site.web(public);
    for table in ["codes", "grants", "sessions", "clients"] {
        site.installation
            .execute(&format!("ALTER TABLE {table} RENAME TO {table}_gone"));
        let code = format!("pcl_ac_{CANARY}");
        let answers = [
            web.redeems_with(&code, &[("code_verifier", CANARY)]).await,
            Browser::new(public)
                .send(
                    "GET",
                    &web.request(&[]),
                    &[("Cookie", &format!("__Host-sid={CANARY}"))],
                    None,
                )
                .await,
        ];
        site.installation
            .execute(&format!("ALTER TABLE {table}_gone RENAME TO {table}"));
        said.extend(answers.into_iter().map(|answer| answer.body));
    }
}

/// Returns the complete content of the database as text.
fn dump(installation: &Installation) -> String {
    let Some(url) = &installation.database else {
        let files = std::fs::read_dir(installation.folder.join("data")).unwrap();
        let files = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        return files
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect();
    };
    let tables = "SELECT tablename::text AS line FROM pg_tables WHERE schemaname = 'public'";
    let mut text = String::new();
    for table in Look::at(url).lines(tables) {
        let rows = format!("SELECT t::text AS line FROM {table} t");
        text.extend(Look::at(url).lines(&rows));
    }
    text
}

/// Returns the encodings in which a value may appear.
fn shapes(value: &str) -> Vec<String> {
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let encoded = form_urlencoded::byte_serialize(value.as_bytes()).collect();
    vec![value.to_owned(), encoded, STANDARD.encode(value), hex]
}

#[apply(on_both_databases)]
#[test]
fn no_secret_is_written_anywhere(#[case] db: Db) {
    let installation = Installation::on(db);
    let site = Site::open(installation);
    let server = site
        .installation
        .serve(&[("PORTCULLIS__LOG__LEVEL", "trace")]);
    let (public, probes) = (base(&server), management(&server));
    let mut marks = vec![
        ("canary".to_owned(), CANARY.to_owned()),
        ("password".to_owned(), PASSWORD.to_owned()),
        ("client secret".to_owned(), site.secret.expose().to_owned()),
        (
            "Basic header".to_owned(),
            basic(&site.client_id, site.secret.expose()).replace("Basic ", ""),
        ),
        (
            "key-encrypting key".to_owned(),
            site.installation.read("keys/kek").trim().to_owned(),
        ),
    ];
    // A private key that is known outside the server: it becomes the next key of its ring.
    let scalar = Entropy::system().bytes::<32>();
    let private = p256::SecretKey::from_slice(&scalar).unwrap();
    let pem = private.to_pkcs8_pem(LineEnding::LF).unwrap();
    site.installation.write("canary.pem", &pem);
    let path = site.installation.folder.join("canary.pem");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    site.installation.done(&["keys", "import", "canary.pem"]);
    let body = pem.lines().filter(|line| !line.starts_with('-'));
    marks.extend(body.map(|line| ("private key".to_owned(), line.to_owned())));
    marks.push(("private key".to_owned(), URL_SAFE_NO_PAD.encode(scalar)));
    marks.push((
        "private key".to_owned(),
        scalar.map(|byte| format!("{byte:02x}")).concat(),
    ));
    let listed = [&["keys", "list"][..], &["--format", "json"]].concat();
    let listed = site.installation.done(&listed);
    let mut said = vec![
        listed,
        site.installation
            .done(&["audit", "tail", "-n", "1000", "--format", "json"]),
    ];
    let page = actix_web::rt::System::new().block_on(async {
        right_ones(&site, &public, &mut marks).await;
        wrong_ones(&site, &public, &mut said).await;
        in_broken_statements(&site, &public, &mut said).await;
        asks(&probes, "/metrics").await.1
    });
    server.signal("-TERM");
    server.waits_for(|line| line.contains("server.stopped"));
    let log = server.log();
    assert_eq!(server.ends(), Some(0));
    // The searched texts are not empty.
    let has = |what: &str| log.iter().any(|line| line.contains(what));
    assert!(has("\"level\":\"trace\"") && has("token.storage_error") && has("code.replay"));
    assert!(!has("log.dropped"));
    let database = dump(&site.installation);
    assert!(
        database.contains("Corner Shop") && said.len() > 50,
        "{}",
        said.len()
    );
    for (location, text) in [
        ("log", log.join("\n")),
        ("metrics", page),
        ("database", database),
        ("answers", said.join("\n")),
    ] {
        for (name, value) in &marks {
            for shape in shapes(value) {
                let line = text.lines().find(|line| line.contains(&shape));
                assert_eq!(line, None, "a {name} in the {location}");
            }
        }
    }
}
