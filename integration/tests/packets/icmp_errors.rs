//! What the network has to say reaches whoever sent the packet, with the packet as it was sent: hops, absences, sizes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::probe::complaint::{About, Complaint, Sender};
use integration::probe::echo::{Echo, Talk};
use integration::probe::reach;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Node};
use integration::underlay;
use integration::wait::{self, human};

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .each("A3.9 a traceroute shows each node once, and quotes the packet", a3_09_traceroute)
        .each("A3.9 a port or a host that is not there is told to the sender", a3_09_unreachable)
        .check("A3.8 the router between the nodes refuses what is too big for the path", a3_08_router)
        .each("A3.8 a path that takes less from now on: connections go on", a3_08_path_mtu)
        .checks()
}

/// What the path takes after the change, bytes.
const NARROW: u32 = 1400;
/// A port at which nobody listens.
const CLOSED: u16 = 33_434;

/// The address by which a node speaks up toward another node's pods.
fn voice(node: &Node, backend: Backend, like: IpAddr) -> IpAddr {
    match backend {
        Backend::HostGw => node.address_like(like),
        Backend::Vxlan | Backend::Udp => node.pod_address_like(like, 0),
    }
}

fn ask(sender: &Sender, hops: u8) -> Result<Complaint> {
    sender.send(hops, 100)?;
    sender.complaint()
}

fn a3_09_traceroute((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = backend.two()?;
    reach::first_two(&cluster)?;
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    for at in to.ips() {
        let sender = Sender::new(from.ns(), SocketAddr::new(at, CLOSED))?;
        let expected = [
            (cluster.node("n1")?.pod_address_like(at, 1), About::TimeExceeded),
            (voice(cluster.node("n2")?, backend, at), About::TimeExceeded),
            (at, About::Port),
        ];
        let mut seen = Vec::new();
        for hops in 1..=3 {
            let complaint = ask(&sender, hops).with_context(|| format!("{backend}, {hops} hops to {at}"))?;
            seen.push((complaint.from, complaint.about));
        }
        ensure!(seen == expected, "{backend}: {seen:?} instead of {expected:?}");
        let hops: Vec<String> = seen.iter().map(|(from, _)| from.to_string()).collect();
        notes.add(format!("{backend}: traceroute to {}: {}", to.name(), hops.join(", ")));
    }
    Ok(())
}

fn a3_09_unreachable((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = backend.two()?;
    reach::first_two(&cluster)?;
    let (from, far) = (cluster.pod("n1.a")?, cluster.node("n2")?);
    // Whoever is not there is asked for several times; both families at once.
    let mut absent = Vec::new();
    for at in cluster.pod("n2.a")?.ips() {
        let nobody = far.pod_address_like(at, 99);
        let sender = Sender::new(from.ns(), SocketAddr::new(nobody, CLOSED))?;
        sender.send(64, 100)?;
        absent.push((nobody, sender));
        let sender = Sender::new(from.ns(), SocketAddr::new(at, CLOSED))?;
        let complaint = ask(&sender, 64)?;
        ensure!((complaint.from, complaint.about) == (at, About::Port), "{backend}: {complaint:?}");
    }
    for (nobody, sender) in absent {
        let took = Instant::now();
        let complaint = sender.complaint()?;
        let expected = (voice(far, backend, nobody), About::Host);
        ensure!((complaint.from, complaint.about) == expected, "{backend}: {complaint:?}");
        notes.took(&format!("{backend}: {nobody} is not there, told after"), took.elapsed());
    }
    Ok(())
}

/// What the sender is to be told once the path takes 1,400 bytes, if anything: a tunnel over IPv4 lets its own packets
/// be fragmented instead, and its senders go on as before.
fn told(backend: Backend, at: IpAddr) -> Option<u32> {
    match (backend, at.is_ipv4()) {
        (Backend::HostGw, _) => Some(NARROW),
        (Backend::Vxlan, false) => Some(NARROW - backend.overhead()),
        (Backend::Vxlan, true) | (Backend::Udp, _) => None,
    }
}

/// Where there is a tunnel, a router between the nodes passes on less from now on. Without one the nodes are
/// neighbours, and their link takes less.
fn path(cluster: &Cluster, backend: Backend, mtu: u32) -> Result<()> {
    for name in ["n1", "n2"] {
        match backend {
            Backend::HostGw => cluster.node(name)?.ns().ip(&format!("link set eth0 mtu {mtu}"))?,
            Backend::Vxlan | Backend::Udp => underlay::narrow(cluster, name, mtu)?,
        }
    }
    Ok(())
}

/// The harness itself: without this the others could pass on a path that takes everything.
fn a3_08_router((): &mut (), _: &Notes) -> Result<()> {
    let cluster = Backend::Vxlan.two()?;
    underlay::router_between(&cluster, "n1", "n2")?;
    let (from, to) = (cluster.node("n1")?, cluster.node("n2")?);
    for (at, headers) in [(IpAddr::from(to.address()), 28), (to.address6().into(), 48)] {
        underlay::narrow(&cluster, "n2", 1500)?;
        let sender = Sender::new(from.ns(), SocketAddr::new(at, CLOSED))?;
        sender.send(64, 1500 - headers)?;
        ensure!(sender.complaint()?.about == About::Port, "1,500 bytes do not pass to {at}");
        underlay::narrow(&cluster, "n2", NARROW)?;
        sender.send(64, 1500 - headers)?;
        let complaint = sender.complaint()?;
        ensure!(complaint.about == About::TooBig(NARROW), "{complaint:?}");
    }
    Ok(())
}

fn a3_08_path_mtu((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = backend.two()?;
    if backend != Backend::HostGw {
        underlay::router_between(&cluster, "n1", "n2")?;
    }
    reach::first_two(&cluster)?;
    for at in cluster.pod("n2.a")?.ips() {
        path_mtu(&cluster, backend, at, notes).with_context(|| format!("{backend}, to {at}"))?;
    }
    Ok(())
}

fn path_mtu(cluster: &Cluster, backend: Backend, at: IpAddr, notes: &Notes) -> Result<()> {
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    let headers = if at.is_ipv4() { 28 } else { 48 };
    let full = from.mtu() as usize - headers;
    let _server = Echo::start(to.ns(), at)?;
    let talk = Talk::start(from.ns(), at)?;
    talk.goes_on(20)?;
    let sender = Sender::new(from.ns(), SocketAddr::new(at, CLOSED))?;
    sender.send(64, full)?;
    ensure!(sender.complaint()?.about == About::Port, "a full-size datagram does not pass before");

    path(cluster, backend, NARROW)?;
    let narrowed = Instant::now();
    let told = match told(backend, at) {
        Some(mtu) => {
            let too_big = |complaint: &Complaint| {
                complaint.quoted.1.ip() == at && matches!(complaint.about, About::TooBig(_))
            };
            let look = || Ok(sender.overheard()?.into_iter().find(too_big));
            let (complaint, took) = wait::until("the sender is told that its packets are too big", look)?;
            ensure!(complaint.about == About::TooBig(mtu), "{complaint:?} instead of {mtu}");
            let fits = mtu as usize - headers;
            sender.send(64, fits)?;
            ensure!(sender.complaint()?.about == About::Port, "{fits} bytes do not pass");
            format!("told of {mtu} bytes after {}", human(took))
        }
        None => {
            let mut lost = 0;
            wait::until_true("full-size datagrams with DF pass in fragments of the tunnel", || {
                sender.send(64, full)?;
                lost += 1;
                let patience = Duration::from_millis(200);
                let about = |about| move |complaint: &Complaint| complaint.about == about;
                let passed = || Ok(sender.complaints()?.iter().any(about(About::Port)).then_some(()));
                Ok(wait::until_within(patience, "an answer", passed).is_ok())
            })?;
            format!("fragmented by the tunnel, {} datagrams lost", lost - 1)
        }
    };
    // From the moment of the change, and not from here.
    talk.goes_on(20)?;
    notes.add(format!(
        "{backend}, path of {NARROW} to {at}: {told}, TCP 20 rounds on after {}",
        human(narrowed.elapsed())
    ));
    talk.stop()?;
    path(cluster, backend, 1500)
}
