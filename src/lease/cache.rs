//! The last known Nodes as text, for a start without the API server.
//!
//! ```text
//! loden-cache 1 <SHA-256 of all that follows, hex>
//! {"scope":{…},"saved":"2026-11-21T15:00:00Z","version":"1234","nodes":2}
//! {"name":"n1",…}
//! {"name":"n2",…}
//! ```
//!
//! It is taken as a whole or not at all: it must be complete, of this format, and of this very node in this very
//! cluster. What the Nodes ask for is judged afterwards, as what a server says is.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::NodeFacts;
use crate::config::excerpt;

/// First word and version of the format. Another version is not read: the API server has it all.
const MAGIC: &str = "loden-cache 1 ";
/// Most Nodes that are kept. No cluster has so many.
const MAX_NODES: usize = 100_000;

/// Largest cache, bytes: some 600 for each of `MAX_NODES`.
pub const MAX_BYTES: u64 = 64 << 20;

/// Whose Nodes they are. All must be the same for a cache to be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Our own Node.
    pub node: String,
    /// Address of the API server.
    pub server: String,
    /// The CA that its certificate is checked with.
    pub authority: String,
    /// The cluster networks of net-conf.json.
    pub networks: String,
    /// The backend of net-conf.json.
    pub backend: String,
    /// `--kube-annotation-prefix`.
    pub prefix: String,
}

/// What was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// When it was written, RFC 3339.
    pub saved: String,
    /// The newest version that was seen by then, if any.
    pub version: Option<String>,
    /// The Nodes, as the API server described them.
    pub nodes: Vec<NodeFacts>,
}

/// Why a cache is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CacheFlaw {
    /// The text is not a cache, or one of another version.
    #[error("it is no cache of this version ({})", excerpt(.0))]
    Format(String),
    /// The checksum does not fit: the text was changed.
    #[error("it is damaged: its checksum does not fit")]
    Checksum,
    /// The checksum fits, but the text cannot be read.
    #[error("it cannot be read: {0}")]
    Text(String),
    /// It is of another node, cluster or configuration.
    #[error("it is of another {what}: {}, and this is {}", excerpt(.theirs), excerpt(.ours))]
    Foreign {
        /// What differs.
        what: &'static str,
        /// What the cache says.
        theirs: String,
        /// What this daemon has.
        ours: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    scope: Scope,
    saved: String,
    version: Option<String>,
    nodes: usize,
}

/// The cache's text.
pub fn render<'a>(
    scope: &Scope,
    saved: &str,
    version: Option<&str>,
    nodes: impl ExactSizeIterator<Item = &'a NodeFacts>,
) -> String {
    let head = Head {
        scope: scope.clone(),
        saved: saved.to_owned(),
        version: version.map(str::to_owned),
        nodes: nodes.len(),
    };
    let mut body = String::new();
    // Neither type has anything that JSON cannot hold; a line that is missing would be noticed by its reader.
    let mut line = |json: serde_json::Result<String>| body.extend(json.into_iter().chain(["\n".to_owned()]));
    line(serde_json::to_string(&head));
    nodes.for_each(|node| line(serde_json::to_string(node)));
    format!("{MAGIC}{}\n{body}", digest(&body))
}

/// Reads a cache that is of `scope`.
///
/// # Errors
/// Whatever makes it unusable; it is never used in part.
pub fn parse(text: &[u8], scope: &Scope) -> Result<Remembered, CacheFlaw> {
    let text = str::from_utf8(text).map_err(|_| CacheFlaw::Checksum)?;
    let (first, body) = text.split_once('\n').unwrap_or((text, ""));
    let checksum = first.strip_prefix(MAGIC).ok_or_else(|| CacheFlaw::Format(first.to_owned()))?;
    if checksum != digest(body) {
        return Err(CacheFlaw::Checksum);
    }
    let mut lines = body.lines();
    let head: Head = line(lines.next())?;
    same(&head.scope, scope)?;
    if head.nodes > MAX_NODES {
        return Err(CacheFlaw::Text(format!("{} nodes are too many", head.nodes)));
    }
    let nodes = (0..head.nodes).map(|_| line(lines.next())).collect::<Result<Vec<_>, _>>()?;
    Ok(Remembered { saved: head.saved, version: head.version, nodes })
}

fn line<'a, T: Deserialize<'a>>(line: Option<&'a str>) -> Result<T, CacheFlaw> {
    let line = line.ok_or_else(|| CacheFlaw::Text("a line is missing".to_owned()))?;
    serde_json::from_str(line).map_err(|error| CacheFlaw::Text(error.to_string()))
}

fn same(theirs: &Scope, ours: &Scope) -> Result<(), CacheFlaw> {
    for (what, theirs, ours) in [
        ("node", &theirs.node, &ours.node),
        ("API server", &theirs.server, &ours.server),
        ("cluster", &theirs.authority, &ours.authority),
        ("Network", &theirs.networks, &ours.networks),
        ("backend", &theirs.backend, &ours.backend),
        ("annotation prefix", &theirs.prefix, &ours.prefix),
    ] {
        if theirs != ours {
            return Err(CacheFlaw::Foreign { what, theirs: theirs.clone(), ours: ours.clone() });
        }
    }
    Ok(())
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Annotations;

    fn scope() -> Scope {
        Scope {
            node: "n1".into(),
            server: "https://10.96.0.1".into(),
            authority: "a".into(),
            networks: "10.244.0.0/16".into(),
            backend: "udp".into(),
            prefix: "flannel.alpha.coreos.com/".into(),
        }
    }

    fn nodes() -> Vec<NodeFacts> {
        let annotations =
            Annotations { public_ip: Some("192.168.77.2\n\"".into()), ..Annotations::default() };
        vec![
            NodeFacts { name: "n1".into(), pod_cidrs: vec!["10.244.1.0/24".into()], ..NodeFacts::default() },
            NodeFacts { name: "n2".into(), network_available: true, annotations, ..NodeFacts::default() },
        ]
    }

    fn text() -> String {
        render(&scope(), "2026-11-21T15:00:00Z", Some("1234"), nodes().iter())
    }

    #[test]
    fn what_is_written_is_read() {
        let want =
            Remembered { saved: "2026-11-21T15:00:00Z".into(), version: Some("1234".into()), nodes: nodes() };
        assert_eq!(parse(text().as_bytes(), &scope()), Ok(want));
        let empty = render(&scope(), "", None, [].iter());
        assert_eq!(parse(empty.as_bytes(), &scope()).unwrap().nodes, []);
    }

    #[test]
    fn no_byte_can_be_lost_or_changed() {
        let text = text();
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end], &scope()).is_err(), "the first {end} bytes were taken");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(parse(&bytes, &scope()).is_err(), "byte {at} was changed");
        }
        assert!(parse(format!("{text}\n").as_bytes(), &scope()).is_err());
    }

    #[test]
    fn another_version_is_not_read() {
        let other = text().replacen("loden-cache 1", "loden-cache 2", 1);
        let flaw = parse(other.as_bytes(), &scope()).unwrap_err();
        assert!(matches!(flaw, CacheFlaw::Format(_)) && flaw.to_string().contains("loden-cache 2"), "{flaw}");
        assert!(parse(b"", &scope()).is_err());
    }

    #[test]
    fn another_node_or_cluster_is_named() {
        let text = text();
        let scopes: [(&str, Scope); 6] = [
            ("node", Scope { node: "n2".into(), ..scope() }),
            ("API server", Scope { server: "https://10.0.0.1".into(), ..scope() }),
            ("cluster", Scope { authority: "b".into(), ..scope() }),
            ("Network", Scope { networks: "10.0.0.0/8".into(), ..scope() }),
            ("backend", Scope { backend: "vxlan".into(), ..scope() }),
            ("annotation prefix", Scope { prefix: "example.com/".into(), ..scope() }),
        ];
        for (what, scope) in scopes {
            let flaw = parse(text.as_bytes(), &scope).unwrap_err();
            assert!(flaw.to_string().contains(&format!("of another {what}:")), "{flaw}");
        }
    }

    #[test]
    fn a_head_that_lies_is_no_way_to_our_memory() {
        let head = Head { scope: scope(), saved: String::new(), version: None, nodes: usize::MAX };
        let body = format!("{}\n", serde_json::to_string(&head).unwrap());
        let text = format!("{MAGIC}{}\n{body}", digest(&body));
        assert!(matches!(parse(text.as_bytes(), &scope()), Err(CacheFlaw::Text(_))));
        let body = body.replace(&usize::MAX.to_string(), "9");
        let text = format!("{MAGIC}{}\n{body}", digest(&body));
        assert!(parse(text.as_bytes(), &scope()).unwrap_err().to_string().contains("missing"));
    }
}
