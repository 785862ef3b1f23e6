//! `user`: manages users, their passwords and their sessions.

mod registration;
mod sessions;
mod throttles;
mod view;

use clap::Subcommand;
use serde_json::Value;

use super::command::{context, entropy, execute, read};
use super::{Exit, Output, UsageError, open, open_or_create, read_secret, table};
use crate::accounts::admin::GrantedBy;
use crate::accounts::password::Password;
use crate::accounts::user::{User, Username};
use crate::admin::users::{self, Administrator, NewUser};
use crate::admin::{self, AdminError, Context};
use crate::config::Config;
use crate::db::{Store, Transaction};
use crate::id::{Sid, UserId};
pub use registration::Fields;
use view::print;
pub use view::view;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Output format.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Output,
}

#[derive(Subcommand)]
enum Action {
    /// Create a user.
    Create {
        /// The user name.
        username: String,
        #[command(flatten)]
        fields: Fields,
        /// Standard claim, such as given_name=Alice; repeatable.
        #[arg(long = "claim", value_name = "NAME=VALUE")]
        claims: Vec<String>,
        /// Make the user an administrator.
        #[arg(long)]
        admin: bool,
        /// Read the password from stdin instead of asking.
        #[arg(long)]
        password_stdin: bool,
    },
    /// List all users.
    List,
    /// Show a user, with all claims.
    Get {
        /// The user name.
        username: String,
    },
    /// Lock an account: prevent sign-ins, and revoke all its sessions, grants and tokens.
    Lock {
        /// The user name.
        username: String,
    },
    /// Unlock an account. Its earlier sessions, grants and tokens stay revoked.
    Unlock {
        /// The user name.
        username: String,
    },
    /// List the sessions of a user.
    ListSessions {
        /// The user name.
        username: String,
    },
    /// Sign a user out of one session or of all sessions.
    RevokeSessions {
        /// The user name.
        username: String,
        /// Session id from `user list-sessions`. If absent, all sessions, grants and tokens are revoked, including
        /// offline grants.
        #[arg(long)]
        sid: Option<String>,
    },
    /// Clear counters of failed sign-ins, which ends the resulting delays at once.
    ClearThrottles(throttles::Arguments),
    /// Set a password. Revokes all sessions, grants and tokens of the user, and ends delays after failed sign-ins.
    SetPassword {
        /// The user name.
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
            let ctx = context();
            let mut fields = fields.clone();
            fields.claims = Some(parse_claims(claims)?);
            let user = fields.create(username.clone(), &ctx.entropy, ctx.now)?;
            let checked = user.check().map_err(|errors| errors.to_string());
            checked.map_err(|message| Exit { code: 1, message })?;
            let new = NewUser {
                user,
                password_hash: Some(new_password(config, &username, *password_stdin)?),
                admin: admin.then_some(Administrator {
                    granted_by: GrantedBy::Operator,
                    expires_at: None,
                }),
            };
            let store = open_or_create(config)?;
            let user = execute(&store, ctx, |tx, ctx| users::create(tx, ctx, new))?;
            print(arguments.format, &[user]);
            Ok(())
        }
        Action::List => {
            let users = read(&open(config)?, |tx| tx.list_users())?;
            print(arguments.format, &users);
            Ok(())
        }
        Action::Get { username } => {
            let store = open(config)?;
            let user = find(&store, &parse(username)?)?;
            let (admins, now) = (read(&store, |tx| tx.list_admins())?, context().now);
            let mut shown = view(&user);
            shown["admin"] = (admins.iter())
                .any(|admin| admin.user_id == user.id && admin.is_live(now))
                .into();
            table::print_one(arguments.format, &shown);
            Ok(())
        }
        Action::Lock { username } => {
            change(config, username, users::disable)?;
            println!("{username} is locked. All sessions, grants and tokens are revoked.");
            Ok(())
        }
        Action::Unlock { username } => {
            change(config, username, users::enable)?;
            println!("{username} is unlocked and must sign in again.");
            Ok(())
        }
        Action::ListSessions { username } => sessions::list(config, username, arguments.format),
        Action::RevokeSessions {
            username,
            sid: None,
        } => {
            change(config, username, users::sign_out_everywhere)?;
            println!("{username} is signed out everywhere. All grants and tokens are revoked.");
            Ok(())
        }
        Action::RevokeSessions {
            username,
            sid: Some(sid),
        } => {
            let sid = Sid::from(sid.as_str());
            let shown = sid.clone();
            change(config, username, move |tx, ctx, user| {
                admin::sessions::end(tx, ctx, user, &sid)
            })?;
            println!("The session {shown} and its grants are revoked.");
            Ok(())
        }
        Action::ClearThrottles(arguments) => throttles::clear(config, arguments),
        Action::SetPassword {
            username,
            password_stdin,
        } => {
            let username = parse(username)?;
            let store = open(config)?;
            let user = find(&store, &username)?;
            let phc = new_password(config, &username, *password_stdin)?;
            execute(&store, context(), move |tx, ctx| {
                users::set_password(tx, ctx, &user.id, &phc)
            })?;
            println!(
                "The password is set. All earlier sessions and tokens of {} are revoked.",
                username.as_str()
            );
            Ok(())
        }
    }
}

fn parse(name: &str) -> anyhow::Result<Username> {
    Username::parse(name).ok_or_else(|| {
        Exit {
            code: 2,
            message: format!("invalid user name `{name}`"),
        }
        .into()
    })
}

/// Parses standard claims (OIDC Core §5.1) from NAME=VALUE. The values of `address` and
/// `phone_number_verified` are JSON.
fn parse_claims(given: &[String]) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut claims = serde_json::Map::new();
    for pair in given {
        let invalid = || UsageError::new("claims", format!("`{pair}` is not NAME=VALUE"));
        let (name, text) = pair.split_once('=').ok_or_else(invalid)?;
        let value = match name {
            "address" | "phone_number_verified" => {
                serde_json::from_str(text).map_err(|_| invalid())?
            }
            _ => Value::from(text),
        };
        claims.insert(name.to_owned(), value);
    }
    Ok(claims)
}

fn new_password(config: &Config, user: &Username, from_stdin: bool) -> anyhow::Result<String> {
    let refused = |message: String| Exit { code: 1, message };
    let text = read_secret(&format!("New password for {}: ", user.as_str()), from_stdin)?;
    let password = Password::parse_new(&text, user, &config.branding.product)
        .map_err(|error| refused(error.to_string()))?;
    password
        .hash(&config.login.argon2, &entropy())
        .map_err(|why| refused(why).into())
}

fn find(store: &Store, username: &Username) -> anyhow::Result<User> {
    let name = username.clone();
    let credentials = read(store, move |tx| tx.find_credentials(&name))?;
    let (user, _) = credentials.ok_or_else(|| Exit {
        code: 1,
        message: format!("there is no user `{}`", username.as_str()),
    })?;
    Ok(user)
}

/// Performs an operation on the user with this name.
fn change(
    config: &Config,
    username: &str,
    operation: impl FnOnce(&mut Transaction<'_>, &Context, &UserId) -> Result<(), AdminError>
    + Send
    + 'static,
) -> anyhow::Result<()> {
    let store = open(config)?;
    let user = find(&store, &parse(username)?)?.id;
    let name = username.to_owned();
    execute(&store, context(), move |tx, ctx| {
        operation(tx, ctx, &user).map_err(|error| match error {
            AdminError::Unchanged(_) => AdminError::Unchanged(name),
            other => other,
        })
    })
}
