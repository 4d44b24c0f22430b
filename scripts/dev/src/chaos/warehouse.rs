//! A consumer of the events of all users, the warehouse of `examples/warehouse`, is killed at random while customers pay.
//! The run passes if each paid order is shipped once, and none is left.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Options,
    customers::{expect_success, restock, sign_up, text_field},
};
use crate::{
    demo::address,
    output::print_step,
    program::{Environment, Program, Stop},
    rest::Rest,
    up::{processes::loopback_url, system::System},
};

const NAME: &str = "warehouse";
const ORDERS: usize = 1000;
const QUICK_ORDERS: usize = 20;
const KILLS: usize = 20;
const QUICK_KILLS: usize = 3;
const BUYERS: usize = 4;
const SUPPLY: i64 = 10_000;
/// Bounds the random delay before a kill: the consumer handles an order within a few. Milliseconds.
const MAX_KILL_DELAY_MS: u64 = 30;
/// Bounds the wait for the shipment of the next orders, including restarts.
const PROGRESS_TIMEOUT: Duration = Duration::from_mins(2);
const RESTART_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub async fn run(system: &mut System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let (orders, kills) = if options.quick { (QUICK_ORDERS, QUICK_KILLS) } else { (ORDERS, KILLS) };
    let rest = Rest::new(&loopback_url(system.topology.gateways[0]))?;
    let admin = json!({"username": system.secrets.admin.username, "password": system.secrets.admin.password});
    let goods = restock(&rest, &system.secrets.admin, SUPPLY).await?;
    let admin = expect_success(rest.post("/auth/login").body(admin)).await?;
    let account = json!({"name": NAME, "scopes": ["events:watch", "orders:ship"]});
    let account =
        rest.post("/admin/service-accounts").bearer(&text_field(&admin, "access_token")?).body(account);
    let account = expect_success(account).await?;
    let client_id = text_field(&account, "id")?;

    // A backlog, so that the first kills find work; the other orders come meanwhile.
    let mut buyers = Vec::new();
    for number in 0..BUYERS {
        buyers.push(text_field(&sign_up(&rest, &format!("buyer-{number}")).await?, "access_token")?);
    }
    let buy = async |orders: usize| {
        let shares = buyers.iter().enumerate().map(|(number, token)| {
            let count = orders / BUYERS + usize::from(number < orders % BUYERS);
            pay_orders(&rest, token, goods[number % goods.len()], count)
        });
        futures_util::future::try_join_all(shares).await.map(drop)
    };
    buy(orders / 2).await?;
    print_step("backlog", &format!("{} paid orders", orders / 2));
    let program = program(system, options, &account)?;
    system.start_programs(vec![program]);
    let mut random = StdRng::seed_from_u64(seed);
    let url = system.postgres_url().to_owned();
    let mut database = PgConnection::connect(&url).await?;
    tokio::try_join!(
        buy(orders - orders / 2),
        kill_at_random(system, options, &mut database, (orders, kills), &mut random)
    )?;
    wait_until_shipped(&mut database, orders).await?;
    print_step(NAME, &format!("shipped {orders} orders, killed {kills} times"));
    check(&mut database, orders, &client_id).await
}

/// Places and pays orders, one after the other.
async fn pay_orders(rest: &Rest, token: &str, product: i64, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        let order = json!({"items": [{"product_id": product, "quantity": 1}], "shipping_address": address()});
        let key = || format!("{:032x}", rand::random::<u128>());
        let order = rest.post("/orders").bearer(token).idempotency_key(&key()).body(order);
        let id = text_field(&expect_success(order).await?, "id")?;
        let payment = rest.post(&format!("/orders/{id}/pay")).bearer(token).idempotency_key(&key());
        expect_success(payment.body(json!({"payment_token": "tok_ok"}))).await?;
    }
    Ok(())
}

/// Returns the consumer as a supervised program, which is restarted after a kill.
fn program(system: &System, options: &Options, account: &Value) -> anyhow::Result<Program> {
    let default = [options.binaries.join(NAME).into_os_string()];
    let command = if options.consumer.is_empty() { &default[..] } else { &options.consumer };
    let (executable, arguments) = command.split_first().context("no command")?;
    ensure!(PathBuf::from(executable).exists(), "{} is not built", executable.display());
    let folder = system.state.process_folder(NAME);
    let [auth, _, order] = &system.topology.services;
    let set = vec![
        ("AUTH_URL", loopback_url(auth[0].grpc)),
        ("ORDER_URL", loopback_url(order[0].grpc)),
        ("CLIENT_ID", text_field(account, "id")?),
        ("CLIENT_SECRET", text_field(account, "client_secret")?),
        ("CURSOR_FILE", folder.join("cursor").display().to_string()),
    ];
    Ok(Program {
        name: NAME.to_owned(),
        executable: executable.into(),
        arguments: arguments.to_vec(),
        environment: Environment::Modified { unset: Vec::new(), set },
        log: system.state.log(NAME),
        folder,
        owner: None,
        stop: Stop { signal: Signal::KILL, name: "KILL", timeout: Duration::from_secs(5) },
        lock_file: None,
    })
}

/// Kills the consumer in the middle of its work: each time when a further share of the orders is shipped. The long form
/// kills the services that it calls, too.
async fn kill_at_random(
    system: &mut System,
    options: &Options,
    database: &mut PgConnection,
    (orders, kills): (usize, usize),
    random: &mut StdRng,
) -> anyhow::Result<()> {
    for kill in 0..kills {
        wait_until_shipped(database, orders * (kill + 1) / (kills + 2)).await?;
        sleep(Duration::from_millis(random.random_range(0..MAX_KILL_DELAY_MS))).await;
        let name = match random.random_range(0..10) {
            0 if !options.quick => "auth",
            1 | 2 if !options.quick => "order",
            _ => NAME,
        };
        let running = wait_for_process(system, name, None).await?;
        kill_process(running, Signal::KILL)?;
        wait_for_process(system, name, Some(running)).await?;
    }
    Ok(())
}

/// Waits until a process runs that is not the `previous` one.
async fn wait_for_process(system: &mut System, name: &str, previous: Option<Pid>) -> anyhow::Result<Pid> {
    let started = async {
        loop {
            let running = system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed()));
            if let Some(running) = running.filter(|running| Some(*running) != previous) {
                return anyhow::Ok(running);
            }
            system.next_event().await?;
        }
    };
    timeout(RESTART_TIMEOUT, started).await.with_context(|| format!("{name} does not run"))?
}

async fn wait_until_shipped(database: &mut PgConnection, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    loop {
        let shipped: i64 = sqlx::query_scalar("select count(*) from orders.orders where status = 'shipped'")
            .fetch_one(&mut *database)
            .await?;
        if shipped >= i64::try_from(count)? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{shipped} of {count} orders are shipped");
        sleep(POLL_INTERVAL).await;
    }
}

/// Checks that each order was shipped once, by the service account, and has one audit record.
async fn check(database: &mut PgConnection, orders: usize, client_id: &str) -> anyhow::Result<()> {
    let (shipped, steps, by_service, records, targets): (i64, i64, i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from orders.orders where status = 'shipped' and tracking_number = 'W-' || id),
                (select count(*) from orders.event where status = 'shipped'),
                (select count(distinct order_id) from orders.event where status = 'shipped' and actor = 'service'),
                count(*), count(distinct target)
         from orders.audit_record where action = 'order.ship' and actor = 'service:' || $1",
    )
    .bind(client_id)
    .fetch_one(database)
    .await?;
    let expected = i64::try_from(orders)?;
    if [shipped, steps, by_service, records, targets] != [expected; 5] {
        bail!(
            "of {orders} orders, {shipped} are shipped, in {steps} steps; {by_service} by the service; {records} audit \
             records of {targets} orders"
        );
    }
    print_step("audit", &format!("{orders} orders, each shipped once and recorded once"));
    Ok(())
}
