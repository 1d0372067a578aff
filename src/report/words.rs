//! Durations for people.

use std::time::Duration;

/// How long something lasted, to two figures or so: `340 ms`, `4 s`, `3 min`, `2 h`, `5 d`.
pub fn lasting(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..100 => format!("{} s", time.as_secs_f64().round()),
        100..6_000 => format!("{} min", (seconds + 30) / 60),
        6_000..172_800 => format!("{} h", (seconds + 1_800) / 3_600),
        _ => format!("{} d", (seconds + 43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (milliseconds, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_200, "4 s"),
            (99_900, "100 s"),
            (100_000, "2 min"),
            (5_999_000, "100 min"),
            (7_200_000, "2 h"),
            (200_000_000, "2 d"),
        ] {
            assert_eq!(lasting(Duration::from_millis(milliseconds)), words);
        }
    }
}
