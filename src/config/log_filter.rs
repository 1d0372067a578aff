//! Log filters: `info`, or `info,loden::reconcile=debug`.

use tracing_subscriber::EnvFilter;

use super::{excerpt, nearest};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks that `filter` can be given to the log.
///
/// The filter's own parser takes an unknown word for the name of a module to log at the most
/// verbose level, so a mistyped `debgu` would switch everything else off; here it is an error.
///
/// # Errors
///
/// A sentence naming the part that is wrong and what to write instead.
pub fn check(filter: &str) -> Result<(), String> {
    for part in filter.split(',').map(str::trim) {
        let bare = !part.contains(['=', '[']);
        if bare && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part)) {
            let hint = nearest(part, LEVELS).map(|l| format!(" (did you mean {l}?)")).unwrap_or_default();
            return Err(format!(
                "{} is not a level{hint}: write one of {}, or module=level, such as info,loden::reconcile=debug",
                excerpt(part),
                LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|e| format!("{e}: write a level, or module=level"))
}

/// The filter for klog's `-v`. flannel says little above `-v 1`, so a few steps suffice; foreign
/// crates stay at `info`, or their chatter would hide ours.
pub(super) fn of_verbosity(verbosity: i32) -> &'static str {
    match verbosity {
        ..=1 => "info",
        2..=5 => "info,loden=debug",
        6.. => "info,loden=trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_pass_and_mistypes_do_not() {
        for good in
            ["info", "INFO", "warn,loden=debug", "off,loden::reconcile=trace", "info,[span{peer=x}]=debug"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "debgu", "info,,debug", "loden=loud", "info;debug"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("debgu").unwrap_err().contains("did you mean debug?"));
    }

    #[test]
    fn every_verbosity_gives_a_valid_filter() {
        for v in [i32::MIN, 0, 1, 2, 5, 6, i32::MAX] {
            assert_eq!(check(of_verbosity(v)), Ok(()));
        }
        assert_eq!(of_verbosity(0), "info");
        assert_eq!(of_verbosity(4), "info,loden=debug");
        assert_eq!(of_verbosity(10), "info,loden=trace");
    }
}
