//! Prints the data of commands as a table or as JSON.

use serde_json::Value;

use super::Output;

/// Prints rows under their column names, or `values` as JSON.
pub fn print(output: Output, columns: &[&str], rows: &[Vec<String>], values: &Value) {
    match output {
        Output::Json => println!("{values:#}"),
        Output::Table => print!("{}", aligned(columns, rows)),
    }
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
    let all: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in all {
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
}
