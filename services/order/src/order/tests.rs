use super::*;

const ALL: [Transition; 5] =
    [Transition::Pay, Transition::Ship, Transition::Complete, Transition::Cancel, Transition::Expire];
const OWNER: Requester = Requester::OWNER;
const ADMIN: Requester = Requester { is_admin: true, ..Requester::SYSTEM };
const SERVICE: Requester = Requester { is_service: true, ..Requester::SYSTEM };
const OWNING_ADMIN: Requester = Requester { is_owner: true, ..ADMIN };

/// Restates the whole state machine independently of [`TRANSITIONS`].
fn expected(transition: Transition, from: Status, requester: Requester) -> Result<Status, TransitionError> {
    let is_staff = requester == ADMIN || requester == SERVICE;
    let target = match (transition, from) {
        (Transition::Pay, Status::Pending) if requester == OWNER => Some(Status::Paid),
        (Transition::Ship, Status::Paid) if is_staff => Some(Status::Shipped),
        (Transition::Complete, Status::Shipped) if requester == OWNER || requester == ADMIN => {
            Some(Status::Completed)
        }
        (Transition::Cancel, Status::Pending) if requester != Requester::SYSTEM => Some(Status::Cancelled),
        (Transition::Cancel, Status::Paid) if is_staff => Some(Status::Cancelled),
        (Transition::Expire, Status::Pending) if requester == Requester::SYSTEM => Some(Status::Cancelled),
        _ => None,
    };
    let is_forbidden = match transition {
        Transition::Pay => requester != OWNER,
        Transition::Ship => !is_staff,
        Transition::Complete => requester == SERVICE || requester == Requester::SYSTEM,
        Transition::Cancel => requester == Requester::SYSTEM,
        Transition::Expire => requester != Requester::SYSTEM,
    };
    target.ok_or(if is_forbidden { TransitionError::Forbidden } else { TransitionError::InvalidState })
}

#[test]
fn every_transition_from_every_status_by_every_requester_follows_the_state_machine() {
    for requester in [OWNER, ADMIN, SERVICE, Requester::SYSTEM] {
        for transition in ALL {
            for from in Status::ALL {
                let target = next_status(transition, from, requester).map(|(to, _)| to);
                let case = format!("{transition:?} from {from:?} by {requester:?}");
                assert_eq!(target, expected(transition, from, requester), "{case}");
            }
        }
    }
}

#[test]
fn an_admin_acts_as_customer_on_an_own_order() {
    let both = OWNING_ADMIN;
    assert_eq!(
        next_status(Transition::Cancel, Status::Pending, both),
        Ok((Status::Cancelled, Actor::Customer))
    );
    assert_eq!(next_status(Transition::Cancel, Status::Paid, both), Ok((Status::Cancelled, Actor::Admin)));
    assert_eq!(next_status(Transition::Pay, Status::Pending, both), Ok((Status::Paid, Actor::Customer)));
}

#[test]
fn a_transition_has_the_role_of_its_requester() {
    for (requester, actor) in [(ADMIN, Actor::Admin), (SERVICE, Actor::Service)] {
        assert_eq!(next_status(Transition::Ship, Status::Paid, requester), Ok((Status::Shipped, actor)));
    }
}

#[test]
fn lines_with_the_same_product_are_merged() {
    let lines = Lines::merge(&[(7, 1), (3, 2), (7, 4)]).unwrap();
    let pairs: Vec<_> = lines.as_slice().iter().map(|line| (line.product_id, line.quantity.get())).collect();
    assert_eq!(pairs, [(3, 2), (7, 5)]);
}

#[test]
fn lines_out_of_bounds_are_rejected() {
    assert!(Lines::merge(&[]).is_err());
    for invalid in [(0, 1), (-1, 1), (1, 0), (1, -1), (1, 1001), (1, i64::MAX)] {
        assert!(Lines::merge(&[invalid]).is_err(), "{invalid:?}");
    }
    assert!(Lines::merge(&[(1, 600), (1, 401)]).is_err());
    let many: Vec<_> = (1..=101).map(|id| (id, 1)).collect();
    assert!(Lines::merge(&many).is_err());
    assert!(Lines::merge(&many[..100]).is_ok());
}

#[test]
fn unpaid_orders_may_reserve_units_up_to_the_caps_and_one_more() {
    let caps = UnpaidCaps::new(5000, 20);
    let line = |quantity, reserved, available| [UnpaidLine { quantity, reserved, available }];
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
fn a_total_is_exact_or_none_on_overflow() {
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
fn each_invalid_field_of_an_address_is_reported() {
    assert!(address().validate().is_ok());
    let invalid = Address {
        city: " ".to_owned(),
        country: "nl".to_owned(),
        line2: Some("a\0".to_owned()),
        ..address()
    };
    let fields: Vec<_> = invalid.validate().unwrap_err().iter().map(|(field, _)| field.to_owned()).collect();
    assert_eq!(fields, ["shipping_address.line2", "shipping_address.city", "shipping_address.country"]);
}

#[test]
fn the_allowed_transitions_are_listed_for_each_status_and_requester() {
    let (customer, admin) = (OWNER, ADMIN);
    for (from, requester, transitions) in [
        (Status::Pending, customer, &[Transition::Pay, Transition::Cancel][..]),
        (Status::Pending, admin, &[Transition::Cancel]),
        (Status::Paid, customer, &[]),
        (Status::Paid, admin, &[Transition::Ship, Transition::Cancel]),
        (Status::Shipped, customer, &[Transition::Complete]),
        (Status::Shipped, OWNING_ADMIN, &[Transition::Complete]),
        (Status::Pending, SERVICE, &[Transition::Cancel]),
        (Status::Paid, SERVICE, &[Transition::Ship, Transition::Cancel]),
        (Status::Shipped, SERVICE, &[]),
        (Status::Completed, admin, &[]),
        (Status::Cancelled, admin, &[]),
    ] {
        assert_eq!(allowed_transitions(from, requester), transitions, "{from:?} {requester:?}");
    }
}
