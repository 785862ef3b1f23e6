//! `user`: people, their passwords, their sessions.

mod registration;
mod sessions;
mod throttles;
mod view;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, Wrong, block_on, open, open_or_make, read_secret, table};
use crate::accounts::admin::{Admin, GrantedBy};
use crate::accounts::password::{Password, Unusable};
use crate::accounts::user::{User, Username};
use crate::audit::{Event, Name};
use crate::config::Config;
use crate::db::{self, Store, Transaction};
use crate::id::{Sid, UserId};
use crate::secret::Entropy;
use crate::time::{Clock, Timestamp};
pub use registration::Fields;
use view::print;
pub use view::view;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Output,
}

#[derive(Subcommand)]
enum Action {
    /// Add a person.
    Create {
        /// The name to sign in with.
        username: String,
        #[command(flatten)]
        fields: Fields,
        /// A further standard claim, such as given_name=Alice; repeatable.
        #[arg(long = "claim", value_name = "NAME=VALUE")]
        claims: Vec<String>,
        /// Make them an administrator.
        #[arg(long)]
        admin: bool,
        /// Read the password from stdin instead of asking.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Everybody.
    List,
    /// One person, with all claims.
    Get {
        /// The name to sign in with.
        username: String,
    },
    /// Lock an account: nobody signs in to it, and everything that it holds is dead.
    Lock {
        /// The name to sign in with.
        username: String,
    },
    /// Unlock an account. What it held before stays dead.
    Unlock {
        /// The name to sign in with.
        username: String,
    },
    /// Where somebody is signed in.
    ListSessions {
        /// The name to sign in with.
        username: String,
    },
    /// Sign somebody out: of one session, or everywhere.
    RevokeSessions {
        /// The name to sign in with.
        username: String,
        /// One session of `user list-sessions`; without it all of them end, and with them every grant
        /// and token, offline ones too.
        #[arg(long)]
        sid: Option<String>,
    },
    /// Clear counters of failed sign-ins: waits that they caused end at once.
    ClearThrottles(throttles::Arguments),
    /// Set a password. Everything that the person is signed in to ends, and so does every wait after
    /// failed sign-ins.
    SetPassword {
        /// The name to sign in with.
        username: String,
        /// Read the password from stdin instead of asking.
        #[arg(long)]
        password_stdin: bool,
    },
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create {
            username,
            fields,
            claims,
            admin,
            password_stdin,
        } => {
            let username = parse(username)?;
            let mut fields = fields.clone();
            fields.claims = Some(parse_claims(claims)?);
            let now = Clock::System.now();
            let user = fields.create(username.clone(), &Entropy::system(), now)?;
            let checked = user.check();
            checked.map_err(|message| Exit { code: 1, message })?;
            let phc = new_password(config, &username, *password_stdin)?;
            create(config, &user, phc, *admin, now)?;
            print(arguments.format, &[user]);
            Ok(())
        }
        Action::List => {
            let store = open(config)?;
            let users = block_on(async { Ok(store.read(|tx| tx.list_users()).await?) })?;
            print(arguments.format, &users);
            Ok(())
        }
        Action::Get { username } => {
            let store = open(config)?;
            let user = find(&store, &parse(username)?)?;
            let admins = block_on(async { Ok(store.read(|tx| tx.list_admins()).await?) })?;
            let mut shown = view(&user);
            shown["admin"] = (admins.iter())
                .any(|admin| admin.user_id == user.id && admin.is_live(Clock::System.now()))
                .into();
            table::print_one(arguments.format, &shown);
            Ok(())
        }
        Action::Lock { username } => {
            let act =
                |tx: &mut Transaction<'_>, user: &UserId, now| tx.disable_user(user, "cli", now);
            change(config, username, Name::UserDisabled, act)?;
            println!("{username} is locked. Every session, grant and token is dead.");
            Ok(())
        }
        Action::Unlock { username } => {
            let act = |tx: &mut Transaction<'_>, user: &UserId, _| tx.enable_user(user);
            change(config, username, Name::UserEnabled, act)?;
            println!("{username} is unlocked, and has to sign in again.");
            Ok(())
        }
        Action::ListSessions { username } => sessions::list(config, username, arguments.format),
        Action::RevokeSessions {
            username,
            sid: None,
        } => {
            let act = |tx: &mut Transaction<'_>, user: &UserId, now| {
                tx.cut_off_user(user, "signed out everywhere", "cli", now)?;
                Ok(true)
            };
            change(config, username, Name::UserCutOff, act)?;
            println!("{username} is signed out everywhere. Every grant and token is dead.");
            Ok(())
        }
        Action::RevokeSessions {
            username,
            sid: Some(sid),
        } => {
            let sid = Sid::from(sid.as_str());
            let shown = sid.clone();
            let act = move |tx: &mut Transaction<'_>, user: &UserId, now| {
                let theirs = tx.list_sessions(user)?;
                let theirs = theirs.iter().any(|session| session.login.sid == sid);
                Ok(theirs && tx.end_session(&sid, "revoked", "cli", now)?)
            };
            change(config, username, Name::SessionEnded, act)?;
            println!("The session {shown} is over, with its grants.");
            Ok(())
        }
        Action::ClearThrottles(arguments) => throttles::clear(config, arguments),
        Action::SetPassword {
            username,
            password_stdin,
        } => set_password(config, &parse(username)?, *password_stdin),
    }
}

fn parse(typed: &str) -> anyhow::Result<Username> {
    Username::parse(typed).ok_or_else(|| {
        Exit {
            code: 2,
            message: format!("`{typed}` cannot be a user name"),
        }
        .into()
    })
}

/// Standard claims of OIDC Core §5.1; a value that is JSON is taken as JSON.
fn parse_claims(given: &[String]) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut claims = serde_json::Map::new();
    for pair in given {
        let wrong = || Wrong::new("claims", format!("`{pair}` is not NAME=VALUE"));
        let (name, text) = pair.split_once('=').ok_or_else(wrong)?;
        let value = match name {
            "address" | "phone_number_verified" => {
                serde_json::from_str(text).map_err(|_| wrong())?
            }
            _ => Value::from(text),
        };
        claims.insert(name.to_owned(), value);
    }
    Ok(claims)
}

fn new_password(config: &Config, user: &Username, from_stdin: bool) -> anyhow::Result<String> {
    let refused = |message: String| Exit { code: 1, message };
    let typed = read_secret(&format!("New password for {}: ", user.as_str()), from_stdin)?;
    let password = Password::parse(&typed).map_err(|why| {
        refused(match why {
            Unusable::TooLong => "a password has at most 1024 bytes".to_owned(),
            Unusable::Nul => "a password cannot hold a NUL character".to_owned(),
        })
    })?;
    password
        .check_new(user, &config.branding.product)
        .map_err(|weak| refused(weak.to_string()))?;
    password
        .hash(&config.login.argon2, &Entropy::system())
        .map_err(|why| refused(why).into())
}

fn create(
    config: &Config,
    user: &User,
    phc: String,
    admin: bool,
    now: Timestamp,
) -> anyhow::Result<()> {
    let (store, user) = (open_or_make(config)?, user.clone());
    let name = user.username.as_str().to_owned();
    let created = block_on(async {
        Ok(store
            .transaction(move |tx| {
                tx.put_user(&user)?;
                tx.put_password(&user.id, &phc, now)?;
                if admin {
                    tx.put_admin(&Admin {
                        user_id: user.id.clone(),
                        granted_by: GrantedBy::Operator,
                        granted_at: now,
                        expires_at: None,
                    })?;
                }
                let detail = json!({ "admin": admin });
                tx.put_audit(&event(Name::UserCreated, &user.id, detail, now))
            })
            .await)
    })?;
    match created {
        Err(crate::db::Error::Duplicate(_)) => Err(Exit {
            code: 1,
            message: format!("there is a user `{name}` already"),
        }
        .into()),
        other => Ok(other?),
    }
}

fn set_password(config: &Config, username: &Username, from_stdin: bool) -> anyhow::Result<()> {
    let store = open(config)?;
    let user = find(&store, username)?;
    let phc = new_password(config, username, from_stdin)?;
    let now = Clock::System.now();
    block_on(async {
        Ok(store
            .transaction(move |tx| {
                tx.put_password(&user.id, &phc, now)?;
                tx.cut_off_user(&user.id, "password changed", "cli", now)?;
                tx.clear_user_throttles(&user.id)?;
                tx.put_audit(&event(
                    Name::UserCredentialChanged,
                    &user.id,
                    json!({}),
                    now,
                ))
            })
            .await?)
    })?;
    println!(
        "The password is set. Sessions and tokens of {} that began before are dead.",
        username.as_str()
    );
    Ok(())
}

fn find(store: &Store, username: &Username) -> anyhow::Result<User> {
    let wanted = username.clone();
    let found = block_on(async { Ok(store.read(move |tx| tx.find_credentials(&wanted)).await?) })?;
    let (user, _) = found.ok_or_else(|| Exit {
        code: 1,
        message: format!("there is no user `{}`", username.as_str()),
    })?;
    Ok(user)
}

/// Changes the state of an account, if it is not in it already.
fn change(
    config: &Config,
    username: &str,
    name: Name,
    act: impl FnOnce(&mut Transaction<'_>, &UserId, Timestamp) -> Result<bool, db::Error>
    + Send
    + 'static,
) -> anyhow::Result<()> {
    let (store, now) = (open(config)?, Clock::System.now());
    let user = find(&store, &parse(username)?)?.id;
    let changed = block_on(async {
        let changed = store.transaction(move |tx| {
            let changed = act(tx, &user, now)?;
            if changed {
                tx.put_audit(&event(name, &user, json!({}), now))?;
            }
            Ok(changed)
        });
        Ok(changed.await?)
    })?;
    if changed {
        return Ok(());
    }
    Err(Exit {
        code: 1,
        message: format!("nothing to do for `{username}`"),
    }
    .into())
}

/// An operator's change of a person.
pub fn event(name: Name, user: &UserId, detail: Value, now: Timestamp) -> Event {
    Event {
        at: now,
        name,
        actor: "cli".to_owned(),
        target: format!("user:{user}"),
        reason: None,
        detail,
    }
}
