//! The shipped alert rules and the dashboard refer to metrics that the server exports, and every high or
//! critical event has its own series.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use portcullis::audit;
use portcullis::metrics::{EMBEDDED_EVENTS, LOG_EVENTS, alerts};

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

/// Returns the names of the events in the source of the server, the verifier and the guard.
fn events_in_code() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "crates/verifier/src", "crates/guard/src"];
    let mut found = BTreeSet::new();
    for file in folders
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
    {
        if file.ends_with("src/metrics/events.rs") {
            continue;
        }
        let text = std::fs::read_to_string(file).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let calls = [
            "event = \"",
            "Detail::new( \"",
            "Detail::new(\"",
            "Detail::high( \"",
            "Detail::high(\"",
            "note(request, \"",
            "=> \"feed.",
            "=> \"consent.",
            "=> (\"db.",
        ];
        for call in calls {
            let prefix = call.rsplit('"').next().unwrap();
            let names = text.split(call).skip(1);
            found.extend(names.filter_map(|rest| {
                let name = format!("{prefix}{}", rest.split('"').next()?);
                name.contains('.').then_some(name)
            }));
        }
        // A page of src/http/error.rs: event and reason.
        let words: Vec<&str> = text.split(' ').collect();
        found.extend(words.windows(2).filter_map(|pair| {
            let name = pair[0].strip_prefix('"')?.strip_suffix('"')?;
            let is_event = name.contains('.') && pair[1].ends_with("\";");
            is_event.then(|| name.to_owned())
        }));
    }
    found
}

/// Returns every event of the table in the code, and the names of audit events, which are logged as well.
fn known_events() -> BTreeSet<String> {
    let logged = LOG_EVENTS.iter().map(|event| event.name);
    let audited = audit::Name::ALL.iter().map(|name| name.as_str());
    let all = logged.chain(audited).chain(EMBEDDED_EVENTS.iter().copied());
    all.map(str::to_owned).collect()
}

#[test]
fn event_table_matches_code() {
    let (known, code) = (known_events(), events_in_code());
    assert!(code.len() > 90, "{code:?}");
    let lacking: Vec<_> = code.difference(&known).collect();
    assert!(
        lacking.is_empty(),
        "not in metrics::LOG_EVENTS: {lacking:?}"
    );
    let audited: BTreeSet<&str> = audit::Name::ALL.iter().map(|name| name.as_str()).collect();
    let unused: Vec<_> = known
        .difference(&code)
        .filter(|name| !audited.contains(name.as_str()))
        .collect();
    assert!(unused.is_empty(), "logged nowhere: {unused:?}");
}

#[test]
fn every_event_is_documented() {
    let pages = ["docs/operations.md", "docs/audit.md", "docs/guard.md"].map(read);
    let lacking: Vec<String> = known_events()
        .into_iter()
        .filter(|event| {
            pages
                .iter()
                .all(|page| !page.contains(&format!("`{event}`")))
        })
        .collect();
    assert!(lacking.is_empty(), "documented nowhere: {lacking:?}");
    // Each row of the table of events is an event.
    let known = known_events();
    let section = pages[0].split("### Events").nth(1).unwrap();
    let section = section.split("## Metrics and alerts").next().unwrap();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let unknown: Vec<_> = rows.filter(|row| !known.contains(*row)).collect();
    assert!(unknown.is_empty(), "no such event: {unknown:?}");
}

/// The column `log` of the attack catalogue names events and reasons of the code, in every enabled row.
#[test]
fn catalogue_events_exist() {
    let known = known_events();
    let reasons: String = ["src", "crates/verifier/src", "crates/guard/src"]
        .iter()
        .flat_map(|folder| sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)))
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let shipped = read("tests/attacks/shipped.txt");
    let shipped: BTreeSet<&str> = shipped.lines().map(str::trim).collect();
    let mut problems = Vec::new();
    let mut checked = 0;
    for line in read("tests/attacks/attacks.tsv").lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let area = format!("area {}", cells[2]);
        if !shipped.contains(cells[0]) && !shipped.contains(area.as_str()) {
            continue;
        }
        for item in cells[5].split("; ").filter(|item| *item != "–") {
            let item = item.split(' ').next().unwrap();
            let (event, reason) = item.split_once('{').unwrap_or((item, ""));
            let reason = reason.trim_end_matches('}');
            checked += 1;
            if !event.is_empty() && !known.contains(event) {
                problems.push(format!("{}: no event {event}", cells[0]));
            }
            if !reason.is_empty() && !reasons.contains(&format!("\"{reason}\"")) {
                problems.push(format!("{}: no reason {reason} of {event}", cells[0]));
            }
        }
    }
    assert!(checked > 100, "{checked}");
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Each event in an alert rule or on the dashboard has the severity with which it is logged.
#[test]
fn alert_rules_name_existing_events() {
    let (rules, panels) = shipped();
    let known: BTreeSet<(&str, &str)> = alerts().collect();
    for expression in rules.iter().chain(&panels) {
        let mut rest = expression.as_str();
        while let Some((_, after)) = rest.split_once("event=\"") {
            let event = after.split('"').next().unwrap();
            assert!(known.iter().any(|(name, _)| *name == event), "{expression}");
            rest = after;
        }
    }
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
    let known: BTreeSet<(String, String)> = alerts()
        .map(|(event, severity)| (event.to_owned(), severity.to_owned()))
        .collect();
    let lacking: Vec<_> = loud.difference(&known).collect();
    assert!(
        lacking.is_empty(),
        "not in metrics::LOG_EVENTS: {lacking:?}"
    );
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
    for (event, _) in alerts() {
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
