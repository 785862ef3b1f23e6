//! Reads the files. Error messages name file, line and field.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::cli::{client, resource, user};

/// The contents of one file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    clients: Option<Vec<Spanned<client::Fields>>>,
    resources: Option<Vec<Spanned<resource::Fields>>>,
    scopes: Option<BTreeMap<String, String>>,
    users: Option<Vec<Spanned<user::Fields>>>,
}

/// The contents of all files. A kind of object that no file contains is `None`, and none of it is removed.
pub struct Wanted {
    pub clients: Option<Vec<Entry<client::Fields>>>,
    pub resources: Option<Vec<Entry<resource::Fields>>>,
    /// Scope and text.
    pub scopes: Option<Vec<Entry<(String, String)>>>,
    pub users: Option<Vec<Entry<user::Fields>>>,
}

/// An entry and its location.
pub struct Entry<T> {
    pub location: String,
    pub fields: T,
}

impl Wanted {
    /// Reads files, which together form one description.
    ///
    /// # Errors
    /// A message that names file, line and field.
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
        let file: File = toml::from_str(text).map_err(|error| parse_error(path, text, &error))?;
        let location =
            |span: Range<usize>| format!("{}:{}", path.display(), line(text, span.start));
        take(&mut self.clients, file.clients, &location);
        take(&mut self.resources, file.resources, &location);
        take(&mut self.users, file.users, &location);
        if let Some(scopes) = file.scopes {
            let entries = scopes.into_iter().map(|fields| Entry {
                location: format!("{}: scopes", path.display()),
                fields,
            });
            self.scopes.get_or_insert_default().extend(entries);
        }
        Ok(())
    }
}

fn take<T>(
    all: &mut Option<Vec<Entry<T>>>,
    entries: Option<Vec<Spanned<T>>>,
    location: &impl Fn(Range<usize>) -> String,
) {
    if let Some(entries) = entries {
        let entries = entries.into_iter().map(|entry| Entry {
            location: location(entry.span()),
            fields: entry.into_inner(),
        });
        all.get_or_insert_default().extend(entries);
    }
}

/// Returns the line number of a byte offset, starting at 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Formats an error of the parser as one line.
fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let location = error.span().map_or_else(String::new, |span| {
        let rest = text.get(span.start..).unwrap_or_default();
        let near: String = rest
            .chars()
            .take_while(|c| *c != '\n' && *c != '=')
            .take(60)
            .collect();
        format!(":{}: near `{}`", line(text, span.start), near.trim())
    });
    let why = error.message().replace('\n', " ");
    format!("{}{location}: {why}", path.display())
}

/// Rejects duplicate entries.
fn unique<T>(entries: &Option<Vec<Entry<T>>>, name: impl Fn(&T) -> &String) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for entry in entries.iter().flatten() {
        let name = name(&entry.fields);
        if !seen.insert(name) {
            return Err(format!("{}: duplicate entry `{name}`", entry.location));
        }
    }
    Ok(())
}
