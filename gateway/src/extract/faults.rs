//! All that is wrong with the shape of a request, at once. Deserialising ends at the first fault: here each is mended in a
//! copy of what was sent, until nothing is wrong or nothing can be mended. Only requests that are refused come here.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::strict::{self, Fault, Mend};
use crate::error::{Code, Problem};

/// Faults that are looked for.
const MAX_FAULTS: usize = 32;
/// Bytes that are read again and again for that, in all: what is refused must not cost much more than what is done.
const MAX_BYTES: usize = 128 * 1024;

/// Adds to the problem of a body's first fault those of its others.
pub fn of_body<T: DeserializeOwned>(body: &[u8], first: Problem) -> Problem {
    if first.code != Code::InvalidRequest {
        return first;
    }
    // Two fields of one name are one here; the problem names them already.
    let Ok(mut tree) = serde_json::from_slice::<Value>(body) else {
        return first;
    };
    collect(first, MAX_BYTES / body.len().max(1), || {
        let fault = strict::read::<T, _>(&tree).err()?.fault("body");
        let is_mended = mend(&mut tree, &fault).is_some();
        Some((fault, is_mended))
    })
}

/// The same for the parameters of a query.
pub fn of_query<T: DeserializeOwned>(mut pairs: Vec<(String, String)>, first: Problem) -> Problem {
    collect(first, MAX_FAULTS, || {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        let deserializer = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        let fault = strict::read::<T, _>(deserializer).err()?.fault("query");
        let before = pairs.len();
        if fault.mend == Mend::Insert {
            pairs.push((fault.field.clone(), "1".to_owned()));
        } else {
            pairs.retain(|(name, _)| *name != fault.field);
        }
        let is_mended = pairs.len() != before;
        Some((fault, is_mended))
    })
}

/// Adds what `next` finds, up to `most` times, until it finds nothing or has not mended what it found.
fn collect(mut problem: Problem, most: usize, mut next: impl FnMut() -> Option<(Fault, bool)>) -> Problem {
    for _ in 0..most.min(MAX_FAULTS) {
        let Some((fault, is_mended)) = next() else {
            break;
        };
        let is_told = problem.errors().iter().any(|told| is_within(&fault.field, &told.field));
        if !is_told && fault.is_of_shape() {
            problem.add_field_error(fault.field, fault.message);
        }
        if !is_mended {
            break;
        }
    }
    problem
}

/// Reports whether a path is `outer`, or leads into it.
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Makes the field of a fault right; `None` where that is not known how.
fn mend(tree: &mut Value, fault: &Fault) -> Option<()> {
    let (parent, last) = match fault.field.rfind(['.', '[']) {
        Some(at) => (&fault.field[..at], fault.field[at..].trim_start_matches('.')),
        None => ("", fault.field.as_str()),
    };
    let parent = find(tree, parent)?;
    match fault.mend {
        Mend::Remove => parent.as_object_mut()?.remove(last).map(|_| ()),
        Mend::Insert => parent.as_object_mut()?.insert(last.to_owned(), Value::Null).is_none().then_some(()),
        Mend::Replace(kind) => {
            let (field, sample) = (member(parent, last)?, sample(kind)?);
            // The same once more would not help.
            (*field != sample).then(|| *field = sample)
        }
    }
}

/// Returns the value at a path of names and indices, as in `items[0].quantity`.
fn find<'t>(tree: &'t mut Value, path: &str) -> Option<&'t mut Value> {
    let steps = path.split('.').flat_map(|name| {
        let (name, indices) = name.split_at(name.find('[').unwrap_or(name.len()));
        std::iter::once(name).chain(indices.split_inclusive(']'))
    });
    steps.filter(|step| !step.is_empty()).try_fold(tree, member)
}

/// The member that a name, or an index in brackets, stands for.
fn member<'t>(value: &'t mut Value, step: &str) -> Option<&'t mut Value> {
    match step.strip_prefix('[').and_then(|step| step.strip_suffix(']')) {
        Some(index) => value.get_mut(index.parse::<usize>().ok()?),
        None => value.get_mut(step),
    }
}

/// Some value of a kind.
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
        #[expect(dead_code, reason = "only read")]
        items: Vec<OrderLine>,
        #[expect(dead_code, reason = "only read")]
        shipping_address: Address,
    }

    fn fields<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> Vec<String> {
        let problem = Json::<T>::parse(body.as_bytes()).expect_err("wrong");
        problem.errors().iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn every_field_that_is_wrong_is_named() {
        assert_eq!(fields::<RegisterRequest>("{}"), ["username", "email", "password"]);
        assert_eq!(
            fields::<RegisterRequest>(r#"{"username":7,"email":null,"role":"admin","password":"x"}"#),
            ["username", "email", "role"]
        );
        let order = r#"{"items":[{"product_id":"1","quantity":1.5},{"quantity":2},[1,2],{"product_id":1,"price":1}],
                        "shipping_address":{"line1":"x","city":7,"country":[],"zip":1},"total":5}"#;
        let mut found = fields::<Order>(order);
        found.sort();
        assert_eq!(
            found,
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
    fn what_is_inside_a_field_that_is_wrong_is_not_named_too() {
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
    fn a_large_body_is_read_a_few_times() {
        let line = r#"{"product_id":"1","quantity":1}"#;
        let lines = vec![line; 1000].join(",");
        let found = fields::<Order>(&format!(r#"{{"items":[{lines}]}}"#));
        assert!((1..=MAX_BYTES / lines.len() + 1).contains(&found.len()), "{}", found.len());
    }

    #[test]
    fn faults_have_an_end() {
        let unknown: Vec<String> = (0..100).map(|number| format!(r#""field{number}":1"#)).collect();
        assert_eq!(fields::<Order>(&format!("{{{}}}", unknown.join(","))).len(), MAX_FAULTS);
    }
}
