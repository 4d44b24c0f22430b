//! A delivery: one order through its whole life, and three simulated devices of its buyer, each with a socket at another
//! gateway. A device resumes behind the last event that it has, so that it misses none while its gateway is gone.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::{
    Control,
    shop::Gateways,
    view::{DeliveryView, DeviceView, FrameView, Phase, StepView},
};
use crate::{
    demo::address,
    event_stream::{Change, EventStream},
    rest::Rest,
};

const DEVICES: usize = 3;
/// The time between two steps, in which a gateway can be killed.
const STEP_DELAY: Duration = Duration::from_millis(1_500);
/// Bounds the wait until all devices have all steps.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The tasks of the devices; a new delivery replaces them.
#[derive(Debug, Default)]
pub struct Devices(Mutex<JoinSet<()>>);

/// Starts a delivery, and reports whether none was running.
pub fn start(control: &Control) -> bool {
    let has_started = control.0.view.send_if_modified(|view| {
        let is_idle = view.delivery.as_ref().is_none_or(|delivery| delivery.phase.is_over());
        if is_idle {
            let device = |number: usize| DeviceView {
                gateway: view.gateways[number % view.gateways.len()].name.clone(),
                is_connected: false,
                reconnects: 0,
                frames: Vec::new(),
            };
            view.delivery = Some(DeliveryView {
                phase: Phase::Running,
                order_id: None,
                steps: Vec::new(),
                devices: (0..DEVICES).map(device).collect(),
                error: None,
            });
        }
        is_idle
    });
    if has_started {
        let delivery = Delivery { control: control.clone(), gateways: control.0.shop.connect() };
        tokio::spawn(async move {
            let outcome = delivery.run().await;
            delivery.update(|view| match outcome {
                Ok(()) => view.phase = Phase::Done,
                Err(error) => (view.phase, view.error) = (Phase::Failed, Some(format!("{error:#}"))),
            });
        });
    }
    has_started
}

#[derive(Debug)]
struct Delivery {
    control: Control,
    gateways: Gateways,
}

impl Delivery {
    async fn run(&self) -> anyhow::Result<()> {
        let (owner, admin) = (self.control.0.accounts.owner().await?, self.control.0.accounts.admin().await?);
        self.connect_devices(&owner).await?;
        let found = self.gateways.expect(0, |rest| rest.get("/products?in_stock=true&limit=1")).await?;
        let product = found["items"][0]["id"].as_i64().context("nothing is in stock in this shop")?;
        let order = json!({"items": [{"product_id": product, "quantity": 1}], "shipping_address": address()});
        let placed = self.take_step("/orders", &owner, order).await?;
        let id = placed["id"].as_str().context("an order without an id")?.to_owned();
        self.update(|view| view.order_id = Some(id.clone()));
        let parcel = json!({"carrier": "Slow Mail", "tracking_number": "SM1"});
        let steps = [
            ("pay", &owner, json!({"payment_token": "tok_ok"})),
            ("ship", &admin, parcel),
            ("complete", &owner, Value::Null),
        ];
        for (step, token, body) in steps {
            sleep(STEP_DELAY).await;
            self.take_step(&format!("/orders/{id}/{step}"), token, body).await?;
        }
        self.wait_for_devices().await
    }

    /// Sends a step, by another gateway than the last one, and shows its commit.
    async fn take_step(&self, path: &str, token: &str, body: Value) -> anyhow::Result<Value> {
        let gateway = self.control.0.view.borrow().delivery.as_ref().map_or(0, |view| view.steps.len());
        let key = Uuid::new_v4().to_string();
        let request = |rest| {
            let request = Rest::post(rest, path).bearer(token).idempotency_key(&key);
            if body.is_null() { request } else { request.body(body.clone()) }
        };
        let order = self.gateways.expect(gateway, request).await?;
        let status = order["status"].as_str().context("an order without a status")?.to_owned();
        let at = OffsetDateTime::parse(
            order["updated_at"].as_str().context("an order without a time")?,
            &Rfc3339,
        )?;
        self.update(|view| view.steps.push(StepView { status, at: milliseconds(at) }));
        Ok(order)
    }

    /// Connects the devices in place of those of an earlier delivery.
    async fn connect_devices(&self, token: &str) -> anyhow::Result<()> {
        let urls = &self.control.0.shop.gateways;
        let mut devices = JoinSet::new();
        for number in 0..DEVICES {
            let stream = EventStream::open_quietly(&urls[number % urls.len()], token).await?;
            self.update(|view| view.devices[number].is_connected = true);
            devices.spawn(follow(self.control.clone(), number, stream));
        }
        // The tasks of the earlier devices end.
        *self.control.0.devices.0.lock().unwrap_or_else(PoisonError::into_inner) = devices;
        Ok(())
    }

    /// Waits until each device has each step once, in order.
    async fn wait_for_devices(&self) -> anyhow::Result<()> {
        let mut changes = self.control.0.view.subscribe();
        let is_complete = |delivery: &DeliveryView| {
            let steps = || delivery.steps.iter().map(|step| &step.status);
            delivery.devices.iter().all(|device| device.frames.iter().map(|frame| &frame.status).eq(steps()))
        };
        let complete = changes.wait_for(|view| view.delivery.as_ref().is_some_and(is_complete));
        match timeout(DELIVERY_TIMEOUT, complete).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("a device lacks a step after {} s", DELIVERY_TIMEOUT.as_secs()),
        }
    }

    fn update(&self, change: impl FnOnce(&mut DeliveryView)) {
        update(&self.control, change);
    }
}

/// Shows what a device receives, until another delivery begins.
async fn follow(control: Control, number: usize, mut stream: EventStream) {
    while let Ok(change) = stream.next_change().await {
        update(&control, |view| {
            let device = &mut view.devices[number];
            match change {
                Change::Connected => {
                    device.is_connected = true;
                    device.reconnects += 1;
                }
                Change::Disconnected => device.is_connected = false,
                Change::Event(event) => device.frames.push(FrameView {
                    status: event.status,
                    seq: event.seq,
                    at: milliseconds(event.received_at),
                }),
            }
        });
    }
}

fn update(control: &Control, change: impl FnOnce(&mut DeliveryView)) {
    control.0.view.send_modify(|view| {
        if let Some(delivery) = &mut view.delivery {
            change(delivery);
        }
    });
}

/// Returns the milliseconds since 1970.
fn milliseconds(at: OffsetDateTime) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 fit 53 bits")]
    let microseconds = (at.unix_timestamp_nanos() / 1_000) as f64;
    microseconds / 1e3
}
