//! What may be kept of the catalogue: everything, as long as it is asked for anew each time. With an entity
//! tag that costs a 304; a price or a stock that is out of date is never shown.

use http::{HeaderName, HeaderValue, header::CACHE_CONTROL};

use crate::auth::MaybeUser;

/// Goes before the body of an answer.
pub type Caching = [(HeaderName, HeaderValue); 1];

/// For everybody's eyes, or, where somebody signed in, for theirs: an admin sees more.
pub fn catalogue(user: &MaybeUser) -> Caching {
    let value = if user.0.is_some() { "private, no-cache" } else { "public, no-cache" };
    [(CACHE_CONTROL, HeaderValue::from_static(value))]
}
