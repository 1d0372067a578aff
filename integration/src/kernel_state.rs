//! What the kernel of a node holds for the overlay, as text that is the same whenever the state is.

use anyhow::Result;

use crate::topology::Node;

/// Protocol number of the routes that are ours.
pub const ROUTE_PROTOCOL: u32 = 76;

/// Devices, addresses, routes, neighbours and forwarding entries of `device` (and routes of ours by any device), one
/// line each, sorted. Without indices, which a device made anew does not share with the old one.
///
/// # Errors
/// When `ip` or `bridge` cannot be run.
pub fn of(node: &Node, device: &str) -> Result<String> {
    let mut lines = Vec::new();
    let mut add = |what: &str, text: String| {
        lines.extend(
            text.lines().map(|line| format!("{what}: {}", line.trim())).filter(|line| !line.contains("fe80")),
        );
    };
    let exists = node.link(device)?;
    if let Some(link) = exists.as_deref() {
        let stable = link.split_once(": ").map_or(link, |(_, rest)| rest);
        add("link", stable.replace('\\', " "));
        for scope in ["-4 -brief address show", "-6 -brief address show scope global"] {
            add("address", node.ns().ip_show(&format!("{scope} dev {device}"))?);
        }
        add("fdb", node.ns().command("bridge").args(["fdb", "show", "dev", device]).run()?);
        for family in ["-4", "-6"] {
            add("route", node.ns().ip_show(&format!("{family} route show dev {device}"))?);
            add("neighbour", node.ns().ip_show(&format!("{family} neigh show dev {device} nud permanent"))?);
        }
        let sysctl = node
            .ns()
            .command("sysctl")
            .args(["-n", &format!("net.ipv6.conf.{}.accept_ra", device.replace('.', "/"))]);
        add("accept_ra", sysctl.run()?);
    }
    for family in ["-4", "-6"] {
        add("ours", node.ns().ip_show(&format!("{family} route show proto {ROUTE_PROTOCOL}"))?);
    }
    lines.sort();
    Ok(lines.join("\n"))
}
