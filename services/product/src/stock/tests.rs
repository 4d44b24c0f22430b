use time::Duration;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn order(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn level(available: i64, active: bool) -> StockLevel {
    StockLevel {
        sku: "sku".to_owned(),
        name: "name".to_owned(),
        price: 5,
        active,
        version: 3,
        available,
        revision: 7,
    }
}

/// Products 1, 2 and 3 have 10, 1 and 0 units; 4 is archived.
fn batch() -> HoldBatch {
    let levels =
        [(1, level(10, true)), (2, level(1, true)), (3, level(0, true)), (4, level(10, false))].into();
    HoldBatch::new(NOW, levels, BTreeMap::new())
}

fn request(number: u128, lines: &[(i64, i64)]) -> HoldRequest {
    let lines =
        lines.iter().map(|(product_id, quantity)| Line { product_id: *product_id, quantity: *quantity });
    let lines: Vec<Line> = lines.collect();
    let lines = (!lines.is_empty()).then(|| HoldLines::parse(lines).unwrap());
    HoldRequest {
        order_id: order(number),
        lines,
        expires_at: NOW + Duration::MINUTE,
        fence: 0,
        shorten: false,
        caller: None,
    }
}

fn short(product_id: i64, requested: i64, available: i64) -> Shortage {
    Shortage { product_id, sku: Some("sku".to_owned()), requested, available }
}

#[test]
fn the_last_unit_is_held_by_one_order() {
    let mut batch = batch();
    let won = (0..200).filter(|number| batch.decide(&request(*number, &[(2, 1)])).is_ok()).count();
    assert_eq!((won, batch.created.len()), (1, 1));
}

#[test]
fn an_order_holds_all_lines_or_none() {
    let mut batch = batch();
    assert_eq!(
        batch.decide(&request(1, &[(1, 4), (2, 2), (3, 1)])),
        Err(HoldError::OutOfStock(vec![short(2, 2, 1), short(3, 1, 0)]))
    );
    assert_eq!(
        batch.decide(&request(2, &[(1, 4), (4, 1), (9, 1)])),
        Err(HoldError::ProductUnavailable(vec![short(4, 1, 0), Shortage { sku: None, ..short(9, 1, 0) }]))
    );
    // Refused requests have taken nothing.
    assert!(batch.decide(&request(3, &[(1, 10), (2, 1)])).is_ok());
}

#[test]
fn a_repeated_request_returns_the_same_hold() {
    let mut batch = batch();
    let first = batch.decide(&request(1, &[(2, 1)])).unwrap();
    assert_eq!(batch.decide(&request(1, &[(2, 1)])).unwrap(), first);
    assert_eq!(batch.decide(&request(1, &[])).unwrap(), first);
    assert_eq!(batch.decide(&request(1, &[(1, 1)])), Err(HoldError::LinesMismatch));
    assert_eq!(batch.decide(&request(2, &[])), Err(HoldError::NotFound));
    assert_eq!(batch.created, [order(1)]);
}

#[test]
fn a_hold_is_extended_and_not_shortened() {
    let mut batch = batch();
    batch.decide(&request(1, &[(2, 1)])).unwrap();
    let mut longer = request(1, &[]);
    longer.expires_at = NOW + Duration::HOUR;
    assert_eq!(batch.decide(&longer).unwrap().expires_at, NOW + Duration::HOUR);
    assert_eq!(batch.decide(&request(1, &[])).unwrap().expires_at, NOW + Duration::HOUR);
    assert!(batch.extended.is_empty(), "it is written with its last time anyway");
}

#[test]
fn an_inactive_hold_is_not_extended() {
    for (state, until, active) in [
        (HoldState::Held, NOW + Duration::SECOND, true),
        (HoldState::Held, NOW, false),
        (HoldState::Committed, NOW - Duration::HOUR, true),
        (HoldState::Released, NOW + Duration::HOUR, false),
        (HoldState::Expired, NOW + Duration::HOUR, false),
    ] {
        let hold = Hold { state, expires_at: until, fence: 0, caller: None, lines: Vec::new() };
        let mut batch = HoldBatch::new(NOW, BTreeMap::new(), [(order(1), hold)].into());
        assert_eq!(batch.decide(&request(1, &[])).is_ok(), active, "{state:?}");
        assert_eq!(batch.extended.len(), usize::from(active && state == HoldState::Held), "{state:?}");
    }
}

#[test]
fn invalid_lines_are_refused_and_valid_ones_sorted() {
    let line = |product_id, quantity| Line { product_id, quantity };
    assert_eq!(HoldLines::parse(vec![line(2, 1), line(1, 1)]).unwrap().lines(), [line(1, 1), line(2, 1)]);
    for invalid in [
        Vec::new(),
        vec![line(1, 0)],
        vec![line(1, 1001)],
        vec![line(1, 1), line(2, 1), line(1, 1)],
        (0..101).map(|id| line(id, 1)).collect(),
    ] {
        assert!(HoldLines::parse(invalid.clone()).is_err(), "{invalid:?}");
    }
}

#[test]
fn a_correction_out_of_bounds_is_refused() {
    let apply = |delta, available| Delta::parse(delta).unwrap().apply(available).map(Stock::get);
    assert_eq!(apply(-5, 5), Ok(0));
    assert_eq!(apply(-6, 5), Err(AdjustError::BelowZero));
    assert_eq!(apply(1, Stock::MAX), Err(AdjustError::TooMuch));
    assert_eq!(apply(1, Stock::MAX - 1), Ok(Stock::MAX));
    for invalid in [0, Stock::MAX + 1, -Stock::MAX - 1, i64::MIN] {
        assert!(Delta::parse(invalid).is_err(), "{invalid}");
    }
}

#[test]
fn a_withdrawal_depends_on_the_exact_stock_only_after_a_refusal() {
    let mut batch = batch();
    assert!(batch.decide(&request(1, &[(1, 4)])).is_ok());
    assert!(batch.decide(&request(2, &[(1, 2), (2, 1)])).is_ok());
    assert!(batch.decide(&request(2, &[(1, 2), (2, 1)])).is_ok(), "a repeat takes nothing");
    let withdrawal = |product_id, units, revision| Withdrawal { product_id, units, version: 3, revision };
    assert_eq!(batch.withdrawals(), [withdrawal(1, 6, None), withdrawal(2, 1, None)]);
    assert!(batch.decide(&request(3, &[(1, 1), (2, 1)])).is_err());
    assert!(batch.decide(&request(4, &[(1, 1), (9, 1)])).is_err());
    assert_eq!(batch.withdrawals(), [withdrawal(1, 6, None), withdrawal(2, 1, Some(7))]);
}
