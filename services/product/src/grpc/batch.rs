//! Batches of changes.

use std::sync::Arc;

use prost::Message;
use shoppee_kit::{
    caller::{Caller, Verifier},
    status::{self, ServiceError},
    tasks::Tasks,
};
use shoppee_proto::product::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{convert, key};
use crate::{
    batch::{Batches, Change, MOST_ROWS, OnError, Outcome, Row, RowFault, RowResult, StockChange, Target},
    error::Error,
    idempotency::{Answered, Begun},
    product::{Description, Fault, Name, Price, Sku},
    stock::{Delta, Stock},
};

/// Answers that wait for a caller that reads slowly; then the next batch waits.
const ANSWERS: usize = 1;
/// The prefix of a kept answer, which is never empty then.
const KEPT: &[u8] = b"b";

pub async fn update(
    batches: &Batches,
    admin: &Caller,
    mut request: wire::BatchUpdateProductsRequest,
) -> Result<Answered<wire::BatchUpdateProductsResponse>, Error> {
    let key = request.idempotency_key.take();
    let key = key::read(admin, "products.batch", key, &(request.on_error, &request.items))?;
    let on_error = match wire::OnError::try_from(request.on_error) {
        Ok(wire::OnError::Continue) => OnError::Continue,
        Ok(wire::OnError::Abort) => OnError::Abort,
        Ok(wire::OnError::Unspecified) | Err(_) => {
            return Err(Error::malformed("on_error", "must be continue or abort"));
        }
    };
    if request.items.len() > MOST_ROWS {
        return Err(Error::invalid("items", "must be at most 10000"));
    }
    let rows = request.items.into_iter().map(row).collect();
    let Some(key) = key else {
        return Ok(Answered::new(response(batches.apply(on_error, rows, None, &[]).await?)));
    };
    let (turn, done) = match batches.begin(key).await? {
        Begun::Ours(turn, done) => (turn, done),
        Begun::Done(answer) => {
            let answer = answer.strip_prefix(KEPT).and_then(|answer| Message::decode(answer).ok());
            return Ok(Answered { answer: answer.ok_or(Error::Internal)?, replayed: true });
        }
    };
    match batches.apply(on_error, rows, Some(&turn), &done).await {
        Ok(results) => {
            let had_their_turn = results.iter().all(|result| result.outcome.is_final());
            let answer = response(results);
            let kept = had_their_turn.then(|| [KEPT, &answer.encode_to_vec()].concat());
            turn.end(kept.as_deref()).await;
            Ok(Answered::new(answer))
        }
        Err(error) => {
            turn.end(None).await;
            Err(error)
        }
    }
}

/// Answers one batch after the other, each in a task that a caller who hangs up does not stop half-way. Whether `admin`
/// is one still is looked at before each.
pub fn stream(
    batches: Batches,
    tasks: &Tasks,
    (admin, verifier): (Caller, Arc<Verifier>),
    mut requests: Streaming<wire::BatchUpdateProductsRequest>,
) -> ReceiverStream<Result<wire::BatchUpdateProductsResponse, Status>> {
    let (answers, stream) = mpsc::channel(ANSWERS);
    let stop = tasks.shutdown_token();
    tasks.track(async move {
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                // Not an end of the stream: the caller must not believe that all was read.
                () = stop.cancelled() => Err(status::unavailable().into()),
                () = answers.closed() => return,
            };
            let answer = match (request, verifier.check_active(&admin)) {
                (Ok(None), _) => return,
                (Ok(Some(request)), Ok(())) => {
                    let answered = update(&batches, &admin, request).await;
                    answered.map(|answered| answered.answer).map_err(Status::from)
                }
                (Ok(Some(_)), Err(error)) => Err(ServiceError::from(error).into()),
                (Err(status), _) => Err(status),
            };
            let failed = answer.is_err();
            if answers.send(answer).await.is_err() || failed {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}

/// A row whose rules are checked. Its product is read first: it counts as named in any case.
fn row(change: wire::ProductChange) -> Row {
    let target = match (change.id, change.sku.clone()) {
        (Some(id), None) => Ok(Target::Id(id)),
        (None, Some(sku)) => in_field("sku", Sku::parse(sku)).map(Target::Sku),
        (Some(_), Some(_)) => in_field("id", Err("must not stand beside sku")),
        (None, None) => in_field("id", Err("or sku must be given")),
    };
    match target {
        Ok(target) => Row { target: Some(target), change: parse(change) },
        Err(fault) => Row { target: None, change: Err(fault) },
    }
}

fn in_field<T>(field: &'static str, parsed: Result<T, Fault>) -> Result<T, RowFault> {
    parsed.map_err(|fault| RowFault::Invalid { field, fault })
}

fn parse(change: wire::ProductChange) -> Result<Change, RowFault> {
    let stock = match (change.stock, change.stock_delta) {
        (None, None) => None,
        (Some(stock), None) => Some(StockChange::To(in_field("stock", Stock::parse(stock))?)),
        (None, Some(delta)) => Some(StockChange::By(in_field("stock_delta", Delta::parse(delta))?)),
        (Some(_), Some(_)) => in_field("stock", Err("must not stand beside stock_delta"))?,
    };
    let (mut clears_description, mut clears_category) = (false, false);
    for field in &change.clear {
        match field.as_str() {
            "description" if change.description.is_none() => clears_description = true,
            "category_id" if change.category_id.is_none() => clears_category = true,
            "description" | "category_id" => in_field("clear", Err("names a field that has a value"))?,
            _ => in_field("clear", Err("names a field that cannot be emptied"))?,
        }
    }
    let description = change.description.or_else(|| clears_description.then(String::new));
    Ok(Change {
        price: in_field("price", change.price.map(Price::parse).transpose())?,
        stock,
        name: in_field("name", change.name.map(Name::parse).transpose())?,
        description: in_field("description", description.map(Description::parse).transpose())?,
        category_id: change.category_id.map(Some).or(clears_category.then_some(None)),
        status: match change.status {
            None => None,
            status => Some(in_field("status", convert::status(status))?),
        },
        version: change.version,
    })
}

fn response(results: Vec<RowResult>) -> wire::BatchUpdateProductsResponse {
    let (mut updated, mut failed) = (0, 0);
    let results = results.into_iter().zip(0..).map(|(row, index)| {
        let mut result = wire::ProductChangeResult { index, id: row.id, ..Default::default() };
        match row.outcome {
            Outcome::Updated { version, revision } => {
                updated += 1;
                result.set_status(wire::RowStatus::Updated);
                result.version = Some(version);
                result.revision = revision;
            }
            Outcome::Unchanged(version) => {
                result.set_status(wire::RowStatus::Unchanged);
                result.version = Some(version);
            }
            Outcome::Failed(fault) => {
                failed += 1;
                result.set_status(wire::RowStatus::Failed);
                result.error = Some(error(&fault));
            }
            Outcome::Skipped => result.set_status(wire::RowStatus::Skipped),
        }
        result
    });
    let results = results.collect();
    wire::BatchUpdateProductsResponse { updated, failed, results }
}

fn error(fault: &RowFault) -> wire::RowError {
    let (code, message) = match fault {
        RowFault::NotFound => ("not_found", "there is no such product".to_owned()),
        RowFault::Invalid { field, fault } => ("validation_failed", format!("{field} {fault}")),
        RowFault::VersionMismatch => ("version_mismatch", "the product has been changed since".to_owned()),
        RowFault::OutOfStock => ("out_of_stock", "there is not enough in stock".to_owned()),
        RowFault::Unavailable => ("unavailable", "was not done; try again".to_owned()),
        RowFault::Uncertain => ("unavailable", "may have been done; look before trying again".to_owned()),
    };
    wire::RowError { code: code.to_owned(), message }
}
