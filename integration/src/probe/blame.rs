//! Whose fault a missing packet is: what the machine or a test's own sockets dropped, apart from what the network did.

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Counters of drops that no overlay causes, as they were at some moment.
#[derive(Debug)]
pub struct Suspects {
    sockets: Vec<Netns>,
    before: Drops,
}

/// Packets that were dropped on their way through this machine for want of room or time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drops {
    /// By full UDP receive buffers in the namespaces looked at.
    pub sockets: u64,
    /// By full per-CPU queues, through which every packet of a veth goes (`net.core.netdev_max_backlog`): a starved
    /// machine does that to anybody's packets.
    pub backlog: u64,
}

impl Suspects {
    /// Begins to watch the sockets of these namespaces, and the machine.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn watch<'a>(namespaces: impl IntoIterator<Item = &'a Netns>) -> Result<Self> {
        let sockets: Vec<Netns> = namespaces.into_iter().cloned().collect();
        let before = read(&sockets)?;
        Ok(Self { sockets, before })
    }

    /// What was dropped since.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn since(&self) -> Result<Drops> {
        let now = read(&self.sockets)?;
        Ok(Drops { sockets: now.sockets - self.before.sockets, backlog: now.backlog - self.before.backlog })
    }
}

fn read(namespaces: &[Netns]) -> Result<Drops> {
    let mut sockets = 0;
    for ns in namespaces {
        sockets += counter(ns, "Udp", "RcvbufErrors")?;
        let text = ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp6")?))?;
        let line =
            text.lines().find(|line| line.starts_with("Udp6RcvbufErrors")).context("Udp6RcvbufErrors")?;
        sockets += line.split_whitespace().nth(1).context("a value")?.parse::<u64>()?;
    }
    let backlog = std::fs::read_to_string("/proc/net/softnet_stat")?
        .lines()
        .map(|cpu| {
            let dropped = cpu.split_whitespace().nth(1).context("softnet_stat")?;
            u64::from_str_radix(dropped, 16).context("softnet_stat")
        })
        .sum::<Result<u64>>()?;
    Ok(Drops { sockets, backlog })
}

/// Segments that TCP sent again in this namespace: what was lost on the way, or was late.
///
/// # Errors
/// When the counter cannot be read.
pub fn retransmitted(ns: &Netns) -> Result<u64> {
    counter(ns, "Tcp", "RetransSegs")
}

/// A counter of `/proc/net/snmp`, where a line of names goes before a line of values.
fn counter(ns: &Netns, group: &str, name: &str) -> Result<u64> {
    let text = ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let start = format!("{group}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&start)).map(str::split_whitespace);
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no {group} in snmp"))?;
    let value = names.zip(values).find(|(found, _)| *found == name).map(|(_, value)| value);
    value.with_context(|| format!("no {name} in snmp"))?.parse().context("a counter")
}
