//! Words that the style sheet (`docs/style.md`) replaces: no file contains them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

const DENIED: [&str; 10] = [
    "whoever",
    "nobody",
    "somebody",
    "anew",
    "for ever",
    "comes to be",
    "is none",
    "of ours",
    "of theirs",
    "stands",
];

const FOLDERS: [&str; 10] = [
    "src",
    "crates",
    "tests",
    "docs",
    "templates",
    "migrations",
    "benches",
    "fuzz",
    "packaging",
    ".ci",
];

const KINDS: [&str; 7] = ["rs", "md", "html", "toml", "mjs", "py", "sql"];

/// This test, and what is generated or installed.
const SKIPPED: [&str; 4] = ["tests/language.rs", "node_modules", "target", ".venv"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        if SKIPPED.iter().any(|skipped| name.ends_with(skipped)) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path
            .extension()
            .is_some_and(|kind| KINDS.contains(&kind.to_str().unwrap_or_default()))
        {
            files.push(path);
        }
    }
}

/// Returns how often the denied words and phrases occur as whole words.
fn occurrences(text: &str) -> usize {
    // `is None` is Python.
    let text = text.replace(" is None", "").to_lowercase();
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = |at: usize, denied: &str| {
        !is_word(text[..at].chars().next_back())
            && !is_word(text[at + denied.len()..].chars().next())
    };
    DENIED
        .iter()
        .map(|denied| {
            text.match_indices(denied)
                .filter(|(at, _)| whole(*at, denied))
                .count()
        })
        .sum()
}

#[test]
fn no_file_contains_denied_words() {
    let mut files: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .collect();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files);
    }
    assert!(files.len() > 400, "{} files", files.len());
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let count = occurrences(&fs::read_to_string(path).ok()?);
            let name = path.strip_prefix(root()).unwrap().display();
            (count > 0).then(|| format!("{name}: {count} denied words; see docs/style.md"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
