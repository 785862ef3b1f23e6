//! The `claims` request parameter: OIDC Core §5.5. A repeated member or a depth of more than 8 is malformed.
//! Unknown claims are ignored.

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::config::limits::JSON_DEPTH;

/// The part of the parameter that this server evaluates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimsRequest {
    /// The values of `acr` of which one must be met (§5.5.1.1). `None` if `acr` is not essential.
    pub essential_acr: Option<Vec<String>>,
}

/// The value is not JSON of the expected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl ClaimsRequest {
    /// Parses the value of the parameter.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = Strict { depth: 0 }
            .deserialize(&mut reader)
            .map_err(|_| Malformed)?;
        reader.end().map_err(|_| Malformed)?;
        let members = value.as_object().ok_or(Malformed)?;
        for member in ["id_token", "userinfo"] {
            if members
                .get(member)
                .is_some_and(|value| !value.is_object() && !value.is_null())
            {
                return Err(Malformed);
            }
        }
        let acr = value
            .pointer("/id_token/acr")
            .filter(|acr| acr["essential"] == true);
        Ok(Self {
            essential_acr: acr.map(accepted_values),
        })
    }
}

fn accepted_values(request: &Value) -> Vec<String> {
    let listed = request["values"].as_array().into_iter().flatten();
    listed
        .chain(request.get("value"))
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

/// Deserialises a value, limits its depth and rejects repeated members.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(&self) -> Result<Self, E> {
        if self.depth == JSON_DEPTH {
            return Err(E::custom("too deep"));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let (mut values, inner) = (Vec::new(), self.deeper()?);
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (mut members, inner) = (Map::new(), self.deeper()?);
        while let Some(name) = map.next_key_seed(Name)? {
            let value = map.next_value_seed(inner)?;
            if members.insert(name, value).is_some() {
                return Err(de::Error::custom("a repeated member"));
            }
        }
        Ok(members.into())
    }
}

struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_essential_acr_is_read() {
        let essential =
            ClaimsRequest::parse(r#"{"id_token":{"acr":{"essential":true,"values":["a","b"]}}}"#);
        assert_eq!(
            essential.unwrap().essential_acr,
            Some(vec!["a".into(), "b".into()])
        );
        let voluntary =
            ClaimsRequest::parse(r#"{"id_token":{"acr":{"values":["a"]}},"userinfo":{"x":null}}"#);
        assert_eq!(voluntary.unwrap().essential_acr, None);
    }

    #[test]
    fn depth_duplicates_and_trailing_data_are_malformed() {
        let nested = |n: usize| {
            format!(
                r#"{{"userinfo":{}{}}}"#,
                r#"{"a":"#.repeat(n),
                "1".to_owned() + &"}".repeat(n)
            )
        };
        assert!(ClaimsRequest::parse(&nested(7)).is_ok());
        for bad in [
            nested(8).as_str(),
            &nested(7).replace('1', "{}"),
            &nested(10_000),
            r#"{"a":1,"a":2}"#,
            "{} x",
            "[]",
            "{",
            r#"{"id_token":1}"#,
        ] {
            assert_eq!(ClaimsRequest::parse(bad), Err(Malformed));
        }
    }
}
