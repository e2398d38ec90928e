//! What an error says.

use std::error::Error;

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say what their cause says.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn causes_are_told_once() {
        let told = |text, cause: Option<Told>| Told(text, cause.map(Box::new));
        assert_eq!(chain(&told("alone", None)), "alone");
        let error = told("not read", Some(told("a.toml: no such file", Some(told("no such file", None)))));
        assert_eq!(chain(&error), "not read: a.toml: no such file");
    }
}
