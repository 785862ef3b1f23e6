//! Remembered consent: after which changes of a client's registration the server asks again.

use std::time::{Duration, Instant};

use crate::fixtures::installation::Installation;
use crate::fixtures::site::{Site, base};
use crate::fixtures::{Browser, Db, TestClient, apply, on_both_databases};

const CALLBACK: &str = "https://app.example/cb";
const SECOND_CALLBACK: &str = "https://app.example/cb2";

/// Changes the registration of `web` by command, and waits until the server shows the new name.
async fn update(
    site: &Site,
    web: &TestClient,
    alice: &mut Browser,
    name: &str,
    redirect_uris: &[&str],
) {
    let mut command = vec!["client", "update", web.id(), "--name", name];
    for uri in redirect_uris {
        command.extend(["--redirect-uri", *uri]);
    }
    site.installation.done(&command);
    let started = Instant::now();
    let always_asked = web.request(&[("prompt", "consent")]);
    while !alice.opens(&always_asked).await.body.contains(name) {
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "the server does not show the name {name}"
        );
    }
}

/// Asserts that the server asks alice for her consent, with a page and under `prompt=none`; alice allows.
async fn assert_asked(web: &TestClient, alice: &mut Browser) {
    let silent = alice.opens(&web.request(&[("prompt", "none")])).await;
    assert_eq!(
        silent.callback("error").as_deref(),
        Some("consent_required")
    );
    let page = alice.opens(&web.request(&[])).await;
    assert!(page.body.contains("consent-allow"), "{}", page.body);
    let back = alice.decides(&page, "allow").await;
    assert!(back.callback("code").is_some(), "{}", back.body);
}

/// Asserts that the server accepts alice's remembered consent.
async fn assert_not_asked(web: &TestClient, alice: &mut Browser) {
    for changed in [&[][..], &[("prompt", "none")]] {
        let back = alice.opens(&web.request(changed)).await;
        assert!(
            back.callback("code").is_some(),
            "{changed:?}: {}",
            back.body
        );
    }
}

#[apply(on_both_databases)]
#[test]
fn consent_is_asked_again_only_after_redirect_uris_change(#[case] db: Db) {
    let site = Site::open(Installation::on(db));
    let server = site.installation.serve(&[]);
    let web = site.web(&base(&server));
    actix_web::rt::System::new().block_on(async {
        let mut alice = Browser::new(&base(&server));
        let back = alice.signs_in(&web, "alice").await;
        assert!(back.callback("code").is_some(), "{}", back.body);
        assert_not_asked(&web, &mut alice).await;

        // A change of another field keeps the consent.
        update(&site, &web, &mut alice, "Corner Shop 2", &[]).await;
        assert_not_asked(&web, &mut alice).await;

        // A second redirect URI is added. The request still names the one that alice consented to.
        let both = [CALLBACK, SECOND_CALLBACK];
        update(&site, &web, &mut alice, "Corner Shop 3", &both).await;
        assert_asked(&web, &mut alice).await;
        assert_not_asked(&web, &mut alice).await;

        // The redirect URIs are the same in another order.
        let swapped = [SECOND_CALLBACK, CALLBACK];
        update(&site, &web, &mut alice, "Corner Shop 4", &swapped).await;
        assert_not_asked(&web, &mut alice).await;

        // One redirect URI is removed. The consent of the first registration was replaced, so it does not
        // apply again.
        update(&site, &web, &mut alice, "Corner Shop 5", &[CALLBACK]).await;
        assert_asked(&web, &mut alice).await;
        assert_not_asked(&web, &mut alice).await;
    });
}
