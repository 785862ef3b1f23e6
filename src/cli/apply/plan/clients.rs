//! What changes of applications.

use std::collections::BTreeSet;

use super::{Change, Rules, Step, Stored, act, difference, switched};
use crate::cli::apply::file::{Entry, Wanted};
use crate::cli::{Wrong, client};
use crate::id::ClientId;
use crate::keys::ring::offered;
use crate::oauth::client::Client;

pub(super) fn clients(
    wanted: &Wanted,
    stored: &Stored,
    rules: &Rules,
) -> Result<Vec<Change>, String> {
    let known = audiences(wanted, stored, rules);
    let entries = wanted.clients.as_deref().unwrap_or_default();
    let described = |id: &ClientId| entries.iter().any(|e| e.fields.client_id == id.as_str());
    let pruned =
        |client: &Client| rules.prune && wanted.clients.is_some() && !described(&client.id);
    let mut changes = Vec::new();
    for entry in entries {
        let id = &entry.fields.client_id;
        let at = |why: String| format!("{}: client `{id}`: {why}", entry.place);
        let before = stored.clients.iter().find(|c| c.id.as_str() == id);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(
                ClientId::from(id.as_str()),
                false,
                &offered(&rules.config.keys),
                rules.now,
            ),
        };
        let after = after.map_err(|wrong: Wrong| at(wrong.to_string()))?;
        client::check(&after, &rules.config).map_err(at)?;
        for (field, named) in [("resources", &after.resources), ("serves", &after.serves)] {
            if let Some(odd) = named.iter().find(|audience| !known.contains(*audience)) {
                return Err(at(format!(
                    "{field}: the resource `{odd}` is not registered, and no file describes it"
                )));
            }
        }
        changes.extend(client_change(entry, before, after));
    }
    for client in &stored.clients {
        if pruned(client) {
            changes.push(Change {
                act: "delete",
                kind: "client",
                name: client.id.to_string(),
                fields: Vec::new(),
                steps: vec![Step::DeleteClient(client.id.clone())],
            });
        } else if !described(&client.id)
            && let Some(gone) = (client.resources.iter().chain(&client.serves))
                .find(|audience| !known.contains(*audience))
        {
            return Err(format!(
                "the resource `{gone}` cannot be removed: the client `{}` still names it",
                client.id
            ));
        }
    }
    Ok(changes)
}

fn client_change(
    entry: &Entry<client::Fields>,
    before: Option<&Client>,
    after: Client,
) -> Option<Change> {
    let mut fields = difference(before.map(client::view), &client::view(&after));
    let (id, is_off) = (after.id.clone(), after.disabled_at.is_some());
    let mut steps = Vec::new();
    match before {
        None => steps.push(Step::PutClient(Box::new(after))),
        Some(_) if !fields.is_empty() => steps.push(Step::UpdateClient(Box::new(after))),
        Some(_) => {}
    }
    if let Some(off) = entry.fields.disabled.filter(|off| *off != is_off) {
        fields.push(switched(before.map(|_| is_off), off));
        steps.push(Step::SwitchClient(id.clone(), !off));
    }
    let change = Change {
        act: act(before),
        kind: "client",
        name: id.to_string(),
        fields,
        steps,
    };
    change.if_any(before.is_none())
}

/// The APIs that there are when everything is done.
fn audiences(wanted: &Wanted, stored: &Stored, rules: &Rules) -> BTreeSet<String> {
    let described = wanted.resources.iter().flatten();
    let described: BTreeSet<String> = described
        .map(|entry| entry.fields.audience.clone())
        .collect();
    if rules.prune && wanted.resources.is_some() {
        return described;
    }
    let stored = stored.resources.iter().map(|r| r.audience.clone());
    described.into_iter().chain(stored).collect()
}
