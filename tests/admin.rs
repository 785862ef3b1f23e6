//! Each operation of `src/admin/` writes an audit event in the transaction of its change, and a rejected
//! operation changes nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::time::Duration;

use fixtures::server::confidential;
use fixtures::{Db, Server, apply, on_both_databases};
use portcullis::accounts::admin::GrantedBy;
use portcullis::accounts::session::{Acr, Amr, Factor, Login, Session};
use portcullis::accounts::throttle::{Attempt, account};
use portcullis::accounts::user::{User, Username};
use portcullis::admin::clients::{NewSecret, OldSecrets, Rules};
use portcullis::admin::consents::{Decision, Granted};
use portcullis::admin::revocations::Revocation;
use portcullis::admin::sessions::VerifiedSignIn;
use portcullis::admin::throttles::Counters;
use portcullis::admin::users::{Administrator, NewUser};
use portcullis::admin::{
    self, AdminError, Context, clients, consents, first_admin, recovery, resources, revocations,
    sessions, throttles, users,
};
use portcullis::audit::Actor;
use portcullis::config::Network;
use portcullis::db::Transaction;
use portcullis::id::{AuthorizationId, ClientId, Sid, UserId};
use portcullis::key_manager::Act;
use portcullis::oauth::request::next_action::{Authorization, Stage};
use portcullis::oauth::request::scope::Scope;
use portcullis::oauth::resource::Resource;
use portcullis::secret::{Entropy, Hash};
use portcullis::time::Timestamp;

const PHC: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$cGFzc3dvcmQ";

fn context(server: &fixtures::Server) -> Context {
    let now = server.clock.now();
    Context::new(Actor::Operator, Entropy::system(), now).with_reason("a test")
}

async fn execute<T: Send + 'static>(
    server: &fixtures::Server,
    operation: impl FnOnce(&mut Transaction<'_>, &Context) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, AdminError> {
    let done = admin::execute(&server.app.store, context(server), operation).await;
    server.app.registrations.clear();
    done
}

/// Returns the public functions of `src/admin/` that take a transaction and a context.
fn operations() -> BTreeSet<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("\npub fn ") {
            let rest = &text[at + 8..];
            let name = rest.split('(').next().unwrap();
            let arguments = rest.split_once('(').unwrap().1;
            let arguments: Vec<&str> = arguments.split(',').map(str::trim).take(2).collect();
            if arguments == ["tx: &mut Transaction<'_>", "ctx: &Context"] {
                found.insert(format!("{module}::{name}"));
            }
        }
    }
    found
}

fn user(name: &str, now: Timestamp) -> User {
    User::new(Username::parse(name).unwrap(), &Entropy::system(), now)
}

fn session(user: &UserId, now: Timestamp) -> Session {
    Session {
        id_hash: Hash::of(user.as_str()),
        login: Login {
            sid: Sid::new(&Entropy::system(), now),
            user_id: user.clone(),
            user_epoch: 1,
            auth_time: now,
            acr: Acr::Password,
            amr: Amr::new(vec![Factor::Password]),
        },
        seen_at: now,
        expires_at: now + Duration::from_secs(3_600),
    }
}

fn authorization(client: &ClientId, now: Timestamp) -> Authorization {
    Authorization {
        id: AuthorizationId::new(&Entropy::system(), now),
        client_id: Some(client.clone()),
        params: String::new(),
        browser: None,
        user_id: None,
        sid: None,
        login_sid: None,
        stage: Stage::Begun,
        scope: None,
        created_at: now,
        expires_at: now + Duration::from_secs(600),
        taken_at: None,
    }
}

fn resource(audience: &str, now: Timestamp) -> Resource {
    Resource {
        id: portcullis::id::uuid(&Entropy::system(), now),
        audience: audience.to_owned(),
        name: "An API".to_owned(),
        scopes: Scope::parse("things:read").unwrap(),
        access_ttl: None,
        alg: portcullis::keys::Alg::ES256,
        max_age: portcullis_verifier::MaxAge::STANDARD,
        created_at: now,
    }
}

/// Performs operations, and counts the events of each.
struct Ledger<'a> {
    server: &'a fixtures::Server,
    performed: BTreeSet<String>,
}

impl Ledger<'_> {
    async fn performs<T: Send + 'static>(
        &mut self,
        name: &str,
        operation: impl FnOnce(&mut Transaction<'_>, &Context) -> Result<T, AdminError> + Send + 'static,
    ) -> T {
        let events = "SELECT count(*) AS n FROM audit_events";
        let before = self.server.count(events);
        let done = execute(self.server, operation).await;
        let done = done.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            self.server.count(events) > before,
            "{name} writes no audit event"
        );
        self.performed.insert(name.to_owned());
        done
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn admin_operations_write_audit_events(#[case] db: Db) {
    let server = Server::start(db).await;
    let now = server.clock.now();
    let (rules, keys) = (
        Rules::of(&server.config).unwrap(),
        server.config.keys.clone(),
    );
    let mut ledger = Ledger {
        server: &server,
        performed: BTreeSet::new(),
    };
    // The first administrator.
    let (link, browser, expires) = (
        Hash::of("link"),
        Hash::of("browser"),
        now + Duration::from_secs(60),
    );
    let (one, two) = (link.clone(), browser.clone());
    ledger
        .performs("first_admin::create_link", move |tx, ctx| {
            first_admin::create_link(tx, ctx, &one, expires)
        })
        .await;
    ledger
        .performs("first_admin::open_link", move |tx, ctx| {
            first_admin::open_link(tx, ctx, &link, &two)
        })
        .await;
    let root = user("root", now);
    let login = session(&root.id, now);
    ledger
        .performs("first_admin::set_up", move |tx, ctx| {
            first_admin::set_up(tx, ctx, &browser, (&root, PHC), &login)
        })
        .await;
    let configured = user("configured", now);
    ledger
        .performs("first_admin::configure", move |tx, ctx| {
            first_admin::configure(tx, ctx, &configured, PHC)
        })
        .await;
    // Users.
    let admin = Some(Administrator {
        granted_by: GrantedBy::Operator,
        expires_at: None,
    });
    let new = NewUser {
        user: user("erin", now),
        password_hash: Some(PHC.to_owned()),
        admin,
    };
    let erin = ledger
        .performs("users::create", move |tx, ctx| users::create(tx, ctx, new))
        .await;
    let id = erin.id.clone();
    let changed = User {
        name: Some("Erin".to_owned()),
        ..erin
    };
    ledger
        .performs("users::update", move |tx, ctx| {
            users::update(tx, ctx, &changed)
        })
        .await;
    for (name, operation) in [
        (
            "users::disable",
            users::disable as fn(&mut Transaction<'_>, &Context, &UserId) -> _,
        ),
        ("users::enable", users::enable),
        ("users::sign_out_everywhere", users::sign_out_everywhere),
    ] {
        let id = id.clone();
        ledger
            .performs(name, move |tx, ctx| operation(tx, ctx, &id))
            .await;
    }
    let of = id.clone();
    ledger
        .performs("users::set_password", move |tx, ctx| {
            users::set_password(tx, ctx, &of, PHC)
        })
        .await;
    // Sessions and consents.
    let epoch = server.count("SELECT auth_epoch AS n FROM users WHERE username = 'erin'");
    let new_session = |cookie: &str| {
        let mut new = session(&id, now);
        (new.id_hash, new.login.user_epoch) = (Hash::of(cookie), epoch);
        new
    };
    let client = server.shop().await.client;
    let requests = [
        authorization(&client.id, now),
        authorization(&client.id, now),
    ];
    let [signs_in, decides] = requests.clone().map(|request| request.id);
    let network = Network::around([192, 0, 2, 1].into(), 32, 64);
    server
        .write(move |tx| {
            requests
                .iter()
                .try_for_each(|request| tx.put_authorization(request, &network))
        })
        .await;
    let new = VerifiedSignIn {
        authorization: signs_in,
        session: new_session("signed in"),
        old_cookie: None,
        device: Hash::of("device"),
        rehash: None,
        attempt: Attempt::from_anywhere("erin", Some(&id), [192, 0, 2, 1].into()),
        account: account("erin", Some(&id)),
    };
    let login = new.session.login.clone();
    ledger
        .performs("sessions::sign_in", move |tx, ctx| {
            sessions::sign_in(tx, ctx, &new)
        })
        .await;
    let decision = Decision {
        authorization: decides,
        login: login.clone(),
        client_id: client.id.clone(),
        granted: Some(Granted {
            scope: Scope::parse("openid").unwrap(),
            client_shape: client.shape(),
            expires_at: now + Duration::from_secs(3_600),
        }),
    };
    ledger
        .performs("consents::decide", move |tx, ctx| {
            consents::decide(tx, ctx, &decision)
        })
        .await;
    let (of, allowed) = (id.clone(), client.id.clone());
    ledger
        .performs("consents::withdraw", move |tx, ctx| {
            let consent = tx.find_consent(&of, &allowed)?;
            let consent = consent.expect("the decision is stored").id;
            consents::withdraw(tx, ctx, &of, &consent)
        })
        .await;
    ledger
        .performs("sessions::log_out", move |tx, ctx| {
            sessions::log_out(tx, ctx, &login.sid)
        })
        .await;
    let new = new_session("another");
    let of = id.clone();
    let sid = ledger
        .performs("sessions::open", move |tx, ctx| {
            sessions::open(tx, ctx, &new, None)
        })
        .await;
    ledger
        .performs("sessions::end", move |tx, ctx| {
            sessions::end(tx, ctx, &of, &sid)
        })
        .await;
    ledger
        .performs("throttles::clear", |tx, ctx| {
            throttles::clear(tx, ctx, &Counters::All)
        })
        .await;
    ledger
        .performs("revocations::revoke", move |tx, ctx| {
            revocations::revoke(tx, ctx, &Revocation::User(id, None))
        })
        .await;
    // Resources and clients.
    let api = resource("https://things.example", now);
    let (stored, offered) = (api.clone(), keys.clone());
    ledger
        .performs("resources::create", move |tx, ctx| {
            resources::create(tx, ctx, &offered, &stored)
        })
        .await;
    let changed = Resource {
        name: "Another".to_owned(),
        ..api.clone()
    };
    ledger
        .performs("resources::update", move |tx, ctx| {
            resources::update(tx, ctx, &keys, &api, &changed)
        })
        .await;
    ledger
        .performs("resources::describe_scope", |tx, ctx| {
            resources::describe_scope(tx, ctx, "things:read", Some("See things"))
        })
        .await;
    let client = confidential("things", "https://app.example/cb");
    let (by, stored) = (rules.clone(), client.clone());
    ledger
        .performs("clients::create", move |tx, ctx| {
            clients::create(tx, ctx, &by, stored, None)
        })
        .await;
    let changed = portcullis::oauth::client::Client {
        name: "Renamed".to_owned(),
        ..client.clone()
    };
    ledger
        .performs("clients::update", move |tx, ctx| {
            clients::update(tx, ctx, &rules, &client, &changed)
        })
        .await;
    let id = ClientId::from("things");
    let (of, new) = (
        id.clone(),
        NewSecret {
            label: "new".to_owned(),
            expires_at: None,
            old: OldSecrets::Compromised,
        },
    );
    ledger
        .performs("clients::rotate_secret", move |tx, ctx| {
            clients::rotate_secret(tx, ctx, &of, &new)
        })
        .await;
    for (name, operation) in [
        (
            "clients::disable",
            clients::disable as fn(&mut Transaction<'_>, &Context, &ClientId) -> _,
        ),
        ("clients::enable", clients::enable),
        ("clients::delete", clients::delete),
    ] {
        let id = id.clone();
        ledger
            .performs(name, move |tx, ctx| operation(tx, ctx, &id))
            .await;
    }
    ledger
        .performs("resources::delete", |tx, ctx| {
            resources::delete(tx, ctx, "https://things.example")
        })
        .await;
    // The last one, because it revokes everything.
    let act = Act {
        actor: Actor::Operator,
        now,
    };
    let table = server.app.key_manager.table();
    let renewal = table.renewal("a test", &act).await.unwrap();
    ledger
        .performs("recovery::recover", move |tx, ctx| {
            recovery::recover(tx, ctx, &renewal)
        })
        .await;
    assert_eq!(
        ledger.performed,
        operations(),
        "an operation of src/admin/ is missing here"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refused_operation_rolls_back_the_transaction(#[case] db: Db) {
    let server = Server::start(db).await;
    let now = server.clock.now();
    let count = || {
        server
            .count("SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM audit_events) AS n")
    };
    let before = count();
    let refused = execute(&server, move |tx, ctx| {
        let new = NewUser {
            user: user("erin", now),
            password_hash: None,
            admin: None,
        };
        users::create(tx, ctx, new)?;
        clients::delete(tx, ctx, &ClientId::from("unknown"))
    })
    .await;
    assert!(
        matches!(refused, Err(AdminError::NotFound { kind: "client", .. })),
        "{refused:?}"
    );
    assert_eq!(count(), before);
    let again = execute(&server, move |tx, ctx| {
        let new = NewUser {
            user: user("alice", now),
            password_hash: None,
            admin: None,
        };
        users::create(tx, ctx, new)
    })
    .await;
    assert!(
        matches!(again, Err(AdminError::Exists { kind: "user", .. })),
        "{again:?}"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn invalid_fields_are_reported_together(#[case] db: Db) {
    let server = Server::start(db).await;
    let rules = Rules::of(&server.config).unwrap();
    let mut client = confidential("odd", "ftp://app.example/cb");
    client.name = String::new();
    client.client_uri = Some("http://app.example".to_owned());
    client.scopes = Scope::parse("openid nobodys:scope").unwrap();
    client.resources = vec!["https://unknown.example".to_owned()];
    let refused = execute(&server, move |tx, ctx| {
        clients::create(tx, ctx, &rules, client, None)
    })
    .await;
    let Err(AdminError::Invalid(errors)) = refused else {
        panic!("{refused:?}");
    };
    let fields: BTreeSet<&str> = errors.0.iter().map(|error| error.field).collect();
    let all = [
        "client_name",
        "client_uri",
        "redirect_uris",
        "resources",
        "scope",
    ];
    assert_eq!(fields, BTreeSet::from(all), "{errors}");
}
