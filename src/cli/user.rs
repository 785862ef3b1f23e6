//! `user`: manages users, their passwords and their sessions.

mod registration;
mod sessions;
mod throttles;
mod view;

use clap::Subcommand;
use serde_json::{Value, json};

use super::command::{context, entropy, execute, read};
use super::{
    Exit, Output, UsageError, invalid, open, open_or_create, read_secret, shown_once, table,
};
use crate::accounts::admin::GrantedBy;
use crate::accounts::password::Password;
use crate::accounts::user::{User, Username};
use crate::admin::users::{self, Administrator, NewUser};
use crate::admin::{self, AdminError, Context};
use crate::config::Config;
use crate::db::{Store, Transaction};
use crate::id::{Sid, UserId};
use crate::secret::Secret;
pub use registration::Fields;
pub use view::view;
use view::{Account, print};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create a user.
    #[command(after_help = "\
Examples:
  portcullis user create alice --name \"Alice Doe\" --email alice@example.com --generate-password
  portcullis user create root --admin")]
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
        #[command(flatten)]
        password: NewPassword,
    },
    /// List all users, with their last sign-in within 400 days.
    List {
        /// Only accounts without a password, with which no sign-in is possible.
        #[arg(long)]
        without_password: bool,
    },
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
        #[command(flatten)]
        password: NewPassword,
    },
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create {
            username,
            fields,
            claims,
            admin,
            password,
        } => {
            let username = parse(username)?;
            let ctx = context();
            let mut fields = fields.clone();
            fields.claims = Some(parse_claims(claims)?);
            let user = fields.create(username.clone(), &ctx.entropy, ctx.now)?;
            user.check().map_err(|errors| invalid(&errors))?;
            let (phc, generated) = password.read(config, &username)?;
            let new = NewUser {
                user,
                password_hash: Some(phc),
                admin: admin.then_some(Administrator {
                    granted_by: GrantedBy::Operator,
                    expires_at: None,
                }),
            };
            let store = open_or_create(config)?;
            let user = execute(&store, ctx, |tx, ctx| users::create(tx, ctx, new))?;
            let accounts = Account::of(vec![user], &store)?;
            let password = generated.as_ref();
            if let (Output::Json, Some(password)) = (output, password) {
                let mut shown = accounts[0].view();
                shown["generated_password"] = password.expose().into();
                shown_once::add_issuer(&mut shown, config)?;
                println!("{:#}", Value::from(vec![shown]));
                return Ok(());
            }
            print(output, &accounts);
            if let Some(password) = password {
                let named = [(format!("Password of {}", username.as_str()), password)];
                println!("{}", shown_once::announce(named, config)?);
            }
            Ok(())
        }
        Action::List { without_password } => {
            let store = open(config)?;
            let mut accounts = Account::of(read(&store, |tx| tx.list_users())?, &store)?;
            accounts.retain(|account| !(*without_password && account.has_password));
            print(output, &accounts);
            Ok(())
        }
        Action::Get { username } => {
            let store = open(config)?;
            let user = find(&store, &parse(username)?)?;
            let accounts = Account::of(vec![user], &store)?;
            accounts
                .iter()
                .for_each(|account| table::print_one(output, &account.view()));
            Ok(())
        }
        Action::Lock { username } => {
            change(config, username, users::disable)?;
            output.print(
                &json!({ "username": username, "disabled": true }),
                format!("{username} is locked. All sessions, grants and tokens are revoked."),
            );
            Ok(())
        }
        Action::Unlock { username } => {
            change(config, username, users::enable)?;
            output.print(
                &json!({ "username": username, "disabled": false }),
                format!("{username} is unlocked and must sign in again."),
            );
            Ok(())
        }
        Action::ListSessions { username } => sessions::list(config, username, output),
        Action::RevokeSessions {
            username,
            sid: None,
        } => {
            change(config, username, users::sign_out_everywhere)?;
            output.print(
                &json!({ "username": username, "revoked": "all" }),
                format!("{username} is signed out everywhere. All grants and tokens are revoked."),
            );
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
            output.print(
                &json!({ "username": username, "revoked": shown.to_string() }),
                format!("The session {shown} and its grants are revoked."),
            );
            Ok(())
        }
        Action::ClearThrottles(arguments) => throttles::clear(config, arguments, output),
        Action::SetPassword { username, password } => {
            let username = parse(username)?;
            let store = open(config)?;
            let user = find(&store, &username)?;
            let (phc, generated) = password.read(config, &username)?;
            execute(&store, context(), move |tx, ctx| {
                users::set_password(tx, ctx, &user.id, &phc)
            })?;
            let mut shown = json!({ "username": username.as_str(), "password_set": true });
            let mut text = format!(
                "The password is set. All earlier sessions and tokens of {} are revoked.",
                username.as_str()
            );
            if let Some(password) = &generated {
                shown["generated_password"] = password.expose().into();
                let named = [(format!("Password of {}", username.as_str()), password)];
                text = format!("{text}\n{}", shown_once::announce(named, config)?);
            }
            output.print(&shown, text);
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

/// Where a new password comes from. Without an option, it is typed twice on the terminal.
#[derive(clap::Args)]
struct NewPassword {
    /// Read the password from stdin instead of asking.
    #[arg(long)]
    password_stdin: bool,
    /// Generate a password, and print it once.
    #[arg(long, conflicts_with = "password_stdin")]
    generate_password: bool,
}

impl NewPassword {
    /// Returns the hash, and the password if it was generated.
    fn read(&self, config: &Config, user: &Username) -> anyhow::Result<(String, Option<Secret>)> {
        let refused = |message: String| Exit { code: 2, message };
        let generated = self.generate_password.then(|| Secret::readable(&entropy()));
        let text = match &generated {
            Some(secret) => secret.expose().to_owned(),
            None => {
                let name = user.as_str();
                let typed =
                    read_secret(&format!("New password for {name}: "), self.password_stdin)?;
                if !self.password_stdin && read_secret("Repeat the password: ", false)? != typed {
                    let why = "the two passwords differ; nothing was changed";
                    return Err(refused(why.to_owned()).into());
                }
                typed
            }
        };
        let password = Password::parse_new(&text, user, &config.branding.product)
            .map_err(|error| refused(error.to_string()))?;
        let phc = password
            .hash(&config.login.argon2, &entropy())
            .map_err(|message| Exit { code: 1, message })?;
        Ok((phc, generated))
    }
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
