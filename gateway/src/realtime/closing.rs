//! Why a socket ends: the closing codes of contract §4. 4000–4499 say "come back with `after`", 4500–4999 "do
//! not".

use tokio_tungstenite::tungstenite::{
    Error, Utf8Bytes,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

macro_rules! closings {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $reason:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Closing { $($(#[$doc])* $variant),* }

        impl Closing {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code),* }
            }

            /// The code as a metric's label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => stringify!($code)),* }
            }

            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason),* }
            }

            pub fn of_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

closings! {
    /// The process stops.
    GoingAway = 1001, "going away";
    /// RFC 6455: the client breaks the protocol.
    Protocol = 1002, "protocol error";
    /// RFC 6455: a text frame that is not UTF-8.
    NotText = 1007, "not UTF-8";
    TooBig = 1009, "frame too big";
    TokenExpired = 4005, "token expired";
    TooSlow = 4008, "too slow";
    /// What the client missed cannot be found right now.
    Resync = 4010, "resync";
    NoPong = 4012, "no pong";
    Revoked = 4501, "session revoked";
    TooMany = 4504, "too many sockets";
    Misbehaving = 4509, "misbehaving";
}

/// RFC 6455's numbers for a goodbye, and for an end without one; as labels, like those of [`Closing`].
pub const LEFT: &str = "1000";
pub const GONE: &str = "1006";

/// What never happened is 0 for those who watch, not absent.
pub fn count_from_zero() {
    for label in Closing::ALL.iter().map(|closing| closing.label()).chain([LEFT, GONE]) {
        metrics::counter!("ws_closed_total", "code" => label).increment(0);
    }
}

impl Closing {
    /// Whether a client that was closed so may connect again, with `after`. One that breaks the protocol would do so
    /// again.
    pub const fn lets_client_return(self) -> bool {
        matches!(self.code(), 1001 | 4000..=4499)
    }

    pub fn frame(self) -> CloseFrame {
        CloseFrame { code: CloseCode::from(self.code()), reason: Utf8Bytes::from_static(self.reason()) }
    }

    /// How to answer what could not be read as a WebSocket message; `None` where the connection itself is
    /// broken.
    pub fn answering(error: &Error) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::TooBig),
            Error::Utf8(_) => Some(Self::NotText),
            Error::Protocol(error) if *error != ProtocolError::ResetWithoutClosingHandshake => {
                Some(Self::Protocol)
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
