//! How foreign text appears in our messages: short, on one line, without control characters.

/// Characters of a foreign value that a message shows at most.
const SHOWN: usize = 80;

/// Quotes `value` for a message. What a file or an annotation says may be long and hostile (line
/// feeds that forge log lines, terminal escapes), so it is escaped and cut.
pub(crate) fn excerpt(value: &str) -> String {
    let mut out = String::with_capacity(value.len().min(SHOWN) + 2);
    out.push('"');
    for c in value.chars().take(SHOWN) {
        if c == '\'' { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    out.push('"');
    if value.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// The candidate that `typed` most likely meant, or nothing when none is close.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs (length of one) x (length of the other); nobody mistypes a key this long.
    if typed.len() > 64 {
        return None;
    }
    let typed = typed.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&typed, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped_and_cut() {
        assert_eq!(excerpt("10.244"), r#""10.244""#);
        assert_eq!(excerpt("it's"), r#""it's""#);
        assert_eq!(excerpt("a\n\x1b[2J\""), r#""a\n\u{1b}[2J\"""#);
        let long = excerpt(&"x".repeat(1000));
        assert!(long.ends_with('…') && long.chars().count() == SHOWN + 3, "{long}");
    }

    #[test]
    fn the_nearest_is_close_or_absent() {
        assert_eq!(nearest("Netwrok", ["Network", "Backend"]), Some("Network"));
        assert_eq!(nearest("comment", ["Network", "Backend"]), None);
        assert_eq!(nearest(&"N".repeat(1 << 20), ["Network"]), None);
    }
}
