//! The responses of a gateway, with assertions.

use http::HeaderMap;
use serde_json::Value;

/// Returns the text of a JSON string.
pub fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// Sends a request. Panics only if there is no response.
pub async fn send(request: reqwest::RequestBuilder) -> ApiResponse {
    let response = request.send().await.expect("a response");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a body");
    ApiResponse { status, headers, body: serde_json::from_str(&text).unwrap_or_default(), text }
}

#[derive(Clone, Debug)]
pub struct ApiResponse {
    pub status: u16,
    pub headers: HeaderMap,
    /// Null if it is not JSON.
    pub body: Value,
    pub text: String,
}

impl ApiResponse {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// # Panics
    /// If the status is another, with the whole response.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Checks that it is a complete problem with this status and code.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["request_id"], self.header("x-request-id"));
        for field in ["type", "title", "detail"] {
            assert!(!text(&self.body[field]).is_empty(), "{field}: {}", self.text);
        }
        assert_eq!(text(&self.body["type"]), format!("/problems/{code}"));
        let standard = ["type", "title", "status", "detail", "code", "request_id", "errors"];
        let facts: &[&str] = match code {
            "out_of_stock" | "product_unavailable" => &["lines"],
            "price_changed" => &["lines", "current_total"],
            "invalid_transition" => &["current_status", "allowed"],
            "payment_declined" => &["decline_code"],
            "rate_limited" | "too_many_attempts" => &["limit"],
            _ => &[],
        };
        let body = self.body.as_object().expect("an object");
        let is_documented = |field: &str| standard.contains(&field) || facts.contains(&field);
        assert!(body.keys().all(|field| is_documented(field)), "{}", self.text);
        assert!(facts.iter().all(|fact| body.contains_key(*fact)), "{}", self.text);
        let requires_errors = matches!(code, "invalid_request" | "validation_failed");
        assert!(self.body["errors"].is_array() || !requires_errors, "{}", self.text);
        let is_retryable = matches!(status, 429 | 503 | 504);
        assert_eq!(!self.header("retry-after").is_empty(), is_retryable, "{}", self.text);
        assert_eq!(!self.header("www-authenticate").is_empty(), status == 401, "{}", self.text);
        self
    }

    /// Returns the fields that a problem names.
    pub fn fields(&self) -> Vec<&str> {
        self.body["errors"].as_array().into_iter().flatten().map(|error| text(&error["field"])).collect()
    }
}
