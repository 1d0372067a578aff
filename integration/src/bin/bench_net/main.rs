//! Measures real daemons beside the same machine without an overlay, with the kernel's VXLAN, and without offloads.
//!
//! All paths stand side by side, and each round measures every one of them in turn, so that whatever else the machine
//! does strikes all alike. Results are medians over the rounds. `make bench-net` runs it; `QUICK=1 make bench-net`
//! takes a minute.

#![expect(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod measure;
mod paths;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use integration::lab;
use integration::topology::Wire;
use serde_json::json;

use crate::measure::Measure;
use crate::paths::{Kind, Path};
use crate::report::Results;

const USAGE: &str = "usage: bench-net [--quick] [--out DIRECTORY] [--rounds N] [--seconds S] [--only WORD] [--partial-checksum]";

/// What the command line asks for.
struct Options {
    quick: bool,
    out: Option<PathBuf>,
    rounds: usize,
    length: Duration,
    only: String,
    /// Loden as with `PartialChecksum` in its net-conf.json.
    partial_checksum: bool,
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options {
        quick: false,
        out: None,
        rounds: 0,
        length: Duration::ZERO,
        only: String::new(),
        partial_checksum: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().context(USAGE);
        match word.as_str() {
            "--quick" => options.quick = true,
            "--out" => options.out = Some(value()?.into()),
            "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
            "--seconds" => options.length = Duration::from_secs_f64(value()?.parse().context("--seconds")?),
            "--only" => options.only = value()?,
            "--partial-checksum" => options.partial_checksum = true,
            _ => bail!(USAGE),
        }
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 3 } else { 5 };
    }
    if options.length.is_zero() {
        options.length = Duration::from_secs_f64(if options.quick { 0.7 } else { 1.5 });
    }
    Ok(options)
}

fn run(options: &Options) -> Result<()> {
    lab::enter()?;
    let mut settings = vec![
        ("cut on the wire, MTU 1500", Wire::Segmented, 1500),
        ("pass-through, MTU 1500", Wire::PassThrough, 1500),
    ];
    if !options.quick {
        settings.push(("cut on the wire, MTU 9000", Wire::Segmented, 9000));
        settings.push(("pass-through, MTU 9000", Wire::PassThrough, 9000));
    }
    let mut all = Vec::new();
    for (name, wire, mtu) in settings {
        let results = setting(options, name, wire, mtu)?;
        println!("\n### {name}\n\n{}", results.table());
        all.push((name.to_owned(), results));
        // What was measured for minutes is not lost if something fails in the next setting.
        if let Some(out) = &options.out {
            write(options, out, &all)?;
        }
    }
    if let Some(out) = &options.out {
        println!("net.json, net.svg and net.md are in {}", out.display());
    }
    Ok(())
}

fn write(options: &Options, out: &std::path::Path, all: &[(String, Results)]) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let json: serde_json::Map<_, _> =
        all.iter().map(|(name, results)| (name.clone(), results.json())).collect();
    let about =
        json!({ "rounds": options.rounds, "seconds": options.length.as_secs_f64(), "kernel": kernel() });
    let text = serde_json::to_string_pretty(&json!({ "about": about, "settings": json }))?;
    std::fs::write(out.join("net.json"), text + "\n")?;
    std::fs::write(out.join("net.svg"), report::picture(all))?;
    let tables: Vec<_> =
        all.iter().map(|(name, results)| format!("### {name}\n\n{}", results.table())).collect();
    std::fs::write(out.join("net.md"), tables.join("\n"))?;
    Ok(())
}

fn setting(options: &Options, name: &str, wire: Wire, mtu: u32) -> Result<Results> {
    let paths: Vec<Path> = Kind::ALL
        .into_iter()
        .map(|kind| Path::build(kind, wire, mtu, options.partial_checksum))
        .collect::<Result<_>>()?;
    let measures = if options.quick { &Measure::QUICK[..] } else { &Measure::ALL[..] };
    let mut results = Results::default();
    for round in 1..=options.rounds {
        for measure in measures.iter().filter(|measure| measure.name().contains(&options.only)) {
            eprintln!("{name}: round {round} of {}: {}", options.rounds, measure.name());
            for path in &paths {
                let values = measure.sample(path, options.length).with_context(|| {
                    format!("{} over {}\n{}", measure.name(), path.kind.name(), path.logs())
                })?;
                for (what, value) in values {
                    results.add(format!("{}, {what}", measure.name()), path.kind, value);
                }
            }
        }
        for path in &paths {
            if let Some(bytes) = path.resident() {
                results.add("daemon's memory, MiB".into(), path.kind, bytes as f64 / 1_048_576.0);
            }
        }
    }
    Ok(results)
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
