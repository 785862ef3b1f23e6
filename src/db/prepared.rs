//! Statements that a connection keeps prepared.

use std::marker::PhantomData;

use diesel::QueryResult;
use diesel::RunQueryDsl;
use diesel::backend::Backend;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};

/// A statement with a constant text, which a connection keeps prepared. Diesel prepares every UPDATE each
/// time, because a changeset may omit columns; for the statements of a token request that costs as much as
/// their execution. The cache key is the text, so a text that varies is safe.
pub(super) struct Prepared<S>(pub(super) S);

impl<S, DB> QueryFragment<DB> for Prepared<S>
where
    DB: Backend,
    S: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<S> QueryId for Prepared<S> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<S: Query> Query for Prepared<S> {
    type SqlType = S::SqlType;
}

impl<S, C> RunQueryDsl<C> for Prepared<S> {}

/// A statement as [`Prepared`], which a connection of its own backend finds by the type `N` and not by the text, so that
/// the text is built once per connection. `N` must name this statement alone, and its text must be constant.
pub(super) struct Named<N, S>(PhantomData<N>, S);

impl<N, S> Named<N, S> {
    pub(super) fn new(statement: S) -> Self {
        Self(PhantomData, statement)
    }
}

impl<N, S, DB> QueryFragment<DB> for Named<N, S>
where
    DB: Backend,
    S: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.1.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<N: 'static, S> QueryId for Named<N, S> {
    type QueryId = N;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<N, S: Query> Query for Named<N, S> {
    type SqlType = S::SqlType;
}

impl<N, S, C> RunQueryDsl<C> for Named<N, S> {}
