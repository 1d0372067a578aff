//! JSON as Go's `encoding/json` prints it, for what flannel's plugin hands to its delegate and writes to disk.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::{Number, Value};

/// Prints compact JSON in which `<`, `>`, `&` and two line separators are escaped, as Go does unless told otherwise.
pub(super) fn to_string(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, GoFormatter(CompactFormatter)))?;
    // The serializer writes nothing but UTF-8.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

struct GoFormatter(CompactFormatter);

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, character) in fragment.char_indices() {
            if matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                self.0.write_string_fragment(writer, fragment.get(plain..at).unwrap_or_default())?;
                write!(writer, "\\u{:04x}", u32::from(character))?;
                plain = at + character.len_utf8();
            }
        }
        self.0.write_string_fragment(writer, fragment.get(plain..).unwrap_or_default())
    }
}

/// Largest number that a `float64` still counts by ones.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Numbers as Go has them after it read JSON into an `any`: every one is a `float64`, and a whole one is printed without
/// a fraction.
pub(super) fn go_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole, and within what an i64 holds")]
                let whole = float as i64;
                *number = Number::from(whole);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(go_numbers),
        Value::Object(fields) => fields.values_mut().for_each(go_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
