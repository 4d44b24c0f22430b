//! The id of a request, which clients choose or get. It travels from the gateway through all services in the header
//! [`HEADER`], and names the request in responses, log lines and audit records.

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const MAX_LEN: usize = 128;

tokio::task_local! {
    /// The id of the request that the current task works on; [`crate::telemetry::Trace::instrument`] sets it.
    pub(crate) static CURRENT: Option<RequestId>;
}

/// A valid id: 1..128 of `A-Z a-z 0-9 . _ -`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Returns the caller's id if it is valid, or else a new one.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let own = headers.get(HEADER).filter(|id| is_valid(id.as_bytes())).cloned();
        own.map_or_else(Self::generate, Self)
    }

    fn generate() -> Self {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        // Hexadecimal digits and hyphens are a valid header value.
        Self(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none")))
    }

    /// Returns the id of the request that the current task works on.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok().flatten()
    }

    pub fn as_str(&self) -> &str {
        // The characters of an id are ASCII.
        self.0.to_str().unwrap_or_default()
    }

    pub fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }
}

fn is_valid(id: &[u8]) -> bool {
    (1..=MAX_LEN).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_request_id_is_kept_and_any_other_replaced() {
        let from = |id: &[u8]| {
            let value = HeaderValue::from_bytes(id).unwrap();
            RequestId::from_headers(&HeaderMap::from_iter([(HEADER, value)])).as_str().to_owned()
        };
        assert_eq!(from(b"order-7_a.B"), "order-7_a.B");
        for odd in [&b""[..], b"a b", b"<script>", b"\xff\xfe", &[b'a'; 129]] {
            assert!(from(odd).parse::<Uuid>().is_ok(), "{odd:?}");
        }
        assert!(RequestId::from_headers(&HeaderMap::new()).as_str().parse::<Uuid>().is_ok());
    }
}
