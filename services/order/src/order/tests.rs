use super::*;

const STEPS: [Step; 5] = [Step::Pay, Step::Ship, Step::Complete, Step::Cancel, Step::Expire];
const OWNER: Asker = Asker { owner: true, admin: false };
const ADMIN: Asker = Asker { owner: false, admin: true };

/// The whole table, written down a second time from the contract.
fn expected(step: Step, from: Status, asker: Asker) -> Result<Status, Refused> {
    let legal = match (step, from) {
        (Step::Pay, Status::Pending) if asker == OWNER => Some(Status::Paid),
        (Step::Ship, Status::Paid) if asker == ADMIN => Some(Status::Shipped),
        (Step::Complete, Status::Shipped) if asker != Asker::SYSTEM => Some(Status::Completed),
        (Step::Cancel, Status::Pending) if asker != Asker::SYSTEM => Some(Status::Cancelled),
        (Step::Cancel, Status::Paid) if asker == ADMIN => Some(Status::Cancelled),
        (Step::Expire, Status::Pending) if asker == Asker::SYSTEM => Some(Status::Cancelled),
        _ => None,
    };
    let forbidden = match step {
        Step::Pay => asker != OWNER,
        Step::Ship => asker != ADMIN,
        Step::Complete | Step::Cancel => asker == Asker::SYSTEM,
        Step::Expire => asker != Asker::SYSTEM,
    };
    legal.ok_or(if forbidden { Refused::Forbidden } else { Refused::Illegal })
}

#[test]
fn every_step_from_every_state_by_everybody() {
    for asker in [OWNER, ADMIN, Asker::SYSTEM] {
        for of in STEPS {
            for from in Status::ALL {
                let found = step(of, from, asker).map(|(to, _)| to);
                assert_eq!(found, expected(of, from, asker), "{of:?} from {from:?} by {asker:?}");
            }
        }
    }
}

#[test]
fn an_admin_acts_as_customer_where_the_order_is_their_own() {
    let both = Asker { owner: true, admin: true };
    assert_eq!(step(Step::Cancel, Status::Pending, both), Ok((Status::Cancelled, Actor::Customer)));
    assert_eq!(step(Step::Cancel, Status::Paid, both), Ok((Status::Cancelled, Actor::Admin)));
    assert_eq!(step(Step::Pay, Status::Pending, both), Ok((Status::Paid, Actor::Customer)));
}

#[test]
fn lines_with_the_same_product_are_one() {
    let lines = Lines::merge(&[(7, 1), (3, 2), (7, 4)]).unwrap();
    let pairs: Vec<_> = lines.as_slice().iter().map(|line| (line.product_id, line.quantity.get())).collect();
    assert_eq!(pairs, [(3, 2), (7, 5)]);
}

#[test]
fn lines_have_bounds() {
    assert!(Lines::merge(&[]).is_err());
    for odd in [(0, 1), (-1, 1), (1, 0), (1, -1), (1, 1001), (1, i64::MAX)] {
        assert!(Lines::merge(&[odd]).is_err(), "{odd:?}");
    }
    assert!(Lines::merge(&[(1, 600), (1, 401)]).is_err());
    let many: Vec<_> = (1..=101).map(|id| (id, 1)).collect();
    assert!(Lines::merge(&many).is_err());
    assert!(Lines::merge(&many[..100]).is_ok());
}

#[test]
fn unpaid_orders_hold_so_many_units_and_one_more() {
    let caps = UnpaidCaps::new(5000, 20);
    let line = |quantity, held_before, available| [UnpaidLine { quantity, held_before, available }];
    assert!(caps.allow(0, &line(1000, 0, 0)), "a small stock may be one customer's");
    assert!(caps.allow(4000, &line(1000, 0, 1_000_000)) && !caps.allow(4001, &line(1000, 0, 1_000_000)));
    assert!(caps.allow(9000, &line(1, 0, 5)), "one unit is always allowed");
    // 2000 of 10 000 are a fifth.
    assert!(caps.allow(1000, &line(1000, 1000, 8000)) && !caps.allow(1000, &line(1000, 1000, 7999)));
    assert!(!caps.allow(i64::MAX, &line(2, i64::MAX, i64::MAX)));
    assert!(UnpaidCaps::NONE.allow(1_000_000, &line(1000, 9000, 0)));
    assert_eq!(UnpaidCaps::new(0, 0), UnpaidCaps::NONE);
}

#[test]
fn totals_are_exact_or_none() {
    assert_eq!(total([(1999, 3), (1, 1)]), Some(5998));
    assert_eq!(total([]), Some(0));
    assert_eq!(total([(i64::MAX, 2)]), None);
    assert_eq!(total([(i64::MAX, 1), (1, 1)]), None);
}

fn address() -> Address {
    Address {
        recipient: "Ann".to_owned(),
        line1: "High Street 1".to_owned(),
        line2: None,
        city: "Utrecht".to_owned(),
        region: None,
        postal_code: "3511".to_owned(),
        country: "NL".to_owned(),
        phone: None,
    }
}

#[test]
fn an_address_is_checked_field_by_field() {
    assert!(address().check().is_ok());
    let odd = Address {
        city: " ".to_owned(),
        country: "nl".to_owned(),
        line2: Some("a\0".to_owned()),
        ..address()
    };
    let fields: Vec<_> = odd.check().unwrap_err().iter().map(|(field, _)| field.to_owned()).collect();
    assert_eq!(fields, ["shipping_address.line2", "shipping_address.city", "shipping_address.country"]);
}

#[test]
fn the_steps_that_are_allowed_are_those_that_are_taken() {
    let (customer, admin) = (Asker { owner: true, admin: false }, Asker { owner: false, admin: true });
    for (from, asker, steps) in [
        (Status::Pending, customer, &[Step::Pay, Step::Cancel][..]),
        (Status::Pending, admin, &[Step::Cancel]),
        (Status::Paid, customer, &[]),
        (Status::Paid, admin, &[Step::Ship, Step::Cancel]),
        (Status::Shipped, customer, &[Step::Complete]),
        (Status::Shipped, Asker { owner: true, admin: true }, &[Step::Complete]),
        (Status::Completed, admin, &[]),
        (Status::Cancelled, admin, &[]),
    ] {
        assert_eq!(allowed(from, asker), steps, "{from:?} {asker:?}");
    }
}
