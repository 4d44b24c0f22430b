//! From a request to a handler's parameters. Whatever does not fit is a problem that names the field; nothing
//! is guessed.

mod body;
mod encoding;
mod faults;
mod json;
mod key;
mod numbers;
mod path;
mod precondition;
mod query;
mod strict;

pub use body::{Bodies, LARGE, Place, Sender};
pub use encoding::{AcceptsGzip, takes_gzip};
pub use json::{Json, NoBody, OptionalJson};
pub use key::IdempotencyKey;
pub use path::{Id, Path, Uuid};
pub use precondition::{IfNoneMatch, WriteCondition, etag};
pub use query::{Query, refuse as refuse_query, word};
