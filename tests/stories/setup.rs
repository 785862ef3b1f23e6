//! The first start: a set-up link that works once, a temporary administrator, and never a default password.

use std::time::Duration;

use portcullis::config::Config;

use crate::fixtures::{Answer, Browser, Db, Server, apply, on_both_databases};

const PASSWORD: &str = "gravel-otter-92-lamp";

/// Returns the path of a new link, as the server shows it at its start.
async fn link(server: &Server) -> String {
    let link = server.app.bootstrap().await.unwrap().unwrap();
    let path = link.strip_prefix("https://op.example").unwrap();
    assert_eq!(path.len(), "/setup?token=".len() + 43, "256 bits");
    path.to_owned()
}

/// Opens a link, and submits the form of its page.
async fn sets_up(browser: &mut Browser, path: &str, changed: &[(&str, &str)]) -> Answer {
    let opened = browser.get(path).await;
    assert_eq!((opened.status, opened.location()), (303, Some("/setup")));
    fills_in(browser, changed).await
}

async fn fills_in(browser: &mut Browser, changed: &[(&str, &str)]) -> Answer {
    let page = browser.get("/setup").await;
    assert!(page.body.contains("id=\"setup-submit\""), "{}", page.body);
    let csrf = page.hidden("csrf");
    let mut fields = vec![
        ("csrf", csrf.as_str()),
        ("username", "root"),
        ("password", PASSWORD),
        ("repeat", PASSWORD),
    ];
    for (name, value) in changed {
        fields.retain(|(known, _)| known != name);
        fields.push((name, value));
    }
    browser.post("/setup", &fields).await
}

/// Until there is an admin API, the page and the README state how the server is administered.
#[actix_web::test]
async fn readme_and_setup_page_state_how_the_server_is_administered() {
    const SENTENCE: &str =
        "Until the admin API is released, this server is administered on its command line";
    let server = Server::start(Db::Sqlite).await;
    let mut browser = server.browser();
    let path = link(&server).await;
    let page = browser.opens(&path).await;
    assert!(page.body.contains(SENTENCE), "{}", page.body);
    fills_in(&mut browser, &[]).await;
    let account = browser.get("/account").await;
    assert!(account.body.contains(SENTENCE), "{}", account.body);
    for file in ["README.md", "docs/operations.md"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(SENTENCE), "{file}");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn setup_link_creates_first_administrator_and_signs_in(#[case] db: Db) {
    let server = Server::start(db).await;
    let path = link(&server).await;
    let token = path.split_once('=').unwrap().1.to_owned();
    assert_eq!(
        server.count(&format!(
            "SELECT count(*) AS n FROM setup_links WHERE expires_at = {}",
            (server.clock.now() + Duration::from_secs(3_600)).micros()
        )),
        1
    );
    let mut browser = server.browser();
    let done = sets_up(&mut browser, &path, &[]).await;
    assert_eq!(
        (done.status, done.location()),
        (303, Some("/account")),
        "{}",
        done.body
    );
    assert!(
        !browser.cookies.values().any(|value| *value == token),
        "the link is no cookie"
    );
    let account = browser.get("/account").await;
    assert!(
        account
            .body
            .contains("<strong>root</strong>, an administrator"),
        "{}",
        account.body
    );
    assert!(
        account.body.contains("portcullis client create"),
        "it names the next step"
    );
    assert!(!account.body.contains("account-temporary"));
    assert_eq!(
        server.count(
            "SELECT count(*) AS n FROM user_roles WHERE expires_at IS NULL AND granted_by = 'setup'"
        ),
        1
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'admin.bootstrap'"),
        1
    );
    // From now on no link works, and the old one has expired.
    assert_eq!(server.app.bootstrap().await.unwrap(), None);
    let again = server.browser().get(&path).await;
    assert_eq!(again.status, 400);
    assert_eq!(
        again.logged(),
        [("admin.bootstrap_refused".to_owned(), "link".to_owned())]
    );
    // The name and password work at the login page.
    let shop = server.shop().await;
    let mut elsewhere = server.browser();
    assert!(
        elsewhere
            .signs_in(&shop, "root")
            .await
            .callback("code")
            .is_some()
    );
    // Once a client is registered, the page names no next step.
    assert!(!browser.get("/account").await.body.contains("account-next"));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn setup_link_works_once_and_expires_after_an_hour(#[case] db: Db) {
    let server = Server::start(db).await;
    let (one, other) = (link(&server).await, link(&server).await);
    let mut first = server.browser();
    assert_eq!(first.get(&one).await.status, 303);
    assert_eq!(
        server.browser().get(&one).await.status,
        400,
        "opened before"
    );
    assert_eq!(
        server.browser().get("/setup").await.status,
        400,
        "another browser"
    );
    for odd in ["/setup?token=", "/setup?token=x", "/setup?token=a&token=b"] {
        assert_eq!(server.browser().get(odd).await.status, 400, "{odd}");
    }
    assert_eq!(
        first.send("HEAD", &other, &[], None).await.status,
        405,
        "a preview uses nothing up"
    );
    server.advance(Duration::from_secs(3_599));
    assert_eq!(first.get("/setup").await.status, 200);
    server.advance(Duration::from_secs(1));
    assert_eq!(first.get("/setup").await.status, 400, "over");
    assert_eq!(server.browser().get(&other).await.status, 400, "over");
    let fresh = link(&server).await;
    assert_eq!(
        sets_up(&mut server.browser(), &fresh, &[]).await.status,
        303
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_setup_links_create_one_administrator(#[case] db: Db) {
    let server = Server::start(db).await;
    let (one, other) = (link(&server).await, link(&server).await);
    let (mut left, mut right) = (server.browser(), server.browser());
    assert_eq!(left.get(&one).await.status, 303);
    assert_eq!(right.get(&other).await.status, 303);
    let (a, b) = tokio::join!(
        fills_in(&mut left, &[("username", "left")]),
        fills_in(&mut right, &[("username", "right")])
    );
    let mut statuses = [a.status, b.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [303, 400]);
    assert_eq!(server.count("SELECT count(*) AS n FROM user_roles"), 1);
    assert_eq!(
        server.count("SELECT count(*) AS n FROM users WHERE username IN ('left', 'right')"),
        1
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn invalid_setup_form_creates_no_user(#[case] db: Db) {
    let server = Server::start(db).await;
    let path = link(&server).await;
    let mut browser = server.browser();
    assert_eq!(browser.get(&path).await.status, 303);
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("username", "a b")], "This cannot be a user name"),
        (
            &[("username", "alice")],
            "An account with this name exists already",
        ),
        (&[("repeat", "something else entirely")], "not the same"),
        (
            &[("password", "short"), ("repeat", "short")],
            "needs at least 15 characters",
        ),
        (
            &[
                ("password", "passwordpassword"),
                ("repeat", "passwordpassword"),
            ],
            "easy to guess",
        ),
        (
            &[
                ("password", "root12345678901"),
                ("repeat", "root12345678901"),
            ],
            "little more than a name",
        ),
    ];
    for (changed, sentence) in cases {
        let answer = fills_in(&mut browser, changed).await;
        assert_eq!(answer.status, 200);
        assert!(
            answer.body.contains(sentence) && answer.body.contains("aria-invalid"),
            "{sentence}: {}",
            answer.body
        );
    }
    let forged = fills_in(&mut browser, &[("csrf", "x")]).await;
    forged_is(&forged, "token");
    let page = browser.get("/setup").await;
    let csrf = page.hidden("csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("username", "root"),
        ("password", PASSWORD),
        ("repeat", PASSWORD),
    ];
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    let foreign = browser.send("POST", "/setup", &headers, Some(body)).await;
    forged_is(&foreign, "origin");
    assert_eq!(server.count("SELECT count(*) AS n FROM user_roles"), 0);
    // The link is still valid.
    assert_eq!(fills_in(&mut browser, &[]).await.status, 303);
}

#[track_caller]
fn forged_is(answer: &Answer, reason: &str) {
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.logged(),
        [("csrf.rejected".to_owned(), reason.to_owned())]
    );
}

/// Returns a configuration with the password of the first administrator.
fn with_password(text: &str) -> impl FnOnce(&mut Config) {
    use std::os::unix::fs::PermissionsExt;
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let file = crate::fixtures::server::scratch().join(format!("password-{number}"));
    std::fs::write(&file, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    move |config| config.bootstrap.admin_password_file = Some(file)
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn configured_administrator_expires_after_a_week(#[case] db: Db) {
    let server = Server::with(db, with_password(PASSWORD)).await;
    assert_eq!(
        server.app.bootstrap().await.unwrap(),
        None,
        "no link beside it"
    );
    assert_eq!(server.app.bootstrap().await.unwrap(), None, "made once");
    assert_eq!(server.count("SELECT count(*) AS n FROM user_roles"), 1);
    let mut browser = server.enters("admin").await;
    let account = browser.get("/account").await;
    assert!(
        account
            .body
            .contains(r#"You are an administrator until <span class="whole">2027-01-22"#),
        "{}",
        account.body
    );
    assert!(
        account
            .body
            .contains(r#"portcullis user create NAME <span class="whole">--admin</span>"#)
    );
    // The password is the one in the file.
    let shop = server.shop().await;
    assert!(
        server
            .browser()
            .signs_in(&shop, "admin")
            .await
            .callback("code")
            .is_some()
    );
    // A permanent administrator: the page has nothing more to ask for.
    server.execute("INSERT INTO user_roles SELECT id, 'admin', 'operator', 0, NULL FROM users WHERE username = 'alice'");
    let account = browser.get("/account").await;
    assert!(account.body.contains("You are an administrator until"));
    assert!(!account.body.contains("portcullis user create"));
    server.execute("DELETE FROM user_roles WHERE granted_by = 'operator'");
    // A week later the account is not an administrator any more. The account is not created again, and a link is shown.
    server.advance(Duration::from_secs(7 * 86_400));
    assert!(
        server
            .app
            .bootstrap()
            .await
            .unwrap()
            .unwrap()
            .contains("/setup?token=")
    );
    let mut later = server.enters("admin").await;
    assert!(!later.get("/account").await.body.contains("administrator"));
}

#[actix_web::test]
async fn configured_password_must_be_strong() {
    for (text, sentence) in [
        ("short", "a password needs at least 15 characters"),
        ("admin1234567890", "little more than a name"),
    ] {
        let server = Server::with(Db::Sqlite, with_password(text)).await;
        let refused = server.app.bootstrap().await.unwrap_err().to_string();
        assert!(
            refused.contains("`bootstrap.admin_password_file`") && refused.contains(sentence),
            "{refused}"
        );
    }
    let server = Server::with(Db::Sqlite, |config| {
        config.bootstrap.admin_password_hash =
            Some("$argon2i$v=19$m=4096,t=3,p=1$c29tZXNhbHQ$x".to_owned());
    })
    .await;
    let refused = server.app.bootstrap().await.unwrap_err().to_string();
    assert!(
        refused.contains("`bootstrap.admin_password_hash`: is not an Argon2id hash"),
        "{refused}"
    );
}
