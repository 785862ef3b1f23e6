//! The log lines of a real process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::Browser;
use crate::installation::{Installation, Running};
use crate::site::{Site, asks, base, management, sample};

fn runs<T>(work: impl Future<Output = T>) -> T {
    actix_web::rt::System::new().block_on(work)
}

fn lines(server: &Running) -> Vec<Value> {
    let log = server.log();
    log.iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn accesses(server: &Running) -> Vec<Value> {
    let mut lines = lines(server);
    lines.retain(|line| line["event"] == "http.request");
    lines
}

/// Waits for the line of the last request. The lines of all earlier requests are written by then.
fn settled(server: &Running, base: &str) -> Vec<Value> {
    let last = runs(async { Browser::new(base).get("/assets/last").await });
    let id = last.header("x-request-id").unwrap().to_owned();
    server.waits_for(|line| line.contains(&id) && line.contains("http.request"));
    accesses(server)
}

#[test]
fn requests_log_one_line_and_probes_none() {
    let site = Site::open(Installation::new());
    let server = site.installation.serve(&[]);
    let (public, probes) = (base(&server), management(&server));
    let ids: Vec<(String, u16, &str)> = runs(async {
        for path in [
            "/livez",
            "/readyz",
            "/startupz",
            "/healthz",
            "/metrics",
            "/version",
        ] {
            assert_eq!(asks(&probes, path).await.0, 200, "{path}");
        }
        let mut ids = Vec::new();
        let forged = [
            ("X-Request-Id", "01a3185c-5000-7000-8000-000000000001"),
            (
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
        ];
        for (path, route) in [
            ("/oauth2/jwks", "/oauth2/jwks"),
            ("/nothing?code=pcl_ac_x", "none"),
            ("/assets/x", "/assets/{name}"),
            ("/oauth2/token?client_secret=x", "/oauth2/token"),
            ("/oauth2/authorize?client_id=x&state=y", "/oauth2/authorize"),
        ] {
            let answer = Browser::new(&public).send("GET", path, &forged, None).await;
            let id = answer.header("x-request-id").unwrap().to_owned();
            let trace = answer.header("traceparent").unwrap().to_owned();
            assert!(!trace.contains("4bf92f3577b34da6"), "{trace}");
            assert_ne!(id, forged[0].1);
            // Without a trace id of a proxy, the trace id is the request id.
            assert!(
                trace.starts_with(&format!("00-{}-", id.replace('-', ""))),
                "{trace} {id}"
            );
            ids.push((id, answer.status, route));
        }
        ids
    });
    let accesses = settled(&server, &public);
    assert_eq!(accesses.len(), ids.len() + 1, "{accesses:#?}");
    for (line, (id, status, route)) in accesses.iter().zip(&ids) {
        assert_eq!(line["request_id"], **id);
        assert_eq!(
            (&line["status"], &line["route"]),
            (&(*status).into(), &(*route).into())
        );
        assert_eq!(
            (&line["level"], &line["target"], &line["method"]),
            (&"info".into(), &"access".into(), &"GET".into())
        );
        assert_eq!(line["ip"], "127.0.0.1");
        assert!(line["took_us"].is_u64());
        assert!(!line.to_string().contains('?'), "{line}");
        // The reason of a rejection is logged under the same id.
        let reasons: Vec<Value> = lines(&server)
            .into_iter()
            .filter(|line| line["request_id"] == **id && line["reason"].is_string())
            .collect();
        assert_eq!(reasons.len(), usize::from(*status >= 400), "{line}");
        for reason in reasons {
            assert_eq!(reason["level"], "warn");
            // One id: an error page shows the request id, and without a proxy the trace id is the same.
            assert!(reason.get("error_id").is_none() && reason.get("trace_id").is_none());
        }
    }
    is_as_documented(&lines(&server));
    for line in lines(&server) {
        let ts = line["ts"].as_str().unwrap();
        assert!(ts.len() == 24 && ts.ends_with('Z'), "{line}");
        for field in ["level", "node", "target"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
        let is_empty = |(name, value): (&String, &Value)| *value == "" || name.is_empty();
        assert!(!line.as_object().unwrap().iter().any(is_empty), "{line}");
        let said = line["event"].is_string() || line["message"].is_string();
        assert!(said, "{line}");
    }
}

/// Checks lines against the schema of docs/operations.md.
fn is_as_documented(lines: &[Value]) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
    let text = text.unwrap();
    let schema = text
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let schema: Value = serde_json::from_str(schema.unwrap()).unwrap();
    let kind = |value: &Value| match value {
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        _ => "other",
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for line in lines {
        let members = line.as_object().unwrap();
        assert!(
            required.iter().all(|name| members.contains_key(*name)),
            "{line}"
        );
        for (name, value) in members {
            let rule = schema["properties"]
                .get(name)
                .unwrap_or(&schema["additionalProperties"]);
            let types = rule["type"]
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![rule["type"].clone()]);
            let good = match rule["enum"].as_array() {
                Some(allowed) => allowed.contains(value),
                None => types.contains(&kind(value).into()),
            };
            assert!(good, "{name}: {line}");
        }
    }
}

/// The child process of the test below.
#[test]
#[ignore = "panics on purpose, for its parent alone"]
fn a_process_that_panics() {
    if std::env::var_os("PANICS_FOR_ITS_PARENT").is_none() {
        return;
    }
    let log = portcullis::config::Log {
        format: portcullis::config::Format::Json,
        level: "info".to_owned(),
    };
    portcullis::log::start(&log, portcullis::time::Clock::System);
    for secret in [None, Some("Canary9x7")] {
        let thread = std::thread::spawn(move || match secret {
            None => panic!("a fixed text"),
            Some(secret) => panic!("about {secret}"),
        });
        assert!(thread.join().is_err());
    }
    portcullis::log::flush();
}

#[test]
fn panic_is_logged_without_values() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lines::a_process_that_panics",
            "--ignored",
            "--nocapture",
        ])
        .env("PANICS_FOR_ITS_PARENT", "yes")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, said) in lines.iter().zip(["a fixed text".into(), Value::Null]) {
        assert_eq!(
            (&line["event"], &line["severity"]),
            (&"server.panicked".into(), &"high".into())
        );
        assert!(
            line["place"]
                .as_str()
                .unwrap()
                .contains("tests/operations/lines.rs:"),
            "{line}"
        );
        assert_eq!(line["said"], said);
    }
    assert!(!log.contains("Canary9x7"));
}

#[test]
fn log_lines_name_authenticated_client_and_user() {
    let site = Site::open(Installation::new());
    let server = site.installation.serve(&[]);
    let public = base(&server);
    runs(async {
        let web = site.web(&public);
        let mut alice = Browser::new(&public);
        let code = alice.allows(&web).await;
        web.redeems(&code).await.ok();
    });
    settled(&server, &public);
    let named = |event: &str| {
        let lines = lines(&server);
        let line = lines.iter().find(|line| line["event"] == event);
        line.unwrap_or_else(|| panic!("{event}: {lines:#?}"))
            .clone()
    };
    for event in ["session.rotated", "consent.given", "authorization.answered"] {
        let line = named(event);
        assert_eq!(line["client_id"], site.client_id, "{line}");
        let user = line["user_ref"]
            .as_str()
            .unwrap_or_else(|| panic!("{line}"));
        assert!(user.len() >= 16 && !user.contains("alice"));
        assert_eq!(line["ip"], "127.0.0.1");
    }
    let exchange = accesses(&server);
    let exchange = exchange
        .iter()
        .find(|line| line["route"] == "/oauth2/token")
        .unwrap();
    assert_eq!(exchange["client_id"], site.client_id);
}

#[test]
fn trusted_proxy_sets_request_and_trace_id() {
    let site = Site::open(Installation::new());
    let server = site
        .installation
        .serve(&[("PORTCULLIS__HTTP__TRUSTED_PROXIES", "127.0.0.1")]);
    let public = base(&server);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let taken = runs(async {
        let headers = [
            ("X-Request-Id", "edge:4711"),
            ("traceparent", parent.as_str()),
        ];
        let mut proxy = Browser::new(&public);
        let taken = proxy.send("GET", "/oauth2/jwks", &headers, None).await;
        for odd in ["x y", "a\"b", &"x".repeat(65), ""] {
            let headers = [("X-Request-Id", odd), ("traceparent", odd)];
            let answer = proxy.send("GET", "/oauth2/jwks", &headers, None).await;
            assert_eq!(answer.header("x-request-id").unwrap().len(), 36, "{odd}");
        }
        taken
    });
    assert_eq!(taken.header("x-request-id"), Some("edge:4711"));
    let sent = taken.header("traceparent").unwrap();
    assert!(
        sent.starts_with(&format!("00-{trace}-")) && sent.ends_with("-01"),
        "{sent}"
    );
    assert!(
        !sent.contains("00f067aa0ba902b7"),
        "the span of the server itself: {sent}"
    );
    let accesses = settled(&server, &public);
    assert_eq!(accesses[0]["request_id"], "edge:4711");
    assert_eq!(accesses[0]["trace_id"], trace);
}

#[test]
fn terminal_log_lines_are_human_readable() {
    let installation = Installation::new();
    let server = installation.serve(&[("PORTCULLIS__LOG__FORMAT", "pretty")]);
    let line = server.waits_for(|line| line.contains("server.started"));
    let (at, rest) = line.split_once(' ').unwrap();
    assert!(
        at.ends_with('Z') && rest.starts_with(" INFO server.started "),
        "{line}"
    );
    assert!(rest.contains(" database=sqlite"), "{line}");
    for wrong in ["loud", "portcullis", "portcullis=loud"] {
        let output = installation.run(&["serve"], &[("PORTCULLIS__LOG__LEVEL", wrong)]);
        crate::installation::refused(&output, 78, "invalid level");
    }
}

/// F31: the reader of the log closes the pipe.
#[test]
fn broken_log_pipe_does_not_stop_the_server() {
    let site = Site::open(Installation::new());
    let mut command = site.installation.command(&["serve"], &[]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("server.started") {
        line.clear();
        log.read_line(&mut line).unwrap();
    }
    drop(log);
    let started: Value = serde_json::from_str(&line).unwrap();
    let public = format!("http://{}", started["listen"].as_str().unwrap());
    runs(async {
        for _ in 0..50 {
            assert_eq!(asks(&public, "/nothing").await.0, 404);
        }
    });
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// F31: the reader of the log stalls.
#[test]
fn stalled_log_reader_only_loses_lines() {
    const REQUESTS: usize = 4_000;
    let site = Site::open(Installation::new());
    let mut command = site.installation.command(&["serve"], &[]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut started = String::new();
    while !started.contains("server.started") {
        started.clear();
        log.read_line(&mut started).unwrap();
    }
    let started: Value = serde_json::from_str(&started).unwrap();
    let address = |name: &str| format!("http://{}", started[name].as_str().unwrap());
    let (public, probes) = (address("listen"), address("management"));
    // From here on the test does not read.
    let (slowest, page) = runs(async {
        let client = crate::fixtures::browser::http(&public);
        let mut slowest = Duration::ZERO;
        for _ in 0..REQUESTS {
            let begun = Instant::now();
            let request = client
                .get(format!("{public}/assets/x"))
                .header("Host", "op.example");
            assert_eq!(request.send().await.unwrap().status(), 404);
            slowest = slowest.max(begun.elapsed());
        }
        (slowest, asks(&probes, "/metrics").await.1)
    });
    let dropped = |kind: &str| {
        let series = format!("portcullis_log_dropped_total{{kind=\"{kind}\"}}");
        sample(&page, &series).unwrap()
    };
    let given_up = dropped("access");
    assert!(given_up > 100.0, "{given_up}");
    assert_eq!(dropped("event"), 0.0, "what is not routine has more room");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let memory = sample(&page, "process_resident_memory_bytes").unwrap();
    assert!(memory < 512e6, "{memory}");
    // Once the test reads again, it gets all buffered lines, and the number of those that were dropped.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        let event = line["event"].as_str().unwrap_or_default().to_owned();
        if event == "log.dropped" {
            assert_eq!(line["lines"].as_f64(), Some(given_up), "{line}");
            break;
        }
        *seen.entry(event).or_default() += 1;
    }
    assert_eq!(seen["http.404"], REQUESTS);
    assert_eq!(seen["http.request"] as f64, REQUESTS as f64 - given_up);
    child.kill().unwrap();
    child.wait().unwrap();
}
