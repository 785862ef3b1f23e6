//! Loads that no user asked for: prefetches, frames, images, scripts.

use crate::expect::{logged, page400};
use crate::fixtures::Answer;
use crate::{Row, Stage, expect, row};

pub const ROWS: &[Row] = &[
    row!(a027_prefetch_and_subresource_requests_get_no_code),
    row!(a503_prefetch_does_not_consume_the_setup_link),
];

fn refused(answer: &Answer, statuses: &[u16]) -> Result<(), String> {
    logged(answer, "authz.rejected", "fetch_dest")?;
    let leaks = answer.location().is_some() || answer.header("set-cookie").is_some();
    if statuses.contains(&answer.status) && !leaks {
        Ok(())
    } else {
        Err(expect::summary(answer))
    }
}

async fn a027_prefetch_and_subresource_requests_get_no_code(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let codes = || stage.server.count("SELECT count(*) AS n FROM codes");
    let before = codes();
    let loads = [
        ("Sec-Purpose", "prefetch"),
        ("Purpose", "prefetch"),
        ("Sec-Fetch-Dest", "iframe"),
        ("Sec-Fetch-Dest", "image"),
        ("Sec-Fetch-Dest", "script"),
    ];
    for (case, header) in (1..).zip(loads) {
        let mut browser = alice.at(&stage.node(case).base);
        let answer = browser
            .send("GET", &web.request(&[]), &[header], None)
            .await;
        if case <= 2 {
            stage.expect(case, refused(&answer, &[204, 400]));
        } else {
            stage.expect(case, page400(&answer).and(refused(&answer, &[400])));
        }
    }
    stage.check(5, codes() == before, || "a code was written".to_owned());
    let navigated = alice.at(&stage.node(1).base).get(&web.request(&[])).await;
    stage.check(5, navigated.callback("code").is_some(), || {
        expect::summary(&navigated)
    });
}

async fn a503_prefetch_does_not_consume_the_setup_link(stage: &Stage) {
    let link = stage.server.app.bootstrap().await.unwrap().unwrap();
    let used =
        "SELECT count(*) AS n FROM setup_links WHERE browser IS NOT NULL OR used_at IS NOT NULL";
    let loads = [
        ("Sec-Purpose", "prefetch"),
        ("Purpose", "prefetch"),
        ("Sec-Fetch-Dest", "image"),
    ];
    for (case, header) in (1..).zip(loads) {
        let mut browser = stage.node(case).browser();
        let answer = browser.send("GET", &link, &[header], None).await;
        stage.expect(case, refused(&answer, &[204, 400]));
        stage.check(case, stage.server.count(used) == 0, || {
            "the link was consumed".to_owned()
        });
    }
    let mut owner = stage.server.browser();
    let opened = owner.get(&link).await;
    stage.check(4, opened.location() == Some("/setup"), || {
        expect::summary(&opened)
    });
    let page = owner.get("/setup").await;
    let shown = page.status == 200 && page.body.contains("setup-submit");
    stage.check(4, shown, || expect::summary(&page));
}
