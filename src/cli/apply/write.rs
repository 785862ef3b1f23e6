//! Doing what a plan says, each change with its audit event.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::plan::{Change, Plan, Rules, Step};
use crate::audit::{Event, Name};
use crate::cli::{client, resource, user};
use crate::db::{self, Transaction};
use crate::secret::Secret;

/// Secrets of clients that were made, by client id.
pub type Secrets = BTreeMap<String, Secret>;

impl Plan {
    /// Does it.
    ///
    /// # Errors
    /// [`db::Error`].
    pub fn write(self, tx: &mut Transaction<'_>, rules: &Rules) -> Result<Secrets, db::Error> {
        let mut secrets = Secrets::new();
        for change in self.changes {
            let detail = detail(&change);
            for step in change.steps {
                let event = perform(step, detail.clone(), tx, rules, &mut secrets)?;
                tx.put_audit(&event)?;
            }
        }
        Ok(secrets)
    }
}

/// Before and after, of what changes alone.
fn detail(change: &Change) -> Value {
    let side = |pick: fn(&super::plan::Field) -> &Value| -> Value {
        let fields = change.fields.iter();
        let fields = fields.map(|field| (field.name.clone(), pick(field).clone()));
        Value::Object(fields.collect())
    };
    json!({ "before": side(|field| &field.before), "after": side(|field| &field.after) })
}

fn perform(
    step: Step,
    detail: Value,
    tx: &mut Transaction<'_>,
    rules: &Rules,
    secrets: &mut Secrets,
) -> Result<Event, db::Error> {
    let now = rules.now;
    Ok(match step {
        Step::PutResource(new) => {
            tx.put_resource(&new)?;
            resource::event(Name::ResourceCreated, &new.audience, detail, now)
        }
        Step::UpdateResource(new) => {
            tx.update_resource(&new, now)?;
            resource::event(Name::ResourceUpdated, &new.audience, detail, now)
        }
        Step::DeleteResource(old) => {
            tx.delete_resource(&old.audience)?;
            let detail = resource::view(&old);
            resource::event(Name::ResourceDeleted, &old.audience, detail, now)
        }
        Step::Describe(scope, text) => {
            tx.put_scope_description(&scope, &text)?;
            scope_event(&scope, detail, rules)
        }
        Step::Undescribe(scope) => {
            tx.delete_scope_description(&scope)?;
            scope_event(&scope, detail, rules)
        }
        Step::PutClient(new) => {
            let (new, secret) = client::with_secret(*new, &rules.entropy, now);
            tx.put_client(&new)?;
            secrets.extend(secret.map(|secret| (new.id.to_string(), secret)));
            client::event(Name::ClientCreated, &new.id, detail, now)
        }
        Step::UpdateClient(new) => {
            tx.update_client(&new)?;
            client::event(Name::ClientUpdated, &new.id, detail, now)
        }
        Step::SwitchClient(id, true) => {
            tx.enable_client(&id)?;
            client::event(Name::ClientEnabled, &id, json!({}), now)
        }
        Step::SwitchClient(id, false) => {
            tx.disable_client(&id, "cli", now)?;
            client::event(Name::ClientDisabled, &id, json!({}), now)
        }
        Step::DeleteClient(id) => {
            tx.delete_client(&id, "cli", now)?;
            client::event(Name::ClientDeleted, &id, json!({}), now)
        }
        Step::PutUser(new, phc) => {
            tx.put_user(&new)?;
            if let Some(phc) = phc {
                tx.put_password(&new.id, &phc, now)?;
            }
            user::event(Name::UserCreated, &new.id, json!({}), now)
        }
        Step::UpdateUser(new) => {
            tx.update_user(&new, now)?;
            user::event(Name::UserUpdated, &new.id, detail, now)
        }
        Step::SwitchUser(id, true) => {
            tx.enable_user(&id)?;
            user::event(Name::UserEnabled, &id, json!({}), now)
        }
        Step::SwitchUser(id, false) => {
            tx.disable_user(&id, "cli", now)?;
            user::event(Name::UserDisabled, &id, json!({}), now)
        }
    })
}

fn scope_event(scope: &str, detail: Value, rules: &Rules) -> Event {
    Event {
        at: rules.now,
        name: Name::ScopeDescribed,
        actor: "cli".to_owned(),
        target: format!("scope:{scope}"),
        reason: None,
        detail,
    }
}
