//! What happened in one browser, step by step.

use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// One browser's visit.
#[derive(Clone, Default)]
pub struct Visit {
    pub state: String,
    pub nonce: String,
    pub verifier: String,
    pub tokens: Option<Tokens>,
    pub revoked: bool,
    steps: Vec<Step>,
}

/// What the application holds for its visitor.
#[derive(Clone)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
    /// When the access token is to be replaced.
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

/// How a step ended.
#[derive(Clone, Copy)]
pub enum Outcome {
    Todo,
    Done,
    /// As it has to be: who was asked said no.
    Refused,
    Failed,
}

impl Outcome {
    /// Done, or else failed.
    pub fn of(done: bool) -> Self {
        if done { Self::Done } else { Self::Failed }
    }

    /// Its class on the page.
    pub fn class(self) -> &'static str {
        match self {
            Self::Todo => "todo",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// What the page says.
    pub fn label(self) -> &'static str {
        match self {
            Self::Todo => "To come",
            Self::Done => "Done",
            Self::Refused => "Refused",
            Self::Failed => "Failed",
        }
    }
}

/// What was measured.
#[derive(Clone)]
pub struct Finding {
    /// The number, with its unit.
    pub figure: String,
    /// What it says.
    pub text: String,
}

#[derive(Clone)]
pub struct Panel {
    pub label: String,
    pub body: String,
}

const TITLES: [(&str, &str); 6] = [
    (
        "Authorization request",
        "The application sends your browser to Portcullis and says what it wants.",
    ),
    (
        "Authorization code",
        "You sign in and allow it. Portcullis sends your browser back with a code that works once, for a minute.",
    ),
    (
        "Tokens",
        "The application trades the code for tokens, over its own connection.",
    ),
    (
        "API call",
        "The API checks the signature of the access token, and that it was not revoked. It asks nobody.",
    ),
    (
        "Refresh",
        "Access tokens live five minutes. The refresh token buys the next one, and the next refresh token with it.",
    ),
    (
        "Revocation",
        "The application hands its refresh token back, and the grant ends; your consent is remembered. The token buys nothing more, and the API refuses the access token, which is genuine and has not expired.",
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
    /// A request that nobody can guess.
    pub fn begin(entropy: &Entropy) -> Self {
        let random = || Secret::opaque(entropy).expose().to_owned();
        Self {
            state: random(),
            nonce: random(),
            verifier: random(),
            ..Self::default()
        }
    }

    /// Shows what a step did; a step that is done again is shown anew.
    pub fn show(&mut self, number: usize, outcome: Outcome, panels: Vec<Panel>) {
        self.steps.retain(|step| step.number != number);
        self.steps.push(step(number, outcome, panels));
    }

    /// Adds to a step that is shown what was measured in it.
    pub fn find(&mut self, number: usize, finding: Finding) {
        let mut steps = self.steps.iter_mut();
        if let Some(step) = steps.find(|step| step.number == number) {
            step.finding = Some(finding);
        }
    }

    /// What happened, and what is to come.
    pub fn all_steps(&self) -> Vec<Step> {
        let shown = |number| self.steps.iter().find(|step| step.number == number);
        (1..=TITLES.len())
            .map(|number| {
                let known = shown(number).cloned();
                known.unwrap_or_else(|| step(number, Outcome::Todo, Vec::new()))
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
