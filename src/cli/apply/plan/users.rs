//! Changes of users.

use std::collections::BTreeSet;

use super::{Change, Rules, Step, Stored, act, difference, switched};
use crate::accounts::user::{User, Username};
use crate::cli::apply::file::{Entry, Wanted};
use crate::cli::{UsageError, user};

pub(super) fn users(
    wanted: &Wanted,
    stored: &Stored,
    rules: &Rules,
) -> Result<Vec<Change>, String> {
    let Some(entries) = &wanted.users else {
        return Ok(Vec::new());
    };
    let mut changes = Vec::new();
    let mut described: BTreeSet<String> = BTreeSet::new();
    for entry in entries {
        let name = &entry.fields.username;
        let at = |why: String| format!("{}: user `{name}`: {why}", entry.location);
        let username =
            Username::parse(name).ok_or_else(|| at("username: invalid user name".to_owned()))?;
        if !described.insert(username.as_str().to_owned()) {
            return Err(at(
                "username: another spelling of a name that has an entry already".to_owned(),
            ));
        }
        let before = stored.users.iter().find(|user| user.username == username);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(username, &rules.entropy, rules.now),
        };
        let after = after.map_err(|error: UsageError| at(error.to_string()))?;
        let checked = after.check().map_err(|errors| errors.to_string());
        checked.map_err(|errors| at(errors.replace('\n', "; ")))?;
        let phc = entry.fields.first_password();
        let phc = phc.map_err(|error| at(error.to_string()))?;
        changes.extend(user_change(entry, before, after, phc));
    }
    if rules.prune {
        let is_pruned = |user: &&User| {
            !described.contains(user.username.as_str())
                && user.disabled_at.is_none()
                && !stored.admins.contains(&user.id)
        };
        changes.extend(stored.users.iter().filter(is_pruned).map(|user| Change {
            act: "lock",
            kind: "user",
            name: user.username.as_str().to_owned(),
            fields: vec![switched(Some(false), true)],
            steps: vec![Step::SwitchUser(user.id.clone(), false)],
        }));
    }
    Ok(changes)
}

fn user_change(
    entry: &Entry<user::Fields>,
    before: Option<&User>,
    after: User,
    phc: Option<&str>,
) -> Option<Change> {
    let mut fields = difference(before.map(user::view), &user::view(&after));
    let (id, name) = (after.id.clone(), after.username.as_str().to_owned());
    let is_off = after.disabled_at.is_some();
    let mut steps = Vec::new();
    match before {
        None => steps.push(Step::PutUser(Box::new(after), phc.map(str::to_owned))),
        Some(_) if !fields.is_empty() => steps.push(Step::UpdateUser(Box::new(after))),
        Some(_) => {}
    }
    if let Some(off) = entry.fields.disabled.filter(|off| *off != is_off) {
        fields.push(switched(before.map(|_| is_off), off));
        steps.push(Step::SwitchUser(id, !off));
    }
    let change = Change {
        act: act(before),
        kind: "user",
        name,
        fields,
        steps,
    };
    change.if_any(before.is_none())
}
