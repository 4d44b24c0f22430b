//! The service on the wire. A handler says who may call, reads the request into the types of the rules, and
//! calls one use case.

mod audit;
mod batch;
mod cache;
mod categories;
mod convert;
mod feed;
mod key;
mod pages;
mod products;
mod stock;

use std::sync::Arc;

use shoppee_kit::{
    caller::Verifier,
    grpc::{LargeCalls, Services},
    process::Process,
};
use shoppee_proto::product::v1::{
    change_feed_service_server::ChangeFeedServiceServer, hold_audit_service_server::HoldAuditServiceServer,
    product_cache_service_server::ProductCacheServiceServer, product_service_server::ProductServiceServer,
    stock_service_server::StockServiceServer,
};

use crate::{batch::Batches, catalogue::Catalogue, changes::Changes, holds::Holds, tree::Tree};

/// The largest message that is read: a batch of 10 000 rows is 8 MiB of JSON at most, and smaller here.
const LARGEST: usize = 8 * 1024 * 1024;
/// The batches, in one message or as a stream of them.
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
    changes: Changes,
    holds: Holds,
    verifier: &Arc<Verifier>,
    currency: &str,
) -> Services {
    let Catalogue { pool, clock, cache, .. } = &catalogue;
    let audit = audit::Audit { pool: pool.clone() };
    let tree = Tree { pool: pool.clone(), clock: clock.clone(), cache: cache.clone() };
    let memory = cache::Memory { catalogue: catalogue.clone(), currency: currency.to_owned() };
    let products = products::Products {
        batches: Batches::new(catalogue.clone()),
        catalogue,
        tasks: process.tasks.clone(),
        verifier: verifier.clone(),
        tree,
        currency: currency.to_owned(),
    };
    let stock = stock::Stock { holds, currency: currency.to_owned() };
    Services::default()
        .with(ProductServiceServer::new(products).max_decoding_message_size(LARGEST))
        .with(StockServiceServer::new(stock))
        .with(HoldAuditServiceServer::new(audit))
        .with(ChangeFeedServiceServer::new(feed::Feed::new(changes, process)))
        .with(ProductCacheServiceServer::new(memory))
        .with_large_calls(LARGE_CALLS)
}
