//! Detects numbers that lose precision. JSON does not bound numbers; the gateway stores doubles, of about 17 digits.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The only field whose numbers are doubles; all others are integers of a fixed size.
const FREE_FORM_FIELD: &str = "attributes";

/// Bounds a path, whose names come from the client. Characters.
const MAX_PATH_LEN: usize = 256;

/// Returns the path of the first number in the free-form field that a double does not represent exactly.
pub fn first_lossy(body: &[u8]) -> Option<String> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let path = find_lossy(fields.get(FREE_FORM_FIELD)?, FREE_FORM_FIELD)?;
    Some(path.chars().take(MAX_PATH_LEN).collect())
}

fn find_lossy(value: &RawValue, path: &str) -> Option<String> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'{' => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            fields.into_iter().find_map(|(name, value)| find_lossy(value, &format!("{path}.{name}")))
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items
                .into_iter()
                .enumerate()
                .find_map(|(index, value)| find_lossy(value, &format!("{path}[{index}]")))
        }
        b'-' | b'0'..=b'9' => (!is_lossless(text)).then(|| path.to_owned()),
        _ => None,
    }
}

/// Reports whether a literal's double, written in decimal, is the same number.
fn is_lossless(literal: &str) -> bool {
    literal.parse::<f64>().is_ok_and(|double| decimal(literal) == decimal(&format!("{double:e}")))
}

/// Returns the significant digits of a literal, and the power of ten of the last.
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
    fn a_number_is_lossless_if_its_double_is_equal() {
        for lossless in [
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
            assert!(is_lossless(lossless), "{lossless}");
        }
        for lossy in [
            "99999999999999999999",
            "9007199254740993",
            "0.1234567890123456789",
            "1e-400",
            "1e400",
            "3.14159265358979323846",
            "1.0000000000000000001",
        ] {
            assert!(!is_lossless(lossy), "{lossy}");
        }
    }

    #[test]
    fn the_path_of_a_lossy_number_is_returned() {
        let body =
            br#"{"price":9007199254740993,"attributes":{"a":[1,{"b":0.1234567890123456789}],"c":1e-400}}"#;
        assert_eq!(first_lossy(body).as_deref(), Some("attributes.a[1].b"));
        let lossless = br#"{"attributes":{"a":0.42451918914251396,"b":"12345678901234567890"}}"#;
        for body in [&lossless[..], b"{}", b"[]", b"{", br#"{"attributes":null}"#] {
            assert_eq!(first_lossy(body), None);
        }
    }
}
