//! The WebSocket close codes (RFC 6455 §7.4), listed in `docs/API.md`. After 1001 and 4000–4499 a client reconnects with
//! `after`; after 4500–4999 it does not.

use tokio_tungstenite::tungstenite::{
    Error, Utf8Bytes,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $reason:literal;)*) => {
        /// A reason for which the gateway closes a socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CloseReason { $($(#[$doc])* $variant),* }

        impl CloseReason {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code),* }
            }

            /// Returns the code as a metric's label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => stringify!($code)),* }
            }

            /// Returns the text of the close frame.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $reason),* }
            }

            pub fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

close_reasons! {
    /// The process shuts down.
    GoingAway = 1001, "going away";
    /// RFC 6455: the client violates the protocol.
    ProtocolError = 1002, "protocol error";
    /// RFC 6455: a text frame is not UTF-8.
    InvalidUtf8 = 1007, "not UTF-8";
    MessageTooBig = 1009, "frame too big";
    TokenExpired = 4005, "token expired";
    TooSlow = 4008, "too slow";
    /// The missed events cannot be fetched right now.
    Resync = 4010, "resync";
    NoPong = 4012, "no pong";
    SessionRevoked = 4501, "session revoked";
    TooManyConnections = 4504, "too many sockets";
    Misbehaving = 4509, "misbehaving";
}

/// The metric labels of an end by the client: with a close frame, and without one (RFC 6455 §7.4.1).
pub const NORMAL_CLOSURE: &str = "1000";
pub const ABNORMAL_CLOSURE: &str = "1006";

/// Registers a counter per code at 0, so that a scrape shows codes that have not occurred yet.
pub fn register_metrics() {
    let labels = CloseReason::ALL.iter().map(|reason| reason.label());
    for label in labels.chain([NORMAL_CLOSURE, ABNORMAL_CLOSURE]) {
        metrics::counter!("ws_closed_total", "code" => label).increment(0);
    }
}

impl CloseReason {
    /// Reports whether the client may reconnect with `after`. A client that violates the protocol would do so again.
    pub const fn allows_reconnect(self) -> bool {
        matches!(self.code(), 1001 | 4000..=4499)
    }

    pub fn frame(self) -> CloseFrame {
        CloseFrame { code: CloseCode::from(self.code()), reason: Utf8Bytes::from_static(self.as_str()) }
    }

    /// Returns the reason with which to close after a read error; `None` if the connection itself is broken.
    pub fn from_error(error: &Error) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::MessageTooBig),
            Error::Utf8(_) => Some(Self::InvalidUtf8),
            Error::Protocol(error) if *error != ProtocolError::ResetWithoutClosingHandshake => {
                Some(Self::ProtocolError)
            }
            Error::Protocol(_)
            | Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Io(_)
            | Error::Tls(_)
            | Error::WriteBufferFull(_)
            | Error::AttackAttempt
            | Error::Url(_)
            | Error::Http(_)
            | Error::HttpFormat(_) => None,
        }
    }
}
