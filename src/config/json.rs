//! Settings that are not ours, and are passed on as JSON: a TOML value as JSON, and back as it is printed.

use serde_json::Value;
use toml::de::DeValue;

/// The same value in JSON.
///
/// # Errors
/// What of it JSON has no way to say.
pub(super) fn of_toml(value: DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            parsed.map_err(|_| format!("{}: expected a number of 64 bits", number.as_str()))?.into()
        }
        DeValue::Float(number) => {
            let finite = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            Value::Number(finite.ok_or_else(|| format!("{}: JSON has no such number", number.as_str()))?)
        }
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(time) => return Err(format!("{time}: JSON has no times; write it as a text")),
        DeValue::Array(elements) => {
            elements.into_iter().map(|element| of_toml(element.into_inner())).collect::<Result<_, _>>()?
        }
        DeValue::Table(members) => {
            let member = |(name, value): (toml::Spanned<_>, toml::Spanned<DeValue<'_>>)| {
                let name: std::borrow::Cow<'_, str> = name.into_inner();
                Ok((name.into_owned(), of_toml(value.into_inner())?))
            };
            Value::Object(members.into_iter().map(member).collect::<Result<_, String>>()?)
        }
    })
}

/// The value in TOML, on one line. `quoted` writes a text.
pub(super) fn to_toml(value: &Value, quoted: fn(&str) -> String) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(|element| to_toml(element, quoted)).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| format!("{} = {}", quoted(name), to_toml(value, quoted));
            let members: Vec<String> = members.iter().map(member).collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use toml::de::DeTable;

    use super::*;

    fn parsed(text: &str) -> Result<Value, String> {
        let table = DeTable::parse(text).expect("TOML").into_inner();
        of_toml(DeValue::Table(table))
    }

    #[test]
    fn a_value_is_the_same_in_both() {
        let value = json!({
            "DaysOfTransactions": "Days365",
            "WithTransactions": true,
            "AccountsFilter": ["Operations", "a \"b\""],
            "Nested": { "Of": [{ "x": -7 }, {}], "Share": 1.5, "Hex": 255 },
        });
        let quoted = |text: &str| json!(text).to_string();
        let text = to_toml(&value, quoted).replace("255", "0xff");
        assert_eq!(parsed(&format!("a = {text}")), Ok(json!({ "a": value })));
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        for (text, fault) in [
            ("a = [inf]", "inf: JSON has no such number"),
            ("a.b = nan", "nan: JSON has no such number"),
            ("a = 2026-11-20", "2026-11-20: JSON has no times; write it as a text"),
            ("a = 99999999999999999999", "99999999999999999999: expected a number of 64 bits"),
        ] {
            assert_eq!(parsed(text), Err(fault.to_owned()), "{text}");
        }
    }
}
