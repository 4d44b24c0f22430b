//! The table of problem codes (docs/API.md, "Errors"), with the text of each code's page. A new code is one entry.

use http::StatusCode;

macro_rules! codes {
    ($($variant:ident = $code:literal, $status:ident, $title:literal, $cause:literal, $remedy:literal;)*) => {
        /// The `code` of a problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($variant),* }

        impl Code {
            /// All codes, for the API documents.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),* }
            }

            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// Returns the cause of the problem.
            pub const fn cause(self) -> &'static str {
                match self { $(Self::$variant => $cause),* }
            }

            /// Returns the remedy: the action of the client.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy),* }
            }
        }
    };
}

impl Code {
    /// Returns the code with this name, in any case: services write reasons in upper case.
    pub fn from_reason(reason: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str().eq_ignore_ascii_case(reason))
    }

    /// Returns the `type` of a problem: the path of the page that explains the code.
    pub fn type_uri(self) -> String {
        format!("/problems/{}", self.as_str())
    }
}

codes! {
    InvalidRequest = "invalid_request", BAD_REQUEST, "The request is not well-formed",
        "The request has the wrong shape: it is not JSON, a field is missing, unknown, doubled or of another type, or a \
         query parameter or cursor is not one.",
        "Correct the fields that errors names; the request as it is will never succeed. A refused cursor belongs to \
         another query: start with the first page.";
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Sign in first",
        "The request carries no access token, or one that this shop did not sign.",
        "Sign in with POST /api/v1/auth/login and send the access_token as Authorization: Bearer.";
    TokenExpired = "token_expired", UNAUTHORIZED, "The access token has expired",
        "The access token was valid and has expired.",
        "Get another one with POST /api/v1/auth/refresh, and send the request again.";
    SessionRevoked = "session_revoked", UNAUTHORIZED, "The session has ended",
        "The session was signed out, or ended by a change of the password, of the role or of the account.",
        "Sign in again. Refreshing does not help: the refresh token ended with the session.";
    InvalidCredentials = "invalid_credentials", UNAUTHORIZED, "Wrong username or password",
        "No account has this name with this password. The response does not tell which of the two is wrong.",
        "Ask the person to type both again. Ten wrong tries a minute close the account to new devices for a while.";
    PaymentDeclined = "payment_declined", PAYMENT_REQUIRED, "The payment was declined",
        "The payment provider refuses the charge; decline_code says why. No money moved, and the order waits unpaid.",
        "Pay again with another payment method and another Idempotency-Key, before expires_at of the order.";
    Forbidden = "forbidden", FORBIDDEN, "Not allowed",
        "The role of the caller does not allow this, or a page of this origin may not open sockets.",
        "Sign in with an account that may. An operator adds an origin to CORS_ORIGINS.";
    AccountDisabled = "account_disabled", FORBIDDEN, "The account is disabled",
        "An admin disabled the account.",
        "Ask the shop; an admin enables it again.";
    CursorOutOfRange = "cursor_out_of_range", GONE, "The events after the cursor are not stored",
        "An operator deleted these events from the log, or the shop was restored from an older backup.",
        "Start without a cursor, and read the orders by REST once to catch up.";
    NotFound = "not_found", NOT_FOUND, "There is no such thing",
        "Nothing has this path or id, it is archived, or it belongs to another user.",
        "Check the path and the id, and that the right user is signed in.";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "There is no such method here",
        "The path exists and does not take this method.",
        "Use one of the methods that the header Allow names.";
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request did not arrive in time",
        "The body arrived too slowly, or stopped arriving.",
        "Send the request again, on a better connection.";
    UsernameTaken = "username_taken", CONFLICT, "The username is taken",
        "Another account has this username. Upper and lower case are equal.",
        "Choose another username.";
    EmailTaken = "email_taken", CONFLICT, "The e-mail address is taken",
        "Another account has this e-mail address. Upper and lower case are equal.",
        "Sign in to that account, or register with another address.";
    SkuTaken = "sku_taken", CONFLICT, "The SKU is taken",
        "Another product has this SKU; an archived one keeps its own.",
        "Choose another SKU, or change the product that has it.";
    SlugTaken = "slug_taken", CONFLICT, "The slug is taken",
        "Another category has this slug.",
        "Choose another slug.";
    CategoryInUse = "category_in_use", CONFLICT, "The category is in use",
        "The category has products, including archived ones, or subcategories.",
        "Move them to another category first.";
    InvalidTransition = "invalid_transition", CONFLICT, "The order cannot take this step",
        "The order has the status current_status, which does not allow this step.",
        "Read the order again. allowed names the steps of this caller.";
    OrderExpired = "order_expired", CONFLICT, "The order has expired",
        "The order was not paid in time. It is cancelled, and its stock is released.",
        "Place a new order.";
    OutOfStock = "out_of_stock", CONFLICT, "There is not enough in stock",
        "Less is available than was requested; lines names each product with both numbers.",
        "Order at most available of each line. Where a line has held_by_your_order, pay or cancel that order instead: it \
         holds goods of the same product for you.";
    ProductUnavailable = "product_unavailable", CONFLICT, "The product cannot be bought",
        "A product is unknown or no longer sold; lines names it.",
        "Take it out of the cart or the order.";
    CartEmpty = "cart_empty", CONFLICT, "The cart is empty",
        "The order has no items of its own, and nothing is in the cart.",
        "Add a product to the cart, or send items.";
    PriceChanged = "price_changed", CONFLICT, "The price has changed",
        "The order costs current_total now and not expected_total; lines names what became dearer or cheaper. Nothing was \
         ordered.",
        "Show the new prices. If the customer agrees, order again with expected_total set to current_total.";
    TooManyUnpaidOrders = "too_many_unpaid_orders", CONFLICT, "Too many orders are not paid yet",
        "The user has as many unpaid orders as one may have.",
        "Pay or cancel one of them.";
    TooManyUnpaidUnits = "too_many_unpaid_units", CONFLICT, "Too many units are not paid yet",
        "The user's unpaid orders would hold too many units, or too large a part of one product.",
        "Pay or cancel one of them, or order less.";
    RequestInProgress = "request_in_progress", CONFLICT, "The same request is still running",
        "A request with the same Idempotency-Key has not been answered yet.",
        "Send it again after a second, with the same key: it gets the same answer.";
    VersionMismatch = "version_mismatch", PRECONDITION_FAILED, "The version does not match",
        "The version of If-Match, If-None-Match or version is not the current one.",
        "Read the resource again, compare it, and repeat the change with the new version.";
    PayloadTooLarge = "payload_too_large", PAYLOAD_TOO_LARGE, "The body is too large",
        "The body is larger than 64 KiB, or than 8 MiB for a batch.",
        "Send less; divide a batch.";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body must be JSON",
        "Content-Type is not JSON in UTF-8, or the body is compressed.",
        "Send Content-Type: application/json, without Content-Encoding.";
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY, "The request breaks a rule",
        "The request is well-formed, and a value breaks a rule of length, format, sign or range.",
        "Correct the fields that errors names.";
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The key was used for another body",
        "A request with this Idempotency-Key and another content was answered within the last 24 hours.",
        "Use a new key for each new request; keep the key only to repeat the same one.";
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, "Too many requests",
        "More requests came than the policy limit allows; RateLimit-Policy has its numbers.",
        "Wait as many seconds as Retry-After says, and spread requests.";
    TooManyAttempts = "too_many_attempts", TOO_MANY_REQUESTS, "Too many attempts",
        "Too many passwords were tried, for the account or from the address; limit names which of the two.",
        "Wait as many seconds as Retry-After says. A device that has signed in before has a limit of its own.";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong on our side",
        "The shop has a defect, whose details are in its log under request_id.",
        "Tell the shop the request_id. Try again only with an Idempotency-Key, or where the request changes nothing.";
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Not available right now",
        "A part of the shop does not answer, or the shop is overloaded. A change may have been made.",
        "Wait as many seconds as Retry-After says, and send the same request again, with the same Idempotency-Key.";
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, "It took too long",
        "The response did not arrive in time. The change may have been made.",
        "Send the same request again, with the same Idempotency-Key.";
}
