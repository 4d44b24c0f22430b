//! Numbers of a body that would come back as others. JSON has no bounds for numbers; ours are doubles, of about 17 digits.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The one field of bodies whose numbers are doubles; all others are integers of a fixed size.
const FREE: &str = "attributes";

/// Characters of a path: its names are the client's.
const MAX_PATH_LEN: usize = 256;

/// The path of the first number among the free attributes of a body that is not kept as it is written.
pub fn first_changed(body: &[u8]) -> Option<String> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let path = find(fields.get(FREE)?, FREE)?;
    Some(path.chars().take(MAX_PATH_LEN).collect())
}

fn find(value: &RawValue, path: &str) -> Option<String> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'{' => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            fields.into_iter().find_map(|(name, value)| find(value, &format!("{path}.{name}")))
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items.into_iter().enumerate().find_map(|(index, value)| find(value, &format!("{path}[{index}]")))
        }
        b'-' | b'0'..=b'9' => (!is_kept(text)).then(|| path.to_owned()),
        _ => None,
    }
}

/// Reports whether the double of a literal, written out again, is the same number.
fn is_kept(literal: &str) -> bool {
    literal.parse::<f64>().is_ok_and(|double| decimal(literal) == decimal(&format!("{double:e}")))
}

/// The digits of a literal without zeros around them, and the power of ten of the last.
fn decimal(literal: &str) -> (String, i64) {
    let (mantissa, exponent) = literal.split_once(['e', 'E']).unwrap_or((literal, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{}{fraction}", whole.trim_start_matches('-'));
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    let zeros = digits.len() - digits.trim_end_matches('0').len();
    if significant.is_empty() {
        return (String::new(), 0);
    }
    let length = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let exponent = exponent.parse().unwrap_or(i64::MAX / 2);
    (significant.to_owned(), exponent - length(fraction.len()) + length(zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_kept_where_its_double_says_the_same() {
        for kept in [
            "0",
            "-0",
            "0.0",
            "0e-400",
            "1",
            "1.0",
            "100",
            "-2.50",
            "0.1",
            "0.42451918914251396",
            "1e17",
            "1E+20",
            "100000000000000000000",
            "9007199254740992",
            "1.7976931348623157e308",
            "5e-324",
            "6.02214076e23",
        ] {
            assert!(is_kept(kept), "{kept}");
        }
        for changed in [
            "99999999999999999999",
            "9007199254740993",
            "0.1234567890123456789",
            "1e-400",
            "1e400",
            "3.14159265358979323846",
            "1.0000000000000000001",
        ] {
            assert!(!is_kept(changed), "{changed}");
        }
    }

    #[test]
    fn the_number_that_changes_is_named() {
        let body =
            br#"{"price":9007199254740993,"attributes":{"a":[1,{"b":0.1234567890123456789}],"c":1e-400}}"#;
        assert_eq!(first_changed(body).as_deref(), Some("attributes.a[1].b"));
        let kept = br#"{"attributes":{"a":0.42451918914251396,"b":"12345678901234567890"}}"#;
        for kept in [&kept[..], b"{}", b"[]", b"{", br#"{"attributes":null}"#] {
            assert_eq!(first_changed(kept), None);
        }
    }
}
