//! Checks the documentation against the examples, the settings and the files it links to.

use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn page(name: &str) -> String {
    fs::read_to_string(docs().join(name)).unwrap()
}

/// Returns the targets of all links of a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    targets.map(|rest| rest.split([')', '#']).next().unwrap())
}

/// Returns the code blocks that follow a link to a file, with the path of the file.
fn embedded_files(text: &str) -> Vec<(String, String)> {
    let mut blocks = text.split("\n```");
    let mut before = blocks.next().unwrap();
    let mut found = vec![];
    // Text inside and outside of code blocks alternates.
    while let (Some(block), Some(outside)) = (blocks.next(), blocks.next()) {
        let paragraph = before.trim_end().rsplit("\n\n").next().unwrap();
        if paragraph.starts_with("[`") && paragraph.ends_with(')') {
            let file = links(paragraph).next().unwrap();
            let (_, code) = block.split_once('\n').unwrap();
            found.push((file.to_owned(), format!("{code}\n")));
        }
        before = outside;
    }
    found
}

#[test]
fn embedded_examples_match_their_files() {
    let embedded = embedded_files(&page("protect-a-service.md"));
    assert_eq!(embedded.len(), 5);
    for (file, code) in embedded {
        let text = fs::read_to_string(docs().join(&file)).unwrap();
        assert!(
            code == text,
            "docs/protect-a-service.md differs from {file}"
        );
    }
}

#[test]
fn links_resolve_and_every_example_is_linked() {
    let pages = ["guard.md", "protect-a-service.md", "tls.md"].map(page);
    for link in pages.iter().flat_map(|page| links(page)) {
        assert!(docs().join(link).exists(), "{link}");
    }
    for entry in fs::read_dir(docs().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let link = format!("](examples/{name})");
        assert!(
            pages.iter().any(|page| page.contains(&link)),
            "{name} is not linked"
        );
    }
}

#[test]
fn untested_examples_are_marked() {
    for name in ["traefik.yml", "envoy.yaml"] {
        assert!(
            page(&format!("examples/{name}")).starts_with("# UNTESTED"),
            "{name}"
        );
    }
}

#[test]
fn every_setting_is_documented() {
    let source = include_str!("../../src/settings.rs");
    let guard = page("guard.md");
    // The match arms of `Settings::set`.
    let variables = source.split("\n            \"").skip(1);
    let variables = variables.filter_map(|rest| rest.split("\" =>").next());
    let is_variable = |name: &&str| name.starts_with(|c: char| c.is_ascii_uppercase());
    let variables: Vec<_> = variables.filter(is_variable).collect();
    assert_eq!(variables.len(), 10, "{variables:?}");
    for variable in variables.into_iter().chain(["LOG__LEVEL"]) {
        let key = variable.to_lowercase().replace("__", ".");
        let row = format!("| `{key}` | `{variable}`");
        assert!(guard.contains(&row), "{row}");
    }
    for key in [
        "prefix",
        "methods",
        "audience",
        "scopes",
        "max_age",
        "acr",
        "authenticated_within",
    ] {
        assert!(guard.contains(&format!("| `{key}` | ")), "{key}");
    }
}
