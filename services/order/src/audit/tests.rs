use super::*;

const TTL: Duration = Duration::from_mins(15);
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

fn held(state: HoldState) -> Hold {
    Hold { state, lines: vec![(1, 2), (3, 1)], ledger_agrees: true, created_at: NOW - Duration::from_mins(5) }
}

fn found(order: Option<&Order>, hold: Option<&Hold>) -> Option<Kind> {
    judge(order, hold, NOW, TTL).map(|mismatch| mismatch.kind)
}

#[test]
fn each_status_fits_its_states_of_a_hold_and_no_other() {
    use HoldState::{Committed, Expired, Held, Released};
    let (stock, unkept) = (Some(Kind::Stock), Some(Kind::PaidWithoutHold));
    for (status, held_is, committed_is, released_is, absent_is) in [
        ("pending", None, stock, stock, stock),
        ("paid", stock, None, unkept, unkept),
        ("shipped", stock, None, unkept, unkept),
        ("completed", stock, None, unkept, unkept),
        ("cancelled", stock, stock, None, None),
        ("of-a-newer-version", None, None, None, None),
    ] {
        let order = order(status);
        for (state, expected) in
            [(Held, held_is), (Committed, committed_is), (Released, released_is), (Expired, released_is)]
        {
            assert_eq!(found(Some(&order), Some(&held(state))), expected, "{status} and {state:?}");
        }
        assert_eq!(found(Some(&order), None), absent_is, "{status} without a hold");
    }
}

#[test]
fn what_is_on_its_way_is_no_mismatch() {
    let settling = Order { is_settling: true, ..order("paid") };
    assert_eq!(found(Some(&settling), Some(&held(HoldState::Held))), None);
    let run_out = Order { expires_at: NOW, ..order("pending") };
    assert_eq!(found(Some(&run_out), Some(&held(HoldState::Expired))), None);
    let young = held(HoldState::Held);
    assert_eq!(found(None, Some(&young)), None, "a checkout that goes on, or was given up");
}

#[test]
fn goods_without_an_order_are_found_once_their_hold_should_have_run_out() {
    let old = Hold { created_at: NOW - TTL - HOLD_MARGIN, ..held(HoldState::Held) };
    assert_eq!(found(None, Some(&old)), Some(Kind::HeldWithoutOrder));
    assert_eq!(found(None, Some(&held(HoldState::Committed))), Some(Kind::HeldWithoutOrder));
    assert_eq!(found(None, Some(&held(HoldState::Released))), None);
    assert_eq!(found(None, None), None);
}

#[test]
fn other_lines_other_movements_and_other_payments_are_found() {
    let fewer = Hold { lines: vec![(1, 1), (3, 1)], ..held(HoldState::Committed) };
    assert_eq!(found(Some(&order("paid")), Some(&fewer)), Some(Kind::Stock));
    let unbooked = Hold { ledger_agrees: false, ..held(HoldState::Committed) };
    assert_eq!(found(Some(&order("paid")), Some(&unbooked)), Some(Kind::Stock));
    let unpaid = Order { captured: 0, ..order("shipped") };
    assert_eq!(found(Some(&unpaid), Some(&held(HoldState::Committed))), Some(Kind::Payment));
    let taken = Order { captured: 1, ..order("cancelled") };
    assert_eq!(found(Some(&taken), None), Some(Kind::Payment));
    let twice = Order { captured: 2, ..order("paid") };
    assert_eq!(found(Some(&twice), Some(&held(HoldState::Committed))), Some(Kind::Payment));
}

#[test]
fn a_round_over_the_last_hour_begins_behind_the_ids_of_that_time() {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::from_hours(24);
    let at = |ago: Duration| {
        let seconds = u64::try_from((now - ago).unix_timestamp()).unwrap();
        Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))
    };
    let first = Pass::RecentOrders.first(now);
    let margin = Duration::from_secs(2);
    assert!(at(RECENT + margin) < first && first < at(RECENT.saturating_sub(margin)));
    assert_eq!(Pass::AllHolds.first(now), Uuid::nil());
}
