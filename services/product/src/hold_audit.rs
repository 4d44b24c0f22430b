//! The statements of a hold and the ledger on the same order.

use time::OffsetDateTime;

use crate::stock::State;

/// A hold, its lines, and what was booked for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedHold {
    pub state: State,
    pub created_at: OffsetDateTime,
    /// In the order of product ids.
    pub lines: Vec<AuditedLine>,
}

/// One product of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedLine {
    pub product_id: i64,
    /// The quantity that the order holds or held.
    pub quantity: i64,
    /// The quantity that its movements add to what is available, …
    pub available: i64,
    /// … and the quantity that its sales take from what is held.
    pub sold: i64,
}

impl AuditedHold {
    /// Reports whether the movements of the ledger are those that lead to this state.
    pub fn ledger_agrees(&self) -> bool {
        self.lines.iter().all(|line| {
            let taken = -line.quantity;
            match self.state {
                State::Held => (line.available, line.sold) == (taken, 0),
                State::Committed => (line.available, line.sold) == (taken, taken),
                // Goods that were sold may have come back.
                State::Released => line.available == 0 && [0, taken].contains(&line.sold),
                State::Expired => (line.available, line.sold) == (0, 0),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(state: State, available: i64, sold: i64) -> bool {
        let lines = vec![AuditedLine { product_id: 1, quantity: 3, available, sold }];
        AuditedHold { state, created_at: OffsetDateTime::UNIX_EPOCH, lines }.ledger_agrees()
    }

    #[test]
    fn each_state_has_its_movements() {
        for (state, fits) in [
            (State::Held, &[(-3, 0)][..]),
            (State::Committed, &[(-3, -3)]),
            (State::Released, &[(0, 0), (0, -3)]),
            (State::Expired, &[(0, 0)]),
        ] {
            for available in -4..=3 {
                for sold in -4..=1 {
                    let expected = fits.contains(&(available, sold));
                    assert_eq!(agrees(state, available, sold), expected, "{state:?} {available} {sold}");
                }
            }
        }
    }

    #[test]
    fn movements_of_a_product_that_the_hold_does_not_name_do_not_agree() {
        let lines = vec![AuditedLine { product_id: 1, quantity: 0, available: -1, sold: 0 }];
        let hold = AuditedHold { state: State::Held, created_at: OffsetDateTime::UNIX_EPOCH, lines };
        assert!(!hold.ledger_agrees());
    }
}
