//! Real processes, killed at any moment: a change of keys is completed later, or did not happen.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::fixtures::installation::{Installation, refused};

/// How often each command is killed. The moments are spread over the time that an undisturbed run takes.
const KILLS: u32 = 8;

/// Runs a command and kills it with `SIGKILL` after a while, unless it has exited by then.
fn killed(
    installation: &Installation,
    arguments: &[&str],
    variables: &[(&str, &str)],
    after: Duration,
) {
    let mut child = installation.command(arguments, variables).spawn().unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < after && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
}

/// Returns how long a command takes when it is not killed.
fn took(installation: &Installation, arguments: &[&str]) -> Duration {
    let begun = std::time::Instant::now();
    installation.done(arguments);
    begun.elapsed()
}

fn keys(installation: &Installation) -> Vec<Value> {
    let listed = installation.done(&["keys", "list", "--format", "json"]);
    serde_json::from_str(&listed).unwrap()
}

fn in_state<'k>(keys: &'k [Value], ring: (&str, &str), state: &str) -> Vec<&'k str> {
    keys.iter()
        .filter(|key| key["use"] == ring.0 && key["alg"] == ring.1 && key["state"] == state)
        .map(|key| key["kid"].as_str().unwrap())
        .collect()
}

const RINGS: [(&str, &str); 3] = [("token", "ES256"), ("token", "RS256"), ("feed", "ES256")];

/// Asserts that each ring has one signer and one next key, and no version twice.
fn whole(installation: &Installation) {
    let keys = keys(installation);
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

fn started(installation: &Installation) {
    let running = installation.serve(&[]);
    // The last of the next keys that are made in the background.
    for _ in 0..1_000 {
        if keys(installation).len() >= 6 {
            break;
        }
    }
    drop(running);
}

fn first_start(installation: &Installation) {
    for kill in 0..KILLS {
        killed(
            installation,
            &["serve"],
            &[],
            Duration::from_millis(u64::from(40 + 90 * kill)),
        );
    }
    started(installation);
    whole(installation);
}

#[test]
fn killed_first_start_is_completed_by_the_next() {
    first_start(&Installation::new());
    first_start(&Installation::on_postgres());
}

fn rewrapped(installation: &Installation) {
    started(installation);
    for kill in 0..KILLS {
        let file = format!("kek-{kill}");
        installation.done(&["keys", "generate-kek", "--out", &file]);
        // All keys so far, because those that a killed run left behind must still open.
        let list: Vec<String> = (0..=kill)
            .rev()
            .map(|n| format!("file:kek-{n}"))
            .chain(["file:keys/kek".to_owned()])
            .collect();
        let list = list.join(",");
        killed(
            installation,
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
    let done = installation.run(
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
    let again = installation.run(&["keys", "rewrap", "--format", "json"], &alone);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(
        again["moved"],
        serde_json::json!({}),
        "every value is under the newest KEK only"
    );
    let running = installation.serve(&alone);
    assert!(
        !running
            .log()
            .iter()
            .any(|line| line.contains("key.corrupt"))
    );
}

#[test]
fn killed_rewrap_leaves_every_value_readable() {
    rewrapped(&Installation::new());
    rewrapped(&Installation::on_postgres());
}

fn revoked(installation: &Installation) {
    started(installation);
    let usual = took(
        installation,
        &["keys", "rotate", "--ring", "feed/ES256", "--yes"],
    );
    for kill in 0..KILLS {
        let before = keys(installation);
        let kid = in_state(&before, ("token", "ES256"), "signing")[0].to_owned();
        let revoke = ["keys", "revoke", &kid, "--reason", "leaked", "--yes"];
        killed(installation, &revoke, &[], usual * kill / (KILLS - 1));
        let after = keys(installation);
        let row = after.iter().find(|key| key["kid"] == kid.as_str()).unwrap();
        // The revocation is complete, or did not happen.
        if row["state"] == "revoked" {
            assert_eq!(after.len(), before.len() + 1, "a next key was made as well");
            assert_ne!(
                in_state(&after, ("token", "ES256"), "signing"),
                [kid.as_str()]
            );
        } else {
            assert_eq!(before, after);
        }
        whole(installation);
        let events =
            installation.count("SELECT count(*) AS n FROM audit_events WHERE name = 'key.revoked'");
        let records = installation.count("SELECT count(*) AS n FROM revocations WHERE kind = 'K'");
        let rows = installation
            .count("SELECT count(*) AS n FROM signing_keys WHERE revoked_at IS NOT NULL");
        assert_eq!((events, records), (rows, rows));
    }
}

#[test]
fn killed_key_revocation_is_atomic() {
    revoked(&Installation::new());
    revoked(&Installation::on_postgres());
}

#[test]
fn node_with_wrong_kek_exits_78_and_others_continue() {
    let installation = Installation::on_postgres();
    let running = installation.serve(&[]);
    let before = keys(&installation).len();
    installation.done(&["keys", "generate-kek", "--out", "other"]);
    let wrong = installation.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:other")]);
    assert_eq!(wrong.status.code(), Some(78));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("key.kek_mismatch") && said.contains("is not configured in `keys.kek`"),
        "{said}"
    );
    assert!(
        keys(&installation).len() >= before,
        "the command made no key"
    );
    assert!(
        !running
            .log()
            .iter()
            .any(|line| line.contains("key.corrupt"))
    );
    let missing = installation.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:nowhere")]);
    assert_eq!(missing.status.code(), Some(78));
}

/// Runs every command of docs/keys.md as it is written, without a terminal, with the kid of a key for `KID`.
#[test]
fn documented_commands_run_as_written() {
    let page = include_str!("../../docs/keys.md");
    let installation = Installation::new();
    started(&installation);
    // Code blocks and inline code; the lines of a block may have a prompt.
    let texts = page.lines().flat_map(|line| {
        let inline = line.split('`').skip(1).step_by(2);
        inline
            .chain([line])
            .map(|text| text.trim_start_matches("$ "))
    });
    let commands: BTreeSet<&str> = texts
        .map(|text| text.strip_prefix("portcullis ").unwrap_or(text))
        .filter(|text| text.starts_with("keys "))
        // A name of a command in a sentence is not a complete command.
        .filter(|text| {
            let needs_more = ["keys revoke", "keys rotate", "keys import FILE"];
            !needs_more.contains(text)
        })
        .collect();
    assert!(commands.len() >= 7, "{commands:?}");
    for command in commands {
        let kid = in_state(&keys(&installation), ("token", "ES256"), "signing")[0].to_owned();
        let words = command.replace('"', "'");
        let mut arguments = Vec::new();
        for (n, part) in words.split('\'').enumerate() {
            match n % 2 {
                0 => arguments.extend(part.split_whitespace().map(str::to_owned)),
                _ => arguments.push(part.to_owned()),
            }
        }
        for argument in &mut arguments {
            match argument.as_str() {
                "KID" => argument.clone_from(&kid),
                "/etc/portcullis/kek-2027" => "kek-2027".clone_into(argument),
                _ => {}
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.done(&arguments);
    }
    // Without `--yes` and a terminal nothing is changed, whichever command it is.
    let before = keys(&installation);
    let kid = in_state(&before, ("token", "ES256"), "signing")[0];
    for arguments in [
        &["keys", "revoke", kid, "--reason", "leaked"][..],
        &[
            "keys",
            "revoke",
            "--ring",
            "token/ES256",
            "--reason",
            "leaked",
        ],
        &["keys", "rotate"],
        &["keys", "rotate", "--server-secret"],
        &["recover"],
    ] {
        let output = installation.run(arguments, &[]);
        refused(&output, 2, "pass --yes");
    }
    assert_eq!(keys(&installation), before);
}

/// The second revocation in a row makes a key sign that verifiers may not have fetched yet.
#[test]
fn keys_revoke_warns_when_next_key_is_young() {
    let installation = Installation::new();
    started(&installation);
    let revoke = |extra: &[&str]| {
        let kid = in_state(&keys(&installation), ("token", "ES256"), "signing")[0].to_owned();
        let arguments = ["keys", "revoke", &kid, "--reason", "leaked", "--yes"];
        installation.done(&[&arguments[..], extra].concat())
    };
    let told: Value = serde_json::from_str(&revoke(&["--format", "json"])).unwrap();
    let until = told["signer_unknown_until"].as_str().unwrap();
    assert!(until.ends_with('Z'), "{told}");
    let told = revoke(&[]);
    assert!(
        told.contains("warning: verifiers that have not fetched the keys since"),
        "{told}"
    );
    // A key of the feed is fetched as soon as a frame names it.
    let feed = in_state(&keys(&installation), ("feed", "ES256"), "signing")[0].to_owned();
    let told = installation.done(&["keys", "revoke", &feed, "--reason", "leaked", "--yes"]);
    assert!(!told.contains("warning"), "{told}");
}

#[test]
fn keys_commands_report_their_changes() {
    let installation = Installation::new();
    let none = installation.run(&["keys", "plan"], &[]);
    assert_eq!(none.status.code(), Some(78), "no KEK yet");
    started(&installation);
    let drawn = installation.done(&["keys", "list"]);
    assert!(
        drawn.contains("token/RS256") && drawn.contains("(planned)") && drawn.contains('█'),
        "{drawn}"
    );
    let plan = installation.done(&["keys", "plan"]);
    assert!(
        plan.contains("lead = max(notice 7d, verifier_cache 25h + clock skew 1m + poll 5s) = 7d"),
        "{plan}"
    );
    assert!(
        plan.contains("next key known to all caches: in 25 h") && plan.contains("nothing to do"),
        "{plan}"
    );
    let early = installation.done(&["keys", "plan", "--if-rotate"]);
    assert!(early.contains("→ generation 2 signs from"), "{early}");
    let before = keys(&installation);
    let kid = in_state(&before, ("token", "RS256"), "signing")[0];
    let doomed = installation.done(&["keys", "plan", "--if-revoke", kid]);
    assert!(
        doomed.contains("→ generation 1 is revoked")
            && doomed.contains("→ generation 3 is created"),
        "{doomed}"
    );
    assert_eq!(keys(&installation), before, "a plan changes nothing");

    let unasked = installation.run(&["keys", "revoke", kid, "--reason", "x"], &[]);
    assert_eq!(
        unasked.status.code(),
        Some(2),
        "the command asks for confirmation without a terminal"
    );
    let done = installation.done(&["keys", "revoke", kid, "--reason", "leaked", "--yes"]);
    assert!(
        done.contains("revoked: token/RS256 generation 1") && done.contains("up to 24 h"),
        "{done}"
    );
    assert!(
        installation
            .done(&["keys", "revoke", kid, "--reason", "leaked", "--yes"])
            .contains("already revoked")
    );
    let unknown = installation.run(
        &["keys", "revoke", "unknown", "--reason", "x", "--yes"],
        &[],
    );
    assert_eq!(unknown.status.code(), Some(1));

    let hasty = installation.run(&["keys", "rotate", "--now", "--yes"], &[]);
    assert_eq!(hasty.status.code(), Some(2), "not without --insecure-dev");
    let signing = in_state(&before, ("token", "ES256"), "published")[0];
    installation.done(&["keys", "rotate", "--now", "--insecure-dev", "--yes"]);
    assert_eq!(
        in_state(&keys(&installation), ("token", "ES256"), "signing"),
        [signing]
    );
    installation.done(&["keys", "rotate", "--server-secret", "--yes"]);
    let public = [("PORTCULLIS__ISSUER", "https://id.example")];
    let elsewhere = installation.run(
        &["keys", "rotate", "--now", "--insecure-dev", "--yes"],
        &public,
    );
    assert_eq!(
        elsewhere.status.code(),
        Some(2),
        "rejected for a public issuer"
    );
}
