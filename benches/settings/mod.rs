//! How long a case takes: two seconds, so that all of `cargo bench` takes less than four minutes.

use std::time::Duration;

use criterion::Criterion;

/// Half a second to warm up and a second and a half of samples.
pub(crate) fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(50)
        .nresamples(20_000)
        .without_plots()
}
