//! The layout that `src/lib.rs` promises: imports go one way, both databases have the same
//! migrations, each document has its file, each template its page.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use imports::Sources;

static SOURCES: LazyLock<Sources> = LazyLock::new(|| Sources::read(root()));

/// From left to right; modules of one entry do not import each other.
const ORDER: [&[&str]; 12] = [
    &["main"],
    &["cli"],
    &["http"],
    &["app"],
    &["checks", "tasks"],
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

/// Crates that the protocol must not use.
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

fn layer(module: &str) -> Option<usize> {
    ORDER.iter().position(|layer| layer.contains(&module))
}

/// Returns the code of a file without comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Imports that a rule forbids, as `file → file`.
fn forbidden(is_forbidden: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let sources = &*SOURCES;
    let mut wrong = Vec::new();
    for (from, imports) in sources.imports() {
        for to in imports {
            if is_forbidden(from, to) {
                wrong.push(format!("{from} → {to}"));
            }
        }
    }
    wrong
}

/// Returns the top-level module of a file below `src`: `http/ui/login.rs` → `http`.
fn top(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

#[test]
fn imports_go_one_way() {
    let sources = &*SOURCES;
    for file in sources.names() {
        let has_layer = file == "lib.rs" || layer(top(file)).is_some();
        assert!(has_layer, "{file} has no layer in the order");
    }
    let wrong = forbidden(|from, to| {
        let (from, to) = (top(from), top(to));
        let (Some(here), Some(there)) = (layer(from), layer(to)) else {
            return false;
        };
        let are_neighbours = here == there && from != to;
        there < here || are_neighbours && !AMONG_NEIGHBOURS.contains(&(from, to))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_import_each_other_in_no_circle() {
    let sources = &*SOURCES;
    let circles = sources.circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn parts_of_http_do_not_import_each_other() {
    let part = |file: &str| {
        let inner = file.strip_prefix("http/")?;
        let part = inner.split('/').next()?.trim_end_matches(".rs");
        ["oauth", "ui", "admin", "management", "feed"]
            .into_iter()
            .find(|name| *name == part)
    };
    let wrong = forbidden(|from, to| {
        let (Some(here), Some(there)) = (part(from), part(to)) else {
            return false;
        };
        // Subscribers of the feed authenticate as clients.
        let is_client_authentication = here == "feed" && to == "http/oauth/client_auth.rs";
        here != there && !is_client_authentication
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What only certain files may use: the end of a path, a type that is built, or the name of a crate. No file
/// may use what has no files here.
const RESERVED: [(&[&str], &[&str]); 12] = [
    // The audit log records its own clean-up in the transaction of the clean-up.
    (
        &["Event", "{"],
        &["admin/", "db/audit.rs", "key_manager/", "oauth/"],
    ),
    (&["Clock", "System"], COMPOSITION),
    (&["Entropy", "system"], COMPOSITION),
    (&["Utc", "now"], &["time.rs"]),
    (&["SystemTime", "now"], &[]),
    (&["Instant", "now"], &["time.rs"]),
    (&["thread_rng"], &[]),
    (&["OsRng"], &[]),
    // aws-lc blinds signatures with its own randomness, and takes the source as an argument.
    (&["SystemRandom", "new"], &["secret.rs", "keys/provider.rs"]),
    (
        &["reqwest"],
        &[
            "outbound.rs",
            "telemetry/",
            "cli/demo",
            "cli/doctor",
            "cli/healthcheck.rs",
            "cli/request.rs",
        ],
    ),
    (&["clap"], &["cli/", "main.rs"]),
    (&["println"], &["cli/"]),
];

/// Where clock and randomness enter the program.
const COMPOSITION: &[&str] = &["main.rs", "cli/command.rs", "cli/serve.rs", "cli/demo.rs"];

#[test]
fn reserved_items_are_used_only_where_they_belong() {
    let sources = &*SOURCES;
    let mut wrong = Vec::new();
    for (item, places) in RESERVED {
        let mut is_used = places.is_empty();
        for file in sources.names() {
            let uses = match item {
                [name, "{"] => sources.builds(file, name),
                ["reqwest" | "clap"] => sources.names_crate(file, item[0]),
                _ => sources.calls(file, item),
            };
            let is_allowed = places.iter().any(|place| file.starts_with(place));
            is_used |= uses;
            if uses && !is_allowed {
                wrong.push(format!("{file} uses {}", item.join("::")));
            }
        }
        // A row that matches nothing would check nothing.
        if !is_used {
            wrong.push(format!("no file uses {}", item.join("::")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn protocol_imports_no_http_and_no_sql() {
    let mut wrong = Vec::new();
    for (modules, foreign) in FOREIGN {
        for file in SOURCES.names().filter(|file| modules.contains(&top(file))) {
            let used = foreign
                .iter()
                .filter(|name| SOURCES.names_crate(file, name));
            wrong.extend(used.map(|name| format!("{file} uses {name}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn verifier_does_not_import_the_server() {
    for file in sources(&root().join("crates/verifier/src")) {
        assert!(!code(&file).contains("portcullis::"), "{}", file.display());
    }
}

#[test]
fn guard_does_not_import_the_server() {
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
fn every_specification_names_an_existing_file() {
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
fn files_and_functions_of_the_map_exist() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let named: Vec<&str> = map.split('`').skip(1).step_by(2).collect();
    let mut wrong = Vec::new();
    let mut functions = 0;
    for name in named {
        let (path, function) = name.split_once("::").unwrap_or((name, ""));
        let is_path = ["src/", "tests/", "crates/"]
            .iter()
            .any(|folder| path.starts_with(folder));
        if !is_path {
            continue;
        }
        if !root().join(path).exists() {
            wrong.push(format!("{path} does not exist"));
        } else if !function.is_empty() {
            functions += 1;
            let text = fs::read_to_string(root().join(path)).unwrap();
            if !text.contains(&format!("fn {function}(")) {
                wrong.push(format!("{path} has no function {function}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(functions > 5, "the map names {functions} functions");
}

#[test]
fn every_template_is_rendered() {
    let code: String = sources(&root().join("src"))
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let names: Vec<String> = fs::read_dir(root().join("templates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".html"))
        .collect();
    let templates: String = names
        .iter()
        .map(|name| fs::read_to_string(root().join("templates").join(name)).unwrap())
        .collect();
    for name in names.iter().filter(|name| *name != "layout.html") {
        let is_rendered = code.contains(&format!("path = \"{name}\""));
        let is_included = templates.contains(&format!("include \"{name}\""));
        assert!(is_rendered || is_included, "no page renders {name}");
    }
}

/// No field of a page is ignored: a handler reads each.
#[test]
fn every_form_field_is_read() {
    let mut read = BTreeSet::new();
    for file in sources(&root().join("src/http/ui")) {
        let text = fs::read_to_string(file).unwrap();
        for call in [".one(\"", ".many(\"", ".verbatim(\""] {
            let names = text.split(call).skip(1);
            read.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
    let mut count = 0;
    for entry in fs::read_dir(root().join("templates")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for tag in text.split('<').filter(|tag| {
            let element = tag.split([' ', '>']).next().unwrap_or_default();
            ["input", "button", "select", "textarea"].contains(&element)
        }) {
            let Some((_, rest)) = tag.split_once(" name=\"") else {
                continue;
            };
            let name = rest.split('"').next().unwrap_or_default();
            // Pages that repeat the parameters of a request have names from a list.
            if name.contains('{') {
                continue;
            }
            count += 1;
            assert!(
                read.contains(name),
                "{}: `{name}` is not read",
                path.display()
            );
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_source_file_starts_with_module_docs() {
    for folder in ["src", "crates/guard/src", "crates/verifier/src"] {
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

/// Returns everything between backticks in the tables of a page.
fn named_in_tables(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// Returns the rows of the attack catalogue that are enabled.
fn enabled_rows() -> BTreeSet<String> {
    let read = |name: &str| fs::read_to_string(root().join("tests/attacks").join(name)).unwrap();
    let (catalogue, shipped) = (read("attacks.tsv"), read("shipped.txt"));
    let lines: BTreeSet<&str> = shipped.lines().collect();
    let enabled = |row: &&str| {
        let mut cells = row.split('\t');
        let (id, area) = (cells.next().unwrap(), cells.nth(1).unwrap());
        lines.contains(id) || lines.contains(format!("area {area}").as_str())
    };
    let rows = catalogue.lines().skip(1).filter(enabled);
    rows.map(|row| row.split('\t').next().unwrap().to_owned())
        .collect()
}

#[test]
fn security_page_names_existing_rows_tests_and_files() {
    let (rows, tests, files) = names_in("docs/security.md");
    assert!(
        rows > 80 && tests > 40 && files > 80,
        "{rows} {tests} {files}"
    );
}

#[test]
fn owasp_page_names_existing_rows_tests_and_files() {
    let (rows, tests, files) = names_in("docs/owasp.md");
    assert!(
        rows > 60 && tests > 40 && files > 60,
        "{rows} {tests} {files}"
    );
    let text = fs::read_to_string(root().join("docs/owasp.md")).unwrap();
    // Every requirement of level 1 and 2 of these chapters, alone or in a range.
    let first = text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
    let named: BTreeSet<&str> = first.map(|name| name.trim_end_matches(',')).collect();
    for (section, count) in [
        ("6.1", 3),
        ("6.2", 12),
        ("6.3", 4),
        ("6.4", 4),
        ("7.1", 3),
        ("7.2", 4),
        ("7.3", 2),
        ("7.4", 5),
        ("7.5", 2),
        ("7.6", 2),
        ("9.1", 3),
        ("9.2", 4),
        ("10.1", 2),
        ("10.3", 4),
        ("10.4", 11),
        ("10.6", 2),
        ("10.7", 3),
    ] {
        for number in 1..=count {
            let name = format!("{section}.{number}");
            assert!(named.contains(name.as_str()), "{name} has no row");
        }
    }
    for number in 1..=10 {
        assert!(
            named.contains(format!("API{number}").as_str()),
            "API{number}"
        );
    }
}

#[test]
fn faults_page_names_every_fault_test() {
    let (rows, tests, _) = names_in("docs/faults.md");
    assert!(rows >= 10 && tests > 40, "{rows} {tests}");
    let text = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    for number in 1..=38 {
        assert!(text.contains(&format!("| F{number:02} ")), "F{number:02}");
    }
    let named: BTreeSet<String> = named_in_tables("docs/faults.md").into_iter().collect();
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
            // Their shorter variants are named.
            let is_long = test.ends_with("_in_full") || test.contains("_with_millions");
            if !is_long && !named.contains(&format!("{file}::f{test}")) {
                missing.push(format!("{file}::f{test}"));
            }
        }
    }
    assert!(missing.is_empty(), "not named: {missing:#?}");
}

/// Asserts that each row, test and file that the tables of a page name exists. Returns how many there are.
#[track_caller]
fn names_in(page: &str) -> (usize, usize, usize) {
    let enabled = enabled_rows();
    let mut wrong = Vec::new();
    let (mut rows, mut tests, mut files) = (0, 0, 0);
    for name in named_in_tables(page) {
        let is_row = name.len() == 4
            && name.starts_with('A')
            && name[1..].bytes().all(|byte| byte.is_ascii_digit());
        if is_row {
            rows += 1;
            if !enabled.contains(&name) {
                wrong.push(format!("{name} is not enabled"));
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
fn links_between_documents_resolve() {
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
