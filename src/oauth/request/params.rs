//! Strict parsing of a query or form: RFC 6749 §3.1, §3.2 and App. B. A parameter may occur once, except
//! `resource` (RFC 8707 §2).

use crate::config::limits::FIELDS;
use crate::oauth::error::{Description, Detail, Error};

/// The fields of a query or form, in order.
#[derive(Clone, Debug, Default)]
pub struct Params {
    fields: Vec<(String, Result<String, Problem>)>,
    malformed_name: bool,
}

/// Why a parameter is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It occurs more than once.
    Duplicate,
    /// Its percent-encoding or its UTF-8 is invalid.
    Encoding,
    /// It contains a control character.
    ControlChar,
}

/// There are more fields than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Problem {
    /// Returns the reason in the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Duplicate => "dup_param",
            Self::Encoding => "utf8",
            Self::ControlChar => "control_char",
        }
    }

    /// Returns the public description.
    pub fn description(self) -> Description {
        match self {
            Self::Duplicate => Description::REPEATED,
            Self::Encoding => Description::ENCODING,
            Self::ControlChar => Description::CONTROL_CHARACTER,
        }
    }

    /// Returns the error of a request to the token, revocation or introspection endpoint.
    pub(in crate::oauth) fn in_token_request(self) -> Error {
        self.error("token.rejected")
    }

    fn error(self, event: &'static str) -> Error {
        let detail = Detail::new(event, self.reason());
        Error::invalid_request(detail.described(self.description()))
    }
}

impl From<Problem> for Error {
    /// Converts a problem to the error of an authorization request.
    fn from(problem: Problem) -> Self {
        problem.error("authz.rejected")
    }
}

impl Params {
    /// Parses `application/x-www-form-urlencoded` text.
    ///
    /// # Errors
    /// [`TooMany`] for more than 64 fields.
    pub fn parse(text: &[u8]) -> Result<Self, TooMany> {
        let mut params = Self::default();
        for field in text
            .split(|byte| *byte == b'&')
            .filter(|field| !field.is_empty())
        {
            if params.fields.len() == FIELDS {
                return Err(TooMany);
            }
            let mut halves = field.splitn(2, |byte| *byte == b'=');
            let name = decode(halves.next().unwrap_or_default());
            let value = decode(halves.next().unwrap_or_default());
            match name {
                Ok(name) => params.fields.push((name, value)),
                Err(_) => params.malformed_name = true,
            }
        }
        Ok(params)
    }

    /// Returns the value of a parameter that may occur once. An empty value counts as absent (§3.1).
    ///
    /// # Errors
    /// The parameter's [`Problem`].
    pub fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Problem::Duplicate),
            (Some(Err(problem)), None) => Err(*problem),
            (Some(Ok(value)), None) if has_control(value) => Err(Problem::ControlChar),
            (Some(Ok(value)), None) if !value.is_empty() => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// Returns the value of a parameter that may occur once, unchanged and possibly with control characters. For
    /// passwords.
    ///
    /// # Errors
    /// The parameter's [`Problem`].
    pub fn verbatim(&self, name: &str) -> Result<&str, Problem> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Problem::Duplicate),
            (Some(value), None) => value
                .as_ref()
                .map(String::as_str)
                .map_err(|problem| *problem),
            (None, None) => Ok(""),
        }
    }

    /// Returns all values of a parameter that may occur more than once.
    ///
    /// # Errors
    /// The first value's [`Problem`].
    pub fn many(&self, name: &str) -> Result<Vec<&str>, Problem> {
        self.values(name)
            .map(|value| match value {
                Ok(value) if has_control(value) => Err(Problem::ControlChar),
                Ok(value) => Ok(value.as_str()),
                Err(problem) => Err(*problem),
            })
            .filter(|value| *value != Ok(""))
            .collect()
    }

    /// Returns whether the parameter occurs, even if it is empty or malformed.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Returns the first problem of any field, known or unknown, except duplicates.
    pub fn first_problem(&self) -> Option<Problem> {
        if self.malformed_name {
            return Some(Problem::Encoding);
        }
        self.fields.iter().find_map(|(_, value)| match value {
            Ok(value) => has_control(value).then_some(Problem::ControlChar),
            Err(problem) => Some(*problem),
        })
    }

    /// Rejects a request to the token, revocation or introspection endpoint if any field has a problem.
    pub(in crate::oauth) fn check_token_request(&self) -> Result<(), Error> {
        match self.first_problem() {
            Some(problem) => Err(problem.in_token_request()),
            None => Ok(()),
        }
    }

    /// Returns the names in order, including repeated ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &Result<String, Problem>> {
        self.fields
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value)
    }
}

/// Decodes a name or value (App. B): `+` is a space, `%XX` is a byte, the bytes are UTF-8. Unlike the WHATWG
/// parser, it rejects malformed input.
fn decode(text: &[u8]) -> Result<String, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next())? << 4 | hex(rest.next())?,
            byte => *byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| Problem::Encoding)
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn hex(digit: Option<&u8>) -> Result<u8, Problem> {
    digit
        .and_then(|digit| char::from(*digit).to_digit(16))
        .map(|digit| digit as u8)
        .ok_or(Problem::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn plus_and_percent_20_are_both_a_space() {
        let params = params("scope=a+b&other=a%20b");
        assert_eq!(params.one("scope"), params.one("other"));
        assert_eq!(params.one("scope"), Ok(Some("a b")));
    }

    #[test]
    fn repeated_parameter_is_rejected_and_empty_one_is_absent() {
        let params = params("a=1&a=1&b=&c&resource=x&resource=y&resource=");
        assert_eq!(params.one("a"), Err(Problem::Duplicate));
        assert_eq!(params.one("b"), Ok(None));
        assert_eq!(params.one("c"), Ok(None));
        assert!(params.has("b") && !params.has("d"));
        assert_eq!(params.many("resource"), Ok(vec!["x", "y"]));
    }

    #[test]
    fn malformed_values_are_reported_by_problem() {
        for (text, problem) in [
            ("a=%zz", Problem::Encoding),
            ("a=%", Problem::Encoding),
            ("a=%f", Problem::Encoding),
            ("a=%ff", Problem::Encoding),
            ("a=%00", Problem::ControlChar),
            ("a=x%0d%0ay", Problem::ControlChar),
        ] {
            assert_eq!(params(text).one("a"), Err(problem), "{text}");
            assert_eq!(params(text).first_problem(), Some(problem));
        }
        assert_eq!(params("%zz=1").first_problem(), Some(Problem::Encoding));
    }

    #[test]
    fn more_than_64_fields_are_rejected() {
        let fields = |n: usize| {
            (0..n)
                .map(|i| format!("x{i}=1"))
                .collect::<Vec<_>>()
                .join("&")
        };
        assert!(Params::parse(fields(64).as_bytes()).is_ok());
        assert_eq!(Params::parse(fields(65).as_bytes()).unwrap_err(), TooMany);
    }
}
