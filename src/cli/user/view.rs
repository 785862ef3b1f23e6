//! The output of commands about users.

use serde_json::{Value, json};

use crate::accounts::user::User;
use crate::cli::{Output, table};

pub fn print(output: Output, users: &[User]) {
    let rows: Vec<Vec<String>> = users
        .iter()
        .map(|user| {
            vec![
                user.username.as_str().to_owned(),
                user.id.to_string(),
                user.name.clone().unwrap_or_default(),
                user.email.clone().unwrap_or_default(),
                user.disabled_at.map_or("active", |_| "disabled").to_owned(),
            ]
        })
        .collect();
    let values: Vec<Value> = users.iter().map(view).collect();
    table::print(
        output,
        &["username", "sub", "name", "email", "state"],
        &rows,
        &values.into(),
    );
}

/// Returns a user as JSON.
pub fn view(user: &User) -> Value {
    json!({
        "sub": user.id.as_str(), "username": user.username.as_str(), "name": user.name, "email": user.email,
        "email_verified": user.email_verified, "claims": user.claims,
        "disabled": user.disabled_at.is_some(), "created_at": user.created_at.to_string(),
    })
}
