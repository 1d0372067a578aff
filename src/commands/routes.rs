//! `flanneld routes`: the live map, as a table for people or in a form for programs.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, TableStyle};
use serde::Deserialize as _;

use super::output::Output;
use super::socket::Socket;
use super::{Outcome, Verb};
use crate::view::{DropView, Request, RouteState, RouteView, RoutesView};

/// Refused pods that the table names; JSON has all.
const LISTED: usize = 20;

/// Print the live map: every node, its prefixes, its traffic
#[derive(Debug, Parser)]
#[command(name = "routes")]
pub(super) struct Routes {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    output: Output,
}

impl Verb for Routes {
    fn exec(self) -> Result<Outcome> {
        let told = self.socket.ask(&Request::Routes)?;
        self.output.print(&told, |colour| {
            let view = RoutesView::deserialize(&told).context("the daemon's answer is not understood")?;
            Ok(render(&view, colour))
        })?;
        Ok(Outcome::Fine)
    }
}

/// The table; plain text unless `colour`.
fn render(view: &RoutesView, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let bold =
        |text: &str| if colour { Cell::new(text).add_attribute(Attribute::Bold) } else { Cell::new(text) };
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let named = view.routes.iter().any(|route| route.pods.is_some());
    let headings = ["NODE", "NODE IP", "PREFIXES", "SENT", "", "RECEIVED", "", "LAST SEEN", "STATE"];
    table.set_header(headings.into_iter().chain(named.then_some("PODS")).map(bold));
    for route in &view.routes {
        let traffic = route.state != RouteState::Own && view.counts_by_peer;
        let count = |n: u64| right(if traffic { n.to_string() } else { "-".into() });
        let volume = |n: u64| right(if traffic { bytes(n) } else { String::new() });
        let row = [
            Cell::new(&route.node),
            Cell::new(addresses(route)),
            Cell::new(if route.prefixes.is_empty() { "-".into() } else { route.prefixes.join(" ") }),
            count(route.tx.packets),
            volume(route.tx.bytes),
            count(route.rx.packets),
            volume(route.rx.bytes),
            Cell::new(if traffic { ago(route.last_seen_seconds_ago) } else { "-".into() }),
            state(route.state, colour),
        ];
        table.add_row(row.into_iter().chain(named.then(|| Cell::new(pods(route)))));
    }
    let mut text = format!(
        "{} · {} · {} (MTU {}) · leases from {}\n{}\n\n{}\n",
        view.node,
        view.readiness,
        view.tunnel,
        view.mtu,
        view.source,
        format_args!("backend {}{}", view.backend, rules(view)),
        table.trim_fmt()
    );
    for route in &view.routes {
        if let Some(note) = &route.note {
            let _ = writeln!(text, "{}: {note}", route.node);
        }
    }
    for refused in view.refused_pods.iter().take(LISTED) {
        let _ = writeln!(text, "{refused}");
    }
    if let Some(more) = view.refused_pods.len().checked_sub(LISTED + 1) {
        let _ = writeln!(text, "{} more pods are refused: see -o json", more + 1);
    }
    for drop in &view.drops {
        let DropView { direction, reason, packets, help } = drop;
        let _ = writeln!(text, "dropped {packets} ({direction}, {reason}): {help}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn rules(view: &RoutesView) -> String {
    if view.rules.is_empty() { String::new() } else { format!(" · rules in {}", view.rules.join(" and ")) }
}

fn pods(route: &RouteView) -> String {
    let Some(pods) = &route.pods else { return "-".into() };
    match pods.iter().filter(|pod| pod.routed).count() {
        0 => pods.len().to_string(),
        routed => format!("{} ({routed} routed)", pods.len()),
    }
}

fn addresses(route: &RouteView) -> String {
    let both: Vec<&str> =
        [&route.node_ip, &route.node_ipv6].into_iter().flatten().map(String::as_str).collect();
    if both.is_empty() { "-".into() } else { both.join(" ") }
}

fn state(state: RouteState, colour: bool) -> Cell {
    let (word, paint) = match state {
        RouteState::Own => ("this node", Color::Cyan),
        RouteState::Active => ("active", Color::Green),
        RouteState::Refused => ("refused", Color::Red),
        RouteState::Mismatch => ("other backend", Color::Yellow),
    };
    if colour { Cell::new(word).fg(paint) } else { Cell::new(word) }
}

/// Bytes with a binary unit, three digits.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn ago(seconds: Option<u64>) -> String {
    match seconds {
        None => "never".into(),
        Some(s @ 0..=1) => format!("{s}s ago"),
        Some(s @ 2..=119) => format!("{s}s ago"),
        Some(s @ 120..=7199) => format!("{}m ago", s / 60),
        Some(s) => format!("{}h ago", s / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{PodView, Traffic};

    fn view() -> RoutesView {
        let quiet = RouteView {
            node: "n1".into(),
            node_ip: Some("192.168.77.1".into()),
            node_ipv6: Some("fd77::1".into()),
            prefixes: vec!["10.244.1.0/24".into()],
            state: RouteState::Own,
            note: None,
            tx: Traffic::default(),
            rx: Traffic::default(),
            last_seen: None,
            last_seen_seconds_ago: None,
            pods: None,
        };
        let busy = RouteView {
            node: "n2".into(),
            state: RouteState::Active,
            tx: Traffic { packets: 12, bytes: 1536 },
            last_seen_seconds_ago: Some(3),
            ..quiet.clone()
        };
        let bad = RouteView {
            node: "n3".into(),
            node_ip: None,
            node_ipv6: None,
            prefixes: Vec::new(),
            state: RouteState::Refused,
            note: Some("public-ip 127.0.0.1 is a loopback address".into()),
            ..quiet.clone()
        };
        RoutesView {
            node: "n1".into(),
            backend: "udp".into(),
            counts_by_peer: true,
            rules: vec!["iptables (legacy)".into()],
            source: "nodes.yaml".into(),
            readiness: "flanneld is ready".into(),
            tunnel: "flannel0".into(),
            mtu: 1472,
            routes: vec![quiet, busy, bad],
            drops: vec![DropView {
                direction: "rx".into(),
                reason: "unknown_sender".into(),
                packets: 7,
                help: "check NAT".into(),
            }],
            refused_pods: Vec::new(),
        }
    }

    #[test]
    fn the_table_is_plain_when_piped_and_says_why_a_node_is_refused() {
        let text = render(&view(), false);
        assert!(!text.contains('\u{1b}'), "{text}");
        for part in [
            "backend udp · rules in iptables (legacy)\n",
            "NODE IP",
            " 192.168.77.1 fd77::1 ",
            "10.244.1.0/24",
            "1.5 KiB",
            "3s ago",
            "never",
            "n3: public-ip 127.0.0.1 is a loopback",
            "dropped 7 (rx, unknown_sender): check NAT",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn pods_have_a_column_where_they_are_known() {
        let mut view = view();
        assert!(!render(&view, false).contains("PODS"));
        let pod = |name: &str, routed| PodView { name: name.into(), addresses: Vec::new(), routed };
        view.routes[1].pods = Some(vec![pod("default/a", false), pod("default/b", true)]);
        view.refused_pods = (0..25).map(|n| format!("pod {n} is refused")).collect();
        let text = render(&view, false);
        for part in ["PODS", "2 (1 routed)", "pod 19 is refused", "5 more pods"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("pod 20 is"), "{text}");
    }

    #[test]
    fn a_terminal_gets_colour() {
        assert!(render(&view(), true).contains("\u{1b}["));
    }

    #[test]
    fn json_names_are_stable() {
        let json = serde_json::to_value(view()).unwrap();
        assert_eq!(json["routes"][1]["tx"]["packets"], 12);
        assert_eq!(json["routes"][2]["state"], "refused");
        assert_eq!(serde_json::from_value::<RoutesView>(json).unwrap(), view());
    }
}
