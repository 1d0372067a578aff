//! `flanneld verify`: what the kernel should hold beside what it holds, and the commands that put right what differs.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Deserialize as _;

use super::output::Output;
use super::socket::Socket;
use super::{Outcome, Verb};
use crate::view::{DifferenceView, Request, VerifyView};

/// Compare what the kernel holds with what it should hold
#[derive(Debug, Parser)]
#[command(name = "verify")]
pub(super) struct Verify {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    output: Output,
    /// Have the daemon try at once what it has not done yet; prints what is left after some seconds
    #[arg(long)]
    repair: bool,
}

impl Verb for Verify {
    const FOUND: Option<&'static str> = Some("something differs");

    fn exec(self) -> Result<Outcome> {
        let told = self.socket.ask(&Request::Verify { repair: self.repair })?;
        let view = VerifyView::deserialize(&told).context("the daemon's answer is not understood")?;
        self.output.print(&told, |_| Ok(render(&view)))?;
        Ok(if view.differences.is_empty() { Outcome::Fine } else { Outcome::Found })
    }
}

/// For people.
fn render(view: &VerifyView) -> String {
    let mut text = format!("{} \u{b7} backend {}\n\n OBJECT      WANTED  DIFFER\n", view.node, view.backend);
    let kinds: std::collections::BTreeSet<&str> = view
        .wanted
        .keys()
        .map(String::as_str)
        .chain(view.differences.iter().map(|difference| difference.object.as_str()))
        .collect();
    for kind in kinds {
        let differ = view.differences.iter().filter(|difference| difference.object == kind).count();
        let wanted = view.wanted.get(kind).copied().unwrap_or_default();
        let _ = writeln!(text, " {kind:<10} {wanted:>7} {differ:>7}");
    }
    text.push('\n');
    for place in &view.rules {
        let _ = writeln!(text, "rules in {place}");
    }
    if view.differences.is_empty() {
        text.push_str("the kernel holds what it should");
    }
    for DifferenceView { step, command, error, .. } in &view.differences {
        let _ = writeln!(text, "missing: {step}");
        if let Some(error) = error {
            let _ = writeln!(text, "  the daemon tried: {error}");
        }
        let _ = writeln!(text, "  by hand: {command}");
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn differences_come_with_their_commands_and_good_news_are_short() {
        let mut view = VerifyView {
            node: "n1".into(),
            backend: "vxlan".into(),
            wanted: BTreeMap::from([("route".into(), 2), ("link".into(), 1)]),
            differences: Vec::new(),
            rules: vec!["iptables (nf_tables) chains FLANNEL-POSTRTG and FLANNEL-FWD".into()],
        };
        assert!(render(&view).ends_with("the kernel holds what it should"));
        view.differences.push(DifferenceView {
            object: "fdb".into(),
            step: "add forwarding entry".into(),
            command: "bridge fdb replace".into(),
            error: None,
        });
        let text = render(&view);
        for part in [
            " route            2       0",
            " fdb              0       1",
            "by hand: bridge fdb replace",
            "rules in iptables (nf_tables) ",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
