//! What is measured on each path.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::probe::bulk::Stream;
use integration::probe::load;

use crate::paths::Path;

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// TCP streams in one direction.
    Tcp(usize),
    /// One TCP stream in each direction.
    Both,
    /// Datagrams with a payload of so many bytes, as fast as one socket sends.
    Udp(usize),
    /// Round trips of one byte; with a bulk stream beside them or without.
    Trips { loaded: bool },
    /// TCP connections, one after the other.
    Connections,
}

/// Values of one sample, by name.
pub(crate) type Values = Vec<(&'static str, f64)>;

impl Measure {
    pub(crate) const ALL: [Self; 10] = [
        Self::Tcp(1),
        Self::Tcp(4),
        Self::Tcp(16),
        Self::Both,
        Self::Udp(64),
        Self::Udp(512),
        Self::Udp(1400),
        Self::Trips { loaded: false },
        Self::Trips { loaded: true },
        Self::Connections,
    ];
    /// What a short loop looks at.
    pub(crate) const QUICK: [Self; 4] =
        [Self::Tcp(1), Self::Tcp(4), Self::Udp(64), Self::Trips { loaded: false }];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Tcp(1) => "TCP, 1 stream".into(),
            Self::Tcp(count) => format!("TCP, {count} streams"),
            Self::Both => "TCP, both ways at once".into(),
            Self::Udp(size) => format!("UDP, {size} bytes"),
            Self::Trips { loaded: false } => "request-response, idle".into(),
            Self::Trips { loaded: true } => "request-response, loaded".into(),
            Self::Connections => "connections".into(),
        }
    }

    /// Takes one sample of about `length`.
    pub(crate) fn sample(self, path: &Path, length: Duration) -> Result<Values> {
        let (from, to) = path.ends()?;
        match self {
            Self::Tcp(count) => {
                let pairs = vec![(from, to); count];
                streams(&pairs, length)
            }
            Self::Both => streams(&[(from, to), (to, from)], length),
            Self::Udp(size) => {
                let blast = load::blast(from, to, size, length)?;
                Ok(vec![
                    ("kpps", blast.arrived / 1e3),
                    ("loss %", 100.0 * (1.0 - blast.arrived / blast.sent)),
                ])
            }
            Self::Trips { loaded } => {
                let bulk = if loaded { Some(Stream::start(from, to)?) } else { None };
                let trips = load::round_trips(from, to, length)?;
                if let Some(bulk) = bulk {
                    bulk.stop()?;
                }
                let at = |share: f64| trips.get((trips.len() as f64 * share) as usize).copied();
                Ok(vec![
                    ("P50 µs", at(0.5).context("no round trip")?),
                    ("P99 µs", at(0.99).context("no round trip")?),
                ])
            }
            Self::Connections => Ok(vec![("per s", load::connections(from, to, length)?)]),
        }
    }
}

type Ends<'a> = integration::probe::bulk::End<'a>;

/// Gbit/s of all streams together, and what the whole machine worked for it.
fn streams(pairs: &[(Ends<'_>, Ends<'_>)], length: Duration) -> Result<Values> {
    let streams: Vec<Stream> =
        pairs.iter().map(|(from, to)| Stream::start(*from, *to)).collect::<Result<_>>()?;
    // The first moments are TCP finding out how fast it may go.
    std::thread::sleep(length / 4);
    let total = || streams.iter().map(Stream::received).sum::<u64>() as f64;
    let (start, bytes, busy) = (Instant::now(), total(), busy_seconds()?);
    std::thread::sleep(length);
    let (bytes, busy, took) = (total() - bytes, busy_seconds()? - busy, start.elapsed().as_secs_f64());
    for stream in streams {
        stream.stop()?;
    }
    Ok(vec![("Gbit/s", bytes * 8.0 / took / 1e9), ("CPU s/GB", busy / (bytes / 1e9))])
}

/// Seconds that all CPUs together were not idle: every process, the kernel and its interrupts.
fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq; what follows is other machines' or counted already.
    let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
    Ok(busy / 100.0)
}
