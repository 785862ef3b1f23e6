//! Changes of APIs and scopes.

use serde_json::{Value, json};

use super::{Change, Field, Rules, Step, Stored, act, difference};
use crate::admin::resources::{validate, view};
use crate::cli::UsageError;
use crate::cli::apply::file::{Entry, Wanted};
use crate::config::limits::SCOPE_BYTES;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::{Resource, check_description};

pub(super) fn resources(
    wanted: &Wanted,
    stored: &Stored,
    rules: &Rules,
) -> Result<Vec<Change>, String> {
    let Some(entries) = &wanted.resources else {
        return Ok(Vec::new());
    };
    let mut changes = Vec::new();
    for entry in entries {
        let audience = &entry.fields.audience;
        let at = |why: String| format!("{}: resource `{audience}`: {why}", entry.location);
        let before = stored.resources.iter().find(|r| r.audience == *audience);
        let after = match before {
            Some(before) => entry.fields.update(before.clone()),
            None => entry.fields.create(audience, &rules.entropy, rules.now),
        };
        let after = after.map_err(|error: UsageError| at(error.to_string()))?;
        let checked = validate(&after, &rules.config.keys).map_err(|errors| errors.to_string());
        checked.map_err(|errors| at(errors.replace('\n', "; ")))?;
        let change = Change {
            act: act(before),
            kind: "resource",
            name: audience.clone(),
            fields: difference(before.map(view), &view(&after)),
            steps: vec![match before {
                Some(before) => Step::UpdateResource(before.clone(), after),
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

/// Returns the APIs that exist after the changes.
pub(super) fn resulting(stored: &Stored, changes: &[Change]) -> Vec<Resource> {
    let mut apis = stored.resources.clone();
    for step in changes.iter().flat_map(|change| &change.steps) {
        match step {
            Step::PutResource(new) => apis.push(new.clone()),
            Step::UpdateResource(_, new) => {
                let old = apis.iter_mut().find(|api| api.audience == new.audience);
                old.into_iter().for_each(|old| old.clone_from(new));
            }
            Step::DeleteResource(old) => apis.retain(|api| api.audience != old.audience),
            _ => {}
        }
    }
    apis
}

pub(super) fn scopes(
    wanted: &Wanted,
    stored: &Stored,
    rules: &Rules,
) -> Result<Vec<Change>, String> {
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
    for Entry { location, fields } in entries {
        let (scope, text) = fields;
        let is_one = Scope::parse(scope).is_ok_and(|scope| scope.iter().count() == 1);
        if !is_one || scope.contains(' ') {
            return Err(format!(
                "{location}: invalid scope `{scope}`; expected one word of at most {SCOPE_BYTES} bytes (RFC 6749 §3.3)"
            ));
        }
        check_description(text).map_err(|why| format!("{location}: `{scope}` {why}"))?;
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
