//! The body of a batch update. Parsing stops at the largest number of rows: eight megabytes of `{}` would be two million
//! rows.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use shoppee_proto::product::v1::{BatchUpdateProductsRequest, OnError, ProductChange, ProductStatus};

use crate::{
    error::Problem,
    extract::deserialize_enum,
    routes::patch::{FieldMaskBuilder, Nullable, deserialize_present},
};

const MAX_ROWS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    #[serde(deserialize_with = "deserialize_enum")]
    on_error: Option<OnError>,
    items: Rows,
}

impl TryFrom<Batch> for BatchUpdateProductsRequest {
    type Error = Problem;

    fn try_from(batch: Batch) -> Result<Self, Problem> {
        if batch.items.too_many {
            return Err(Problem::invalid("items", format!("must be {MAX_ROWS} at most")));
        }
        let on_error = batch.on_error.unwrap_or_default().into();
        Ok(Self { on_error, items: batch.items.rows, idempotency_key: None })
    }
}

/// A row: a PATCH with the id or the SKU of its product.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(default, deserialize_with = "deserialize_present")]
    id: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_present")]
    sku: Option<String>,
    #[serde(default, deserialize_with = "deserialize_present")]
    price: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_present")]
    stock: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_present")]
    stock_delta: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_present")]
    name: Option<String>,
    #[serde(default)]
    description: Nullable<String>,
    #[serde(default)]
    category_id: Nullable<i64>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    status: Option<ProductStatus>,
    #[serde(default, deserialize_with = "deserialize_present")]
    version: Option<i64>,
}

impl From<Row> for ProductChange {
    fn from(row: Row) -> Self {
        let mut cleared = FieldMaskBuilder::default();
        Self {
            id: row.id,
            sku: row.sku,
            price: row.price,
            stock: row.stock,
            stock_delta: row.stock_delta,
            name: row.name,
            description: cleared.set_if_null("description", row.description),
            category_id: cleared.set_if_null("category_id", row.category_id),
            status: row.status.map(Into::into),
            version: row.version,
            clear: cleared.into(),
        }
    }
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<ProductChange>,
    too_many: bool,
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsVisitor;

        impl<'de> Visitor<'de> for RowsVisitor {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows, A::Error> {
                let mut rows = Rows::default();
                while rows.rows.len() < MAX_ROWS {
                    match seq.next_element::<Row>()? {
                        Some(row) => rows.rows.push(row.into()),
                        None => return Ok(rows),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    rows.too_many = true;
                }
                Ok(rows)
            }
        }

        deserializer.deserialize_seq(RowsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Result<BatchUpdateProductsRequest, Problem> {
        let rows = vec![r#"{"id":1,"price":2}"#; count].join(",");
        serde_json::from_str::<Batch>(&format!(r#"{{"on_error":"abort","items":[{rows}]}}"#))
            .unwrap()
            .try_into()
    }

    #[test]
    fn a_batch_with_too_many_rows_is_rejected() {
        let batch = rows(MAX_ROWS).unwrap();
        assert_eq!((batch.on_error(), batch.items.len()), (OnError::Abort, MAX_ROWS));
        assert_eq!(rows(MAX_ROWS + 1).unwrap_err().code, crate::error::Code::ValidationFailed);
    }

    #[test]
    fn null_clears_optional_fields_and_is_rejected_for_others() {
        let row = |row: &str| {
            let body = format!(r#"{{"on_error":"abort","items":[{row}]}}"#);
            let batch = BatchUpdateProductsRequest::try_from(serde_json::from_str::<Batch>(&body)?);
            Ok::<_, serde_json::Error>(batch.unwrap().items.remove(0))
        };
        assert!(row(r#"{"id":1}"#).unwrap().clear.is_empty());
        let cleared = row(r#"{"id":1,"description":null,"category_id":null}"#).unwrap();
        assert_eq!(cleared.clear, ["description", "category_id"]);
        assert_eq!(row(r#"{"id":1,"category_id":7}"#).unwrap().category_id, Some(7));
        for field in ["id", "sku", "price", "stock", "stock_delta", "name", "status", "version"] {
            assert!(row(&format!(r#"{{"{field}":null}}"#)).is_err(), "{field}");
        }
    }

    #[test]
    fn a_batch_without_on_error_is_rejected() {
        assert!(serde_json::from_str::<Batch>(r#"{"items":[]}"#).is_err());
        assert!(serde_json::from_str::<Batch>(r#"{"on_error":null,"items":[]}"#).is_err());
    }
}
