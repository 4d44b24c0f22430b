//! Batch updates.

use std::sync::Arc;

use prost::Message;
use shoppee_kit::{
    audit_log::Actor,
    caller::{Caller, Verifier},
    status::{self, ServiceError},
    tasks::Tasks,
    telemetry::Trace,
};
use shoppee_proto::product::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{check_stock_scope, convert, idempotency_key};
use crate::{
    batch::{Change, MAX_ROWS, OnError, Outcome, Row, RowError, RowResult, StockChange, Target},
    batches::Batches,
    error::Error,
    idempotency::{IdempotentResult, LeaseOutcome},
    product::{Description, Name, Price, Sku},
    stock::{Delta, Stock},
    validation::ValidationError,
};

/// Responses that are buffered for a slow caller; then the next batch waits.
const RESPONSE_BUFFER: usize = 1;
/// The prefix of a saved answer, which makes it non-empty.
const ANSWER_PREFIX: &[u8] = b"b";

pub async fn update(
    batches: &Batches,
    caller: &Caller,
    mut request: wire::BatchUpdateProductsRequest,
) -> Result<IdempotentResult<wire::BatchUpdateProductsResponse>, Error> {
    check_stock_scope(
        caller,
        request.items.iter().any(|row| row.stock.is_some() || row.stock_delta.is_some()),
    )?;
    let key = request.idempotency_key.take();
    let key = idempotency_key::parse(caller, "products.batch", key, &(request.on_error, &request.items))?;
    let on_error = match wire::OnError::try_from(request.on_error) {
        Ok(wire::OnError::Continue) => OnError::Continue,
        Ok(wire::OnError::Abort) => OnError::Abort,
        Ok(wire::OnError::Unspecified) | Err(_) => {
            return Err(Error::malformed("on_error", "must be continue or abort"));
        }
    };
    if request.items.len() > MAX_ROWS {
        return Err(Error::invalid("items", "must be at most 10000"));
    }
    let actor = Actor::from_caller(caller);
    let rows = request.items.into_iter().map(row).collect();
    let Some(key) = key else {
        return Ok(IdempotentResult::new(response(batches.apply(&actor, on_error, rows, None, &[]).await?)));
    };
    let (lease, done_rows) = match batches.acquire_lease(key).await? {
        LeaseOutcome::Acquired(lease, done_rows) => (lease, done_rows),
        LeaseOutcome::Completed(answer) => {
            let answer = answer.strip_prefix(ANSWER_PREFIX).and_then(|answer| Message::decode(answer).ok());
            return Ok(IdempotentResult { value: answer.ok_or(Error::Internal)?, replayed: true });
        }
    };
    match batches.apply(&actor, on_error, rows, Some(&lease), &done_rows).await {
        Ok(results) => {
            let is_final = results.iter().all(|result| result.outcome.is_final());
            let answer = response(results);
            let saved = is_final.then(|| [ANSWER_PREFIX, &answer.encode_to_vec()].concat());
            lease.finish(saved.as_deref()).await;
            Ok(IdempotentResult::new(answer))
        }
        Err(error) => {
            lease.finish(None).await;
            Err(error)
        }
    }
}

/// Answers a stream of batches in order. Each runs in a task that a disconnect does not cancel. The caller's
/// admin role is checked again before each.
pub fn stream(
    batches: Batches,
    tasks: &Tasks,
    (caller, verifier): (Caller, Arc<Verifier>),
    mut requests: Streaming<wire::BatchUpdateProductsRequest>,
) -> ReceiverStream<Result<wire::BatchUpdateProductsResponse, Status>> {
    let (answers, stream) = mpsc::channel(RESPONSE_BUFFER);
    let shutdown = tasks.shutdown_token();
    let answering = async move {
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                // An error, not an end of stream: the caller must not conclude that all batches were read.
                () = shutdown.cancelled() => Err(status::unavailable().into()),
                () = answers.closed() => return,
            };
            let answer = match (request, verifier.check_active(&caller)) {
                (Ok(None), _) => return,
                (Ok(Some(request)), Ok(())) => {
                    let result = update(&batches, &caller, request).await;
                    result.map(|result| result.value).map_err(Status::from)
                }
                (Ok(Some(_)), Err(error)) => Err(ServiceError::from(error).into()),
                (Err(status), _) => Err(status),
            };
            let is_error = answer.is_err();
            if answers.send(answer).await.is_err() || is_error {
                return;
            }
        }
    };
    tasks.track(Trace::current().instrument(answering));
    ReceiverStream::new(stream)
}

/// Parses a row. Its target is parsed first: a row counts as a duplicate even if the rest of it is invalid.
fn row(change: wire::ProductChange) -> Row {
    let target = match (change.id, change.sku.clone()) {
        (Some(id), None) => Ok(Target::Id(id)),
        (None, Some(sku)) => in_field("sku", Sku::parse(sku)).map(Target::Sku),
        (Some(_), Some(_)) => in_field("id", Err("must not stand beside sku")),
        (None, None) => in_field("id", Err("or sku must be given")),
    };
    match target {
        Ok(target) => Row { target: Some(target), change: parse(change) },
        Err(error) => Row { target: None, change: Err(error) },
    }
}

fn in_field<T>(field: &'static str, parsed: Result<T, ValidationError>) -> Result<T, RowError> {
    parsed.map_err(|message| RowError::Invalid { field, message })
}

fn parse(change: wire::ProductChange) -> Result<Change, RowError> {
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
            Outcome::Failed(error) => {
                failed += 1;
                result.set_status(wire::RowStatus::Failed);
                result.error = Some(wire_error(&error));
            }
            Outcome::Skipped => result.set_status(wire::RowStatus::Skipped),
        }
        result
    });
    let results = results.collect();
    wire::BatchUpdateProductsResponse { updated, failed, results }
}

fn wire_error(error: &RowError) -> wire::RowError {
    let new = |code: &str, message: &str| wire::RowError {
        code: code.to_owned(),
        message: message.to_owned(),
        ..wire::RowError::default()
    };
    match error {
        RowError::NotFound => new("not_found", "there is no such product"),
        RowError::Invalid { field, message } => wire::RowError {
            field: Some((*field).to_owned()),
            ..new("validation_failed", &format!("{field} {message}"))
        },
        RowError::VersionMismatch { current } => wire::RowError {
            current_version: Some(*current),
            ..new("version_mismatch", "the product has been changed since")
        },
        RowError::OutOfStock { available } => wire::RowError {
            available: Some(*available),
            ..new("out_of_stock", "there is not enough in stock")
        },
        RowError::Unavailable => new("unavailable", "was not done; try again"),
        RowError::OutcomeUnknown => new("unavailable", "may have been done; look before trying again"),
    }
}
