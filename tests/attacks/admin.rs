//! Rows of the catalogue: the first start, and the public listener, which has no administration.

use std::time::Duration;

use crate::fixtures::installation::Installation;
use crate::fixtures::{Answer, Browser};
use crate::{Row, Stage, expect, row};

pub const ROWS: &[Row] = &[
    row!(a405_first_start_has_no_default_account),
    row!(a413_admin_api_is_not_on_the_public_listener),
    row!(a520_setup_link_admits_one_administrator),
    row!(a526_removed_audit_events_are_reported),
    row!(a527_backdated_audit_event_is_reported),
];

const PASSWORD: &str = "gravel-otter-92-lamp";

/// First start: there is no default account, and a race creates exactly one administrator.
async fn a405_first_start_has_no_default_account(stage: &Stage) {
    let server = &stage.server;
    let shop = server.shop().await;
    // 1, 2: there is no user `admin`, and no password is empty.
    for (case, username, password) in [(1, "admin", "admin"), (2, "admin", ""), (2, "alice", "")] {
        let mut browser = server.browser();
        let page = browser.opens(&shop.request(&[])).await;
        let answer = browser.fills_in(&page, username, password).await;
        let in_vain = answer.status == 200 && !browser.cookies.contains_key("__Host-sid");
        stage.check(case, in_vain, || {
            format!("{username}/{password:?}: {}", expect::summary(&answer))
        });
    }
    let admins = "SELECT count(*) AS n FROM users WHERE username = 'admin'";
    stage.check(1, server.count(admins) == 0, || {
        "there is an admin".to_owned()
    });
    stage.check(
        1,
        server.count("SELECT count(*) AS n FROM user_roles") == 0,
        || "a user is an administrator".to_owned(),
    );
    // 3: each start creates a link with 256 random bits that is valid for 1 h, stored as a hash and not logged.
    let mut links = Vec::new();
    for node in stage.all() {
        links.push(node.app.bootstrap().await.unwrap().unwrap());
    }
    links.push(server.app.bootstrap().await.unwrap().unwrap());
    let tokens: Vec<&str> = links
        .iter()
        .map(|link| link.split_once('=').unwrap().1)
        .collect();
    stage.check(3, tokens.iter().all(|token| token.len() == 43), || {
        format!("{links:?}")
    });
    let kept = server.count("SELECT count(*) AS n FROM setup_links WHERE length(hash) = 32");
    stage.check(3, usize::try_from(kept) == Ok(links.len()), || {
        format!("{kept} hashes")
    });
    let hour = (server.clock.now() + Duration::from_secs(3_600)).micros();
    let longer = server.count(&format!(
        "SELECT count(*) AS n FROM setup_links WHERE expires_at > {hour}"
    ));
    stage.check(3, longer == 0, || {
        "a link lives for more than an hour".to_owned()
    });
    // 4: one link per node is opened, all forms are submitted at once, and one bootstrap succeeds.
    let mut browsers: Vec<Browser> = Vec::new();
    for (n, link) in links.iter().enumerate() {
        let mut browser = stage.node(n).browser();
        let opened = browser.get(link).await;
        stage.check(4, opened.location() == Some("/setup"), || {
            expect::summary(&opened)
        });
        let twice = server.browser().get(link).await;
        stage.expect(4, expect::page(&twice, 400));
        stage.expect(4, expect::logged(&twice, "admin.bootstrap_refused", "link"));
        browsers.push(browser);
    }
    let racing = browsers
        .iter_mut()
        .enumerate()
        .map(|(n, browser)| submits(browser, format!("root{n}")));
    let answers = all(racing.collect()).await;
    let won = answers
        .iter()
        .filter(|a| a.location() == Some("/account"))
        .count();
    stage.check(4, won == 1, || format!("{won} won"));
    let winner = answers.iter().find(|a| a.location() == Some("/account"));
    if let Some(winner) = winner {
        stage.expect(4, expect::logged(winner, "admin.bootstrap", "setup"));
    }
    for lost in answers.iter().filter(|answer| answer.status != 303) {
        stage.expect(4, expect::page(lost, 400));
    }
    let admins = server.count("SELECT count(*) AS n FROM user_roles WHERE role = 'admin'");
    let people = server.count("SELECT count(*) AS n FROM users WHERE username LIKE 'root%'");
    stage.check(4, (admins, people) == (1, 1), || {
        format!("{admins} administrators, {people} accounts")
    });
    let audited =
        server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'admin.bootstrap'");
    stage.check(4, audited == 1, || format!("{audited} audit events"));
    // 5: the link is shown until it is used, and not after that.
    for node in stage.all() {
        let shown = node.app.bootstrap().await.unwrap();
        stage.check(5, shown.is_none(), || {
            "a link is shown although there is an administrator".to_owned()
        });
    }
}

async fn submits(browser: &mut Browser, username: String) -> Answer {
    let csrf = browser.get("/setup").await.hidden("csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("username", &username),
        ("password", PASSWORD),
        ("repeat", PASSWORD),
    ];
    browser.post("/setup", &fields).await
}

/// Runs all futures concurrently.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in pinned.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Every spelling of an administration path gets 404 on the public listener.
async fn a413_admin_api_is_not_on_the_public_listener(stage: &Stage) {
    let paths = [
        "/api/admin/v1/clients",
        "/api/admin;x/v1/clients",
        "//api/admin/v1/clients",
        "/%61pi/admin/v1/clients",
        "/x/..;/api/admin/v1/clients",
    ];
    let absolute = "https://op.example/api/admin/v1/clients";
    for (n, path) in paths.iter().chain(&[absolute]).enumerate() {
        for method in ["GET", "POST"] {
            let node = stage.node(n);
            let answer = crate::fixtures::raw::request(&node.base, method, path, &[], "").await;
            let answer = answer.unwrap();
            stage.expect(n + 1, expect::page(&answer, 404));
            stage.expect(n + 1, expect::logged(&answer, "http.404", "path"));
        }
    }
}

/// A set-up link that an attacker uses, or that is used too late.
async fn a520_setup_link_admits_one_administrator(stage: &Stage) {
    let server = &stage.server;
    let refused = |case: usize, answer: &Answer| {
        stage.expect(case, expect::page(answer, 400));
        stage.expect(
            case,
            expect::logged(answer, "admin.bootstrap_refused", "link"),
        );
    };
    let link = server.app.bootstrap().await.unwrap().unwrap();
    let token = link.split_once('=').unwrap().1;
    // 1: cut, lengthened, guessed, sent twice, and missing.
    let mut guesses = vec![
        token[..42].to_owned(),
        format!("{token}A"),
        "A".repeat(43),
        String::new(),
    ];
    guesses.push(format!("{token}&token={token}"));
    for guess in &guesses {
        refused(
            1,
            &server.browser().get(&format!("/setup?token={guess}")).await,
        );
    }
    refused(1, &server.browser().get("/setup").await);
    // 2: a preview fetches the link and consumes nothing.
    for method in ["HEAD", "OPTIONS", "PUT"] {
        let seen = server
            .browser()
            .send(method, &format!("/setup?token={token}"), &[], None)
            .await;
        stage.check(2, seen.status == 405, || expect::summary(&seen));
    }
    // 3: the link is bound to the browser that opens it; its token is then on no page.
    let mut owner = server.browser();
    let opened = owner.get(&link).await;
    stage.check(3, opened.location() == Some("/setup"), || {
        expect::summary(&opened)
    });
    let kept = opened
        .header("set-cookie")
        .unwrap_or_default()
        .contains(token);
    stage.check(3, !kept && !opened.body.contains(token), || {
        "the token is passed on".to_owned()
    });
    let page = owner.get("/setup").await;
    stage.check(3, page.status == 200 && !page.body.contains(token), || {
        expect::summary(&page)
    });
    for node in stage.all() {
        refused(3, &node.browser().get(&link).await);
        refused(3, &node.browser().get("/setup").await);
    }
    let logged = crate::fixtures::log::since(0);
    let told = logged
        .iter()
        .any(|event| event.values().any(|value| value.contains(token)));
    stage.check(3, !told, || "the log holds the token".to_owned());
    // 4: the form of another site, without its token, with the token of another form.
    let csrf = page.hidden("csrf");
    let fields = |csrf: &str| {
        let fields = [
            ("csrf", csrf),
            ("username", "root"),
            ("password", PASSWORD),
            ("repeat", PASSWORD),
        ];
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish()
    };
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let cross = [
        form,
        ("Origin", "https://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    let answer = owner
        .send("POST", "/setup", &cross, Some(fields(&csrf)))
        .await;
    stage.expect(4, expect::page(&answer, 403));
    stage.expect(4, expect::logged(&answer, "csrf.rejected", "origin"));
    let other = server
        .enters("alice")
        .await
        .get("/account")
        .await
        .hidden("csrf");
    let ours = [
        form,
        ("Origin", "https://op.example"),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    for strange in ["", &other] {
        let answer = owner
            .send("POST", "/setup", &ours, Some(fields(strange)))
            .await;
        stage.expect(4, expect::page(&answer, 403));
        stage.expect(4, expect::logged(&answer, "csrf.rejected", "token"));
    }
    // 5: its form in another browser.
    let answer = server
        .browser()
        .send("POST", "/setup", &ours, Some(fields(&csrf)))
        .await;
    refused(5, &answer);
    // 6: after 1 h.
    server.advance(Duration::from_secs(3_600));
    refused(
        6,
        &owner
            .send("POST", "/setup", &ours, Some(fields(&csrf)))
            .await,
    );
    // 7: a second link, after the first administrator exists.
    let (one, two) = (server.app.bootstrap().await, server.app.bootstrap().await);
    let (one, two) = (one.unwrap().unwrap(), two.unwrap().unwrap());
    let (mut first, mut second) = (server.browser(), server.browser());
    first.get(&one).await;
    second.get(&two).await;
    let csrf = second.get("/setup").await.hidden("csrf");
    let done = submits(&mut first, "root".to_owned()).await;
    stage.check(7, done.location() == Some("/account"), || {
        expect::summary(&done)
    });
    refused(7, &second.get("/setup").await);
    refused(
        7,
        &second
            .send("POST", "/setup", &ours, Some(fields(&csrf)))
            .await,
    );
    // 8: there is exactly one administrator.
    let admins = server.count("SELECT count(*) AS n FROM user_roles");
    stage.check(8, admins == 1, || format!("{admins} administrators"));
}

/// Starts a server that seals the events of its start, and stops it. Returns the number of sealed events.
fn sealed_log(installation: &Installation) -> i64 {
    assert_eq!(installation.serve(&[]).stop(), Some(0));
    installation.count("SELECT count(*) AS n FROM audit_seals")
}

/// Returns the exit code, the printed findings and the log of `audit verify`.
fn verify_audit(installation: &Installation) -> (Option<i32>, String, String) {
    let output = installation.run(&["audit", "verify"], &[]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The audit log is shortened or emptied by an attacker who has the database only.
async fn a526_removed_audit_events_are_reported(stage: &Stage) {
    let installation = Installation::on(stage.db());
    let sealed = sealed_log(&installation);
    let (code, _, said) = verify_audit(&installation);
    stage.check(0, code == Some(0), || said.clone());
    let tail = "seq > 3";
    let of_seals = |rule: &str| format!("id IN (SELECT event_id FROM audit_seals WHERE {rule})");
    for (case, rule, range) in [
        (1, tail, format!("events 4 to {sealed}")),
        (2, "true", format!("events 1 to {sealed}")),
    ] {
        installation.execute(&format!(
            "DELETE FROM audit_events WHERE {}; DELETE FROM audit_seals WHERE {rule}",
            of_seals(rule)
        ));
        let (code, found, said) = verify_audit(&installation);
        stage.check(case, code == Some(1) && found.contains(&range), || {
            format!("exit code {code:?}: {found}")
        });
        stage.check(case, said.contains("audit.tampered"), || said.clone());
    }
    // A server that runs on does not replace the evidence.
    let running = installation.serve(&[]);
    running.waits_for(|line| line.contains("server.started"));
    installation.done(&[
        "client",
        "create",
        "--id",
        "shop",
        "--name",
        "Shop",
        "--redirect-uri",
        "https://app.example/cb",
    ]);
    running.waits_for(|line| line.contains("audit.tampered"));
    assert_eq!(running.stop(), Some(0));
    let (code, found, _) = verify_audit(&installation);
    let range = format!("events 2 to {sealed}");
    stage.check(3, code == Some(1) && found.contains(&range), || {
        format!("exit code {code:?}: {found}")
    });
}

/// An attacker who has the database only inserts an event of the past and its row in the queue of the sealer.
async fn a527_backdated_audit_event_is_reported(stage: &Stage) {
    let installation = Installation::on(stage.db());
    let sealed = sealed_log(&installation);
    let running = installation.serve(&[]);
    installation.execute(
        "INSERT INTO audit_events (id, at, name, actor, target, detail) VALUES ('00000000-0000-7000-8000-000000000000', 1700000000000000, 'client.created', 'cli:root', 'client:evil', '{}'); INSERT INTO audit_waiting (event_id) VALUES ('00000000-0000-7000-8000-000000000000')",
    );
    running.waits_for(|line| line.contains("client:evil"));
    assert_eq!(running.stop(), Some(0));
    let (code, found, said) = verify_audit(&installation);
    let sentence = format!(
        "events {0} to {0} are dated more than a minute before",
        sealed + 1
    );
    stage.check(1, code == Some(1) && found.contains(&sentence), || {
        format!("exit code {code:?}: {found}")
    });
    stage.check(1, said.contains("audit.tampered"), || said.clone());
    let listed = installation.count("SELECT count(*) AS n FROM audit_waiting");
    stage.check(2, listed == 0, || format!("{listed} events wait"));
}
