//! What files say. A refusal names file, line and field.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::cli::{client, resource, user};

/// A file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    clients: Option<Vec<Spanned<client::Fields>>>,
    resources: Option<Vec<Spanned<resource::Fields>>>,
    scopes: Option<BTreeMap<String, String>>,
    users: Option<Vec<Spanned<user::Fields>>>,
}

/// Everything that the files want. A kind that no file holds is `None`, and nothing of it is removed.
pub struct Wanted {
    pub clients: Option<Vec<Entry<client::Fields>>>,
    pub resources: Option<Vec<Entry<resource::Fields>>>,
    /// Scope and text.
    pub scopes: Option<Vec<Entry<(String, String)>>>,
    pub users: Option<Vec<Entry<user::Fields>>>,
}

/// An entry and where it stands.
pub struct Entry<T> {
    pub place: String,
    pub fields: T,
}

impl Wanted {
    /// Reads files, which together are one description.
    ///
    /// # Errors
    /// One sentence or a few lines that name file, line and field.
    pub fn read(paths: &[PathBuf]) -> Result<Self, String> {
        let mut wanted = Self {
            clients: None,
            resources: None,
            scopes: None,
            users: None,
        };
        for path in paths {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            wanted.add(path, &text)?;
        }
        unique(&wanted.clients, |fields| &fields.client_id)?;
        unique(&wanted.resources, |fields| &fields.audience)?;
        unique(&wanted.scopes, |(scope, _)| scope)?;
        unique(&wanted.users, |fields| &fields.username)?;
        Ok(wanted)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), String> {
        let file: File = toml::from_str(text).map_err(|error| refuse(path, text, &error))?;
        let place = |span: Range<usize>| format!("{}:{}", path.display(), line(text, span.start));
        take(&mut self.clients, file.clients, &place);
        take(&mut self.resources, file.resources, &place);
        take(&mut self.users, file.users, &place);
        if let Some(scopes) = file.scopes {
            let entries = scopes.into_iter().map(|fields| Entry {
                place: format!("{}: scopes", path.display()),
                fields,
            });
            self.scopes.get_or_insert_default().extend(entries);
        }
        Ok(())
    }
}

fn take<T>(
    all: &mut Option<Vec<Entry<T>>>,
    given: Option<Vec<Spanned<T>>>,
    place: &impl Fn(Range<usize>) -> String,
) {
    if let Some(given) = given {
        let entries = given.into_iter().map(|entry| Entry {
            place: place(entry.span()),
            fields: entry.into_inner(),
        });
        all.get_or_insert_default().extend(entries);
    }
}

/// The line of a byte, counted from one.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// What the parser says, in one line.
fn refuse(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map_or_else(String::new, |span| {
        let rest = text.get(span.start..).unwrap_or_default();
        let near: String = rest
            .chars()
            .take_while(|c| *c != '\n' && *c != '=')
            .take(60)
            .collect();
        format!(":{}: near `{}`", line(text, span.start), near.trim())
    });
    let why = error.message().replace('\n', " ");
    format!("{}{place}: {why}", path.display())
}

/// Refuses what is described twice.
fn unique<T>(entries: &Option<Vec<Entry<T>>>, name: impl Fn(&T) -> &String) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for entry in entries.iter().flatten() {
        let name = name(&entry.fields);
        if !seen.insert(name) {
            return Err(format!("{}: `{name}` is described twice", entry.place));
        }
    }
    Ok(())
}
