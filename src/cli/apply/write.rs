//! Performs the operations of a plan.

use std::collections::BTreeMap;

use super::plan::{Plan, Rules, Step};
use crate::admin::users::NewUser;
use crate::admin::{AdminError, Context, clients, resources, users};
use crate::db::Transaction;
use crate::secret::Secret;

/// Secrets of clients that were created, by client id.
pub type Secrets = BTreeMap<String, Secret>;

impl Plan {
    /// Performs all operations of the plan.
    ///
    /// # Errors
    /// [`AdminError`] of the first that is refused.
    pub fn write(
        self,
        tx: &mut Transaction<'_>,
        ctx: &Context,
        rules: &Rules,
    ) -> Result<Secrets, AdminError> {
        let mut secrets = Secrets::new();
        for step in self.changes.into_iter().flat_map(|change| change.steps) {
            if let Some((id, secret)) = perform(step, tx, ctx, rules)? {
                secrets.insert(id, secret);
            }
        }
        Ok(secrets)
    }
}

/// Performs a step. Returns the id and the secret of a client that was created with one.
fn perform(
    step: Step,
    tx: &mut Transaction<'_>,
    ctx: &Context,
    rules: &Rules,
) -> Result<Option<(String, Secret)>, AdminError> {
    let keys = &rules.config.keys;
    match step {
        Step::PutResource(new) => resources::create(tx, ctx, keys, &new)?,
        Step::UpdateResource(old, new) => resources::update(tx, ctx, keys, &old, &new)?,
        Step::DeleteResource(old) => resources::delete(tx, ctx, &old.audience)?,
        Step::Describe(scope, text) => resources::describe_scope(tx, ctx, &scope, Some(&text))?,
        Step::Undescribe(scope) => resources::describe_scope(tx, ctx, &scope, None)?,
        Step::PutClient(new) => {
            let created = clients::create(tx, ctx, &rules.clients, *new, None)?;
            let id = created.client.id.into_string();
            return Ok(created.secret.map(|secret| (id, secret)));
        }
        Step::UpdateClient(old, new) => clients::update(tx, ctx, &rules.clients, &old, &new)?,
        Step::SwitchClient(id, true) => clients::enable(tx, ctx, &id)?,
        Step::SwitchClient(id, false) => clients::disable(tx, ctx, &id)?,
        Step::DeleteClient(id) => clients::delete(tx, ctx, &id)?,
        Step::PutUser(user, password_hash) => {
            let new = NewUser {
                user: *user,
                password_hash,
                admin: None,
            };
            users::create(tx, ctx, new)?;
        }
        Step::UpdateUser(new) => users::update(tx, ctx, &new)?,
        Step::SwitchUser(id, true) => users::enable(tx, ctx, &id)?,
        Step::SwitchUser(id, false) => users::disable(tx, ctx, &id)?,
    }
    Ok(None)
}
