//! The gRPC services. A handler parses the request into the types of the rules, and calls one use case. The server
//! has checked the caller by the rule in the proto.

mod audit;
mod batch;
mod cache;
mod categories;
mod convert;
mod feed;
mod idempotency_key;
mod pages;
mod products;
mod status;
mod stock;
mod stock_changes;

use std::sync::Arc;

use shoppee_kit::{
    audit_log,
    caller::{Caller, Verifier},
    grpc::{LargeCalls, Services},
    process::Process,
};
use shoppee_proto::product::v1::{
    change_feed_service_server::ChangeFeedServiceServer, hold_audit_service_server::HoldAuditServiceServer,
    product_cache_service_server::ProductCacheServiceServer, product_service_server::ProductServiceServer,
    status_service_server::StatusServiceServer, stock_service_server::StockServiceServer,
};

use crate::{
    adjustments::Adjustments, audit::StockAudit, batches::Batches, catalogue::Catalogue,
    categories::Categories, change_log::ChangeLog, error::Error, holds::Holds, store::audit_log::AuditLog,
};

/// The maximum size of a request message: a batch of 10 000 rows is at most 8 MiB as JSON, and smaller in
/// this encoding.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// Batches, in one message or as a stream.
const LARGE_CALLS: LargeCalls = LargeCalls {
    paths: &[
        "/shoppee.product.v1.ProductService/BatchUpdateProducts",
        "/shoppee.product.v1.ProductService/BatchUpdateProductsStream",
    ],
    max_calls: 8,
};

pub fn services(
    catalogue: Catalogue,
    process: &Process,
    change_log: ChangeLog,
    holds: Holds,
    stock_audit: StockAudit,
    verifier: &Arc<Verifier>,
    currency: &str,
) -> Services {
    let Catalogue { pool, clock, cache, .. } = &catalogue;
    let audit_log = audit_log::service::new::<AuditLog>(pool.clone());
    let audit = audit::HoldAudit { pool: pool.clone() };
    let categories = Categories { pool: pool.clone(), clock: clock.clone(), cache: cache.clone() };
    let cached_products =
        cache::CachedProducts { catalogue: catalogue.clone(), currency: currency.to_owned() };
    let status = status::ProcessStatus {
        readiness: process.readiness.clone(),
        audit: stock_audit,
        search: catalogue.search.clone(),
    };
    let products = products::Products {
        batches: Batches::new(catalogue.clone()),
        adjustments: Adjustments::start(pool.clone(), clock.clone(), cache.clone(), &process.tasks),
        catalogue,
        tasks: process.tasks.clone(),
        verifier: verifier.clone(),
        categories,
        currency: currency.to_owned(),
    };
    let stock = stock::Stock { holds, currency: currency.to_owned() };
    Services::default()
        .with(ProductServiceServer::new(products).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .with(StockServiceServer::new(stock))
        .with(HoldAuditServiceServer::new(audit))
        .with(audit_log)
        .with(ChangeFeedServiceServer::new(feed::ChangeFeed::new(change_log, process)))
        .with(ProductCacheServiceServer::new(cached_products))
        .with(StatusServiceServer::new(status))
        .with_large_calls(LARGE_CALLS)
}

/// Requires the scope of AdjustStock from a service whose request changes the stock of an existing product.
fn check_stock_scope(caller: &Caller, changes_stock: bool) -> Result<(), Error> {
    if changes_stock && caller.is_service() && !caller.has_scope("stock:adjust") {
        Err(Error::Forbidden)
    } else {
        Ok(())
    }
}
