//! Real processes, killed at any moment: a change of keys is completed later, or never happened.

use std::time::Duration;

use serde_json::Value;

use crate::cast::place::Place;

/// How often each is killed; the moments are spread over the time that an undisturbed run takes.
const KILLS: u32 = 8;

/// Runs a command and kills it after a while (SIGKILL), unless it is done by then.
fn killed(place: &Place, arguments: &[&str], variables: &[(&str, &str)], after: Duration) {
    let mut child = place.command(arguments, variables).spawn().unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < after && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
}

/// How long a command takes when nobody kills it.
fn took(place: &Place, arguments: &[&str]) -> Duration {
    let begun = std::time::Instant::now();
    place.done(arguments);
    begun.elapsed()
}

fn keys(place: &Place) -> Vec<Value> {
    let listed = place.done(&["keys", "list", "--format", "json"]);
    serde_json::from_str(&listed).unwrap()
}

fn in_state<'k>(keys: &'k [Value], ring: (&str, &str), state: &str) -> Vec<&'k str> {
    keys.iter()
        .filter(|key| key["use"] == ring.0 && key["alg"] == ring.1 && key["state"] == state)
        .map(|key| key["kid"].as_str().unwrap())
        .collect()
}

const RINGS: [(&str, &str); 3] = [("token", "ES256"), ("token", "RS256"), ("feed", "ES256")];

/// One signer and one standby in each ring, and each generation once.
fn whole(place: &Place) {
    let keys = keys(place);
    for ring in RINGS {
        assert_eq!(
            in_state(&keys, ring, "signing").len(),
            1,
            "{ring:?}: {keys:#?}"
        );
        assert_eq!(
            in_state(&keys, ring, "published").len(),
            1,
            "{ring:?}: {keys:#?}"
        );
    }
}

fn started(place: &Place) {
    let running = place.serve(&[]);
    // The last of the standbys that are made in the background.
    for _ in 0..1_000 {
        if keys(place).len() >= 6 {
            break;
        }
    }
    drop(running);
}

fn first_start(place: &Place) {
    for kill in 0..KILLS {
        killed(
            place,
            &["serve"],
            &[],
            Duration::from_millis(u64::from(40 + 90 * kill)),
        );
    }
    started(place);
    whole(place);
}

#[test]
fn a_first_start_killed_at_any_moment_is_completed_by_the_next() {
    first_start(&Place::new());
    first_start(&Place::on_postgres());
}

fn rewrapped(place: &Place) {
    started(place);
    for kill in 0..KILLS {
        let file = format!("kek-{kill}");
        place.done(&["keys", "generate-kek", "--out", &file]);
        // All that ever were: what a killed run left behind must still open.
        let list: Vec<String> = (0..=kill)
            .rev()
            .map(|n| format!("file:kek-{n}"))
            .chain(["file:keys/kek".to_owned()])
            .collect();
        let list = list.join(",");
        killed(
            place,
            &["keys", "rewrap"],
            &[("PORTCULLIS__KEYS__KEK", &list)],
            Duration::from_millis(u64::from(5 + 12 * kill)),
        );
    }
    let list: Vec<String> = (0..KILLS)
        .rev()
        .map(|n| format!("file:kek-{n}"))
        .chain(["file:keys/kek".to_owned()])
        .collect();
    let list = list.join(",");
    let done = place.run(
        &["keys", "rewrap", "--format", "json"],
        &[("PORTCULLIS__KEYS__KEK", &list)],
    );
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let last = format!("file:kek-{}", KILLS - 1);
    let alone = [("PORTCULLIS__KEYS__KEK", last.as_str())];
    let again = place.run(&["keys", "rewrap", "--format", "json"], &alone);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(
        again["moved"],
        serde_json::json!({}),
        "every value stands under the newest KEK alone"
    );
    let running = place.serve(&alone);
    assert!(
        !running
            .log()
            .iter()
            .any(|line| line.contains("key.corrupt"))
    );
}

#[test]
fn a_rewrap_killed_at_any_moment_leaves_every_value_readable() {
    rewrapped(&Place::new());
    rewrapped(&Place::on_postgres());
}

fn revoked(place: &Place) {
    started(place);
    let usual = took(place, &["keys", "rotate", "--ring", "feed/ES256", "--yes"]);
    for kill in 0..KILLS {
        let before = keys(place);
        let kid = in_state(&before, ("token", "ES256"), "signing")[0].to_owned();
        let revoke = ["keys", "revoke", &kid, "--reason", "leaked", "--yes"];
        killed(place, &revoke, &[], usual * kill / (KILLS - 1));
        let after = keys(place);
        let row = after.iter().find(|key| key["kid"] == kid.as_str()).unwrap();
        // All of it or nothing.
        if row["state"] == "revoked" {
            assert_eq!(after.len(), before.len() + 1, "a standby came with it");
            assert_ne!(
                in_state(&after, ("token", "ES256"), "signing"),
                [kid.as_str()]
            );
        } else {
            assert_eq!(before, after);
        }
        whole(place);
        let events =
            place.count("SELECT count(*) AS n FROM audit_events WHERE name = 'key.revoked'");
        let records = place.count("SELECT count(*) AS n FROM revocations WHERE kind = 'K'");
        let rows =
            place.count("SELECT count(*) AS n FROM signing_keys WHERE revoked_at IS NOT NULL");
        assert_eq!((events, records), (rows, rows));
    }
}

#[test]
fn a_revocation_killed_at_any_moment_is_whole_or_nothing() {
    revoked(&Place::new());
    revoked(&Place::on_postgres());
}

#[test]
fn a_node_with_the_wrong_kek_ends_with_78_and_the_others_go_on() {
    let place = Place::on_postgres();
    let running = place.serve(&[]);
    let before = keys(&place).len();
    place.done(&["keys", "generate-kek", "--out", "other"]);
    let wrong = place.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:other")]);
    assert_eq!(wrong.status.code(), Some(78));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("key.kek_mismatch") && said.contains("is not configured in `keys.kek`"),
        "{said}"
    );
    assert!(keys(&place).len() >= before, "nothing was made by it");
    assert!(
        !running
            .log()
            .iter()
            .any(|line| line.contains("key.corrupt"))
    );
    let missing = place.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:nowhere")]);
    assert_eq!(missing.status.code(), Some(78));
}

#[test]
fn the_command_line_tells_what_it_does() {
    let place = Place::new();
    let none = place.run(&["keys", "plan"], &[]);
    assert_eq!(none.status.code(), Some(78), "no KEK yet");
    started(&place);
    let drawn = place.done(&["keys", "list"]);
    assert!(
        drawn.contains("token/RS256") && drawn.contains("(planned)") && drawn.contains('█'),
        "{drawn}"
    );
    let plan = place.done(&["keys", "plan"]);
    assert!(
        plan.contains("lead = max(notice 7d, verifier_cache 25h + clock skew 1m + poll 5s) = 7d"),
        "{plan}"
    );
    assert!(
        plan.contains("standby known to all caches: in 25 h") && plan.contains("nothing to do"),
        "{plan}"
    );
    let early = place.done(&["keys", "plan", "--if-rotate"]);
    assert!(early.contains("→ generation 2 signs from"), "{early}");
    let before = keys(&place);
    let kid = in_state(&before, ("token", "RS256"), "signing")[0];
    let doomed = place.done(&["keys", "plan", "--if-revoke", kid]);
    assert!(
        doomed.contains("→ generation 1 is revoked") && doomed.contains("→ generation 3 is made"),
        "{doomed}"
    );
    assert_eq!(keys(&place), before, "a plan changes nothing");

    let unasked = place.run(&["keys", "revoke", kid, "--reason", "x"], &[]);
    assert_eq!(
        unasked.status.code(),
        Some(2),
        "it asks, and nobody is there"
    );
    let done = place.done(&["keys", "revoke", kid, "--reason", "leaked", "--yes"]);
    assert!(
        done.contains("revoked: token/RS256 generation 1") && done.contains("up to 24 h"),
        "{done}"
    );
    assert!(
        place
            .done(&["keys", "revoke", kid, "--reason", "leaked", "--yes"])
            .contains("revoked before")
    );
    let unknown = place.run(&["keys", "revoke", "nobody", "--reason", "x", "--yes"], &[]);
    assert_eq!(unknown.status.code(), Some(1));

    let hasty = place.run(&["keys", "rotate", "--now", "--yes"], &[]);
    assert_eq!(hasty.status.code(), Some(2), "not without --insecure-dev");
    let signing = in_state(&before, ("token", "ES256"), "published")[0];
    place.done(&["keys", "rotate", "--now", "--insecure-dev", "--yes"]);
    assert_eq!(
        in_state(&keys(&place), ("token", "ES256"), "signing"),
        [signing]
    );
    place.done(&["keys", "rotate", "--server-secret", "--yes"]);
    let public = [("PORTCULLIS__ISSUER", "https://id.example")];
    let elsewhere = place.run(
        &["keys", "rotate", "--now", "--insecure-dev", "--yes"],
        &public,
    );
    assert_eq!(elsewhere.status.code(), Some(2), "not on a real issuer");
}
