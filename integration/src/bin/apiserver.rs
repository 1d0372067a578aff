//! Runs a real API server until Ctrl-C, for trying things by hand: `cargo run -p integration --bin apiserver`.

use std::io::Write;

use anyhow::{Context, Result};
use integration::apiserver::{Access, ApiServer, Options};
use nix::sys::signal::{SigSet, Signal};

fn main() -> Result<()> {
    // Before any thread starts, so that all of them leave these signals to the wait below.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    ends.thread_block()?;

    let server = ApiServer::start(Options::default())?;
    let daemon = server.node_kubeconfig("n1")?;
    let admin = server.kubeconfig(Access::Admin)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "API server at {}, ready after {:.1} s", server.url(), server.start_took().as_secs_f64())?;
    writeln!(out, "kubeconfig of the administrator: {}", admin.display())?;
    writeln!(out, "kubeconfig of the daemon on n1:  {}", daemon.display())?;
    writeln!(out, "Ctrl-C ends it and removes everything.")?;
    out.flush()?;
    drop(out);
    ends.wait().context("wait for Ctrl-C")?;
    Ok(())
}
