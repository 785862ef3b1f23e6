//! The metrics page, as Prometheus requests it.

use crate::fixtures::Browser;
use crate::fixtures::{Db, apply, on_both_databases};
use crate::installation::Installation;
use crate::site::{Site, asks, base, management, sample};

#[apply(on_both_databases)]
#[test]
fn activity_is_counted_in_metrics(#[case] db: Db) {
    let installation = Installation::on(db);
    let site = Site::open(installation);
    let server = site.installation.serve(&[]);
    let (public, probes) = (base(&server), management(&server));
    let page = actix_web::rt::System::new().block_on(async {
        let web = site.web(&public);
        let mut alice = Browser::new(&public);
        let login = alice.opens(&web.request(&[])).await;
        alice
            .fills_in(&login, "alice", "not the password of alice")
            .await;
        let code = alice.allows(&web).await;
        let tokens = web.redeems(&code).await.ok();
        web.refreshes(tokens.refresh(), &[]).await.ok();
        assert_eq!(web.redeems(&code).await.status, 400);
        assert_eq!(asks(&public, "/nothing?secret=1").await.0, 404);
        // The public listener does not serve metrics.
        assert_eq!(asks(&public, "/metrics").await.0, 404);
        asks(&probes, "/metrics").await.1
    });
    for (series, wanted) in [
        (
            "portcullis_login_total{method=\"password\",result=\"failed\"}",
            1.0,
        ),
        (
            "portcullis_login_total{method=\"password\",result=\"success\"}",
            1.0,
        ),
        (
            "portcullis_login_total{method=\"password\",result=\"throttled\"}",
            0.0,
        ),
        (
            "portcullis_tokens_issued_total{grant=\"authorization_code\",client_type=\"confidential\"}",
            1.0,
        ),
        (
            "portcullis_tokens_issued_total{grant=\"refresh_token\",client_type=\"confidential\"}",
            1.0,
        ),
        (
            "portcullis_http_requests_total{route=\"/oauth2/token\",method=\"POST\",status=\"200\"}",
            2.0,
        ),
        (
            "portcullis_http_requests_total{route=\"/oauth2/token\",method=\"POST\",status=\"400\"}",
            1.0,
        ),
        (
            "portcullis_http_requests_total{route=\"none\",method=\"GET\",status=\"404\"}",
            2.0,
        ),
        (
            "portcullis_http_request_duration_seconds_count{route=\"/oauth2/token\"}",
            3.0,
        ),
        (
            "portcullis_http_request_duration_seconds_bucket{route=\"/oauth2/token\",le=\"+Inf\"}",
            3.0,
        ),
        (
            "portcullis_refused_total{endpoint=\"/oauth2/token\",code=\"invalid_grant\",reason=\"replayed\"}",
            1.0,
        ),
        (
            "portcullis_refused_total{endpoint=\"none\",code=\"404\",reason=\"path\"}",
            2.0,
        ),
        (
            "portcullis_events_total{event=\"code.replay\",severity=\"high\"}",
            1.0,
        ),
        (
            "portcullis_events_total{event=\"key.corrupt\",severity=\"critical\"}",
            0.0,
        ),
        ("portcullis_db_pool_size", 16.0),
        ("portcullis_db_pool_timeouts_total", 0.0),
        (
            "portcullis_signing_key_standby{use=\"token\",alg=\"ES256\"}",
            1.0,
        ),
        (
            "portcullis_signing_key_corrupt{use=\"feed\",alg=\"ES256\"}",
            0.0,
        ),
        ("portcullis_verifier_unknown_kid_total", 0.0),
        ("portcullis_log_dropped_total{kind=\"access\"}", 0.0),
        ("portcullis_draining", 0.0),
    ] {
        assert_eq!(sample(&page, series), Some(wanted), "{series}\n{page}");
    }
    let within = |series: &str, low: f64, high: f64| {
        let value = sample(&page, series).unwrap_or_else(|| panic!("{series}\n{page}"));
        assert!((low..=high).contains(&value), "{series} {value}");
    };
    within(
        "portcullis_signing_key_age_seconds{use=\"token\",alg=\"RS256\"}",
        0.0,
        600.0,
    );
    within(
        "portcullis_signing_key_next_rotation_seconds{use=\"token\",alg=\"ES256\"}",
        89.0 * 86_400.0,
        90.0 * 86_400.0,
    );
    within("portcullis_key_view_age_seconds", 0.0, 5.0);
    within("portcullis_db_pool_open", 1.0, 16.0);
    within("process_resident_memory_bytes", 1e6, 1e9);
    within("process_cpu_seconds_total", 0.01, 600.0);
    within("process_open_fds", 5.0, 1e4);
    within("process_start_time_seconds", 1.7e9, 1e10);
    // Every sealed value is under the only KEK, which is the first.
    let keks: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("portcullis_kek_values{"))
        .collect();
    assert!(
        keks.len() == 1 && keks[0].contains("first=\"yes\""),
        "{keks:?}"
    );
    // Label values come from fixed sets, and contain nothing of a request, a client or a user.
    for word in ["secret", "alice", &site.client_id, "nothing"] {
        assert!(!page.contains(word), "{word}");
    }
    let version = format!(
        "portcullis_build_info{{version=\"{}\",database=\"",
        env!("CARGO_PKG_VERSION")
    );
    assert!(page.contains(&version));
    // Each line is a comment or a sample, and each family is declared once.
    let families: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let names: std::collections::BTreeSet<&str> = families
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(families.len(), names.len());
    for line in page.lines().filter(|line| !line.starts_with("# ")) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}
