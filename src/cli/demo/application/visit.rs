//! The steps of one browser's visit.

use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// One browser's visit.
#[derive(Clone, Default)]
pub struct Visit {
    pub state: String,
    pub nonce: String,
    pub verifier: String,
    pub code: String,
    pub tokens: Option<Tokens>,
    pub revoked: bool,
    steps: Vec<Step>,
}

/// The tokens of the user.
#[derive(Clone)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
    /// When the access token expires.
    pub expires_at: Timestamp,
}

#[derive(Clone)]
pub struct Step {
    pub number: usize,
    pub title: String,
    pub text: String,
    pub outcome: Outcome,
    pub finding: Option<Finding>,
    pub panels: Vec<Panel>,
}

/// The result of a step.
#[derive(Clone, Copy)]
pub enum Outcome {
    Todo,
    Done,
    /// Refused, as expected.
    Refused,
    Failed,
}

impl Outcome {
    /// Returns `Done` or `Failed`.
    pub fn of(done: bool) -> Self {
        if done { Self::Done } else { Self::Failed }
    }

    /// Returns the CSS class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Todo => "todo",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// Returns the label on the page.
    pub fn label(self) -> &'static str {
        match self {
            Self::Todo => "To come",
            Self::Done => "Done",
            Self::Refused => "Refused",
            Self::Failed => "Failed",
        }
    }
}

/// A measurement.
#[derive(Clone)]
pub struct Finding {
    /// The number, with its unit.
    pub figure: String,
    /// What was measured.
    pub text: String,
}

#[derive(Clone)]
pub struct Panel {
    pub label: String,
    pub body: String,
}

const TITLES: [(&str, &str); 8] = [
    (
        "Authorization request",
        "The application redirects your browser to Portcullis with an authorization request.",
    ),
    (
        "Authorization code",
        "You sign in and give consent. Portcullis redirects your browser back with a code that works once, for a minute.",
    ),
    (
        "Tokens",
        "The application exchanges the code for tokens, over its own connection.",
    ),
    (
        "API call",
        "The API checks the signature of the access token, and that it was not revoked. It does so without a request to the server.",
    ),
    (
        "Refresh",
        "Access tokens expire after five minutes. The application exchanges the refresh token for a new access token and a new refresh token.",
    ),
    (
        "Revocation",
        "The application revokes its refresh token, and with it the grant. Your consent is remembered. The refresh token is rejected, and the API refuses the access token, although it is genuine and has not expired.",
    ),
    (
        "Stolen code",
        "A code works once. The application sends the code of step 2 a second time, as an attacker would who has read it. The server rejects it and revokes the grant, because one of the two senders is an attacker.",
    ),
    (
        "Stolen refresh token",
        "Each refresh replaces the refresh token. The application refreshes twice and then sends the first token again, as an attacker would who has copied it. The server rejects it and revokes the grant.",
    ),
];

impl Panel {
    pub fn new(label: &str, body: String) -> Self {
        Self {
            label: label.to_owned(),
            body,
        }
    }
}

impl Visit {
    /// Starts a visit with an unpredictable authorization request.
    pub fn begin(entropy: &Entropy) -> Self {
        let random = || Secret::opaque(entropy).expose().to_owned();
        Self {
            state: random(),
            nonce: random(),
            verifier: random(),
            ..Self::default()
        }
    }

    /// Shows the result of a step, and replaces its earlier result.
    pub fn show(&mut self, number: usize, outcome: Outcome, panels: Vec<Panel>) {
        self.steps.retain(|step| step.number != number);
        self.steps.push(step(number, outcome, panels));
    }

    /// Adds a measurement to a displayed step.
    pub fn find(&mut self, number: usize, finding: Finding) {
        let mut steps = self.steps.iter_mut();
        if let Some(step) = steps.find(|step| step.number == number) {
            step.finding = Some(finding);
        }
    }

    /// Returns the latest measurement.
    pub fn finding(&self) -> Option<Finding> {
        let mut steps = self.steps.iter().rev();
        steps.find_map(|step| step.finding.clone())
    }

    /// Returns all steps, including those that are not done yet.
    pub fn all_steps(&self) -> Vec<Step> {
        let shown = |number| self.steps.iter().find(|step| step.number == number);
        (1..=TITLES.len())
            .map(|number| {
                let done = shown(number).cloned();
                done.unwrap_or_else(|| step(number, Outcome::Todo, Vec::new()))
            })
            .collect()
    }
}

fn step(number: usize, outcome: Outcome, panels: Vec<Panel>) -> Step {
    let (title, text) = TITLES[number - 1];
    Step {
        number,
        title: title.to_owned(),
        text: text.to_owned(),
        outcome,
        finding: None,
        panels,
    }
}
