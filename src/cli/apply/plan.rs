//! The difference between what files want and what there is: a pure function of both.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::file::{Entry, Wanted};
use crate::accounts::user::{User, Username};
use crate::cli::{Wrong, client, resource, user};
use crate::config::limits::SCOPE_BYTES;
use crate::db::{self, Transaction};
use crate::id::{ClientId, UserId};
use crate::oauth::client::Client;
use crate::oauth::resource::{Resource, check_description};
use crate::oauth::scope::Scope;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// What there is.
pub struct Stored {
    clients: Vec<Client>,
    resources: Vec<Resource>,
    scopes: BTreeMap<String, String>,
    users: Vec<User>,
    admins: BTreeSet<UserId>,
}

/// By what a plan is made.
pub struct Rules {
    /// Whether what no file names is removed.
    pub prune: bool,
    /// Whether the issuer is on this machine alone.
    pub loopback: bool,
    /// The instant of the change.
    pub now: Timestamp,
    /// For ids and secrets.
    pub entropy: Entropy,
}

/// What is to be done.
pub struct Plan {
    pub changes: Vec<Change>,
}

/// One thing that changes.
pub struct Change {
    /// `create`, `update`, `delete`, `lock`.
    pub act: &'static str,
    /// `client`, `resource`, `scope`, `user`.
    pub kind: &'static str,
    /// Which.
    pub name: String,
    /// What of it.
    pub fields: Vec<Field>,
    pub(super) steps: Vec<Step>,
}

/// One field that changes. A new thing has no `before`.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub before: Value,
    pub after: Value,
}

/// What is done about it.
pub(super) enum Step {
    PutResource(Resource),
    UpdateResource(Resource),
    DeleteResource(Resource),
    Describe(String, String),
    Undescribe(String),
    PutClient(Box<Client>),
    UpdateClient(Box<Client>),
    SwitchClient(ClientId, bool),
    DeleteClient(ClientId),
    PutUser(Box<User>, Option<String>),
    UpdateUser(Box<User>),
    SwitchUser(UserId, bool),
}

impl Change {
    /// For scripts.
    pub fn view(&self) -> Value {
        let fields: serde_json::Map<String, Value> = self
            .fields
            .iter()
            .map(|field| {
                let both = json!({ "before": field.before, "after": field.after });
                (field.name.clone(), both)
            })
            .collect();
        json!({ "change": self.act, "kind": self.kind, "name": self.name, "fields": fields })
    }
}

impl Stored {
    /// Reads everything that a file can describe.
    ///
    /// # Errors
    /// [`db::Error`].
    pub fn read(tx: &mut Transaction<'_>) -> Result<Self, db::Error> {
        Ok(Self {
            clients: tx.list_clients()?,
            resources: tx.list_resources()?,
            scopes: tx.list_scope_descriptions()?,
            users: tx.list_users()?,
            admins: tx
                .list_admins()?
                .into_iter()
                .map(|admin| admin.user_id)
                .collect(),
        })
    }
}

impl Plan {
    /// What brings `stored` to where `wanted` is: APIs and scopes first, since clients name them.
    ///
    /// # Errors
    /// A sentence that names file, line and field.
    pub fn of(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Self, String> {
        let mut changes = resources(wanted, stored, rules)?;
        changes.extend(scopes(wanted, stored, rules)?);
        let clients = clients(wanted, stored, rules)?;
        let deletes = |change: &Change| change.kind == "resource" && change.act == "delete";
        // What is removed goes last: by then no client names it any more.
        let (removed, mut first): (Vec<_>, Vec<_>) = changes.into_iter().partition(deletes);
        first.extend(clients);
        first.extend(removed);
        first.extend(users(wanted, stored, rules)?);
        Ok(Self { changes: first })
    }

    /// Everything that a person saw of it.
    pub fn difference(&self) -> Vec<Value> {
        self.changes.iter().map(Change::view).collect()
    }

    /// What is deleted or locked because no file names it.
    pub fn removed(&self) -> Vec<String> {
        self.changes
            .iter()
            .filter(|change| matches!(change.act, "delete" | "lock"))
            .map(|change| format!("the {} {}", change.kind, change.name))
            .collect()
    }
}

fn resources(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Vec<Change>, String> {
    let Some(entries) = &wanted.resources else {
        return Ok(Vec::new());
    };
    let mut changes = Vec::new();
    for entry in entries {
        let audience = &entry.fields.audience;
        let at = |why: String| format!("{}: resource `{audience}`: {why}", entry.place);
        let before = stored.resources.iter().find(|r| r.audience == *audience);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(audience, &rules.entropy, rules.now),
        };
        let after = after.map_err(|wrong: Wrong| at(wrong.to_string()))?;
        after.check().map_err(at)?;
        let change = Change {
            act: act(before),
            kind: "resource",
            name: audience.clone(),
            fields: difference(before.map(resource::view), &resource::view(&after)),
            steps: vec![match before {
                Some(_) => Step::UpdateResource(after),
                None => Step::PutResource(after),
            }],
        };
        changes.extend(change.if_any(before.is_none()));
    }
    if rules.prune {
        let kept = |r: &&Resource| !entries.iter().any(|e| e.fields.audience == r.audience);
        changes.extend(stored.resources.iter().filter(kept).map(|r| Change {
            act: "delete",
            kind: "resource",
            name: r.audience.clone(),
            fields: Vec::new(),
            steps: vec![Step::DeleteResource(r.clone())],
        }));
    }
    Ok(changes)
}

fn scopes(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Vec<Change>, String> {
    let Some(entries) = &wanted.scopes else {
        return Ok(Vec::new());
    };
    let change = |act, name: &String, before: Value, after: Value, step| Change {
        act,
        kind: "scope",
        name: name.clone(),
        fields: vec![Field {
            name: "description".to_owned(),
            before,
            after,
        }],
        steps: vec![step],
    };
    let mut changes = Vec::new();
    for Entry { place, fields } in entries {
        let (scope, text) = fields;
        let one = Scope::parse(scope).is_ok_and(|scope| scope.iter().count() == 1);
        if !one || scope.contains(' ') {
            return Err(format!(
                "{place}: `{scope}` is no scope: one word of at most {SCOPE_BYTES} bytes (RFC 6749 §3.3)"
            ));
        }
        check_description(text).map_err(|why| format!("{place}: `{scope}` {why}"))?;
        let before = stored.scopes.get(scope);
        if before != Some(text) {
            let step = Step::Describe(scope.clone(), text.clone());
            let value = |text: Option<&String>| text.map_or(Value::Null, |text| json!(text));
            changes.push(change(act(before), scope, value(before), json!(text), step));
        }
    }
    if rules.prune {
        let kept = |scope: &String| entries.iter().any(|entry| entry.fields.0 == *scope);
        for (scope, text) in stored.scopes.iter().filter(|(scope, _)| !kept(scope)) {
            let step = Step::Undescribe(scope.clone());
            changes.push(change("delete", scope, json!(text), Value::Null, step));
        }
    }
    Ok(changes)
}

fn clients(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Vec<Change>, String> {
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
            None => entry
                .fields
                .create(ClientId::from(id.as_str()), false, rules.now),
        };
        let after = after.map_err(|wrong: Wrong| at(wrong.to_string()))?;
        after.check(rules.loopback).map_err(|(_, why)| at(why))?;
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

fn users(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Vec<Change>, String> {
    let Some(entries) = &wanted.users else {
        return Ok(Vec::new());
    };
    let mut changes = Vec::new();
    let mut described: BTreeSet<String> = BTreeSet::new();
    for entry in entries {
        let typed = &entry.fields.username;
        let at = |why: String| format!("{}: user `{typed}`: {why}", entry.place);
        let username = Username::parse(typed)
            .ok_or_else(|| at("username: this cannot be a user name".to_owned()))?;
        if !described.insert(username.as_str().to_owned()) {
            return Err(at(
                "username: is another spelling of a name that is described already".to_owned(),
            ));
        }
        let before = stored.users.iter().find(|user| user.username == username);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(username, &rules.entropy, rules.now),
        };
        let after = after.map_err(|wrong: Wrong| at(wrong.to_string()))?;
        after.check().map_err(at)?;
        let phc = entry.fields.first_password();
        let phc = phc.map_err(|wrong| at(wrong.to_string()))?;
        changes.extend(user_change(entry, before, after, phc));
    }
    if rules.prune {
        let stays = |user: &&User| {
            !described.contains(user.username.as_str())
                && user.disabled_at.is_none()
                && !stored.admins.contains(&user.id)
        };
        changes.extend(stored.users.iter().filter(stays).map(|user| Change {
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

impl Change {
    /// Nothing, if nothing is different.
    fn if_any(self, new: bool) -> Option<Self> {
        (new || !self.fields.is_empty()).then_some(self)
    }
}

fn act<T>(before: Option<&T>) -> &'static str {
    match before {
        Some(_) => "update",
        None => "create",
    }
}

fn switched(before: Option<bool>, after: bool) -> Field {
    Field {
        name: "disabled".to_owned(),
        before: before.map_or(Value::Null, Value::from),
        after: after.into(),
    }
}

/// What two views differ in. Of a new thing everything is different that says anything at all.
fn difference(before: Option<Value>, after: &Value) -> Vec<Field> {
    // The name stands beside it, and nobody chooses the others.
    const NOT_OURS: [&str; 6] = [
        "client_id",
        "audience",
        "username",
        "sub",
        "created_at",
        "disabled",
    ];
    let is_new = before.is_none();
    let before = before.unwrap_or(Value::Null);
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    let fields = after.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| !NOT_OURS.contains(&name.as_str()))
        .filter(|(name, value)| match is_new {
            true => !empty(value),
            false => before[name.as_str()] != **value,
        })
        .map(|(name, value)| Field {
            name: name.clone(),
            before: before[name.as_str()].clone(),
            after: value.clone(),
        })
        .collect()
}
