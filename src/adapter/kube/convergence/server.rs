//! An API server reduced to its promises: versions that grow, a history of which it forgets the beginning, lists and
//! watches of it.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use serde_json::json;

/// How many changes it can be asked for.
const HISTORY: usize = 200;

/// A Node as it is sent, and which of those that had its name it is.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) json: Rc<str>,
    pub(super) shape: Shape,
    pub(super) incarnation: u64,
}

pub(super) type Nodes = Rc<BTreeMap<String, Stored>>;

struct Entry {
    version: u64,
    line: Rc<str>,
}

pub(super) struct Server {
    pub(super) version: u64,
    pub(super) nodes: Nodes,
    pub(super) up: bool,
    pub(super) streams: bool,
    log: VecDeque<Entry>,
    /// States of the past, the present one last.
    past: VecDeque<(u64, Nodes)>,
    /// A watch cannot begin before this.
    forgotten: u64,
    born: u64,
}

/// What may be different in two states of one Node.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) number: u8,
    pub(super) prefix: u8,
    pub(super) address: u8,
    pub(super) mac: u8,
    /// Whose podCIDR and address it claims; usually its own.
    pub(super) claims: Claims,
}

/// The numbers of the Nodes whose podCIDR and address one claims.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) prefix: u8,
    pub(super) address: u8,
}

impl Claims {
    pub(super) fn honest(number: u8) -> Self {
        Self { prefix: number, address: number }
    }
}

impl Shape {
    pub(super) fn name(number: u8) -> String {
        if number == 0 { "own".into() } else { format!("n{number}") }
    }

    fn json(self, version: u64, incarnation: u64) -> serde_json::Value {
        let Self { number, prefix, address, mac, claims } = self;
        let prefix = u16::from(claims.prefix) * 4 + u16::from(prefix);
        json!({
            "metadata": {
                "name": Self::name(number),
                "uid": incarnation.to_string(),
                "resourceVersion": version.to_string(),
                "annotations": {
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/backend-data":
                        format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{mac:02x}:{number:02x}\"}}"),
                    "flannel.alpha.coreos.com/public-ip": format!("192.168.{address}.{}", claims.address),
                },
            },
            "spec": { "podCIDR": format!("10.244.{prefix}.0/24") },
        })
    }
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            version: 100,
            nodes: Nodes::default(),
            up: true,
            streams: true,
            log: VecDeque::new(),
            past: VecDeque::from([(100, Nodes::default())]),
            forgotten: 0,
            born: 0,
        }
    }

    pub(super) fn put(&mut self, shape: Shape) {
        let name = Shape::name(shape.number);
        let known = self.nodes.get(&name).map(|stored| stored.incarnation);
        let incarnation = known.unwrap_or_else(|| {
            self.born += 1;
            self.born
        });
        let object = shape.json(self.version + 1, incarnation);
        let stored = Stored { json: object.to_string().into(), shape, incarnation };
        self.change(if known.is_some() { "MODIFIED" } else { "ADDED" }, &object, |nodes| {
            nodes.insert(name, stored);
        });
    }

    pub(super) fn delete(&mut self, number: u8) {
        let name = Shape::name(number);
        let Some(stored) = self.nodes.get(&name) else { return };
        let mut object: serde_json::Value = serde_json::from_str(&stored.json).unwrap();
        object["metadata"]["resourceVersion"] = json!((self.version + 1).to_string());
        self.change("DELETED", &object, |nodes| drop(nodes.remove(&name)));
    }

    fn change(
        &mut self,
        kind: &str,
        object: &serde_json::Value,
        how: impl FnOnce(&mut BTreeMap<String, Stored>),
    ) {
        self.version += 1;
        how(Rc::make_mut(&mut self.nodes));
        let line = json!({ "type": kind, "object": object }).to_string().into();
        self.log.push_back(Entry { version: self.version, line });
        self.past.push_back((self.version, self.nodes.clone()));
        if self.log.len() > HISTORY {
            self.forgotten = self.log.pop_front().unwrap().version;
        }
        if self.past.len() > HISTORY {
            self.past.pop_front();
        }
    }

    /// Something else in the cluster changes.
    pub(super) fn tick(&mut self) {
        self.version += 1;
        self.past.push_back((self.version, self.nodes.clone()));
    }

    /// It starts anew and remembers nothing.
    pub(super) fn forget(&mut self) {
        self.forgotten = self.version;
        self.log.clear();
    }

    pub(super) fn remembers(&self, version: u64) -> bool {
        version >= self.forgotten
    }

    /// The first event after a version.
    pub(super) fn after(&self, version: u64) -> Option<(u64, Rc<str>)> {
        let at = self.log.partition_point(|entry| entry.version <= version);
        self.log.get(at).map(|entry| (entry.version, entry.line.clone()))
    }

    /// Puts right what Nodes claim of each other's.
    pub(super) fn settle_claims(&mut self) {
        let honest = |stored: &Stored| Shape { claims: Claims::honest(stored.shape.number), ..stored.shape };
        let disputed =
            self.nodes.values().filter(|node| node.shape.claims != Claims::honest(node.shape.number));
        let shapes: Vec<Shape> = disputed.map(honest).collect();
        shapes.into_iter().for_each(|shape| self.put(shape));
    }

    /// An event of some time before a version. (One that comes too early could not be noticed: versions have gaps.)
    pub(super) fn before(&self, version: u64, back: usize) -> Option<Rc<str>> {
        let end = self.log.partition_point(|entry| entry.version < version);
        self.log.get(end.checked_sub(back + 1)?).map(|entry| entry.line.clone())
    }

    /// The state at a version, if it is still known.
    pub(super) fn at(&self, version: u64) -> Option<Nodes> {
        self.past.iter().find(|(at, _)| *at == version).map(|(_, nodes)| nodes.clone())
    }

    /// A state of some time ago.
    pub(super) fn some_time_ago(&self, back: usize) -> (u64, Nodes) {
        let at = self.past.len().saturating_sub(1 + back);
        self.past.get(at).cloned().unwrap_or((self.version, self.nodes.clone()))
    }
}
