//! The shipped alert rules and the dashboard refer to metrics that the server exports, and every high or
//! critical event has its own series.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use portcullis::metrics::ALERTS;

use crate::installation::Installation;
use crate::site::{Site, asks, management};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the names of metrics in a Prometheus expression.
fn names(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("portcullis_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Returns every expression in a document, by the name of its member.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                match value {
                    serde_json::Value::String(text) if name == "expr" => found.push(text.clone()),
                    value => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

fn shipped() -> (Vec<String>, Vec<String>) {
    let rules: serde_json::Value = serde_yaml_ng::from_str(&read("docs/alerts.yml")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&read("docs/dashboard.json")).unwrap();
    let (mut alerts, mut panels) = (Vec::new(), Vec::new());
    expressions(&rules, &mut alerts);
    expressions(&dashboard, &mut panels);
    (alerts, panels)
}

#[test]
fn documented_metrics_are_exported() {
    let (alerts, panels) = shipped();
    assert!(alerts.len() > 10 && panels.len() > 10);
    let site = Site::open(Installation::new());
    let server = site.installation.serve(&[]);
    let probes = management(&server);
    let page = actix_web::rt::System::new().block_on(async { asks(&probes, "/metrics").await.1 });
    let types: BTreeSet<(&str, &str)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let is_shown = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|base| types.contains(&(base, "histogram")));
        histogram || types.iter().any(|(known, _)| *known == name)
    };
    for expression in alerts.iter().chain(&panels) {
        let used = names(expression);
        // `up` belongs to Prometheus itself.
        assert!(
            !used.is_empty() || expression.contains("up{"),
            "{expression}"
        );
        for name in used {
            assert!(is_shown(&name), "{name} of {expression}");
        }
    }
    // There is a rule for each alert that docs/keys.md promises.
    for name in [
        "portcullis_signing_key_age_seconds",
        "portcullis_signing_key_next_rotation_seconds",
        "portcullis_signing_key_standby",
        "portcullis_signing_key_corrupt",
        "portcullis_kek_values",
        "portcullis_key_view_age_seconds",
        "portcullis_verifier_unknown_kid_total",
    ] {
        assert!(
            alerts.iter().any(|rule| names(rule).contains(name)),
            "{name}"
        );
    }
}

#[test]
fn every_event_is_documented() {
    let listed = read("docs/operations.md");
    let mut found = BTreeSet::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(file).unwrap();
        for before in ["event = \"", "Detail::new(\"", "Detail::high(\""] {
            let rest = text.split(before).skip(1);
            found.extend(rest.filter_map(|rest| Some(rest.split('"').next()?.to_owned())));
        }
    }
    assert!(found.len() > 40, "{found:?}");
    let lacking: Vec<_> = found
        .iter()
        .filter(|event| !listed.contains(&format!("| `{event}` |")))
        .collect();
    assert!(lacking.is_empty(), "not in docs/operations.md: {lacking:?}");
}

#[test]
fn loud_events_have_metric_and_alert_rule() {
    let mut loud = BTreeSet::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(file).unwrap();
        loud.extend(
            text.split("Detail::high(\"")
                .skip(1)
                .filter_map(|rest| rest.split('"').next())
                .map(|event| (event.to_owned(), "high".to_owned())),
        );
        // `event = "…"` and `severity = "…"` of one call of a logging macro.
        for call in text.split("tracing::").skip(1) {
            let call = call.split(");").next().unwrap_or_default();
            let value = |name: &str| {
                let rest = call.split(&format!("{name} = \"")).nth(1)?;
                rest.split('"').next().map(str::to_owned)
            };
            loud.extend(value("event").zip(value("severity")));
        }
    }
    assert!(loud.len() > 15, "{loud:?}");
    let known: BTreeSet<(String, String)> = ALERTS
        .iter()
        .map(|(event, severity)| ((*event).to_owned(), (*severity).to_owned()))
        .collect();
    let lacking: Vec<_> = loud.difference(&known).collect();
    assert!(lacking.is_empty(), "not in metrics::ALERTS: {lacking:?}");
    let (rules, _) = shipped();
    for severity in ["high", "critical"] {
        let rule = format!("portcullis_events_total{{severity=\"{severity}\"}}");
        assert!(
            rules.iter().any(|expression| expression.contains(&rule)),
            "{rule}"
        );
    }
    // The list of events in the documentation contains each.
    let listed = read("docs/operations.md");
    for (event, _) in ALERTS {
        assert!(listed.contains(&format!("| `{event}` |")), "{event}");
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else {
            files.push(path);
        }
    }
    files
}
