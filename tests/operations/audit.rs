//! The audit log: sealed by a running server, verified by command.

use serde_json::Value;

use crate::fixtures::{Db, apply, on_both_databases};
use crate::installation::{Installation, refused};

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

/// Makes changes, and runs a server that seals their events.
fn history(installation: &Installation) {
    installation.told(
        &["user", "create", "alice", "--password-stdin"],
        "gravel-otter-92-lamp",
    );
    installation.done(&CLIENT);
    let running = installation.serve(&[]);
    running.waits_for(|line| line.contains(r#""event":"client.created""#));
    // The server secret, and a signer and a next key of each of three rings.
    running.waits_for(|line| {
        line.contains(r#""event":"key.created""#) && line.contains(r#""seq":9,"#)
    });
    assert_eq!(running.stop(), Some(0));
}

fn verified(installation: &Installation) -> Value {
    let output = installation.run(&["audit", "verify", "--format", "json"], &[]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn findings(installation: &Installation) -> Vec<String> {
    let found = verified(installation);
    let problems = found["problems"].as_array().unwrap();
    problems
        .iter()
        .map(|problem| problem["what"].as_str().unwrap().to_owned())
        .collect()
}

#[apply(on_both_databases)]
#[test]
fn every_change_is_sealed_and_exported_once(#[case] db: Db) {
    let installation = Installation::on(db);
    history(&installation);
    let found = verified(&installation);
    // The events of alice, `shop` and seven keys.
    assert_eq!(
        (found["sealed"].as_u64(), found["first"].as_u64()),
        (Some(9), Some(1)),
        "{found}"
    );
    assert_eq!(found["problems"], serde_json::json!([]));
    let head = found["head"].as_str().unwrap().to_owned();
    installation.done(&["audit", "verify", "--expect", &head]);
    let told = installation.done(&["audit", "tail", "-n", "2", "--format", "json"]);
    let names: Vec<String> = told
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, ["key.created", "key.created"]);
    // Later events are sealed as well, and the old head is still part of the chain.
    installation.told(
        &["user", "set-password", "alice", "--password-stdin"],
        "umbrella-tiger-51-moss",
    );
    let running = installation.serve(&[]);
    running.waits_for(|line| line.contains(r#""event":"user.credential_changed""#));
    drop(running);
    assert_eq!(verified(&installation)["sealed"], 10);
    installation.done(&["audit", "verify", "--expect", &head]);
}

#[apply(on_both_databases)]
#[test]
fn tampering_with_history_is_detected(#[case] db: Db) {
    let installation = Installation::on(db);
    history(&installation);
    let head = verified(&installation)["head"].as_str().unwrap().to_owned();
    let created = installation.done(&["audit", "tail", "--format", "json"]);
    let created: Value = created
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|event: &Value| event["name"] == "client.created")
        .unwrap();
    let actor = created["actor"].as_str().unwrap();
    assert!(actor.starts_with("cli:") && actor.len() > 4, "{created}");
    assert_eq!(created["target_name"], "Shop");
    assert!(created.get("reason").is_none(), "{created}");
    let changes = [
        (
            "UPDATE audit_events SET actor = 'user:mallory' WHERE name = 'client.created'",
            &*format!("UPDATE audit_events SET actor = '{actor}' WHERE name = 'client.created'"),
            "the event or its seal was changed",
        ),
        (
            "UPDATE audit_events SET at = at + 1 WHERE name = 'user.created'",
            "UPDATE audit_events SET at = at - 1 WHERE name = 'user.created'",
            "the event or its seal was changed",
        ),
        (
            "INSERT INTO audit_events (id, at, name, actor, target, detail) VALUES ('x', 1, 'client.created', 'cli', 'client:evil', '{}')",
            "DELETE FROM audit_events WHERE id = 'x'",
            "an event without a seal",
        ),
    ];
    for (change, back, finding) in changes {
        installation.execute(change);
        assert_eq!(findings(&installation), [finding], "{change}");
        refused(
            &installation.run(&["audit", "verify"], &[]),
            1,
            "the audit log is not as it was written: 1 finding",
        );
        installation.execute(back);
        assert_eq!(findings(&installation), [""; 0], "{back}");
    }
    // Removing the newest events leaves no trace in the database. The head beside the KEK reveals it, and so
    // does a head that was stored elsewhere.
    installation.execute("DELETE FROM audit_events WHERE id = (SELECT event_id FROM audit_seals WHERE seq = 9); DELETE FROM audit_seals WHERE seq = 9;");
    let gap = "events 9 to 9 were removed: the head beside the KEK is not in the chain";
    assert_eq!(findings(&installation), [gap]);
    refused(
        &installation.run(&["audit", "verify", "--expect", &head], &[]),
        1,
        "2 finding",
    );
    // A server that continues the shortened chain does not hide the loss.
    let running = installation.serve(&[]);
    installation.done(&["client", "disable", "shop"]);
    running.waits_for(|line| line.contains(r#""event":"client.disabled""#));
    running.waits_for(|line| line.contains(r#""event":"audit.tampered""#));
    assert_eq!(running.stop(), Some(0));
    assert_eq!(
        findings(&installation),
        ["events up to 9 were replaced: the head beside the KEK is not in the chain"]
    );
    // Removing events in the middle or at the beginning is detected.
    installation.execute("DELETE FROM audit_seals WHERE seq = 2");
    let found = findings(&installation);
    assert!(
        found.contains(&"seals before it are missing".to_owned()),
        "{found:?}"
    );
    installation.execute("DELETE FROM audit_events WHERE id = (SELECT event_id FROM audit_seals WHERE seq = 1); DELETE FROM audit_seals WHERE seq > 1;");
    let found = findings(&installation);
    assert!(
        found.contains(&"events up to it were removed, not by the clean-up".to_owned()),
        "{found:?}"
    );
}

#[test]
fn audit_verify_requires_the_key() {
    let installation = Installation::new();
    history(&installation);
    installation.done(&["keys", "generate-kek", "--out", "other"]);
    let output = installation.run(
        &["audit", "verify"],
        &[("PORTCULLIS__KEYS__KEK", "file:other")],
    );
    refused(&output, 78, "which is not configured in `keys.kek`");
    let wrong = installation.run(&["audit", "verify", "--expect", "x"], &[]);
    refused(&wrong, 2, "`audit verify` prints one");
}
