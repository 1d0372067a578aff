//! Whatever happens to the Nodes, to the API server, to its answers and to us: no peer is lost on the way, and in the
//! end the state is that of a fresh start.
//!
//! Pure code throughout: [`Sync`], the cache, the index, the forwarding table and the plan for VXLAN against models of a
//! [`Server`] and of a kernel, in a time that jumps. `LODEN_STEPS` is the number of steps (100,000), `LODEN_SEED` the seed, which a failure names.

mod answers;
mod outage;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use encap::{Owner, Prefix};
use fastrand::Rng;

use self::answers::Watch;
use self::server::{Claims, Server, Shape};
use super::nodes::Nodes;
use super::sync::{Ask, Sync};
use super::trouble::Trouble;
use crate::backend::{Backend, Choice};
use crate::config::AnnotationPrefix;
use crate::config::netconf::NetConf;
use crate::lease::cache::{self, Remembered, Scope};
use crate::lease::{IndexConfig, LeaseIndex, NodeFacts, NodeObject, OwnLease, Snapshot, fib};
use crate::plan::{self, Desired, Device, Intent, LinkState, Observed};
use crate::ports::LeaseEvent;

const STEPS: u32 = 100_000;
/// After so many steps faults end for a moment, and everything has to be right.
const EPOCH: u32 = 150;
const PEERS: u8 = 12;
/// Without faults everything is right after this time: a silent watch is found after at most 25 s here, a list is read
/// five times in case of doubt, and a server in need may have asked for some seconds.
const HEALED: Duration = Duration::from_secs(60);

struct World {
    rng: Rng,
    now: Instant,
    faults: bool,
    /// Of lists from the past in a row: the version of the last, how many agree with it, and how many there were.
    stale: (u64, u32),
    stale_row: u16,
    /// Nodes that claimed what is another's, and those whose it was, since everything was right.
    disputed: BTreeSet<String>,
    server: Server,
    sync: Sync<Nodes>,
    watch: Option<Watch>,
    index: LeaseIndex,
    /// Which incarnation of a Node each lease in force is from.
    learned: BTreeMap<String, String>,
    /// What is to be recalled if the server is not there.
    recalled: Option<Remembered>,
    disk: Option<String>,
    /// What the kernel holds; it outlives us.
    kernel: Observed,
    settled: Option<Desired>,
    counts: BTreeMap<&'static str, u32>,
}

fn conf() -> NetConf {
    NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap().0
}

fn backend() -> Backend {
    Choice::read(&conf()).unwrap().0.backend
}

fn index() -> LeaseIndex {
    let conf = conf();
    LeaseIndex::new(IndexConfig {
        own_node: "own".into(),
        networks: conf.networks(),
        backend: backend(),
        managed_only: true,
    })
}

fn scope() -> Scope {
    let text = String::new;
    Scope {
        node: "own".into(),
        server: text(),
        authority: text(),
        networks: text(),
        backend: text(),
        prefix: text(),
    }
}

fn nodes() -> Nodes {
    Nodes { prefix: AnnotationPrefix::default() }
}

fn object(json: &str) -> NodeObject {
    serde_json::from_str(json).unwrap()
}

/// A peer's name, prefixes, and where its packets go, as the forwarding table says.
type View = BTreeMap<String, (Vec<Prefix>, String)>;

fn view(snapshot: &Snapshot) -> View {
    let conf = conf();
    let fib = fib::fib(snapshot, &conf.networks(), 1450);
    let peers = snapshot.peers.iter().map(|lease| {
        let prefixes: Vec<Prefix> = lease.prefixes().copied().collect();
        let to = prefixes.first().and_then(|prefix| fib.lookup(prefix.addr())).map(|owner| match owner {
            Owner::Peer(hop) => {
                format!("{} {:?} {} {:?}", hop.addr, hop.mac, hop.mtu, fib.sender(hop.addr) == Some(hop.peer))
            }
            other => format!("{other:?}"),
        });
        (lease.node.clone(), (prefixes, to.unwrap_or_default()))
    });
    let mut view: View = peers.collect();
    if let OwnLease::Ready(prefixes) = &snapshot.own {
        view.insert("own".into(), (prefixes.clone(), String::new()));
    }
    view
}

/// One without anything of ours.
fn kernel() -> Observed {
    let external = LinkState { mtu: 1500, up: true, ..LinkState::default() };
    Observed { links: BTreeMap::from([(Device::External, external)]), ..Observed::default() }
}

/// Makes the kernel hold what it should. It refuses what a real one would.
fn program(kernel: &mut Observed, snapshot: &Snapshot, settled: Option<&Desired>) -> Desired {
    let intent = Intent { backend: backend(), peers: snapshot.peers.clone(), ..plan::sample_intent() };
    let desired = plan::desired(&intent, kernel, settled).unwrap();
    plan::diff(&desired, kernel).iter().for_each(|op| plan::model::apply(kernel, op));
    kernel.routes.retain(|_, routes| !routes.is_empty());
    let rest = plan::diff(&desired, kernel);
    assert!(rest.is_empty(), "a second look finds {rest:?}");
    desired
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let sync = Sync::new(nodes(), None, Rng::with_seed(rng.u64(..)));
        let mut world = Self {
            rng,
            now: Instant::now(),
            faults: true,
            stale: (0, 0),
            stale_row: 0,
            disputed: BTreeSet::new(),
            server: Server::new(),
            sync,
            watch: None,
            index: index(),
            learned: BTreeMap::new(),
            recalled: None,
            disk: None,
            kernel: kernel(),
            settled: None,
            counts: BTreeMap::new(),
        };
        world.server.put(Shape { number: 0, prefix: 0, address: 0, mac: 0, claims: Claims::honest(0) });
        world
    }

    fn chance(&mut self, per_mille: u16) -> bool {
        self.rng.u16(..1000) < per_mille
    }

    fn fault(&mut self, name: &'static str, per_mille: u16) -> bool {
        let comes = self.faults && self.chance(per_mille);
        if comes {
            *self.counts.entry(name).or_default() += 1;
        }
        comes
    }

    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..70 => self.interact(),
            70..94 => self.change(),
            94..96 => self.server.tick(),
            96 => self.server.up = self.fault("the server goes away", 500) ^ true,
            97 => self.server.streams = self.fault("streaming lists end", 300) ^ true,
            98 if self.fault("the server starts anew", 300) => {
                self.server.forget();
                self.watch = self.watch.take().map(|watch| Watch { dead: true, ..watch });
            }
            98 => self.save(),
            _ if self.fault("we crash", 200) => self.crash(),
            _ => {}
        }
    }

    fn change(&mut self) {
        let number = self.rng.u8(1..=PEERS);
        if self.chance(300) {
            self.server.delete(number);
        } else {
            let (prefix, address, mac) = (self.rng.u8(..2), self.rng.u8(..3), self.rng.u8(..2));
            let claims = self.claims(number);
            self.server.put(Shape { number, prefix, address, mac, claims });
        }
    }

    fn claims(&mut self, number: u8) -> Claims {
        let mut claims = Claims::honest(number);
        let other = self.rng.u8(1..=PEERS);
        if self.fault("a podCIDR of another", 40) {
            claims.prefix = other;
        }
        if self.fault("an address of another", 40) {
            claims.address = other;
        }
        if claims != Claims::honest(number) {
            self.disputed.extend([number, other].map(Shape::name));
        }
        claims
    }

    fn save(&mut self) {
        if self.index.facts().len() > 0 {
            self.disk = Some(cache::render(&scope(), "", self.sync.seen(), self.index.facts()));
        }
    }

    /// The next daemon finds what is on disk, which a crash of the machine may have damaged.
    fn crash(&mut self) {
        let mut disk = self.disk.clone().unwrap_or_default().into_bytes();
        if !disk.is_empty() && self.fault("the cache is damaged", 200) {
            let at = self.rng.usize(..disk.len());
            disk[at] ^= 1 << self.rng.u8(..8);
            assert!(cache::parse(&disk, &scope()).is_err(), "a damaged cache was taken");
        }
        self.recalled = cache::parse(&disk, &scope()).ok();
        let seen = self.recalled.as_ref().and_then(|recalled| recalled.version.clone());
        self.sync = Sync::new(nodes(), seen, Rng::with_seed(self.rng.u64(..)));
        self.index = index();
        self.learned.clear();
        self.settled = None;
        self.watch = None;
    }

    /// One question to the server, and its answer.
    fn interact(&mut self) {
        let step = self.sync.next(self.now);
        self.now += step.pause;
        let outcome = match step.ask {
            Ask::Watch { version, whole, lasts } => {
                self.watch = None;
                self.open(&version, whole, lasts)
            }
            Ask::Page(token) => {
                self.watch = None;
                self.page(token.as_deref())
            }
            Ask::Version => self.version(),
            Ask::Read(patience) => self.read(patience),
        };
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Result<Option<LeaseEvent>, Trouble>) {
        let news = outcome.unwrap_or_else(|trouble| self.sync.failed(&trouble, self.now));
        if let Some(news) = news {
            self.hear(news);
        }
    }

    fn hear(&mut self, news: LeaseEvent) {
        if let LeaseEvent::Trouble(_) = &news
            && let Some(recalled) = self.recalled.take()
        {
            self.index.reset(recalled.nodes);
            self.learn();
        }
        match news {
            LeaseEvent::Reset(all) => {
                self.recalled = None;
                self.index.reset(all)
            }
            LeaseEvent::Apply(node) => self.index.apply(*node),
            LeaseEvent::Delete(name) => self.index.delete(&name),
            LeaseEvent::Restored | LeaseEvent::Trouble(_) | LeaseEvent::Remembered(..) => return,
        };
        self.learn();
    }

    /// Whoever has lost a lease must have been deleted since it was learned.
    fn learn(&mut self) {
        let snapshot = self.index.snapshot();
        let uids: BTreeMap<&str, &NodeFacts> =
            self.index.facts().map(|facts| (facts.name.as_str(), facts)).collect();
        let now: BTreeMap<String, String> = snapshot
            .peers
            .iter()
            .map(|lease| (lease.node.clone(), uids[lease.node.as_str()].uid.clone()))
            .collect();
        let lost = self.learned.iter().filter(|(name, _)| !now.contains_key(*name));
        for (name, uid) in lost.filter(|(name, _)| !self.disputed.contains(*name)) {
            let alive = self.server.nodes.get(name).map(|node| node.incarnation.to_string());
            assert_ne!(alive.as_ref(), Some(uid), "{name} lost its lease although it was there all the time");
        }
        let held: Vec<Prefix> = snapshot.peers.iter().flat_map(|lease| lease.prefixes().copied()).collect();
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "two hold one podCIDR: {held:?}");
        let told: Vec<_> = snapshot.peers.iter().flat_map(|lease| lease.public_ips()).collect();
        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "two hold one address: {told:?}");
        self.learned = now;
        self.settled = Some(program(&mut self.kernel, &snapshot, self.settled.as_ref()));
    }

    /// Without faults, everything is right soon, and stays so.
    fn heal(&mut self) -> Duration {
        self.faults = false;
        self.server.up = true;
        // Who holds what two claim depends on who came first here; when only one claims it, there is one truth again.
        self.server.settle_claims();
        let start = self.now;
        let truth = {
            let mut fresh = index();
            fresh.reset(
                self.server
                    .nodes
                    .values()
                    .filter_map(|node| object(&node.json).facts(&AnnotationPrefix::default()).ok())
                    .collect(),
            );
            view(&fresh.snapshot())
        };
        let healed =
            loop {
                self.interact();
                let took = self.now - start;
                // A watch that is dead and a list under way may happen to fit already.
                if self.watch.as_ref().is_some_and(|watch| {
                    !watch.dead && watch.queue.is_empty() && watch.at >= self.server.version
                }) && view(&self.index.snapshot()) == truth
                {
                    break took;
                }
                let state = view(&self.index.snapshot());
                assert!(
                    took < HEALED,
                    "after {took:?} without a fault it is still\n{state:#?}\nand should be\n{truth:#?}"
                );
            };
        self.save();
        let remembered = cache::parse(self.disk.as_ref().unwrap().as_bytes(), &scope()).unwrap();
        let mut from_cache = index();
        from_cache.reset(remembered.nodes);
        assert_eq!(view(&from_cache.snapshot()), truth, "a start from cache is another");
        let mut fresh = kernel();
        program(&mut fresh, &self.index.snapshot(), None);
        assert_eq!(self.kernel, fresh, "the kernel holds something else than after a fresh start");
        self.disputed.clear();
        self.faults = true;
        healed
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Names seed and step when a check below panics.
struct Named(u64, u32);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("LODEN_SEED={} failed at step {}", self.0, self.1);
        }
    }
}

#[test]
fn any_history_ends_in_the_state_of_a_fresh_start() {
    let (steps, seed) = (setting("LODEN_STEPS", STEPS.into()), setting("LODEN_SEED", 1));
    let mut world = World::new(seed);
    let mut named = Named(seed, 0);
    let mut slowest = Duration::ZERO;
    for step in 1..=steps {
        named.1 = u32::try_from(step).unwrap_or(u32::MAX);
        world.step();
        if step % u64::from(EPOCH) == 0 {
            slowest = slowest.max(world.heal());
        }
    }
    println!("{steps} steps, seed {seed}: slowest healing {slowest:?}, faults {:?}", world.counts);
    let kinds = world.counts.len();
    assert!(steps < 10_000 || kinds >= 20, "only {kinds} kinds of fault came: {:?}", world.counts);
}
