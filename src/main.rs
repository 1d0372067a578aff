//! The `flanneld` binary.

fn main() {}
