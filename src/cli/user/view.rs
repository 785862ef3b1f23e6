//! The output of commands about users.

use serde_json::{Value, json};

use crate::accounts::user::User;
use crate::cli::command::{clock, read};
use crate::cli::{Output, table};
use crate::db::Store;
use crate::time::Timestamp;

/// A user, with what operators must know about the account.
pub struct Account {
    user: User,
    /// Without a password, no sign-in is possible.
    pub has_password: bool,
    is_admin: bool,
    signed_in_at: Option<Timestamp>,
}

impl Account {
    /// Reads the accounts of users.
    pub fn of(users: Vec<User>, store: &Store) -> anyhow::Result<Vec<Self>> {
        let (with_password, admins, sign_ins) = read(store, |tx| {
            Ok((
                tx.list_users_with_password()?,
                tx.list_admins()?,
                tx.last_sign_ins()?,
            ))
        })?;
        let now = clock().now();
        let account = |user: User| Self {
            has_password: with_password.contains(&user.id),
            is_admin: (admins.iter()).any(|admin| admin.user_id == user.id && admin.is_live(now)),
            signed_in_at: sign_ins.get(&user.id).copied(),
            user,
        };
        Ok(users.into_iter().map(account).collect())
    }

    /// Returns the account as JSON.
    pub fn view(&self) -> Value {
        let mut view = view(&self.user);
        view["password"] = self.has_password.into();
        view["admin"] = self.is_admin.into();
        view["last_sign_in"] = self.signed_in_at.map(|at| at.to_string()).into();
        view
    }
}

pub fn print(output: Output, accounts: &[Account]) {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let rows: Vec<Vec<String>> = accounts
        .iter()
        .map(|account| {
            let user = &account.user;
            vec![
                user.username.as_str().to_owned(),
                user.id.to_string(),
                user.name.clone().unwrap_or_default(),
                user.email.clone().unwrap_or_default(),
                user.disabled_at.map_or("active", |_| "disabled").to_owned(),
                yes(account.has_password),
                yes(account.is_admin),
                (account.signed_in_at).map_or_else(|| "–".to_owned(), |at| at.to_string()),
            ]
        })
        .collect();
    let values: Vec<Value> = accounts.iter().map(Account::view).collect();
    let columns = [
        "username",
        "sub",
        "name",
        "email",
        "state",
        "password",
        "administrator",
        "last sign-in",
    ];
    table::print(output, &columns, &rows, &values.into());
}

/// Returns a user as JSON.
pub fn view(user: &User) -> Value {
    json!({
        "sub": user.id.as_str(), "username": user.username.as_str(), "name": user.name, "email": user.email,
        "email_verified": user.email_verified, "claims": user.claims,
        "disabled": user.disabled_at.is_some(), "created_at": user.created_at.to_string(),
    })
}
