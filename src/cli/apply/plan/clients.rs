//! Changes of applications.

use super::{Change, Rules, Step, Stored, act, difference, switched};
use crate::accounts::FieldErrors;
use crate::admin::clients::{check_names, view};
use crate::cli::apply::file::{Entry, Wanted};
use crate::cli::{UsageError, client};
use crate::id::ClientId;
use crate::keys::ring::offered;
use crate::oauth::client::Client;
use crate::oauth::resource::Resource;

/// Plans the changes of clients. `apis` are the APIs that exist after the plan.
pub(super) fn clients(
    wanted: &Wanted,
    stored: &Stored,
    apis: &[Resource],
    rules: &Rules,
) -> Result<Vec<Change>, String> {
    let entries = wanted.clients.as_deref().unwrap_or_default();
    let described = |id: &ClientId| entries.iter().any(|e| e.fields.client_id == id.as_str());
    let pruned =
        |client: &Client| rules.prune && wanted.clients.is_some() && !described(&client.id);
    let mut changes = Vec::new();
    for entry in entries {
        let id = &entry.fields.client_id;
        let at = |why: String| format!("{}: client `{id}`: {why}", entry.location);
        let before = stored.clients.iter().find(|c| c.id.as_str() == id);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(
                Some(ClientId::from(id.as_str())),
                false,
                &offered(&rules.config.keys),
                rules.now,
            ),
        };
        let after = after.map_err(|error: UsageError| at(error.to_string()))?;
        let mut errors = rules
            .clients
            .check(&after)
            .err()
            .unwrap_or_else(FieldErrors::none);
        check_names(&after, apis, &mut errors);
        let one_line = |errors: FieldErrors| at(errors.to_string().replace('\n', "; "));
        errors.into_result().map_err(one_line)?;
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
            && let Some(removed) = (client.resources.iter().chain(&client.serves))
                .find(|audience| !apis.iter().any(|api| api.audience == **audience))
        {
            return Err(format!(
                "the resource `{removed}` cannot be removed: the client `{}` still names it",
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
    let mut fields = difference(before.map(view), &view(&after));
    let (id, is_off) = (after.id.clone(), after.disabled_at.is_some());
    let mut steps = Vec::new();
    match before {
        None => steps.push(Step::PutClient(Box::new(after))),
        Some(before) if !fields.is_empty() => {
            let before = Box::new(before.clone());
            steps.push(Step::UpdateClient(before, Box::new(after)));
        }
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
