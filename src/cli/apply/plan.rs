//! The difference between what files want and what there is: a pure function of both.

mod clients;
mod resources;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::file::Wanted;
use crate::accounts::user::User;
use crate::config::Config;
use crate::db::{self, Transaction};
use crate::id::{ClientId, UserId};
use crate::oauth::client::Client;
use crate::oauth::resource::Resource;
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
    /// The configuration of the servers that will run on it.
    pub config: Config,
    /// What that configuration says about clients.
    pub clients: crate::admin::clients::Rules,
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
    UpdateResource(Resource, Resource),
    DeleteResource(Resource),
    Describe(String, String),
    Undescribe(String),
    PutClient(Box<Client>),
    UpdateClient(Box<Client>, Box<Client>),
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
    /// Reads everything that a file can describe; people, of whom there may be many, only if one does.
    ///
    /// # Errors
    /// [`db::Error`].
    pub fn read(tx: &mut Transaction<'_>, with_users: bool) -> Result<Self, db::Error> {
        Ok(Self {
            clients: tx.list_clients()?,
            resources: tx.list_resources()?,
            scopes: tx.list_scope_descriptions()?,
            users: match with_users {
                true => tx.list_users()?,
                false => Vec::new(),
            },
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
        let mut changes = resources::resources(wanted, stored, rules)?;
        let known = resources::resulting(stored, &changes);
        changes.extend(resources::scopes(wanted, stored, rules)?);
        let clients = clients::clients(wanted, stored, &known, rules)?;
        let deletes = |change: &Change| change.kind == "resource" && change.act == "delete";
        // What is removed goes last: by then no client names it any more.
        let (removed, mut first): (Vec<_>, Vec<_>) = changes.into_iter().partition(deletes);
        first.extend(clients);
        first.extend(removed);
        first.extend(users::users(wanted, stored, rules)?);
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
