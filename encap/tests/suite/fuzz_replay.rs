//! Runs the fuzz targets' bodies over the committed corpus: what fuzzing found stays found, without nightly.

use crate::bodies;
use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "reads the corpus")]
fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        let input = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Err(panic) = std::panic::catch_unwind(|| body(&input)) {
            eprintln!("input: {}", path.display());
            std::panic::resume_unwind(panic);
        }
        inputs += 1;
    }
    assert!(inputs >= 5, "{} holds {inputs} inputs; the corpus is not there", dir.display());
}

#[test]
fn ip_view() {
    replay("ip_view", bodies::ip_view);
}

#[test]
fn decode_vxlan() {
    replay("decode_vxlan", bodies::decode_vxlan);
}

#[test]
fn fib_model() {
    replay("fib_model", bodies::fib_model);
}

#[test]
fn forward() {
    replay("forward", bodies::forward);
}

#[test]
fn icmp() {
    replay("icmp", bodies::icmp);
}

#[test]
fn segment() {
    replay("segment", bodies::offload::segment);
}

#[test]
fn coalesce() {
    replay("coalesce", bodies::offload::coalesce);
}
