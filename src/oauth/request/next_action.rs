//! What an authorization needs next: OIDC Core §3.1.2.3, §3.1.2.4. A pure function over what is
//! stored; login and consent know nothing of one another.

use super::authorize::Request;
use super::scope::Scope;
use crate::accounts::consent::Consent;
use crate::accounts::session::Login;
use crate::id::{AuthorizationId, ClientId, ConsentId, Sid, UserId};
use crate::oauth::client::ConsentPolicy;
use crate::oauth::error::{Detail, Error};
use crate::oauth::redirect_uri;
use crate::secret::Hash;
use crate::time::Timestamp;

/// An authorization on its way: the request as stored, and what has happened to it.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Stands in the URL of each page.
    pub id: AuthorizationId,
    /// Who asks.
    pub client_id: ClientId,
    /// The request, form-encoded.
    pub params: String,
    /// The browser that began it: SHA-256 of its cookie. None until the first GET after a
    /// cross-site POST.
    pub browser: Option<Hash>,
    /// Who signed in for it.
    pub user_id: Option<UserId>,
    /// The login in which the latest step was made.
    pub sid: Option<Sid>,
    /// The login that was done for this authorization. Only it waives re-authentication (OIDC Core
    /// §3.1.2.1, `prompt` and `max_age`).
    pub login_sid: Option<Sid>,
    /// How far it came.
    pub stage: Stage,
    /// What the person ticked.
    pub scope: Option<Scope>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it must be done.
    pub expires_at: Timestamp,
    /// When it was answered.
    pub taken_at: Option<Timestamp>,
}

/// How far an authorization came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    Begun,
    /// Its own login was done.
    SignedIn,
    /// Its own consent was given.
    Consented,
    /// The person refused.
    Denied,
}

impl Stage {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::SignedIn => "signed_in",
            Self::Consented => "consented",
            Self::Denied => "denied",
        }
    }

    /// From the stored form.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Begun, Self::SignedIn, Self::Consented, Self::Denied]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// What an authorization needs next.
#[derive(Debug)]
pub enum NextAction {
    /// The person must sign in.
    Login,
    /// The person must be asked.
    Consent,
    /// Everything is there: issue a code for this scope.
    Answer {
        /// What is granted.
        scope: Scope,
        /// The consent it rests on.
        consent_id: Option<ConsentId>,
    },
    /// The client is told no.
    Refuse(Error),
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("authz.rejected", reason)
}

/// What the request needs, from what is stored. Pure: the same state gives the same step.
pub fn next_action(
    request: &Request,
    begun: Option<&Authorization>,
    login: Option<&Login>,
    consent: Option<&Consent>,
    now: Timestamp,
) -> NextAction {
    let sid = login.map(|login| &login.sid);
    let has_own_login = sid.is_some() && begun.and_then(|begun| begun.login_sid.as_ref()) == sid;
    if begun.is_some_and(|begun| begun.stage == Stage::Denied) {
        return NextAction::Refuse(Error::access_denied(Detail::new(
            "consent.denied",
            "denied",
        )));
    }
    let Some(login) = login.filter(|login| has_own_login || !must_sign_in(request, login, now))
    else {
        return unless_silent(
            request,
            NextAction::Login,
            Error::login_required(rejected("login")),
        );
    };
    if request
        .hinted
        .as_ref()
        .is_some_and(|hinted| *hinted != login.user_id)
    {
        let other = Error::login_required(rejected("other_user"));
        // Whoever just signed in is somebody else: asking once more would not change that.
        return if has_own_login {
            NextAction::Refuse(other)
        } else {
            unless_silent(request, NextAction::Login, other)
        };
    }
    // A consent that was withdrawn or replaced since no longer counts. A client that asks for none has none
    // to withdraw.
    let is_covered = |granted: Option<&Scope>| {
        request.client.consent == ConsentPolicy::Skip
            || consent.is_some_and(|consent| {
                Scope::parse(&consent.scope)
                    .is_ok_and(|active| granted.is_none_or(|granted| granted.is_within(&active)))
            })
    };
    let consented =
        begun.filter(|begun| begun.stage == Stage::Consented && begun.sid.as_ref() == sid);
    if let Some(consented) = consented.filter(|begun| is_covered(begun.scope.as_ref())) {
        let scope = consented.scope.clone().unwrap_or_default();
        return NextAction::Answer {
            scope,
            consent_id: consent.map(|consent| consent.id.clone()),
        };
    }
    if must_ask(request, consent, now) {
        return unless_silent(
            request,
            NextAction::Consent,
            Error::consent_required(rejected("consent")),
        );
    }
    NextAction::Answer {
        scope: request.scope.clone(),
        consent_id: consent
            .filter(|_| request.client.consent != ConsentPolicy::Skip)
            .map(|consent| consent.id.clone()),
    }
}

fn unless_silent(request: &Request, step: NextAction, error: Error) -> NextAction {
    if request.prompt.none {
        NextAction::Refuse(error)
    } else {
        step
    }
}

/// `prompt=login` and `max_age` (OIDC Core §3.1.2.1).
fn must_sign_in(request: &Request, login: &Login, now: Timestamp) -> bool {
    request.prompt.login
        || request
            .max_age
            .is_some_and(|limit| limit.is_zero() || now.since(login.auth_time) > limit)
}

fn must_ask(request: &Request, consent: Option<&Consent>, now: Timestamp) -> bool {
    let client = &request.client;
    let remembered = consent.is_some_and(|consent| {
        now < consent.expires_at
            && consent.client_shape.matches(&client.shape())
            && Scope::parse(&consent.scope).is_ok_and(|granted| request.scope.is_within(&granted))
    });
    let anyone_can_answer =
        !client.is_confidential() && redirect_uri::is_native(request.callback.uri());
    request.prompt.consent
        || match client.consent {
            ConsentPolicy::Skip => false,
            ConsentPolicy::Always => true,
            ConsentPolicy::Remember => anyone_can_answer || !remembered,
        }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::authorize::Prompt;
    use super::super::callback::Callback;
    use super::*;
    use crate::accounts::session::{Acr, Amr, Factor};
    use crate::oauth::client::{Client, GrantType};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn request(prompt: Prompt, max_age: Option<u64>, consent: ConsentPolicy) -> Request {
        let client = Client {
            name: "Shop".to_owned(),
            redirect_uris: vec!["https://app.example/cb".to_owned()],
            grant_types: vec![GrantType::AuthorizationCode],
            scopes: Scope::parse("openid a b").unwrap(),
            consent,
            ..Client::new("shop".into(), NOW)
        };
        Request {
            callback: Callback::validated("https://app.example/cb".to_owned(), true),
            scope: Scope::parse("openid a").unwrap(),
            resources: Vec::new(),
            nonce: None,
            challenge: None,
            prompt,
            max_age: max_age.map(Duration::from_secs),
            login_hint: None,
            hinted: None,
            client,
        }
    }

    fn login(age: u64) -> Login {
        Login {
            sid: "sid".into(),
            user_id: "alice".into(),
            user_epoch: 1,
            auth_time: NOW - Duration::from_secs(age),
            acr: Acr::Password,
            amr: Amr::new(vec![Factor::Password]),
        }
    }

    fn consent(scope: &str, expires: u64, shape: Hash) -> Consent {
        Consent {
            id: "consent".into(),
            user_id: "alice".into(),
            client_id: "shop".into(),
            scope: scope.to_owned(),
            client_shape: shape,
            granted_at: NOW,
            expires_at: Timestamp::from_secs(expires),
        }
    }

    fn begun(stage: Stage, sid: Option<&str>, login_sid: Option<&str>) -> Authorization {
        Authorization {
            id: "authorization".into(),
            client_id: "shop".into(),
            params: String::new(),
            browser: None,
            user_id: sid.map(|_| "alice".into()),
            sid: sid.map(Sid::from),
            login_sid: login_sid.map(Sid::from),
            stage,
            scope: Some(Scope::parse("openid").unwrap()),
            created_at: NOW,
            expires_at: NOW + Duration::from_secs(600),
            taken_at: None,
        }
    }

    /// Every combination of prompt, max_age, policy, progress, session and consent.
    #[test]
    fn every_combination_keeps_the_rules() {
        let prompts = ["", "none", "login", "consent", "login consent"].map(|text| Prompt {
            none: text == "none",
            login: text.contains("login"),
            consent: text.contains("consent"),
        });
        let policies = [
            ConsentPolicy::Remember,
            ConsentPolicy::Always,
            ConsentPolicy::Skip,
        ];
        let progress = [
            None,
            Some(begun(Stage::Begun, None, None)),
            Some(begun(Stage::SignedIn, Some("sid"), Some("sid"))),
            Some(begun(Stage::SignedIn, Some("other"), Some("other"))),
            Some(begun(Stage::Consented, Some("sid"), Some("sid"))),
            Some(begun(Stage::Consented, Some("sid"), Some("other"))),
            Some(begun(Stage::Consented, Some("sid"), None)),
            Some(begun(Stage::Denied, Some("sid"), None)),
        ];
        let logins = [None, Some(login(5)), Some(login(500))];
        let mut combinations = 0;
        for (prompt, max_age, policy) in prompts
            .iter()
            .flat_map(|prompt| [None, Some(0), Some(100)].map(|age| (*prompt, age)))
            .flat_map(|(prompt, age)| policies.map(|policy| (prompt, age, policy)))
        {
            let request = request(prompt, max_age, policy);
            let consents = [
                None,
                Some(consent("openid a b", 2_000_000, request.client.shape())),
                Some(consent("openid", 2_000_000, request.client.shape())),
                Some(consent("openid a", 1_000_000, request.client.shape())),
                Some(consent(
                    "openid a",
                    2_000_000,
                    Hash::of("other redirect URIs"),
                )),
            ];
            for (progress, login, consent) in progress
                .iter()
                .flat_map(|progress| logins.iter().map(move |login| (progress, login)))
                .flat_map(|(progress, login)| consents.iter().map(move |c| (progress, login, c)))
            {
                combinations += 1;
                let given = (progress.as_ref(), login.as_ref(), consent.as_ref());
                holds(&request, given.0, given.1, given.2);
            }
        }
        assert_eq!(combinations, 5 * 3 * 3 * 8 * 3 * 5);
    }

    fn holds(
        request: &Request,
        begun: Option<&Authorization>,
        login: Option<&Login>,
        consent: Option<&Consent>,
    ) {
        let step = next_action(request, begun, login, consent, NOW);
        let context = format!(
            "{:?} {begun:?} {login:?} {consent:?} → {step:?}",
            request.prompt
        );
        let stage = begun.map(|begun| begun.stage);
        let sid = login.map(|login| login.sid.clone());
        let has_own_login = sid.is_some() && begun.is_some_and(|begun| begun.login_sid == sid);
        let own_decision = sid.is_some() && begun.is_some_and(|begun| begun.sid == sid);
        let asks_again = request.prompt.login
            || request.max_age.is_some_and(|limit| {
                limit.is_zero() || login.is_some_and(|l| NOW.since(l.auth_time) > limit)
            });
        let remembered = consent.is_some_and(|consent| {
            consent.scope.contains('a')
                && consent.expires_at > NOW
                && consent.client_shape.matches(&request.client.shape())
        });
        if stage == Some(Stage::Denied) {
            let told = matches!(&step, NextAction::Refuse(e) if e.code.as_str() == "access_denied");
            assert!(told, "who denied is told so: {context}");
            return;
        }
        if request.prompt.none {
            assert!(
                !matches!(step, NextAction::Login | NextAction::Consent),
                "no page under none: {context}"
            );
        } else {
            assert!(
                !matches!(step, NextAction::Refuse(_)),
                "nothing to refuse: {context}"
            );
        }
        let login_due = login.is_none() || (asks_again && !has_own_login);
        if login_due {
            assert!(
                matches!(step, NextAction::Login | NextAction::Refuse(_)),
                "sign in first: {context}"
            );
            return;
        }
        assert!(
            !matches!(step, NextAction::Login),
            "nobody signs in twice: {context}"
        );
        let is_active = consent.is_some() || request.client.consent == ConsentPolicy::Skip;
        let consented = own_decision && is_active && stage == Some(Stage::Consented);
        let due = !consented
            && (request.prompt.consent
                || match request.client.consent {
                    ConsentPolicy::Skip => false,
                    ConsentPolicy::Always => true,
                    ConsentPolicy::Remember => !remembered,
                });
        assert_eq!(matches!(step, NextAction::Answer { .. }), !due, "{context}");
        if let NextAction::Answer { scope, .. } = step {
            let expected = if consented { "openid" } else { "openid a" };
            assert_eq!(
                scope.to_string(),
                expected,
                "what was ticked is what is granted"
            );
        }
    }
}
