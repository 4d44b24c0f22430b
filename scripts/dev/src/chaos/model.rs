//! A model test: random sequences of requests through the API, whose responses a simple model predicts. A sequence that
//! differs is shortened, and printed with its seed.

mod sequence;
mod shop;
mod state;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::bail;
use futures_util::future::try_join_all;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

pub use self::state::MAX_UNPAID_ORDERS;
use self::{
    sequence::{Sequence, USERS},
    shop::{Difference, OutcomeUnknown, REPLAY, ShopClient},
};
use super::{
    Options, audit,
    customers::{register, sign_in, text_field},
};
use crate::{
    output::{Style, print_line, print_step, styled},
    rest::Rest,
    up::{processes::loopback_url, system::System},
};

/// The number of sequences of a run, and of a quick one.
const SEQUENCES: u64 = 2_000;
const QUICK_SEQUENCES: u64 = 20;
/// The number of requests of a sequence.
const STEPS: usize = 30;
/// The number of sequences that run concurrently, each with users and products of its own.
const LANES: usize = 4;
/// Bounds the repetitions of a sequence whose outcome is unknown.
const MAX_REPETITIONS: u32 = 20;
/// Bounds the time in which a sequence is shortened.
const SHORTENING_TIMEOUT: Duration = Duration::from_mins(2);
const PROGRESS_INTERVAL: u64 = 200;
/// The minimum count of each kind of response in a run that is not quick.
const MIN_RESPONSES: u64 = 5;
/// The kinds of responses that a run must have: the requests that succeed, the replays, and the codes of refusals.
const RESPONSES: [&str; 28] = [
    "add to cart",
    "set cart line",
    "clear cart",
    "read cart",
    "place order",
    "pay",
    "cancel",
    "ship",
    "complete",
    "read order",
    "list orders",
    "sign in again",
    "adjust stock",
    "set price",
    "archive",
    "read product",
    REPLAY,
    "cart_empty",
    "forbidden",
    "idempotency_key_reused",
    "invalid_transition",
    "not_found",
    "out_of_stock",
    "payment_declined",
    "price_changed",
    "product_unavailable",
    "too_many_unpaid_orders",
    "validation_failed",
];

pub async fn run(system: &System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let count = if options.quick { QUICK_SEQUENCES } else { SEQUENCES };
    let rest = Rest::new(&loopback_url(system.topology.gateways[0]))?;
    let admin_token = text_field(&sign_in(&rest, &system.secrets.admin).await?, "access_token")?;
    let run = Run { seed, count, next: AtomicU64::new(0), repetitions: AtomicU64::new(0) };
    let mut lanes = Vec::new();
    // One user after the other: the shop sheds concurrent password hashes.
    for lane in 0..LANES {
        let (mut users, mut tokens) = (Vec::new(), Vec::new());
        for user in 0..USERS {
            let user = register(&rest, &format!("model-{lane}-{user}")).await?;
            tokens.push(text_field(&sign_in(&rest, &user).await?, "access_token")?);
            users.push(user);
        }
        tokens.push(admin_token.clone());
        lanes.push(run.run_lane(ShopClient { rest: &rest, users, tokens, counts: BTreeMap::new() }));
    }
    let mut counts = BTreeMap::<&str, u64>::new();
    for (kind, count) in try_join_all(lanes).await?.into_iter().flatten() {
        *counts.entry(kind).or_default() += count;
    }
    audit::wait_until_settled(system.postgres_url()).await?;
    let violations = audit::run(system.postgres_url(), &[], &BTreeMap::new()).await?;
    if !violations.is_empty() {
        bail!("violations:\n  {}", violations.join("\n  "));
    }
    let list: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    print_line(&format!("  {}", styled(Style::Dim, &list.join(", "))));
    let count_of = |kind: &str| counts.get(kind).copied().unwrap_or_default();
    if let Some(kind) = RESPONSES.iter().find(|kind| !options.quick && count_of(kind) < MIN_RESPONSES) {
        bail!("{kind}: {} responses, less than {MIN_RESPONSES}", count_of(kind));
    }
    print_step(
        "model",
        &format!(
            "{count} sequences, {} requests, {} sequences repeated as the shop was busy, no difference, no violation",
            counts.values().sum::<u64>(),
            run.repetitions.into_inner()
        ),
    );
    Ok(())
}

/// The progress of all lanes.
struct Run {
    seed: u64,
    count: u64,
    /// The number of the next sequence.
    next: AtomicU64,
    repetitions: AtomicU64,
}

impl Run {
    /// Runs sequences until none is left. Returns the counts of the responses.
    async fn run_lane(&self, mut shop: ShopClient<'_>) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let mut counts = BTreeMap::<&str, u64>::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return Ok(counts);
            }
            let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(number));
            let sequence = Sequence::random(&mut random, STEPS);
            if let Some(difference) = self.run_sequence(&mut shop, &sequence).await? {
                let found = format!("sequence {number} of seed {}, step {}", self.seed, difference.step + 1);
                print_line(&format!("  {found}: {}", difference.description));
                let (sequence, difference) = self.shorten(&mut shop, sequence, difference).await?;
                bail!("{found}: {}\nafter\n{sequence}", difference.description);
            }
            for (kind, count) in std::mem::take(&mut shop.counts) {
                *counts.entry(kind).or_default() += count;
            }
            if number % PROGRESS_INTERVAL == PROGRESS_INTERVAL - 1 {
                print_line(&format!("  {:>5} of {} sequences", number + 1, self.count));
            }
        }
    }

    /// Runs a sequence, and repeats it while its outcome is unknown. Returns the first difference from the model.
    async fn run_sequence(
        &self,
        shop: &mut ShopClient<'_>,
        sequence: &Sequence,
    ) -> anyhow::Result<Option<Difference>> {
        let mut repetitions = 0;
        loop {
            shop.counts.clear();
            match shop.run(sequence).await {
                Err(error) if error.is::<OutcomeUnknown>() && repetitions < MAX_REPETITIONS => {}
                outcome => return outcome,
            }
            repetitions += 1;
            self.repetitions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes the steps after the difference, then each step without which the sequence still differs.
    async fn shorten(
        &self,
        shop: &mut ShopClient<'_>,
        mut sequence: Sequence,
        mut difference: Difference,
    ) -> anyhow::Result<(Sequence, Difference)> {
        let deadline = Instant::now() + SHORTENING_TIMEOUT;
        sequence.0.truncate(difference.step + 1);
        let mut index = 0;
        while let Some(mut shorter) = sequence.without(index)
            && Instant::now() < deadline
        {
            match self.run_sequence(shop, &shorter).await? {
                Some(shorter_difference) => {
                    shorter.0.truncate(shorter_difference.step + 1);
                    (sequence, difference) = (shorter, shorter_difference);
                }
                None => index += 1,
            }
        }
        Ok((sequence, difference))
    }
}
