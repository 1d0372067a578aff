//! `make demo`: a cluster in private namespaces, a real `flanneld` in each node, and a table of what held.
//!
//! Everything lives in namespaces that only this process holds, so Ctrl-C and kill -9 leave nothing behind.

#![expect(clippy::disallowed_methods, reason = "the demo is side effects throughout")]

mod matrix;
mod story;
mod view;

use std::io::Write as _;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use integration::{daemon, lab};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the demo cannot run here: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    daemon::binary()?;
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect::<SigSet>();
    // Before any other thread starts: all of them inherit the mask.
    signals.thread_block().context("block the signals that end the demo")?;
    let privilege = lab::enter()?;
    let view = story::view(privilege);
    thread::spawn({
        let view = view.clone();
        move || {
            if let Ok(signal) = signals.wait() {
                view.restore();
                let _ = writeln!(std::io::stdout(), "  stopped; nothing is left behind");
                std::process::exit(128 + signal as i32);
            }
        }
    });
    let held = story::tell(&view);
    view.restore();
    held
}
