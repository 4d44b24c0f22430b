//! The changes of the stock of a product.

use shoppee_kit::pg::PgPool;
use shoppee_proto::product::v1 as wire;

use crate::{
    error::Error,
    listing,
    stock::MovementKind,
    stock_ledger::{self, StockChange},
};

pub async fn list(
    pool: &PgPool,
    request: wire::ListStockChangesRequest,
) -> Result<wire::ListStockChangesResponse, Error> {
    let limit = listing::parse_limit(request.limit).map_err(Error::Malformed)?;
    let (page, next_cursor) = stock_ledger::list(pool, request.id, limit, request.cursor.as_deref()).await?;
    Ok(wire::ListStockChangesResponse { items: page.into_iter().map(stock_change).collect(), next_cursor })
}

fn stock_change(StockChange { row, available }: StockChange) -> wire::StockChange {
    let kind = match row.kind {
        MovementKind::Supply => wire::StockChangeKind::Supply,
        MovementKind::Hold => wire::StockChangeKind::Hold,
        MovementKind::Release => wire::StockChangeKind::Release,
        MovementKind::Sale => wire::StockChangeKind::Sale,
        MovementKind::Return => wire::StockChangeKind::Return,
        MovementKind::Adjustment => wire::StockChangeKind::Adjustment,
    };
    wire::StockChange {
        id: row.id,
        kind: kind.into(),
        quantity: row.quantity,
        available,
        order_id: row.order_id.map(|id| id.to_string()),
        reason: row.reason,
        at: Some(row.at.into()),
    }
}
