//! The CNI plugins as a program: `flannel`, and `host-local` under that name.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    loden::plugin::main(&name, |name| std::env::var(name).ok())
}
