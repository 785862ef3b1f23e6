//! The audit log: sealed by a running server, checked by command.

use serde_json::Value;

use crate::both;
use crate::place::{Place, refused};

const CLIENT: [&str; 8] = [
    "client",
    "create",
    "--name",
    "Shop",
    "--redirect-uri",
    "https://app.example/cb",
    "--id",
    "shop",
];

/// Changes, then a server that seals them.
fn history(place: &Place) {
    place.told(
        &["user", "create", "alice", "--password-stdin"],
        "gravel-otter-92-lamp",
    );
    place.done(&CLIENT);
    let running = place.serve(&[]);
    running.waits_for(|line| line.contains(r#""event":"client.created""#));
    // The server secret, and a signer and a standby of each of three rings.
    running.waits_for(|line| {
        line.contains(r#""event":"key.created""#) && line.contains(r#""seq":9,"#)
    });
    assert_eq!(running.stop(), Some(0));
}

fn verified(place: &Place) -> Value {
    let output = place.run(&["audit", "verify", "--format", "json"], &[]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn findings(place: &Place) -> Vec<String> {
    let found = verified(place);
    let problems = found["problems"].as_array().unwrap();
    problems
        .iter()
        .map(|problem| problem["what"].as_str().unwrap().to_owned())
        .collect()
}

both! {
    fn every_change_is_sealed_and_told_once(place: Place) {
        history(&place);
        let found = verified(&place);
        // alice, shop, and seven keys.
        assert_eq!((found["sealed"].as_u64(), found["first"].as_u64()), (Some(9), Some(1)), "{found}");
        assert_eq!(found["problems"], serde_json::json!([]));
        let head = found["head"].as_str().unwrap().to_owned();
        place.done(&["audit", "verify", "--expect", &head]);
        let told = place.done(&["audit", "tail", "-n", "2", "--format", "json"]);
        let names: Vec<String> = told.lines().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["name"].as_str().unwrap().to_owned()
        }).collect();
        assert_eq!(names, ["key.created", "key.created"]);
        // What happens later is sealed too, and the old head is still in the chain.
        place.told(&["user", "set-password", "alice", "--password-stdin"], "umbrella-tiger-51-moss");
        let running = place.serve(&[]);
        running.waits_for(|line| line.contains(r#""event":"user.credential_changed""#));
        drop(running);
        assert_eq!(verified(&place)["sealed"], 10);
        place.done(&["audit", "verify", "--expect", &head]);
    }
}

both! {
    fn whoever_changes_adds_or_removes_history_is_found_out(place: Place) {
        history(&place);
        let head = verified(&place)["head"].as_str().unwrap().to_owned();
        let changes = [
            ("UPDATE audit_events SET actor = 'user:mallory' WHERE name = 'client.created'",
             "UPDATE audit_events SET actor = 'cli' WHERE name = 'client.created'",
             "the event or its seal was changed"),
            ("UPDATE audit_events SET at = at + 1 WHERE name = 'user.created'",
             "UPDATE audit_events SET at = at - 1 WHERE name = 'user.created'",
             "the event or its seal was changed"),
            ("INSERT INTO audit_events (id, at, name, actor, target, detail) VALUES ('x', 1, 'client.created', 'cli', 'client:evil', '{}')",
             "DELETE FROM audit_events WHERE id = 'x'",
             "an event without a seal"),
        ];
        for (change, back, finding) in changes {
            place.execute(change);
            assert_eq!(findings(&place), [finding], "{change}");
            refused(&place.run(&["audit", "verify"], &[]), 1, "the audit log is not as it was written: 1 finding");
            place.execute(back);
            assert_eq!(findings(&place), [""; 0], "{back}");
        }
        // The end can be cut off without a trace in the database; a head kept elsewhere shows it.
        place.execute("DELETE FROM audit_events WHERE id = (SELECT event_id FROM audit_seals WHERE seq = 9); DELETE FROM audit_seals WHERE seq = 9;");
        assert_eq!(findings(&place), [""; 0]);
        refused(&place.run(&["audit", "verify", "--expect", &head], &[]), 1, "1 finding");
        // The middle and the beginning cannot.
        place.execute("DELETE FROM audit_seals WHERE seq = 2");
        let found = findings(&place);
        assert!(found.contains(&"seals before it are missing".to_owned()), "{found:?}");
        place.execute("DELETE FROM audit_events WHERE id = (SELECT event_id FROM audit_seals WHERE seq = 1); DELETE FROM audit_seals WHERE seq > 1;");
        let found = findings(&place);
        assert!(found.contains(&"events up to it were removed, not by the clean-up".to_owned()), "{found:?}");
    }
}

#[test]
fn the_seals_need_the_key() {
    let place = Place::new();
    history(&place);
    place.done(&["keys", "generate-kek", "--out", "other"]);
    let output = place.run(
        &["audit", "verify"],
        &[("PORTCULLIS__KEYS__KEK", "file:other")],
    );
    refused(&output, 78, "which is not configured in `keys.kek`");
    let wrong = place.run(&["audit", "verify", "--expect", "x"], &[]);
    refused(&wrong, 2, "`audit verify` prints one");
}
