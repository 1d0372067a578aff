//! flannel's chains as text for `iptables-restore --noflush`.
//!
//! Rules are written as `iptables-save` prints them, so what is there can be compared with what should be as text,
//! and nobody's rules have to be understood. Declaring a chain in a restore empties it, and a restore commits a
//! table as a whole: content is exchanged with no moment in between.

use std::fmt::Write as _;

use encap::Family;

use super::{Masquerade, Rules, multicast};

/// A table that holds a chain of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Masquerading.
    Nat,
    /// Accepting forwarded packets.
    Filter,
}

impl Table {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// As `iptables -t` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// Our chain in it.
    pub fn chain(self) -> &'static str {
        match self {
            Self::Nat => "FLANNEL-POSTRTG",
            Self::Filter => "FLANNEL-FWD",
        }
    }

    /// The built-in chain that calls ours.
    pub fn caller(self) -> &'static str {
        match self {
            Self::Nat => "POSTROUTING",
            Self::Filter => "FORWARD",
        }
    }

    fn comment(self) -> &'static str {
        match self {
            Self::Nat => r#"-m comment --comment "flanneld masq""#,
            Self::Filter => r#"-m comment --comment "flanneld forward""#,
        }
    }

    fn jump(self) -> String {
        format!("-A {} {} -j {}", self.caller(), self.comment(), self.chain())
    }

    /// Whether a line of `iptables-save` is about our chain: its declaration, a rule in it, or one that calls it.
    /// Before flannel had a chain it put its rules, with the same comment, into the built-in one.
    fn concerns(self, line: &str) -> bool {
        let word = |line: &str, at: usize| line.split(' ').nth(at).map(str::to_owned);
        match line.split(' ').next() {
            Some("-A") if word(line, 1).as_deref() == Some(self.chain()) => true,
            Some("-A") if word(line, 1).as_deref() == Some(self.caller()) => {
                line.contains(self.comment()) || line.split(" -j ").nth(1) == Some(self.chain())
            }
            Some(first) => first.strip_prefix(':') == Some(self.chain()),
            None => false,
        }
    }

    /// The lines of our chain, in order; none when the table should hold nothing of ours.
    fn lines(self, rules: &Rules) -> Vec<String> {
        match (self, rules.masquerade) {
            (Self::Nat, Some(masquerade)) => self.masquerading(rules, masquerade),
            (Self::Filter, _) if rules.forward => {
                let cluster = rules.cluster;
                ["-s", "-d"]
                    .map(|side| format!("-A {} {side} {cluster} {} -j ACCEPT", self.chain(), self.comment()))
                    .into()
            }
            _ => Vec::new(),
        }
    }

    fn masquerading(self, rules: &Rules, masquerade: Masquerade) -> Vec<String> {
        let (chain, comment, cluster) = (self.chain(), self.comment(), rules.cluster);
        let multicast = multicast(rules.family());
        let random = if masquerade.fully_random { " --random-fully" } else { "" };
        // kube-proxy marks what it will masquerade itself; a second translation would hide the Service's choice.
        let mut lines = vec![format!("-A {chain} -m mark --mark 0x4000/0x4000 {comment} -j RETURN")];
        if let Some(node) = rules.node {
            lines.extend([
                format!("-A {chain} -s {node} -d {cluster} {comment} -j RETURN"),
                format!("-A {chain} -s {cluster} -d {node} {comment} -j RETURN"),
                format!("-A {chain} ! -s {cluster} -d {node} {comment} -j RETURN"),
            ]);
        }
        lines.extend([
            format!("-A {chain} -s {cluster} ! -d {multicast} {comment} -j MASQUERADE{random}"),
            format!("-A {chain} ! -s {cluster} -d {cluster} {comment} -j MASQUERADE{random}"),
        ]);
        lines
    }
}

/// What of one table is ours, as `iptables-save` printed it.
pub fn ours(table: Table, saved: &str) -> Vec<&str> {
    let lines = saved.lines().filter(|line| table.concerns(line));
    // Counters of a declared chain are always zero; cut in case a version prints others.
    lines
        .map(|line| if line.starts_with(':') { line.split(' ').next().unwrap_or(line) } else { line })
        .collect()
}

/// The input for `iptables-restore --noflush` that brings one table from what `iptables-save` printed of it to
/// `rules`, or to nothing of ours; `None` when it is there already.
///
/// A jump to our chain that exists stays at its place among the rules of others. Flannel appends it, and so do we.
pub fn script(table: Table, saved: &str, rules: Option<&Rules>) -> Option<String> {
    let (chain, jump) = (table.chain(), table.jump());
    let found = ours(table, saved);
    let in_chain = format!("-A {chain} ");
    let (have, mut calls): (Vec<&str>, Vec<&str>) =
        found.iter().filter(|line| line.starts_with("-A ")).partition(|line| line.starts_with(&in_chain));
    let want = rules.map(|rules| table.lines(rules)).unwrap_or_default();
    let kept = calls.iter().position(|call| !want.is_empty() && *call == jump);
    if let Some(kept) = kept {
        calls.remove(kept);
    }
    let settled = if want.is_empty() { found.is_empty() } else { have == want && kept.is_some() };
    if settled && calls.is_empty() {
        return None;
    }
    let mut text = format!("*{}\n:{chain} - [0:0]\n", table.name());
    want.iter().for_each(|line| push(&mut text, line));
    for call in calls {
        push(&mut text, &call.replacen("-A", "-D", 1));
    }
    match (want.is_empty(), kept) {
        (true, _) => push(&mut text, &format!("-X {chain}")),
        (false, None) => push(&mut text, &jump),
        (false, Some(_)) => {}
    }
    text.push_str("COMMIT\n");
    Some(text)
}

fn push(text: &mut String, line: &str) {
    let _ = writeln!(text, "{line}");
}

/// The first rule without condition in a built-in chain that ends a packet's way before it comes to our chain,
/// by its target. Only such rules are looked for: what a condition means is its author's business.
pub fn hidden_by(table: Table, saved: &str) -> Option<&'static str> {
    let targets: &[&'static str] = match table {
        Table::Nat => &["ACCEPT", "RETURN"],
        Table::Filter => &["DROP", "REJECT"],
    };
    let prefix = format!("-A {} ", table.caller());
    let rules = saved.lines().filter_map(|line| line.strip_prefix(&prefix));
    let before = rules.take_while(|rule| rule.split("-j ").nth(1) != Some(table.chain()));
    let target = |rule: &str| {
        let rule = without_comment(rule);
        let target = rule.strip_prefix("-j ")?.split(' ').next()?.to_owned();
        targets.iter().copied().find(|known| *known == target)
    };
    before.filter_map(target).next()
}

fn without_comment(rule: &str) -> &str {
    let Some(rest) = rule.strip_prefix("-m comment --comment ") else { return rule };
    let end = match rest.strip_prefix('"') {
        // A quote inside the comment has a backslash before it.
        Some(quoted) => {
            let mut quotes = quoted.match_indices("\" ").map(|(at, _)| at);
            quotes.find(|at| !quoted[..*at].ends_with('\\')).map(|at| at + 3)
        }
        None => rest.find(' ').map(|at| at + 1),
    };
    end.and_then(|end| rest.get(end..)).unwrap_or(rule)
}

/// Whether `--random-fully` is understood, from what `iptables-restore --version` prints: since 1.6.2.
pub fn random_fully(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let mut next = || parts.next().unwrap_or_default();
    (next(), next(), next()) >= (1, 6, 2)
}

/// Which variant a plain `iptables` is, from what `--version` prints: before 1.8 there was one only.
pub fn is_nft(version: &str) -> bool {
    version.contains("nf_tables")
}

/// Family word of the programs: `iptables` or `ip6tables`.
pub fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

#[cfg(test)]
mod tests;
