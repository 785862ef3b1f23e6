//! Environment variables that look like settings.

/// Returns the key that a variable seems to set, if its name is that of a key with other underscores or in lower case.
/// Variables whose name starts with `prefix`, such as `PORTCULLIS__`, are read, so they are never misspelled.
pub fn misspelled_key<'k>(
    name: &str,
    prefix: &str,
    keys: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    if name.starts_with(prefix) {
        return None;
    }
    let spelled = words(name);
    let rest = spelled.strip_prefix(&words(prefix))?;
    let rest = rest.strip_prefix('_')?;
    keys.into_iter().find(|key| words(key) == rest)
}

/// Returns the words of a name or key in upper case, with one underscore between two.
fn words(text: &str) -> String {
    let words = text.split(['_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_uppercase()
}
