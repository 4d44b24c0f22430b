//! The `Cache-Control` of the catalogue: caches may store everything, but have to revalidate it. With an entity tag that
//! costs a 304, and no cache serves a stale price or stock.

use http::{HeaderName, HeaderValue, header::CACHE_CONTROL};

use crate::auth::MaybeUser;

/// The header as a part of a response.
pub type CacheControl = [(HeaderName, HeaderValue); 1];

/// Returns `public` for an anonymous caller, else `private`: an admin is shown more.
pub fn cache_control(user: &MaybeUser) -> CacheControl {
    let value = if user.0.is_some() { "private, no-cache" } else { "public, no-cache" };
    [(CACHE_CONTROL, HeaderValue::from_static(value))]
}
