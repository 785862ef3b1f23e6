//! Displayed names of clients, APIs, users and scopes.

/// Checks that a name can be displayed: 1 to `most` characters, on one line, without characters that change the
/// direction of text.
///
/// # Errors
/// The rest of a sentence that begins with the field.
pub fn check(name: &str, most: usize) -> Result<(), String> {
    if name.trim().is_empty() || name.trim().chars().count() > most {
        return Err(format!("must have 1 to {most} characters"));
    }
    if name.chars().any(|c| c.is_control() || is_bidi_control(c)) {
        return Err("must not have control or text-direction characters".to_owned());
    }
    Ok(())
}

/// Returns whether a character changes the direction of text (UAX #9).
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names_are_one_line_in_one_direction() {
        assert_eq!(check("Corner Shop", 64), Ok(()));
        assert_eq!(check(&"x".repeat(64), 64), Ok(()));
        for bad in ["", "  ", "a\nb", "a\u{202e}b", &"x".repeat(65)] {
            assert!(check(bad, 64).is_err(), "{bad:?}");
        }
    }
}
