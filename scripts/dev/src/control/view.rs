//! The state that the page shows. It is sent whole with each change.

use serde::Serialize;

use super::Gateway;

/// Bounds the points of a plot.
pub const MAX_SAMPLES: usize = 600;

#[derive(Clone, Debug, Serialize)]
pub struct View {
    pub gateways: Vec<GatewayView>,
    pub buyers: BuyersView,
    pub sale: Option<SaleView>,
    pub delivery: Option<DeliveryView>,
}

#[derive(Clone, Debug, Serialize)]
pub struct GatewayView {
    pub name: String,
    pub url: String,
    pub pid: Option<u32>,
    pub is_up: bool,
    /// Starts since the page's server began.
    pub starts: u32,
}

/// The progress of the sign-ins.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BuyersView {
    pub ready: usize,
    pub total: usize,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The buyers order and pay.
    Running,
    /// The responses are known, and the shop's own numbers are read.
    Settling,
    Done,
    Failed,
}

impl Phase {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct SaleView {
    pub phase: Phase,
    pub product: String,
    pub supplied: i64,
    pub buyers: usize,
    /// The responses: orders, refusals, and payments.
    pub ordered: usize,
    pub refused: usize,
    pub paid: usize,
    /// The stock that the shop shows.
    pub left: i64,
    /// Requests that were sent again, because a gateway was gone.
    pub retries: usize,
    /// Milliseconds since the start, and `ordered`, `refused`, `paid` and `left` at that time.
    pub samples: Vec<(u64, usize, usize, usize, i64)>,
    pub ledger: Option<LedgerView>,
    pub error: Option<String>,
}

/// The shop's own account of the sale, from the ledger of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerView {
    pub supplied: i64,
    pub available: i64,
    pub held: i64,
    pub sold: i64,
    /// Different orders.
    pub orders: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct DeliveryView {
    pub phase: Phase,
    pub order_id: Option<String>,
    /// The steps that the shop has answered.
    pub steps: Vec<StepView>,
    pub devices: Vec<DeviceView>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct StepView {
    pub status: String,
    /// The time of the commit, in milliseconds since 1970.
    pub at: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct DeviceView {
    /// The name of the gateway that the device is connected to.
    pub gateway: String,
    pub is_connected: bool,
    pub reconnects: u32,
    pub frames: Vec<FrameView>,
}

#[derive(Clone, Debug, Serialize)]
pub struct FrameView {
    pub status: String,
    pub seq: i64,
    /// The time of the receipt, in milliseconds since 1970.
    pub at: f64,
}

impl View {
    /// Creates the state of a shop with these gateways, before the sign-ins of `buyers`.
    pub fn new(gateways: &[Gateway], buyers: usize) -> Self {
        let view = |gateway: &Gateway| GatewayView {
            name: gateway.name.clone(),
            url: gateway.url.clone(),
            pid: gateway.pid,
            is_up: true,
            starts: 1,
        };
        Self {
            gateways: gateways.iter().map(view).collect(),
            buyers: BuyersView { ready: 0, total: buyers, error: None },
            sale: None,
            delivery: None,
        }
    }
}
