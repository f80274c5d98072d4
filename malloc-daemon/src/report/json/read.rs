//! Documents of a daemon as its other commands read them back.

use serde::Deserialize;

use super::document::{Health, ListDifference, OneProcess};

/// `/v1/processes?since=`
pub fn list(bytes: &[u8]) -> Result<ListDifference, String> {
    document(bytes)
}

/// `/v1/processes/{pid}`
pub fn one_process(bytes: &[u8]) -> Result<OneProcess<'static>, String> {
    document(bytes)
}

/// `/v1/health`
pub fn health(bytes: &[u8]) -> Result<Health<'static>, String> {
    document(bytes)
}

/// The error is a sentence; what a document lacks is named in it.
fn document<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the answer is of another version: {error}"))
}
