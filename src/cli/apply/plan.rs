//! The plan: the difference between the files and the stored objects, a pure function of both.

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

/// The stored objects.
pub struct Stored {
    clients: Vec<Client>,
    resources: Vec<Resource>,
    scopes: BTreeMap<String, String>,
    users: Vec<User>,
    admins: BTreeSet<UserId>,
}

/// The options and the configuration of a plan.
pub struct Rules {
    /// Whether objects that no file names are removed.
    pub prune: bool,
    /// The configuration of the servers.
    pub config: Config,
    /// The rules for clients that follow from the configuration.
    pub clients: crate::admin::clients::Rules,
    /// The time of the change.
    pub now: Timestamp,
    /// The source of randomness for ids and secrets.
    pub entropy: Entropy,
}

/// The changes to make.
pub struct Plan {
    pub changes: Vec<Change>,
}

/// One object that changes.
pub struct Change {
    /// `create`, `update`, `delete`, `lock`.
    pub act: &'static str,
    /// `client`, `resource`, `scope`, `user`.
    pub kind: &'static str,
    /// The id or name of the object.
    pub name: String,
    /// The fields that change.
    pub fields: Vec<Field>,
    pub(super) steps: Vec<Step>,
}

/// One field that changes. A new object has no `before`.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub before: Value,
    pub after: Value,
}

/// One operation.
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
    /// Returns the change as JSON.
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
    /// Reads all objects that a file can describe. Users are read only if a file describes users, because there may be
    /// many.
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
    /// Creates the plan that changes `stored` to `wanted`. APIs and scopes come first, because clients name them.
    ///
    /// # Errors
    /// A message that names file, line and field.
    pub fn of(wanted: &Wanted, stored: &Stored, rules: &Rules) -> Result<Self, String> {
        let mut changes = resources::resources(wanted, stored, rules)?;
        let apis = resources::resulting(stored, &changes);
        changes.extend(resources::scopes(wanted, stored, rules)?);
        let clients = clients::clients(wanted, stored, &apis, rules)?;
        let deletes = |change: &Change| change.kind == "resource" && change.act == "delete";
        // Deletions come last, when no client names the API any more.
        let (removed, mut first): (Vec<_>, Vec<_>) = changes.into_iter().partition(deletes);
        first.extend(clients);
        first.extend(removed);
        first.extend(users::users(wanted, stored, rules)?);
        Ok(Self { changes: first })
    }

    /// Returns the changes as they are shown to the operator.
    pub fn difference(&self) -> Vec<Value> {
        self.changes.iter().map(Change::view).collect()
    }

    /// Returns the names of new accounts that have no password.
    pub fn without_password(&self) -> Vec<String> {
        let has_none = |step: &Step| matches!(step, Step::PutUser(_, None));
        let new = self.changes.iter();
        new.filter(|change| change.steps.iter().any(has_none))
            .map(|change| change.name.clone())
            .collect()
    }

    /// Returns the objects that are deleted or locked.
    pub fn removed(&self) -> Vec<String> {
        self.changes
            .iter()
            .filter(|change| matches!(change.act, "delete" | "lock"))
            .map(|change| format!("the {} {}", change.kind, change.name))
            .collect()
    }
}

impl Change {
    /// Returns `None` if the object exists and no field changes.
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

/// Returns the fields in which two views differ. For a new object, these are all fields that are not empty.
fn difference(before: Option<Value>, after: &Value) -> Vec<Field> {
    // Fields that are shown separately, or that the operator does not choose.
    const EXCLUDED: [&str; 6] = [
        "client_id",
        "audience",
        "username",
        "sub",
        "created_at",
        "disabled",
    ];
    let is_new = before.is_none();
    let before = before.unwrap_or(Value::Null);
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    let fields = after.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| !EXCLUDED.contains(&name.as_str()))
        .filter(|(name, value)| match is_new {
            true => !is_empty(value),
            false => before[name.as_str()] != **value,
        })
        .map(|(name, value)| Field {
            name: name.clone(),
            before: before[name.as_str()].clone(),
            after: value.clone(),
        })
        .collect()
}
