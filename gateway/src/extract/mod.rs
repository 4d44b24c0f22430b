//! The extractors of handlers. An invalid request is rejected with a problem that names the field; no value is guessed.

mod body;
mod deserialize;
mod encoding;
mod faults;
mod form;
mod idempotency_key;
mod json;
mod numbers;
mod path;
mod precondition;
mod query;

pub use body::{BATCH_BODY_LIMIT, BodyAccount, BodyLimiter, RequestPermit};
pub use encoding::{AcceptsGzip, accepts_gzip};
pub use form::{Form, parse as parse_form};
pub use idempotency_key::IdempotencyKey;
pub use json::{EmptyBody, Json, OptionalJson};
pub use path::{Id, Path, Uuid};
pub use precondition::{IfNoneMatch, WriteCondition, etag};
pub use query::{Query, deserialize_enum, deserialize_time, reject_query};
