//! The tables `resources` and `scopes`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use diesel::sql_types::Text;
use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use portcullis_verifier::MaxAge;

use super::schema::{resources as t, scopes};
use super::{Error, Transaction, unreadable};
use crate::keys::Alg;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::time::Timestamp;

type Row = (
    String,
    String,
    String,
    String,
    Option<i64>,
    String,
    Option<i64>,
    i64,
);

fn resource(
    (id, audience, name, scopes, access_ttl, alg, max_age, created_at): Row,
) -> Result<Resource, Error> {
    let broken = |column| unreadable("resources", column, &id);
    Ok(Resource {
        scopes: Scope::parse(&scopes).map_err(|_| broken("scopes"))?,
        access_ttl: access_ttl
            .and_then(|secs| u64::try_from(secs).ok())
            .map(Duration::from_secs),
        alg: Alg::from_name(&alg).ok_or_else(|| broken("alg"))?,
        max_age: max_age.map_or(MaxAge::STANDARD, to_max_age),
        created_at: Timestamp::from_micros(created_at),
        audience,
        name,
        id,
    })
}

/// Converts the stored seconds. A negative number means no limit.
fn to_max_age(secs: i64) -> MaxAge {
    u64::try_from(secs).map_or(MaxAge::FAIL_OPEN, MaxAge::secs)
}

fn max_age_column(max_age: MaxAge) -> i64 {
    let secs = max_age.as_secs().map(i64::try_from);
    secs.map_or(-1, |secs| secs.unwrap_or(i64::MAX))
}

fn whole_seconds(resource: &Resource) -> Option<i64> {
    let ttl = resource.access_ttl?;
    i64::try_from(ttl.as_secs()).ok()
}

impl Transaction<'_> {
    /// Returns the registered resources among `audiences`, in that order.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_resources(&mut self, audiences: &[String]) -> Result<Vec<Resource>, Error> {
        if audiences.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Row> = t::table
            .filter(t::audience.eq_any(audiences))
            .load(self.connection)?;
        let mut resources: Vec<Resource> =
            rows.into_iter().map(resource).collect::<Result<_, _>>()?;
        resources.sort_by_key(|r| {
            audiences
                .iter()
                .position(|audience| *audience == r.audience)
        });
        Ok(resources)
    }

    /// Returns all resources, by audience.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_resources(&mut self) -> Result<Vec<Resource>, Error> {
        let rows: Vec<Row> = t::table.order(t::audience).load(self.connection)?;
        rows.into_iter().map(resource).collect()
    }

    /// Returns the audience of a resource whose tokens are signed with an algorithm that `offered` omits, if
    /// there is one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_resource_beyond(&mut self, offered: &[Alg]) -> Result<Option<String>, Error> {
        let names = offered.iter().map(|alg| alg.name());
        let found = t::table.filter(t::alg.ne_all(names)).select(t::audience);
        Ok(found.first(self.connection).optional()?)
    }

    /// Registers a resource.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the audience is taken.
    pub fn put_resource(&mut self, resource: &Resource) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::id.eq(&resource.id),
                t::audience.eq(&resource.audience),
                t::name.eq(&resource.name),
                t::scopes.eq(resource.scopes.to_string()),
                t::access_ttl.eq(whole_seconds(resource)),
                t::alg.eq(resource.alg.name()),
                t::max_age.eq(max_age_column(resource.max_age)),
                t::created_at.eq(resource.created_at.micros()),
            ))
            .execute(self.connection)?;
        if let Some(ttl) = resource.access_ttl {
            // Before a node issues a token with this lifetime.
            self.require_max_token_ttl(ttl, resource.created_at)?;
        }
        self.raise_config_version()
    }

    /// Returns a resource to be changed. Until this transaction ends, nothing else changes it, as with
    /// [`Transaction::find_registered_to_change`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_resource_to_change(&mut self, audience: &str) -> Result<Option<Resource>, Error> {
        let lock = "SELECT id FROM resources WHERE audience = $1 FOR UPDATE";
        self.lock_row(lock, audience)?;
        Ok(self.find_resources(&[audience.to_owned()])?.pop())
    }

    /// Replaces a registration. Returns `false` if the resource does not exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn update_resource(&mut self, resource: &Resource, now: Timestamp) -> Result<bool, Error> {
        let rows = diesel::update(t::table.filter(t::audience.eq(&resource.audience)))
            .set((
                t::name.eq(&resource.name),
                t::scopes.eq(resource.scopes.to_string()),
                t::access_ttl.eq(whole_seconds(resource)),
                t::alg.eq(resource.alg.name()),
                t::max_age.eq(max_age_column(resource.max_age)),
            ))
            .execute(self.connection)?;
        if let Some(ttl) = resource.access_ttl {
            self.require_max_token_ttl(ttl, now)?;
        }
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Deletes a registration. Returns `false` if the resource does not exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete_resource(&mut self, audience: &str) -> Result<bool, Error> {
        let rows =
            diesel::delete(t::table.filter(t::audience.eq(audience))).execute(self.connection)?;
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Deletes the description of a scope. Returns `false` if it has no description.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete_scope_description(&mut self, name: &str) -> Result<bool, Error> {
        Ok(diesel::delete(scopes::table.find(name)).execute(self.connection)? == 1)
    }

    /// Returns the descriptions of all scopes, by scope.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_scope_descriptions(&mut self) -> Result<BTreeMap<String, String>, Error> {
        let rows: Vec<(String, String)> = scopes::table.load(self.connection)?;
        Ok(rows.into_iter().collect())
    }

    /// Sets the description of a scope for the consent page.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_scope_description(&mut self, name: &str, description: &str) -> Result<(), Error> {
        diesel::sql_query(
            "INSERT INTO scopes (name, description) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET description = excluded.description",
        )
        .bind::<Text, _>(name)
        .bind::<Text, _>(description)
        .execute(self.connection)?;
        Ok(())
    }

    /// Returns the descriptions of these scopes, where there is one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_scope_descriptions(
        &mut self,
        scope: &Scope,
    ) -> Result<HashMap<String, String>, Error> {
        let names: Vec<&str> = scope.iter().collect();
        let rows: Vec<(String, String)> = scopes::table
            .filter(scopes::name.eq_any(names))
            .load(self.connection)?;
        Ok(rows.into_iter().collect())
    }
}
