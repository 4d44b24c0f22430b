use time::Duration;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn order(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn shelf(available: i64, on_sale: bool) -> Shelf {
    Shelf { sku: "sku".to_owned(), name: "name".to_owned(), price: 5, on_sale, available }
}

/// Products 1, 2 and 3 with 10, 1 and 0; 4 is archived.
fn round() -> Round {
    let shelves =
        [(1, shelf(10, true)), (2, shelf(1, true)), (3, shelf(0, true)), (4, shelf(10, false))].into();
    Round::new(NOW, shelves, BTreeMap::new())
}

fn want(number: u128, lines: &[(i64, i64)]) -> Want {
    let lines =
        lines.iter().map(|(product_id, quantity)| Line { product_id: *product_id, quantity: *quantity });
    let lines: Vec<Line> = lines.collect();
    let basket = (!lines.is_empty()).then(|| Basket::parse(lines).unwrap());
    Want { order_id: order(number), basket, until: NOW + Duration::MINUTE, fence: 0, shorten: false }
}

fn short(product_id: i64, requested: i64, available: i64) -> Shortage {
    Shortage { product_id, sku: Some("sku".to_owned()), requested, available }
}

#[test]
fn the_last_unit_goes_to_one() {
    let mut round = round();
    let won = (0..200).filter(|number| round.decide(&want(*number, &[(2, 1)])).is_ok()).count();
    assert_eq!((won, round.taken.len()), (1, 1));
}

#[test]
fn an_order_gets_all_or_nothing() {
    let mut round = round();
    assert_eq!(
        round.decide(&want(1, &[(1, 4), (2, 2), (3, 1)])),
        Err(Refused::OutOfStock(vec![short(2, 2, 1), short(3, 1, 0)]))
    );
    assert_eq!(
        round.decide(&want(2, &[(1, 4), (4, 1), (9, 1)])),
        Err(Refused::Unavailable(vec![short(4, 1, 0), Shortage { sku: None, ..short(9, 1, 0) }]))
    );
    // Nothing of what was refused is missing now.
    assert!(round.decide(&want(3, &[(1, 10), (2, 1)])).is_ok());
}

#[test]
fn the_same_order_again_is_the_same_hold() {
    let mut round = round();
    let first = round.decide(&want(1, &[(2, 1)])).unwrap();
    assert_eq!(round.decide(&want(1, &[(2, 1)])).unwrap(), first);
    assert_eq!(round.decide(&want(1, &[])).unwrap(), first);
    assert_eq!(round.decide(&want(1, &[(1, 1)])), Err(Refused::Different));
    assert_eq!(round.decide(&want(2, &[])), Err(Refused::Unknown));
    assert_eq!(round.taken, [order(1)]);
}

#[test]
fn a_hold_is_prolonged_and_never_shortened() {
    let mut round = round();
    round.decide(&want(1, &[(2, 1)])).unwrap();
    let mut longer = want(1, &[]);
    longer.until = NOW + Duration::HOUR;
    assert_eq!(round.decide(&longer).unwrap().expires_at, NOW + Duration::HOUR);
    assert_eq!(round.decide(&want(1, &[])).unwrap().expires_at, NOW + Duration::HOUR);
    assert!(round.prolonged.is_empty(), "it is written with its last time anyway");
}

#[test]
fn what_is_over_stays_over() {
    for (state, until, lives) in [
        (State::Held, NOW + Duration::SECOND, true),
        (State::Held, NOW, false),
        (State::Committed, NOW - Duration::HOUR, true),
        (State::Released, NOW + Duration::HOUR, false),
        (State::Expired, NOW + Duration::HOUR, false),
    ] {
        let hold = Hold { state, expires_at: until, fence: 0, lines: Vec::new() };
        let mut round = Round::new(NOW, BTreeMap::new(), [(order(1), hold)].into());
        assert_eq!(round.decide(&want(1, &[])).is_ok(), lives, "{state:?}");
        assert_eq!(round.prolonged.len(), usize::from(lives && state == State::Held), "{state:?}");
    }
}

#[test]
fn a_basket_is_in_order_and_sound() {
    let line = |product_id, quantity| Line { product_id, quantity };
    assert_eq!(Basket::parse(vec![line(2, 1), line(1, 1)]).unwrap().lines(), [line(1, 1), line(2, 1)]);
    for odd in [
        Vec::new(),
        vec![line(1, 0)],
        vec![line(1, 1001)],
        vec![line(1, 1), line(2, 1), line(1, 1)],
        (0..101).map(|id| line(id, 1)).collect(),
    ] {
        assert!(Basket::parse(odd.clone()).is_err(), "{odd:?}");
    }
}

#[test]
fn a_correction_stays_within_bounds() {
    let apply = |delta, available| Delta::parse(delta).unwrap().apply(available).map(Stock::get);
    assert_eq!(apply(-5, 5), Ok(0));
    assert_eq!(apply(-6, 5), Err(AdjustError::BelowZero));
    assert_eq!(apply(1, Stock::HIGHEST), Err(AdjustError::TooMuch));
    assert_eq!(apply(1, Stock::HIGHEST - 1), Ok(Stock::HIGHEST));
    for odd in [0, Stock::HIGHEST + 1, -Stock::HIGHEST - 1, i64::MIN] {
        assert!(Delta::parse(odd).is_err(), "{odd}");
    }
}
