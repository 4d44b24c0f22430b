//! Random sequences of requests.

use std::fmt;

use rand::{Rng as _, rngs::StdRng};

/// The number of customers of a sequence. The user after them is the admin.
pub const USERS: usize = 2;
pub const ADMIN: usize = USERS;
/// The number of products of a sequence.
pub const PRODUCTS: usize = 2;
/// The number of idempotency keys: few, so that requests share them.
const KEYS: u8 = 3;
/// The number of orders that steps refer to. A step of a missing order refers to an unknown id.
const ORDERS: usize = 4;

/// A request. Users and products are numbers within the sequence; orders are numbered by creation.
#[derive(Clone, Debug)]
pub enum Step {
    AddToCart {
        user: usize,
        product: usize,
        quantity: i64,
        key: Option<u8>,
    },
    SetCartLine {
        user: usize,
        product: usize,
        quantity: i64,
    },
    ClearCart {
        user: usize,
    },
    ReadCart {
        user: usize,
    },
    PlaceOrder {
        user: usize,
        items: Option<Vec<(usize, i64)>>,
        total: ExpectedTotal,
        key: Option<u8>,
    },
    Pay {
        user: usize,
        order: usize,
        token: &'static str,
        key: Option<u8>,
    },
    Cancel {
        user: usize,
        order: usize,
        reason: Option<&'static str>,
        key: Option<u8>,
    },
    Ship {
        user: usize,
        order: usize,
        number: &'static str,
        key: Option<u8>,
    },
    Complete {
        user: usize,
        order: usize,
        key: Option<u8>,
    },
    ReadOrder {
        user: usize,
        order: usize,
    },
    ListOrders {
        user: usize,
    },
    /// Ends the session, and signs in again.
    SignInAgain {
        user: usize,
    },
    AdjustStock {
        product: usize,
        delta: i64,
        key: Option<u8>,
    },
    SetPrice {
        product: usize,
        price: i64,
    },
    Archive {
        product: usize,
    },
    ReadProduct {
        product: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum ExpectedTotal {
    None,
    Right,
    Wrong,
}

impl Step {
    /// Returns the name of the request.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddToCart { .. } => "add to cart",
            Self::SetCartLine { .. } => "set cart line",
            Self::ClearCart { .. } => "clear cart",
            Self::ReadCart { .. } => "read cart",
            Self::PlaceOrder { .. } => "place order",
            Self::Pay { .. } => "pay",
            Self::Cancel { .. } => "cancel",
            Self::Ship { .. } => "ship",
            Self::Complete { .. } => "complete",
            Self::ReadOrder { .. } => "read order",
            Self::ListOrders { .. } => "list orders",
            Self::SignInAgain { .. } => "sign in again",
            Self::AdjustStock { .. } => "adjust stock",
            Self::SetPrice { .. } => "set price",
            Self::Archive { .. } => "archive",
            Self::ReadProduct { .. } => "read product",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Sequence(pub Vec<Step>);

impl Sequence {
    pub fn random(random: &mut StdRng, steps: usize) -> Self {
        Self((0..steps).map(|_| random_step(random)).collect())
    }

    /// Returns the sequence without one step, if it has that many.
    pub fn without(&self, index: usize) -> Option<Self> {
        let mut steps = self.0.clone();
        (index < steps.len()).then(|| {
            steps.remove(index);
            Self(steps)
        })
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(formatter, "  {step:?}"))
    }
}

fn random_step(random: &mut StdRng) -> Step {
    // One user makes most requests, and few orders are named, so that orders reach their final states.
    let user = if random.random_bool(0.8) { 0 } else { random.random_range(0..USERS) };
    let product = random.random_range(0..PRODUCTS);
    let actor = if random.random_bool(0.3) { ADMIN } else { user };
    let order = random.random_range(0..ORDERS);
    let key = random.random_bool(0.5).then(|| random.random_range(0..KEYS));
    let quantity = if random.random_bool(0.05) { 999 } else { random.random_range(1..=3) };
    match random.random_range(0..100) {
        0..=7 => Step::AddToCart { user, product, quantity, key },
        8..=12 => Step::SetCartLine { user, product, quantity: random.random_range(0..=2) },
        13 => Step::ClearCart { user },
        14..=16 => Step::ReadCart { user },
        17..=39 => Step::PlaceOrder {
            user,
            items: random.random_bool(0.6).then(|| random_items(random)),
            total: match random.random_range(0..5) {
                0 => ExpectedTotal::Right,
                1 => ExpectedTotal::Wrong,
                _ => ExpectedTotal::None,
            },
            key,
        },
        40..=54 => {
            let token = if random.random_bool(0.75) { "tok_ok" } else { "tok_declined" };
            Step::Pay { user: if random.random_bool(0.1) { ADMIN } else { user }, order, token, key }
        }
        55..=64 => {
            Step::Cancel { user: actor, order, reason: random.random_bool(0.3).then_some("too dear"), key }
        }
        65..=72 => {
            let number = if random.random_bool(0.8) { "3S-1" } else { "3S-2" };
            Step::Ship { user: if random.random_bool(0.8) { ADMIN } else { user }, order, number, key }
        }
        73..=79 => Step::Complete { user: actor, order, key },
        80..=84 => Step::ReadOrder { user: actor, order },
        85 => Step::ListOrders { user },
        86 => Step::SignInAgain { user },
        87..=90 => Step::AdjustStock { product, delta: random.random_range(-3..=4), key },
        91..=93 => Step::SetPrice { product, price: random.random_range(0..500) },
        94 => Step::Archive { product },
        _ => Step::ReadProduct { product },
    }
}

/// Returns one to three lines, which may have the same product.
fn random_items(random: &mut StdRng) -> Vec<(usize, i64)> {
    let count = random.random_range(1..=3);
    (0..count).map(|_| (random.random_range(0..PRODUCTS), random.random_range(1..=3))).collect()
}
