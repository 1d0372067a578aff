//! Events about Nodes that are refused or odd, and which daemons write them: every daemon sees the same, and a few Events
//! are enough.

use super::{Mismatch, Reason, Refusal, Snapshot, Unlisted};

/// An Event about one Node, for people who look at that Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Identifies the matter: every daemon that sees it has the same id, and no other matter has it. A DNS subdomain.
    pub id: String,
    /// The Node's name.
    pub node: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// The sort of thing that is wrong: an Event's reason.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How many daemons speak of one Node: more than one, because some may be dead.
const SPEAKERS: usize = 3;
/// Of how many Nodes a daemon speaks at once; metrics, log and `flanneld routes` have them all.
const MOST: usize = 64;
/// Characters of a Node's name in an id, which has room for 253.
const NAMED: usize = 200;

/// What the daemon on `own` has to tell. It always speaks of its own Node, and of what only itself can see: that a peer
/// claims its address. What is refused comes first.
pub fn notices<'a>(snapshot: &Snapshot, own: &str, uid: impl Fn(&str) -> Option<&'a str>) -> Vec<Notice> {
    // flannel writes no Events.
    let able = snapshot.peers.iter().filter(|lease| lease.caps.is_some()).map(|lease| lease.node.as_str());
    let able: Vec<&str> = able.collect();
    let speaks = |node: &str| node == own || speaks(own, node, able.iter().copied());
    let notice = |node: &str, reason, seen: [&str; 3], message: &dyn Fn() -> String| {
        let uid = uid(node)?;
        let [what, field, value] = seen;
        let name: String = node.chars().take(NAMED).collect();
        Some(Notice {
            id: format!("{}.{:016x}", name.trim_end_matches(['-', '.']), hash(&[uid, what, field, value])),
            node: node.to_owned(),
            uid: uid.to_owned(),
            reason,
            message: message(),
        })
    };
    let refused = snapshot.refused.iter().filter_map(|refusal| {
        let Refusal { node, field, value, reason, .. } = refusal;
        let ours = matches!(reason, Reason::OwnAddress | Reason::OwnMac) || speaks(node);
        let seen = [reason.as_str(), field, value];
        ours.then(|| notice(node, "LeaseRefused", seen, &|| refusal.to_string())).flatten()
    });
    let mismatched = snapshot.mismatched.iter().filter_map(|mismatch| {
        let Mismatch { node, theirs, ours } = mismatch;
        let seen = ["backend_mismatch", ours, theirs];
        speaks(node).then(|| notice(node, "BackendMismatch", seen, &|| mismatch.to_string())).flatten()
    });
    let unlisted = snapshot.unlisted.iter().filter_map(|odd| {
        let Unlisted { node, field, address } = odd;
        let seen = ["unlisted", field, &address.to_string()];
        speaks(node).then(|| notice(node, "AddressNotListed", seen, &|| odd.to_string())).flatten()
    });
    refused.chain(mismatched).chain(unlisted).take(MOST).collect()
}

/// Whether `own` is among the few of `others` and itself that speak of `node`. All daemons agree without a word, as far
/// as they see the same map.
fn speaks<'a>(own: &str, node: &str, others: impl Iterator<Item = &'a str>) -> bool {
    let mine = hash(&[own, node]);
    others.filter(|other| *other != node && hash(&[other, node]) < mine).count() < SPEAKERS
}

/// FNV-1a, 64 bits: the same on every machine and in every version.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speakers(node: &str, daemons: &[String]) -> Vec<String> {
        let others = || daemons.iter().map(String::as_str);
        daemons.iter().filter(|own| speaks(own, node, others())).cloned().collect()
    }

    #[test]
    fn a_few_daemons_speak_of_a_node_whoever_looks() {
        let daemons: Vec<String> = (0..500).map(|n| format!("n{n}")).collect();
        let spoken = speakers("bad", &daemons);
        assert_eq!(spoken.len(), SPEAKERS);
        assert_ne!(spoken, speakers("worse", &daemons), "the work is spread");
        let fewer: Vec<String> = daemons.iter().filter(|name| !spoken.contains(name)).cloned().collect();
        assert_eq!(speakers("bad", &fewer).len(), SPEAKERS, "when they are gone, others do");
        assert_eq!(speakers("bad", &daemons[..2]).len(), 2);
    }

    #[test]
    fn a_notice_is_the_same_from_every_daemon_and_another_for_everything_else() {
        let refusal = |node: &str, value: &str| Refusal {
            node: node.into(),
            field: "spec.podCIDR",
            value: value.into(),
            reason: Reason::NoPodCidr,
            family: None,
            kept: false,
        };
        let told = |own: &str, refused: Vec<Refusal>| {
            let snapshot = Snapshot { refused, ..Snapshot::default() };
            notices(&snapshot, own, |node| (node != "unknown").then_some("uid"))
        };
        let one = told("n1", vec![refusal("n2", "a")]);
        assert_eq!(one, told("n3", vec![refusal("n2", "a")]));
        assert_ne!(one[0].id, told("n1", vec![refusal("n2", "b")])[0].id);
        assert!(one[0].id.starts_with("n2.") && one[0].message.contains("podCIDR"), "{:?}", one[0]);
        assert!(told("n1", vec![refusal("unknown", "a")]).is_empty());
        let long = told("n1", vec![refusal(&format!("{}.x", "a".repeat(199)), "a")]);
        assert!(long[0].id.len() <= 253 && !long[0].id.contains(".."), "{}", long[0].id);
        let mismatch = Mismatch { node: "n4".into(), theirs: "vxlan".into(), ours: "" };
        let address = "192.0.2.9".parse().unwrap();
        let odd = Unlisted { node: "n5".into(), field: "public-ip", address };
        let snapshot = Snapshot { mismatched: vec![mismatch], unlisted: vec![odd], ..Snapshot::default() };
        let told_of: Vec<_> =
            notices(&snapshot, "n1", |_| Some("uid")).into_iter().map(|n| (n.node, n.reason)).collect();
        assert_eq!(told_of, [("n4".into(), "BackendMismatch"), ("n5".into(), "AddressNotListed")]);
        let many = (0..1000).map(|n| refusal(&format!("m{n}"), "a")).collect();
        assert_eq!(told("n1", many).len(), MOST);
    }
}
