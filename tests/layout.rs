//! The layout that `src/lib.rs` promises: imports go one way, both databases have the same
//! migrations, each document has its file, each template its page.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From left to right; modules of one entry do not know each other.
const ORDER: [&[&str]; 11] = [
    &["main"],
    &["cli"],
    &["http"],
    &["app"],
    &["admin"],
    &["feed", "key_manager"],
    &["db"],
    &["oauth"],
    &["accounts", "keys"],
    &["log", "outbound", "telemetry"],
    &["audit", "config", "id", "metrics", "secret", "time"],
];

/// What the right-most modules may use of each other: ids are made of randomness and
/// instants, audit events name who and what by id.
const AMONG_NEIGHBOURS: [(&str, &str); 5] = [
    ("id", "secret"),
    ("id", "time"),
    ("audit", "id"),
    ("audit", "time"),
    ("secret", "time"),
];

/// Crates that the protocol must not know.
const FOREIGN: [(&[&str], &[&str]); 2] = [
    (
        &["oauth", "accounts", "keys"],
        &["actix_web", "diesel", "askama", "tokio", "reqwest"],
    ),
    (&["db"], &["actix_web", "askama", "reqwest"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `src/http/login.rs` → `http`.
fn module(file: &Path) -> String {
    let inner = file.strip_prefix(root().join("src")).unwrap();
    let first = inner
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn place(module: &str) -> Option<usize> {
    ORDER.iter().position(|layer| layer.contains(&module))
}

/// The code of a file without comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The modules of this crate that a text names: `crate::x`, `portcullis::x`, and inside braces.
fn named(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (_, rest) in ["crate::", "portcullis::"].iter().flat_map(|prefix| {
        code.match_indices(prefix)
            .map(|(at, _)| (at, &code[at + prefix.len()..]))
    }) {
        if let Some(group) = rest.strip_prefix('{') {
            let group = group.split('}').next().unwrap_or_default();
            modules.extend(group.split(',').map(|name| {
                name.trim()
                    .split("::")
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            }));
        } else {
            modules.insert(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    modules
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for file in sources(&root().join("src")) {
        let from = module(&file);
        let Some(here) = place(&from) else {
            assert_eq!(from, "lib", "{} has no place in the order", file.display());
            continue;
        };
        for to in named(&code(&file)) {
            let Some(there) = place(&to) else { continue };
            let neighbours = here == there && from != to;
            let allowed = AMONG_NEIGHBOURS.contains(&(from.as_str(), to.as_str()));
            if there < here || (neighbours && !allowed) {
                wrong.push(format!("{}: {from} → {to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_protocol_knows_no_http_and_no_sql() {
    let mut wrong = Vec::new();
    for file in sources(&root().join("src")) {
        let here = module(&file);
        for (_, foreign) in FOREIGN
            .iter()
            .filter(|(modules, _)| modules.contains(&here.as_str()))
        {
            for name in foreign
                .iter()
                .filter(|name| code(&file).contains(&format!("{name}::")))
            {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_their_own_module_reads_clock_and_randomness() {
    let readers = [
        (
            "time",
            ["Utc::now(", "SystemTime::now(", "Instant::now("].as_slice(),
        ),
        (
            "secret",
            ["SystemRandom::new(", "thread_rng(", "OsRng"].as_slice(),
        ),
    ];
    let mut wrong = Vec::new();
    for file in sources(&root().join("src")) {
        for (owner, calls) in readers {
            let text = code(&file);
            // aws-lc blinds signatures with randomness of its own; it takes the source as an argument.
            let blinding = file.ends_with("src/keys/provider.rs");
            if module(&file) != owner && !blinding {
                wrong.extend(
                    calls
                        .iter()
                        .filter(|call| text.contains(**call))
                        .map(|call| format!("{} calls {call}", file.display())),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_verifier_knows_nothing_of_ours() {
    for file in sources(&root().join("crates/verifier/src")) {
        assert!(!code(&file).contains("portcullis::"), "{}", file.display());
    }
}

#[test]
fn the_guard_knows_the_verifier_alone() {
    for file in sources(&root().join("crates/guard/src")) {
        assert!(!code(&file).contains("portcullis::"), "{}", file.display());
    }
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |folder: &str| -> BTreeSet<String> {
        fs::read_dir(root().join("migrations").join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let sqlite = names("sqlite");
    assert_eq!(sqlite, names("postgres"));
    assert!(!sqlite.is_empty());
}

#[test]
fn each_document_of_the_map_has_its_file() {
    let map = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows: Vec<&str> = map
        .lines()
        .filter(|line| line.starts_with("//! | ") && line.ends_with(".rs` |"))
        .collect();
    assert!(rows.len() > 10, "the map is gone");
    for row in rows {
        let file = row.rsplit('`').nth(1).unwrap();
        assert!(root().join("src").join(file).exists(), "{row}");
    }
}

#[test]
fn each_template_has_its_page() {
    let code: String = sources(&root().join("src"))
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    for entry in fs::read_dir(root().join("templates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".html") && name != "layout.html" {
            assert!(
                code.contains(&format!("path = \"{name}\"")),
                "no page renders {name}"
            );
        }
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for folder in [
        "src",
        "crates/guard/src",
        "crates/runtime/src",
        "crates/verifier/src",
    ] {
        for file in sources(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(
                text.starts_with("//!"),
                "{} has no first line",
                file.display()
            );
        }
    }
}

/// What stands between backticks in the tables of a page.
fn named_in_tables(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// The rows of the attack catalogue that are due.
fn due_rows() -> BTreeSet<String> {
    let read = |name: &str| fs::read_to_string(root().join("tests/attacks").join(name)).unwrap();
    let (catalogue, shipped) = (read("attacks.tsv"), read("shipped.txt"));
    let lines: BTreeSet<&str> = shipped.lines().collect();
    let due = |row: &&str| {
        let mut cells = row.split('\t');
        let (id, area) = (cells.next().unwrap(), cells.nth(1).unwrap());
        lines.contains(id) || lines.contains(format!("area {area}").as_str())
    };
    let rows = catalogue.lines().skip(1).filter(due);
    rows.map(|row| row.split('\t').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_security_page_tells_of_what_there_is() {
    let (rows, tests, files) = told_in("docs/security.md");
    assert!(
        rows > 80 && tests > 40 && files > 80,
        "{rows} {tests} {files}"
    );
}

#[test]
fn the_page_of_faults_tells_of_what_there_is() {
    let (rows, tests, _) = told_in("docs/faults.md");
    assert!(rows >= 10 && tests > 40, "{rows} {tests}");
    let text = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    for number in 1..=38 {
        assert!(text.contains(&format!("| F{number:02} ")), "F{number:02}");
    }
    let told: BTreeSet<String> = named_in_tables("docs/faults.md").into_iter().collect();
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("tests/faults")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let file = format!("tests/faults/{name}");
        for line in fs::read_to_string(root().join(&file)).unwrap().lines() {
            let test = line
                .strip_prefix("fn f")
                .and_then(|rest| rest.split('(').next());
            let Some(test) = test.filter(|test| test.as_bytes()[0].is_ascii_digit()) else {
                continue;
            };
            // Their shorter twins are told of.
            let is_long = test.ends_with("_in_full") || test.ends_with("_with_millions");
            if !is_long && !told.contains(&format!("{file}::f{test}")) {
                missing.push(format!("{file}::f{test}"));
            }
        }
    }
    assert!(missing.is_empty(), "not told of: {missing:#?}");
}

/// How many rows, tests and files the tables of a page name; each must be there.
#[track_caller]
fn told_in(page: &str) -> (usize, usize, usize) {
    let due = due_rows();
    let mut wrong = Vec::new();
    let (mut rows, mut tests, mut files) = (0, 0, 0);
    for name in named_in_tables(page) {
        let is_row = name.len() == 4
            && name.starts_with('A')
            && name[1..].bytes().all(|byte| byte.is_ascii_digit());
        if is_row {
            rows += 1;
            if !due.contains(&name) {
                wrong.push(format!("{name} is not due"));
            }
        } else if let Some((file, test)) = name.split_once("::") {
            tests += 1;
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !text.contains(&format!("fn {test}(")) {
                wrong.push(format!("{file} has no test {test}"));
            }
        } else if name.contains('/') && !name.contains(' ') || name.ends_with(".toml") {
            files += 1;
            if !root().join(&name).exists() {
                wrong.push(format!("{name} is not there"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    (rows, tests, files)
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("SECURITY.md")];
    pages.extend(
        fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "md")),
    );
    let mut wrong = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            let is_ours = !target.is_empty() && !target.contains("://");
            if is_ours && !page.parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
