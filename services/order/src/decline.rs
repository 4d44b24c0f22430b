//! The reasons for which a payment is declined. This file depends on no database and no protocol.

/// A reason why the payment provider declines a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    Card,
    InsufficientFunds,
}

impl Decline {
    pub const ALL: [Self; 2] = [Self::Card, Self::InsufficientFunds];

    /// Returns the code for programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Card => "card_declined",
            Self::InsufficientFunds => "insufficient_funds",
        }
    }

    /// Returns the message for people, which is also the stored form.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Card => "the card was declined",
            Self::InsufficientFunds => "there are not sufficient funds",
        }
    }
}
