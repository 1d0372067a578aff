//! A real API server behind a proxy that spoils its answers: at the end the map is the truth, and on the way there
//! nobody lost a lease who should have kept it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{ApiServer, Options};
use integration::fault::{At, Fault, Proxy};
use integration::fixture::Kube;
use integration::probe::loss::LossCounter;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Node;
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Behind>::new()
        .check("a watch that is reset", reset)
        .check("requests that are reset", requests_reset)
        .check("410 as the answer to a watch, and within it", gone)
        .check("429 with Retry-After", overloaded)
        .check("500 and 503", server_errors)
        .check("401 and 403 for a moment are no news", not_yet)
        .check("401 and 403 that stay are named", refused)
        .check("bytes that are not JSON", garbage)
        .check("chunks and lists that are cut short", truncated)
        .check("a line that is slow", slow)
        .check("lists from the past", stale)
        .check("events that come twice, late, or again", events)
        .check("bookmarks are where a watch goes on", bookmarks)
        .check("a server that refuses streaming lists, and then does not", no_streaming)
        .check("a watch over which nothing comes any more", black_hole)
        .check("a server that takes requests and answers none", stall)
        .check("writes that fail are repeated", writes)
        .check("all of it at once, again and again", storm)
        .checks()
}

/// Two nodes, of which both daemons ask through the proxy and n1's meets faults.
struct Behind {
    proxy: Proxy,
    kube: Kube,
    /// Peers that are in force throughout.
    steady: Vec<String>,
    next: u8,
}

impl Setup for Behind {
    fn build() -> Result<Self> {
        let mut proxy = None;
        let kube = Kube::with(
            Options::default(),
            |builder| builder.launch(|launch| launch.set("--kube-api-url", "https://192.168.77.254:6444")),
            |cluster, server| {
                let victim = cluster.node("n1")?.address().into();
                proxy = Some(Proxy::start(cluster, server, victim)?);
                Ok(())
            },
        )?;
        let proxy = proxy.context("no proxy")?;
        let steady = (100..103).map(|number| kube.create(number)).collect::<Result<Vec<_>>>()?;
        let all = Self { proxy, kube, steady, next: 110 };
        all.wait_truth()?;
        Ok(all)
    }

    fn explain(&self) -> String {
        format!("{:?}\n{}", self.proxy.counts(), self.kube.explain())
    }
}

/// Peers with the address that packets for them go to.
type Map = BTreeMap<String, String>;

fn truth(server: &ApiServer) -> Result<Map> {
    let nodes = server.nodes()?.into_iter().filter(|node| node.metadata.name.as_deref() != Some("n1"));
    let address = |node: k8s_openapi::api::core::v1::Node| {
        let name = node.metadata.name?;
        let address = node.metadata.annotations?.remove("flannel.alpha.coreos.com/public-ip")?;
        Some((name, address))
    };
    Ok(nodes.filter_map(address).collect())
}

fn map(node: &Node) -> Result<Map> {
    let active = node.routes()?.into_iter().filter(|row| row["state"] == "active");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(active.map(|row| (text(&row["node"]), text(&row["node_ip"]))).collect())
}

/// What must not happen while faults do.
struct Guard {
    removed: f64,
    traffic: LossCounter,
}

impl Behind {
    fn wait_truth(&self) -> Result<Duration> {
        let node = self.kube.n1()?;
        wait::until_true("the map is the truth", || Ok(map(node)? == truth(&self.kube.server)?))
            .with_context(|| format!("{:?} is not {:?}", map(node).ok(), truth(&self.kube.server).ok()))
    }

    fn removed(&self) -> Result<f64> {
        self.kube.metric("loden_lease_changes_total", &[("change", "removed")])
    }

    fn guard(&self) -> Result<Guard> {
        Ok(Guard { removed: self.removed()?, traffic: self.kube.traffic()? })
    }

    /// Nobody was removed but `allowed`, no packet was lost, and all is well.
    fn released(&self, guard: Guard, allowed: u32) -> Result<()> {
        ensure!(self.proxy.pending() == 0, "{} faults were not met", self.proxy.pending());
        self.kube.wait_ready()?;
        let removed = self.removed()? - guard.removed;
        ensure!(removed == f64::from(allowed), "{removed} leases were removed, {allowed} Nodes were");
        let loss = guard.traffic.stop()?;
        ensure!(loss.lost == 0, "{} of {} datagrams lost", loss.lost, loss.sent);
        for peer in &self.steady {
            ensure!(self.kube.n1()?.route(peer)?.is_some(), "{peer} is gone");
        }
        Ok(())
    }

    /// The next Node that nobody has yet.
    fn create(&mut self) -> Result<String> {
        self.next = if self.next == 199 { 110 } else { self.next + 1 };
        self.kube.create(self.next)
    }

    /// Meets `faults`, after all connections were broken if `cut`, while a Node comes and one changes. Says how long it
    /// took until the map was the truth.
    fn survive(&mut self, notes: &Notes, what: &str, cut: bool, faults: &[(At, Fault, u32)]) -> Result<()> {
        let guard = self.guard()?;
        for (at, fault, times) in faults {
            self.proxy.plan(*at, fault.clone(), *times);
        }
        if cut {
            self.proxy.cut();
        }
        let name = self.create()?;
        self.kube.set(&self.steady[0], "public-ip", Some(&format!("192.168.98.{}", self.next)))?;
        notes.took(&format!("{what}: the truth after"), self.wait_truth().context(what.to_owned())?);
        wait::until_true("all faults are met", || Ok(self.proxy.pending() == 0))?;
        self.kube.server.delete_node(&name)?;
        self.wait_truth()?;
        self.released(guard, 1).context(what.to_owned())
    }

    fn warnings(&self, part: &str) -> Result<usize> {
        Ok(self.kube.n1()?.daemon()?.log()?.lines().filter(|line| line.contains(part)).count())
    }

    /// How often everything was asked for as a streaming list.
    fn streamed(&self) -> Result<usize> {
        let requests = self.kube.server.requests_of("system:serviceaccount:loden-system:loden")?;
        Ok(requests.iter().filter(|request| request.uri.contains("sendInitialEvents=true")).count())
    }
}

/// The server does not remember: everything has to be read.
const FORGETS: (At, Fault, u32) = (At::Watch, Fault::Status(410), 1);

fn reset(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "a watch is reset", false, &[(At::Event, Fault::Reset, 1)])
}

fn requests_reset(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "three requests are reset", true, &[(At::Request, Fault::Reset, 3)])?;
    let list = [FORGETS, (At::StreamingList, Fault::Reset, 2)];
    all.survive(notes, "two streaming lists are reset", true, &list)
}

fn gone(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "410 to a watch", true, &[FORGETS])?;
    all.survive(notes, "410 within a watch", false, &[(At::Event, Fault::Status(410), 1)])
}

fn overloaded(all: &mut Behind, notes: &Notes) -> Result<()> {
    let counted = || all.kube.metric("loden_watch_restarts_total", &[("reason", "overloaded")]);
    let before = counted()?;
    all.survive(notes, "429, retry after 3 s", true, &[(At::Watch, Fault::Overloaded(3), 1)])?;
    let counted = || all.kube.metric("loden_watch_restarts_total", &[("reason", "overloaded")]);
    ensure!(counted()? == before + 1.0, "it was asked again before the time was over");
    Ok(())
}

fn server_errors(all: &mut Behind, notes: &Notes) -> Result<()> {
    let faults = [(At::Watch, Fault::Status(500), 2), (At::Watch, Fault::Status(503), 1)];
    all.survive(notes, "500, 500, 503 to a watch", true, &faults)?;
    all.survive(notes, "500 within a watch", false, &[(At::Event, Fault::Status(500), 1)])
}

fn not_yet(all: &mut Behind, notes: &Notes) -> Result<()> {
    for code in [401, 403] {
        let before = all.warnings(&code.to_string())?;
        let faults = [(At::Watch, Fault::Status(code), 2)];
        all.survive(notes, &format!("{code} twice"), true, &faults)?;
        ensure!(all.warnings(&code.to_string())? == before, "{code} for a moment was logged");
    }
    Ok(())
}

fn refused(all: &mut Behind, _: &Notes) -> Result<()> {
    for (code, reason) in [(401, "unauthorized"), (403, "forbidden")] {
        let guard = all.guard()?;
        all.proxy.plan(At::Request, Fault::Status(code), u32::MAX);
        all.proxy.cut();
        all.kube.wait_body(&["degraded: ", &code.to_string()])?;
        ensure!(all.kube.metric("loden_watch_restarts_total", &[("reason", reason)])? >= 3.0);
        // It comes after other troubles, of which the log tells the last ones together.
        wait::until_true(&format!("{code} in the log"), || Ok(all.warnings(&code.to_string())? > 0))?;
        all.proxy.clear();
        all.released(guard, 0)?;
    }
    Ok(())
}

fn garbage(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "garbage within a watch", false, &[(At::Event, Fault::Garbage, 1)])?;
    all.survive(notes, "garbage for a watch", true, &[(At::Watch, Fault::Garbage, 2)])?;
    let list = [FORGETS, (At::StreamingList, Fault::Garbage, 1)];
    all.survive(notes, "garbage for a list", true, &list)?;
    let pages = [FORGETS, (At::StreamingList, Fault::Status(500), 1), (At::Page, Fault::Garbage, 1)];
    all.survive(notes, "garbage for a page", true, &pages)
}

fn truncated(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "an event is cut short", false, &[(At::Event, Fault::Truncated, 1)])?;
    let list = [FORGETS, (At::StreamingList, Fault::Truncated, 2)];
    all.survive(notes, "a list is cut short twice", true, &list)
}

fn slow(all: &mut Behind, notes: &Notes) -> Result<()> {
    let list = [FORGETS, (At::StreamingList, Fault::Slow(4000), 1)];
    all.survive(notes, "4 kB/s", true, &list)?;
    all.proxy.cut();
    all.survive(notes, "1.5 s late", true, &[(At::Watch, Fault::Late(Duration::from_millis(1500)), 1)])
}

fn stale(all: &mut Behind, notes: &Notes) -> Result<()> {
    let once = [FORGETS, (At::StreamingList, Fault::Stale, 1)];
    all.survive(notes, "one list from the past", true, &once)?;
    let twice = [FORGETS, (At::StreamingList, Fault::Stale, 1), (At::Page, Fault::Stale, 1)];
    all.survive(notes, "two lists from the past", true, &twice)?;
    ensure!(all.kube.metric("loden_watch_restarts_total", &[("reason", "stale")])? == 3.0);
    Ok(())
}

fn events(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "events come twice", false, &[(At::Event, Fault::Twice, 2)])?;
    all.survive(notes, "two events change places", false, &[(At::Event, Fault::Swapped, 1)])?;
    all.survive(notes, "an old event comes again", false, &[(At::Event, Fault::Again, 2)])
}

fn bookmarks(all: &mut Behind, notes: &Notes) -> Result<()> {
    let before = all.streamed()?;
    all.survive(notes, "bookmarks after events", false, &[(At::Event, Fault::Bookmark, 2)])?;
    all.survive(notes, "the line breaks after a bookmark", true, &[])?;
    ensure!(all.streamed()? == before, "everything was read anew");
    Ok(())
}

fn no_streaming(all: &mut Behind, notes: &Notes) -> Result<()> {
    let before = all.streamed()?;
    for code in [422, 500] {
        let refused = [FORGETS, (At::StreamingList, Fault::Status(code), 1)];
        all.survive(notes, &format!("streaming lists are refused by {code}"), true, &refused)?;
    }
    ensure!(all.streamed()? == before, "the refused lists came from the server");
    all.survive(notes, "streaming lists are there again", true, &[FORGETS])?;
    ensure!(all.streamed()? == before + 1, "it stayed with pages");
    Ok(())
}

fn black_hole(all: &mut Behind, notes: &Notes) -> Result<()> {
    all.survive(notes, "a watch falls silent behind a proxy", false, &[(At::Event, Fault::Silence, 1)])?;
    let guard = all.guard()?;
    let ns = all.kube.n1()?.ns();
    ns.nft(
        "table ip lab_hole { chain out { type filter hook output priority 0; tcp dport 6444 drop
}\n\
         chain in { type filter hook input priority 0; tcp sport 6444 drop\n}\n}",
    )?;
    let named = wait::until_within(Duration::from_secs(300), "the black hole is named", || {
        Ok(all
            .kube
            .n1()?
            .daemon()?
            .get("/readyz")?
            .body
            .starts_with("degraded: Kubernetes API")
            .then_some(()))
    })?;
    notes.took("packets to the server vanish: named after", named.1);
    let name = all.kube.create(200)?;
    ns.nft("delete table ip lab_hole")?;
    notes.took("they come through again: a change is applied after", all.kube.n1()?.wait_lease(&name)?);
    all.kube.server.delete_node(&name)?;
    all.wait_truth()?;
    all.released(guard, 1)
}

fn stall(all: &mut Behind, notes: &Notes) -> Result<()> {
    let guard = all.guard()?;
    all.kube.server.pause()?;
    let named = wait::until_within(Duration::from_secs(300), "the hung server is named", || {
        Ok(all
            .kube
            .n1()?
            .daemon()?
            .get("/readyz")?
            .body
            .starts_with("degraded: Kubernetes API")
            .then_some(()))
    });
    all.kube.server.resume()?;
    notes.took("a server hangs under a living connection: named after", named?.1);
    let name = all.kube.create(201)?;
    notes.took("it goes on: a change is applied after", all.kube.n1()?.wait_lease(&name)?);
    all.kube.server.delete_node(&name)?;
    all.wait_truth()?;
    all.released(guard, 1)?;
    all.survive(notes, "a request is never answered", true, &[(At::Watch, Fault::Silence, 1)])
}

fn writes(all: &mut Behind, notes: &Notes) -> Result<()> {
    let guard = all.guard()?;
    all.proxy.plan(At::Patch, Fault::Reset, 1);
    all.proxy.plan(At::Patch, Fault::Status(500), 1);
    all.proxy.plan(At::Patch, Fault::Overloaded(1), 1);
    all.kube.set("n1", "public-ip", None)?;
    let written = || {
        let annotations = all.kube.server.node("n1")?.metadata.annotations.unwrap_or_default();
        Ok(annotations.get("flannel.alpha.coreos.com/public-ip").is_some_and(|ip| ip == "192.168.77.1"))
    };
    notes.took(
        "an own annotation is back in spite of three failures after",
        wait::until_true("it is back", written)?,
    );
    all.released(guard, 0)
}

/// Nodes only come and change here, so whoever is removed is one too many.
fn storm(all: &mut Behind, notes: &Notes) -> Result<()> {
    let faults = [
        (At::Event, Fault::Reset),
        (At::Event, Fault::Status(410)),
        (At::Event, Fault::Garbage),
        (At::Event, Fault::Truncated),
        (At::Event, Fault::Twice),
        (At::Event, Fault::Swapped),
        (At::Event, Fault::Again),
        (At::Request, Fault::Reset),
        (At::Watch, Fault::Status(410)),
        (At::Watch, Fault::Status(500)),
        (At::Watch, Fault::Garbage),
        (At::StreamingList, Fault::Truncated),
        (At::StreamingList, Fault::Stale),
        (At::StreamingList, Fault::Status(422)),
        (At::Page, Fault::Status(503)),
    ];
    let seed = u64::from(std::process::id());
    let mut rng = fastrand::Rng::with_seed(seed);
    let guard = all.guard()?;
    let met = |all: &Behind| all.proxy.counts().values().sum::<u32>();
    let before = met(all);
    for round in 0..ROUNDS {
        let (at, fault) = faults[rng.usize(..faults.len())].clone();
        all.proxy.plan(at, fault, 1);
        if rng.u8(..4) == 0 {
            all.proxy.cut();
        }
        let steady = &all.steady[rng.usize(..all.steady.len())];
        all.kube.set(
            steady,
            "public-ip",
            Some(&format!("192.168.{}.{}", 100 + round / 200, 1 + round % 200)),
        )?;
        std::thread::sleep(Duration::from_millis(rng.u64(..400)));
    }
    all.proxy.clear();
    let took = all.wait_truth().with_context(|| format!("seed {seed}"))?;
    notes.took(&format!("{} random faults: the truth after the last", met(all) - before), took);
    all.released(guard, 0)?;
    let counts: Vec<String> =
        all.proxy.counts().into_iter().map(|(name, count)| format!("{name} × {count}")).collect();
    notes.add(format!("faults that were met: {}", counts.join(", ")));
    Ok(())
}

/// Random faults in a row.
const ROUNDS: usize = 120;
