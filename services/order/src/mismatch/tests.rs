use shoppee_proto::product::v1::HoldState;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn order(status: &str) -> Order {
    let paid = matches!(status, "paid" | "shipped" | "completed");
    Order {
        status: status.to_owned(),
        expires_at: NOW + Duration::from_mins(1),
        lines: vec![(1, 2), (3, 1)],
        captured: i64::from(paid),
        is_settling: false,
    }
}

fn hold(state: HoldState) -> Hold {
    Hold { state, lines: vec![(1, 2), (3, 1)], ledger_agrees: true, created_at: NOW - Duration::from_mins(4) }
}

fn kind_of(order: Option<&Order>, hold: Option<&Hold>) -> Option<Kind> {
    find_mismatch(order, hold, NOW).map(|mismatch| mismatch.kind)
}

#[test]
fn each_status_matches_its_hold_states_and_no_other() {
    use HoldState::{Committed, Expired, Held, Released};
    let (stock, without_hold) = (Some(Kind::Stock), Some(Kind::PaidWithoutHold));
    for (status, if_held, if_committed, if_released, if_absent) in [
        ("pending", None, stock, stock, stock),
        ("paid", stock, None, without_hold, without_hold),
        ("shipped", stock, None, without_hold, without_hold),
        ("completed", stock, None, without_hold, without_hold),
        ("cancelled", stock, stock, None, None),
        ("of-a-newer-version", None, None, None, None),
    ] {
        let order = order(status);
        for (state, expected) in
            [(Held, if_held), (Committed, if_committed), (Released, if_released), (Expired, if_released)]
        {
            assert_eq!(kind_of(Some(&order), Some(&hold(state))), expected, "{status} and {state:?}");
        }
        assert_eq!(kind_of(Some(&order), None), if_absent, "{status} without a hold");
    }
}

#[test]
fn work_in_progress_is_no_mismatch() {
    let settling = Order { is_settling: true, ..order("paid") };
    assert_eq!(kind_of(Some(&settling), Some(&hold(HoldState::Held))), None);
    let expired = Order { expires_at: NOW, ..order("pending") };
    assert_eq!(kind_of(Some(&expired), Some(&hold(HoldState::Expired))), None);
    let recent = hold(HoldState::Held);
    assert_eq!(kind_of(None, Some(&recent)), None, "a checkout that is running or abandoned");
}

#[test]
fn goods_held_without_an_order_are_found_after_the_sweep_of_orphan_holds() {
    let old = Hold { created_at: NOW - MAX_ORPHAN_AGE, ..hold(HoldState::Held) };
    assert_eq!(kind_of(None, Some(&old)), Some(Kind::HeldWithoutOrder));
    assert_eq!(kind_of(None, Some(&hold(HoldState::Committed))), Some(Kind::HeldWithoutOrder));
    assert_eq!(kind_of(None, Some(&hold(HoldState::Released))), None);
    assert_eq!(kind_of(None, None), None);
}

#[test]
fn differing_lines_movements_and_payments_are_found() {
    let fewer = Hold { lines: vec![(1, 1), (3, 1)], ..hold(HoldState::Committed) };
    assert_eq!(kind_of(Some(&order("paid")), Some(&fewer)), Some(Kind::Stock));
    let unbooked = Hold { ledger_agrees: false, ..hold(HoldState::Committed) };
    assert_eq!(kind_of(Some(&order("paid")), Some(&unbooked)), Some(Kind::Stock));
    let unpaid = Order { captured: 0, ..order("shipped") };
    assert_eq!(kind_of(Some(&unpaid), Some(&hold(HoldState::Committed))), Some(Kind::Payment));
    let taken = Order { captured: 1, ..order("cancelled") };
    assert_eq!(kind_of(Some(&taken), None), Some(Kind::Payment));
    let twice = Order { captured: 2, ..order("paid") };
    assert_eq!(kind_of(Some(&twice), Some(&hold(HoldState::Committed))), Some(Kind::Payment));
}
