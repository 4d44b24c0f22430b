//! The comparison of a hold with the ledger entries of its order.

use time::OffsetDateTime;

use crate::stock::HoldState;

/// A hold, its lines, and the ledger entries of its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedHold {
    pub state: HoldState,
    pub created_at: OffsetDateTime,
    /// In the order of product ids.
    pub lines: Vec<AuditedLine>,
}

/// One product of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedLine {
    pub product_id: i64,
    /// The quantity that the order holds or has held.
    pub quantity: i64,
    /// The sum of its movements that change the available quantity.
    pub available: i64,
    /// The sum of its sales.
    pub sold: i64,
}

impl AuditedHold {
    /// Reports whether the ledger has exactly the movements that lead to this state.
    pub fn ledger_agrees(&self) -> bool {
        self.lines.iter().all(|line| {
            let taken = -line.quantity;
            match self.state {
                HoldState::Held => (line.available, line.sold) == (taken, 0),
                HoldState::Committed => (line.available, line.sold) == (taken, taken),
                // Sold units may have been returned.
                HoldState::Released => line.available == 0 && [0, taken].contains(&line.sold),
                HoldState::Expired => (line.available, line.sold) == (0, 0),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(state: HoldState, available: i64, sold: i64) -> bool {
        let lines = vec![AuditedLine { product_id: 1, quantity: 3, available, sold }];
        AuditedHold { state, created_at: OffsetDateTime::UNIX_EPOCH, lines }.ledger_agrees()
    }

    #[test]
    fn the_ledger_agrees_only_with_the_movements_of_each_state() {
        for (state, fits) in [
            (HoldState::Held, &[(-3, 0)][..]),
            (HoldState::Committed, &[(-3, -3)]),
            (HoldState::Released, &[(0, 0), (0, -3)]),
            (HoldState::Expired, &[(0, 0)]),
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
    fn movements_of_a_product_outside_of_the_hold_do_not_agree() {
        let lines = vec![AuditedLine { product_id: 1, quantity: 0, available: -1, sold: 0 }];
        let hold = AuditedHold { state: HoldState::Held, created_at: OffsetDateTime::UNIX_EPOCH, lines };
        assert!(!hold.ledger_agrees());
    }
}
