//! Rows of the catalogue.

use crate::Row;

pub const ROWS: &[Row] = &[];
