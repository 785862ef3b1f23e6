//! Prints the data of commands as a table or as JSON.

use portcullis_runtime::is_hidden;
use serde_json::Value;

use super::Output;

/// Prints rows under their column names, or `values` as JSON.
pub fn print(output: Output, columns: &[&str], rows: &[Vec<String>], values: &Value) {
    match output {
        Output::Json => println!("{}", json(values)),
        Output::Table => print!("{}", aligned(columns, rows)),
    }
}

/// Returns a value as JSON on several lines. Characters that a terminal would interpret are escaped.
pub fn json(value: &Value) -> String {
    let text = format!("{value:#}");
    // Line breaks between members are part of the layout; those inside strings are escaped already.
    escape(&text, |c| c != '\n' && is_hidden(c))
}

/// Returns a text of a user, a client or a token as one line without characters that a terminal would interpret.
pub fn printable(text: &str) -> String {
    escape(text, is_hidden)
}

/// Escapes the characters that `is_escaped` selects. All of them are below U+10000.
fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_escaped(c) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => escaped.push(c),
        }
    }
    escaped
}

/// Prints one object, with a line for each field that is not null.
pub fn print_one(output: Output, value: &Value) {
    let rows: Vec<Vec<String>> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            vec![
                name.clone(),
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
            ]
        })
        .collect();
    print(output, &["field", "value"], &rows, value);
}

fn aligned(columns: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
    let rows = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect());
    let all: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn column_is_as_wide_as_its_widest_cell() {
        let rows = vec![
            vec!["a".to_owned(), "ü".to_owned()],
            vec!["long".to_owned(), "b".to_owned()],
        ];
        assert_eq!(
            super::aligned(&["x", "name"], &rows),
            "X     NAME\na     ü\nlong  b\n"
        );
    }

    #[test]
    fn hidden_characters_are_escaped() {
        let hostile = "a\u{1b}[2J\r\u{202e}\n\u{9b}";
        let rows = vec![vec![hostile.to_owned()]];
        let table = super::aligned(&["x"], &rows);
        let json = super::json(&serde_json::json!({ "x": hostile }));
        let is_raw = |c: char| c != '\n' && super::is_hidden(c);
        assert_eq!((table.lines().count(), table.contains(is_raw)), (2, false));
        assert!(!json.contains(is_raw), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["x"], hostile);
    }
}
