//! What the documentation shows is what the tests run.

use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn page(name: &str) -> String {
    fs::read_to_string(docs().join(name)).unwrap()
}

/// The targets of all links of a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    targets.map(|rest| rest.split([')', '#']).next().unwrap())
}

/// Blocks that stand below the link of their file, with its path.
fn shown(text: &str) -> Vec<(String, String)> {
    let mut blocks = text.split("\n```");
    let mut before = blocks.next().unwrap();
    let mut found = vec![];
    // Inside and outside take turns.
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
fn shown_files_are_the_files() {
    let shown = shown(&page("protect-a-service.md"));
    assert_eq!(shown.len(), 5);
    for (file, code) in shown {
        let text = fs::read_to_string(docs().join(&file)).unwrap();
        assert!(
            code == text,
            "docs/protect-a-service.md shows another {file}"
        );
    }
}

#[test]
fn each_link_leads_somewhere_and_each_example_is_linked() {
    let pages = ["guard.md", "protect-a-service.md"].map(page);
    for link in pages.iter().flat_map(|page| links(page)) {
        assert!(docs().join(link).exists(), "{link}");
    }
    for entry in fs::read_dir(docs().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let link = format!("](examples/{name})");
        assert!(
            pages.iter().any(|page| page.contains(&link)),
            "{name} is linked nowhere"
        );
    }
}

#[test]
fn untested_examples_say_so() {
    for name in ["traefik.yml", "envoy.yaml"] {
        assert!(
            page(&format!("examples/{name}")).starts_with("# UNTESTED"),
            "{name}"
        );
    }
}

#[test]
fn each_setting_is_documented() {
    let source = include_str!("../../src/settings.rs");
    let guard = page("guard.md");
    // Those that the environment knows.
    let known = source.split("\n            \"").skip(1);
    let known = known.filter_map(|rest| rest.split("\" =>").next());
    let is_variable = |name: &&str| name.starts_with(|c: char| c.is_ascii_uppercase());
    let known: Vec<_> = known.filter(is_variable).collect();
    assert_eq!(known.len(), 10, "{known:?}");
    for variable in known.into_iter().chain(["LOG__LEVEL"]) {
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
