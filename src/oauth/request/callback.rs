//! The authorization response: RFC 6749 §4.1.2, OAuth 2.0 Form Post Response Mode, `iss` (RFC 9207).

use crate::oauth::error::Error;
use crate::secret::Secret;

/// A validated redirect URI. Every redirect to a client needs one, and only `redirect_uri::resolve` creates it.
#[derive(Clone, Debug)]
pub struct Callback {
    uri: String,
    sent: bool,
    mode: ResponseMode,
    state: Option<String>,
}

/// How the response is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseMode {
    /// In the query of the redirect URI.
    #[default]
    Query,
    /// In a form that the browser posts.
    FormPost,
}

/// A response that is ready to be sent.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Redirect the browser to this URI.
    Redirect(String),
    /// Let the browser post a form.
    Form {
        /// The redirect URI.
        action: String,
        /// Names and values.
        fields: Vec<(String, String)>,
    },
}

impl Callback {
    /// Creates the callback of a redirect URI that the request contained.
    pub(in crate::oauth) fn requested(uri: String) -> Self {
        Self {
            sent: true,
            ..Self::registered(uri)
        }
    }

    /// Creates the callback of the only registered redirect URI, for a request without one.
    pub(in crate::oauth) fn registered(uri: String) -> Self {
        Self {
            uri,
            sent: false,
            mode: ResponseMode::Query,
            state: None,
        }
    }

    /// Sets `state` and mode of the response.
    #[must_use]
    pub fn with(mut self, state: Option<String>, mode: ResponseMode) -> Self {
        self.state = state;
        self.mode = mode;
        self
    }

    /// Returns the redirect URI, exactly as in the request.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns how the response is sent.
    pub fn mode(&self) -> ResponseMode {
        self.mode
    }

    /// Returns whether the request contained it. Then the token request must contain it as well (RFC 6749 §4.1.3).
    pub fn sent(&self) -> bool {
        self.sent
    }

    /// Returns the successful response (§4.1.2).
    pub fn answer(&self, code: &Secret, issuer: &str) -> Delivery {
        self.deliver(vec![("code".into(), code.expose().into())], issuer)
    }

    /// Returns the error response (§4.1.2.1).
    pub fn refuse(&self, error: &Error, issuer: &str) -> Delivery {
        let fields = vec![
            ("error".into(), error.code.as_str().into()),
            ("error_description".into(), error.description().into()),
        ];
        self.deliver(fields, issuer)
    }

    fn deliver(&self, mut fields: Vec<(String, String)>, issuer: &str) -> Delivery {
        fields.extend(self.state.clone().map(|state| ("state".into(), state)));
        fields.push(("iss".into(), issuer.into()));
        match self.mode {
            ResponseMode::FormPost => Delivery::Form {
                action: self.uri.clone(),
                fields,
            },
            ResponseMode::Query => {
                let query = form_urlencoded::Serializer::new(String::new())
                    .extend_pairs(fields)
                    .finish();
                let joint = if self.uri.contains('?') { '&' } else { '?' };
                Delivery::Redirect(format!("{}{joint}{query}", self.uri))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_keeps_registered_query_and_exact_state() {
        let callback = Callback::requested("https://app.example/cb?a=1".into())
            .with(Some("x y&=%\"<+".into()), ResponseMode::Query);
        let Delivery::Redirect(to) = callback.answer(&Secret::from_text("c"), "https://op.example")
        else {
            panic!("not a redirect");
        };
        assert_eq!(
            to,
            "https://app.example/cb?a=1&code=c&state=x+y%26%3D%25%22%3C%2B&iss=https%3A%2F%2Fop.example"
        );
    }
}
