//! The body of a batch update, read no further than a batch may go: eight megabytes of `{}` would be two
//! million rows.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use shoppee_proto::product::v1::{BatchUpdateProductsRequest, OnError, ProductChange};

use crate::{error::Problem, extract::word};

const MOST_ROWS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    #[serde(deserialize_with = "word")]
    on_error: Option<OnError>,
    items: Rows,
}

impl TryFrom<Batch> for BatchUpdateProductsRequest {
    type Error = Problem;

    fn try_from(batch: Batch) -> Result<Self, Problem> {
        if batch.items.too_many {
            return Err(Problem::invalid("items", format!("must be {MOST_ROWS} at most")));
        }
        let on_error = batch.on_error.unwrap_or_default().into();
        Ok(Self { on_error, items: batch.items.rows, idempotency_key: None })
    }
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<ProductChange>,
    too_many: bool,
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows, A::Error> {
                let mut read = Rows::default();
                while read.rows.len() < MOST_ROWS {
                    match seq.next_element()? {
                        Some(row) => read.rows.push(row),
                        None => return Ok(read),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    read.too_many = true;
                }
                Ok(read)
            }
        }

        deserializer.deserialize_seq(Reader)
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
    fn a_batch_has_an_end() {
        let batch = rows(MOST_ROWS).unwrap();
        assert_eq!((batch.on_error(), batch.items.len()), (OnError::Abort, MOST_ROWS));
        assert_eq!(rows(MOST_ROWS + 1).unwrap_err().code, crate::error::Code::ValidationFailed);
    }

    #[test]
    fn how_errors_are_met_must_be_said() {
        assert!(serde_json::from_str::<Batch>(r#"{"items":[]}"#).is_err());
        assert!(serde_json::from_str::<Batch>(r#"{"on_error":null,"items":[]}"#).is_err());
    }
}
