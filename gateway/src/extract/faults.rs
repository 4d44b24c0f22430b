//! Collects all faults in the shape of a request. Deserialising stops at the first fault, so each one is repaired in a copy
//! of the input, until the copy is valid or cannot be repaired. Only rejected requests take this path.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::deserialize::{self, Fault, Repair};
use crate::error::{Code, Problem};

/// Bounds the faults of one problem.
const MAX_FAULTS: usize = 32;
/// Bounds the bytes that are parsed again, in all. A rejected request must not cost much more than a valid one.
const MAX_REPARSED_BYTES: usize = 128 * 1024;

/// Adds the other faults of a body to the problem of its first.
pub fn add_body_faults<T: DeserializeOwned>(body: &[u8], first: Problem) -> Problem {
    if first.code != Code::InvalidRequest {
        return first;
    }
    // A duplicate field is merged here; the problem names it already.
    let Ok(mut tree) = serde_json::from_slice::<Value>(body) else {
        return first;
    };
    collect(first, MAX_REPARSED_BYTES / body.len().max(1), || {
        let fault = deserialize::from_deserializer::<T, _>(&tree).err()?.into_fault("body");
        let is_repaired = repair(&mut tree, &fault).is_some();
        Some((fault, is_repaired))
    })
}

/// Does the same for the parameters of a query.
pub fn add_query_faults<T: DeserializeOwned>(mut pairs: Vec<(String, String)>, first: Problem) -> Problem {
    collect(first, MAX_FAULTS, || {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        let deserializer = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        let fault = deserialize::from_deserializer::<T, _>(deserializer).err()?.into_fault("query");
        let before = pairs.len();
        if fault.repair == Repair::Insert {
            pairs.push((fault.field.clone(), "1".to_owned()));
        } else {
            pairs.retain(|(name, _)| *name != fault.field);
        }
        let is_repaired = pairs.len() != before;
        Some((fault, is_repaired))
    })
}

/// Adds the faults that `next` returns, up to `max_faults`. Stops at the end, or at a fault that was not repaired.
fn collect(
    mut problem: Problem,
    max_faults: usize,
    mut next: impl FnMut() -> Option<(Fault, bool)>,
) -> Problem {
    for _ in 0..max_faults.min(MAX_FAULTS) {
        let Some((fault, is_repaired)) = next() else {
            break;
        };
        let is_listed = problem.errors().iter().any(|error| is_within(&fault.field, &error.field));
        if !is_listed && fault.is_malformed() {
            problem.add_field_error(fault.field, fault.message);
        }
        if !is_repaired {
            break;
        }
    }
    problem
}

/// Reports whether a path equals `outer` or lies below it.
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Repairs the field of a fault; `None` if that is not possible.
fn repair(tree: &mut Value, fault: &Fault) -> Option<()> {
    let (parent, last) = match fault.field.rfind(['.', '[']) {
        Some(at) => (&fault.field[..at], fault.field[at..].trim_start_matches('.')),
        None => ("", fault.field.as_str()),
    };
    let parent = value_at(tree, parent)?;
    match fault.repair {
        Repair::Remove => parent.as_object_mut()?.remove(last).map(|_| ()),
        Repair::Insert => {
            parent.as_object_mut()?.insert(last.to_owned(), Value::Null).is_none().then_some(())
        }
        Repair::Replace(kind) => {
            let (field, sample) = (member(parent, last)?, sample(kind)?);
            // The same value again would not help.
            (*field != sample).then(|| *field = sample)
        }
    }
}

/// Returns the value at a path of names and indices, as in `items[0].quantity`.
fn value_at<'t>(tree: &'t mut Value, path: &str) -> Option<&'t mut Value> {
    let steps = path.split('.').flat_map(|name| {
        let (name, indices) = name.split_at(name.find('[').unwrap_or(name.len()));
        std::iter::once(name).chain(indices.split_inclusive(']'))
    });
    steps.filter(|step| !step.is_empty()).try_fold(tree, member)
}

/// Returns the member with a name, or with an index in brackets.
fn member<'t>(value: &'t mut Value, step: &str) -> Option<&'t mut Value> {
    match step.strip_prefix('[').and_then(|step| step.strip_suffix(']')) {
        Some(index) => value.get_mut(index.parse::<usize>().ok()?),
        None => value.get_mut(step),
    }
}

/// Returns a valid value of a kind.
fn sample(kind: &str) -> Option<Value> {
    Some(match kind {
        "true or false" => true.into(),
        "a string" => "".into(),
        "a list" => Value::Array(Vec::new()),
        "an object" => Value::Object(serde_json::Map::new()),
        kind if kind.starts_with("an integer") || kind == "a number" => 1.into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use shoppee_proto::{
        auth::v1::RegisterRequest,
        order::v1::{Address, OrderLine},
        product::v1::CreateProductRequest,
    };

    use super::*;
    use crate::extract::Json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "only deserialised")]
        items: Vec<OrderLine>,
        #[expect(dead_code, reason = "only deserialised")]
        shipping_address: Address,
    }

    fn fields<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> Vec<String> {
        let problem = Json::<T>::parse(body.as_bytes()).expect_err("wrong");
        problem.errors().iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn every_faulty_field_is_named() {
        assert_eq!(fields::<RegisterRequest>("{}"), ["username", "email", "password"]);
        assert_eq!(
            fields::<RegisterRequest>(r#"{"username":7,"email":null,"role":"admin","password":"x"}"#),
            ["username", "email", "role"]
        );
        let order = r#"{"items":[{"product_id":"1","quantity":1.5},{"quantity":2},[1,2],{"product_id":1,"price":1}],
                        "shipping_address":{"line1":"x","city":7,"country":[],"zip":1},"total":5}"#;
        let mut named = fields::<Order>(order);
        named.sort();
        assert_eq!(
            named,
            [
                "items[0].product_id",
                "items[0].quantity",
                "items[1].product_id",
                "items[2]",
                "items[3].price",
                "items[3].quantity",
                "shipping_address.city",
                "shipping_address.country",
                "shipping_address.postal_code",
                "shipping_address.recipient",
                "shipping_address.zip",
                "total",
            ]
        );
    }

    #[test]
    fn fields_below_a_faulty_field_are_not_named() {
        assert_eq!(
            fields::<Order>(r#"{"items":7,"shipping_address":"here"}"#),
            ["items", "shipping_address"]
        );
        assert_eq!(fields::<Order>("[]"), ["body"]);
        assert_eq!(fields::<Order>("{"), ["body"]);
        let product = r#"{"sku":1,"name":"a","price":1,"stock":"x","attributes":{"a":9007199254740993}}"#;
        assert_eq!(fields::<CreateProductRequest>(product), ["sku", "attributes.a", "stock"]);
    }

    #[test]
    fn a_large_body_is_reparsed_within_the_byte_limit() {
        let line = r#"{"product_id":"1","quantity":1}"#;
        let lines = vec![line; 1000].join(",");
        let named = fields::<Order>(&format!(r#"{{"items":[{lines}]}}"#));
        assert!((1..=MAX_REPARSED_BYTES / lines.len() + 1).contains(&named.len()), "{}", named.len());
    }

    #[test]
    fn the_number_of_faults_is_bounded() {
        let unknown: Vec<String> = (0..100).map(|number| format!(r#""field{number}":1"#)).collect();
        assert_eq!(fields::<Order>(&format!("{{{}}}", unknown.join(","))).len(), MAX_FAULTS);
    }
}
