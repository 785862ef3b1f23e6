//! Determines what an authorization needs next: OIDC Core §3.1.2.3, §3.1.2.4. A pure function of the stored state,
//! so that login and consent do not depend on each other.

use super::authorize::Request;
use super::scope::Scope;
use crate::accounts::consent::Consent;
use crate::accounts::session::Login;
use crate::id::{AuthorizationId, ClientId, ConsentId, Sid, UserId};
use crate::oauth::client::ConsentPolicy;
use crate::oauth::error::Error;
use crate::oauth::macros::details;
use crate::oauth::redirect_uri;
use crate::secret::Hash;
use crate::time::Timestamp;

/// A started authorization: the stored request and its progress.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The id in the URL of each page.
    pub id: AuthorizationId,
    /// The client. `None` for a sign-in that started at the account page.
    pub client_id: Option<ClientId>,
    /// The request of the client, form-encoded.
    pub params: String,
    /// SHA-256 of the cookie of the browser that started it. `None` until the first GET after a cross-site POST.
    pub browser: Option<Hash>,
    /// The user who signed in for it.
    pub user_id: Option<UserId>,
    /// The session in which the latest step was made.
    pub sid: Option<Sid>,
    /// The session of the login that was done for this authorization. Only such a login fulfils `prompt` and
    /// `max_age` (OIDC Core §3.1.2.1).
    pub login_sid: Option<Sid>,
    /// Its progress.
    pub stage: Stage,
    /// The scope that the user selected.
    pub scope: Option<Scope>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When the response was sent.
    pub taken_at: Option<Timestamp>,
}

/// The progress of an authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It was started.
    Begun,
    /// The user signed in for it.
    SignedIn,
    /// The user gave consent for it.
    Consented,
    /// The user denied it.
    Denied,
}

impl Stage {
    /// Returns the stored text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::SignedIn => "signed_in",
            Self::Consented => "consented",
            Self::Denied => "denied",
        }
    }

    /// Parses the stored text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Begun, Self::SignedIn, Self::Consented, Self::Denied]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// What an authorization needs next.
#[derive(Debug)]
pub enum NextAction {
    /// The user must sign in.
    Login,
    /// The user must be asked for consent.
    Consent,
    /// Issue a code for this scope.
    Answer {
        /// The granted scope.
        scope: Scope,
        /// The consent on which the grant depends.
        consent_id: Option<ConsentId>,
    },
    /// Send an error to the client.
    Refuse(Error),
}

details! {
    enum Rejection {
        Denied => Detail::new("consent.denied", "denied"),
        Login => Detail::new("authz.rejected", "login"),
        OtherUser => Detail::new("authz.rejected", "other_user"),
        Consent => Detail::new("authz.rejected", "consent"),
    }
}

/// Returns what the request needs next. The same state always gives the same action.
pub fn next_action(
    request: &Request,
    authorization: Option<&Authorization>,
    login: Option<&Login>,
    consent: Option<&Consent>,
    now: Timestamp,
) -> NextAction {
    let sid = login.map(|login| &login.sid);
    let has_own_login = sid.is_some()
        && authorization.and_then(|authorization| authorization.login_sid.as_ref()) == sid;
    if authorization.is_some_and(|authorization| authorization.stage == Stage::Denied) {
        return NextAction::Refuse(Error::access_denied(Rejection::Denied));
    }
    let Some(login) = login.filter(|login| has_own_login || !must_sign_in(request, login, now))
    else {
        return unless_silent(
            request,
            NextAction::Login,
            Error::login_required(Rejection::Login),
        );
    };
    if request
        .hinted
        .as_ref()
        .is_some_and(|hinted| *hinted != login.user_id)
    {
        let other = Error::login_required(Rejection::OtherUser);
        // The user just signed in and is another one. A second login page would not change that.
        return if has_own_login {
            NextAction::Refuse(other)
        } else {
            unless_silent(request, NextAction::Login, other)
        };
    }
    // A consent that was withdrawn or replaced in the meantime no longer counts, unless the client skips
    // consent.
    let is_covered = |granted: Option<&Scope>| {
        request.client.consent == ConsentPolicy::Skip
            || consent.is_some_and(|consent| {
                Scope::parse(&consent.scope)
                    .is_ok_and(|active| granted.is_none_or(|granted| granted.is_within(&active)))
            })
    };
    let consented = authorization.filter(|authorization| {
        authorization.stage == Stage::Consented && authorization.sid.as_ref() == sid
    });
    if let Some(consented) =
        consented.filter(|authorization| is_covered(authorization.scope.as_ref()))
    {
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
            Error::consent_required(Rejection::Consent),
        );
    }
    NextAction::Answer {
        scope: request.scope.clone(),
        consent_id: consent
            .filter(|_| request.client.consent != ConsentPolicy::Skip)
            .map(|consent| consent.id.clone()),
    }
}

fn unless_silent(request: &Request, action: NextAction, error: Error) -> NextAction {
    if request.prompt.none {
        NextAction::Refuse(error)
    } else {
        action
    }
}

/// Returns whether `prompt=login` or `max_age` requires a new login (OIDC Core §3.1.2.1).
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
    let is_interceptable =
        !client.is_confidential() && redirect_uri::is_native(request.callback.uri());
    request.prompt.consent
        || match client.consent {
            ConsentPolicy::Skip => false,
            ConsentPolicy::Always => true,
            ConsentPolicy::Remember => is_interceptable || !remembered,
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
            callback: Callback::requested("https://app.example/cb".to_owned()),
            scope: Scope::parse("openid a").unwrap(),
            targets: crate::oauth::resource::Targets::default(),
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

    fn started(stage: Stage, sid: Option<&str>, login_sid: Option<&str>) -> Authorization {
        Authorization {
            id: "authorization".into(),
            client_id: Some("shop".into()),
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

    /// Checks every combination of `prompt`, `max_age`, policy, progress, session and consent.
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
            Some(started(Stage::Begun, None, None)),
            Some(started(Stage::SignedIn, Some("sid"), Some("sid"))),
            Some(started(Stage::SignedIn, Some("other"), Some("other"))),
            Some(started(Stage::Consented, Some("sid"), Some("sid"))),
            Some(started(Stage::Consented, Some("sid"), Some("other"))),
            Some(started(Stage::Consented, Some("sid"), None)),
            Some(started(Stage::Denied, Some("sid"), None)),
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
                let stored = (progress.as_ref(), login.as_ref(), consent.as_ref());
                assert_rules(&request, stored.0, stored.1, stored.2);
            }
        }
        assert_eq!(combinations, 5 * 3 * 3 * 8 * 3 * 5);
    }

    fn assert_rules(
        request: &Request,
        authorization: Option<&Authorization>,
        login: Option<&Login>,
        consent: Option<&Consent>,
    ) {
        let step = next_action(request, authorization, login, consent, NOW);
        let context = format!(
            "{:?} {authorization:?} {login:?} {consent:?} → {step:?}",
            request.prompt
        );
        let stage = authorization.map(|authorization| authorization.stage);
        let sid = login.map(|login| login.sid.clone());
        let has_own_login = sid.is_some()
            && authorization.is_some_and(|authorization| authorization.login_sid == sid);
        let own_decision =
            sid.is_some() && authorization.is_some_and(|authorization| authorization.sid == sid);
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
            let is_denied =
                matches!(&step, NextAction::Refuse(e) if e.code.as_str() == "access_denied");
            assert!(is_denied, "a denial is reported: {context}");
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
            "a user signs in once: {context}"
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
            assert_eq!(scope.to_string(), expected, "the selected scope is granted");
        }
    }
}
