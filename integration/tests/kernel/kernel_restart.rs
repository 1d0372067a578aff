//! A3.2: restarts, crashes and upgrades under traffic. Where the kernel carries packets nothing may be lost and no
//! connection reset; where the daemon does, the gap is measured and connections live through it.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::kernel_state;
use integration::probe::blame::{self, Suspects};
use integration::probe::bulk::End;
use integration::probe::flows::Flows;
use integration::probe::loss::{Dropper, Loss, LossCounter};
use integration::stock;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait::human;
use integration::{daemon, wait};
use nix::sys::signal::Signal;

const VXLAN: &str = r#"{"Type": "vxlan"}"#;
const HOST_GW: &str = r#"{"Type": "host-gw"}"#;
const UDP: &str = r#"{"Type": "udp"}"#;

/// Thousand packets a second, there and back.
const PACE: Duration = Duration::from_millis(1);
/// Connections, each of which says something ten times a second.
const FLOWS: usize = 100;
const FLOW_PACE: Duration = Duration::from_millis(100);
/// How long each message of a daemon to the kernel is held up: fifteen packets would be lost in each gap.
const SLOWED: Duration = Duration::from_millis(15);

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("the harness sees a lost packet, and a connection that is reset", |(), _| sees())
        .check("A3.2 vxlan: SIGTERM, SIGKILL and an upgrade lose nothing", |(), notes| restarts(VXLAN, notes))
        .check("A3.2 host-gw: SIGTERM, SIGKILL and an upgrade lose nothing", |(), notes| {
            restarts(HOST_GW, notes)
        })
        .check("A3.2 vxlan: from flannel to Loden without a loss", |(), notes| upgrade(VXLAN, notes))
        .check("A3.2 host-gw: from flannel to Loden without a loss", |(), notes| upgrade(HOST_GW, notes))
        .check("A3.2 udp: the gap is short, and no connection is reset", |(), notes| udp(notes))
        .check("a daemon that gets no time loses nothing either: vxlan", |(), notes| starved(VXLAN, notes))
        .check("a daemon that gets no time loses nothing either: host-gw", |(), notes| {
            starved(HOST_GW, notes)
        })
        .checks()
}

fn cluster(backend: &str) -> Result<Cluster> {
    // A file has no place where nodes could say that they take IPv6 in the UDP backend.
    let families = if backend == UDP { Families::V4 } else { Families::Dual };
    Cluster::builder().nodes(2).pods_per_node(1).backend(backend).families(families).start()
}

/// Everything that goes on between the two pods while daemons come and go.
struct Traffic {
    packets: Vec<LossCounter>,
    flows: Flows,
    suspects: Suspects,
    retransmitted: u64,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Self> {
        let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
        let namespaces = [here.ns(), there.ns()];
        let suspects = Suspects::watch(namespaces)?;
        let packets = there.ips().map(|ip| LossCounter::start(here.ns(), ip, PACE)).collect::<Result<_>>()?;
        let [from, to] = [here, there].map(|pod| End { ns: pod.ns(), ip: pod.ip() });
        let flows = Flows::start(from, to, FLOWS, FLOW_PACE)?;
        let retransmitted = blame::retransmitted(here.ns())?;
        Ok(Self { packets, flows, suspects, retransmitted })
    }

    /// What was lost of packets. A connection that broke, or bytes that are not those that were sent, are an error.
    fn stop(self, cluster: &Cluster, what: &str, notes: &Notes) -> Result<Vec<Loss>> {
        let again = blame::retransmitted(cluster.pod("n1.a")?.ns())? - self.retransmitted;
        let flows = self.flows.stop()?;
        let losses = self.packets.into_iter().map(LossCounter::stop).collect::<Result<Vec<_>>>()?;
        let drops = self.suspects.since()?;
        for loss in &losses {
            notes.add(format!(
                "{what}: {} of {} packets lost, longest gap {}",
                loss.lost,
                loss.sent,
                human(loss.longest_gap)
            ));
        }
        notes.add(format!(
            "{what}: {} connections, {} bytes, {} broken, {again} segments sent again, longest silence {}; dropped by \
             the machine: {} in queues, {} in the test's sockets",
            flows.flows,
            flows.bytes,
            flows.broken.len(),
            human(flows.longest_silence),
            drops.backlog,
            drops.sockets
        ));
        ensure!(
            flows.broken.is_empty(),
            "{} of {FLOWS} broke: {:?}",
            flows.broken.len(),
            flows.broken.first()
        );
        ensure!(flows.flows == FLOWS && flows.bytes > 0, "{flows:?}");
        Ok(losses)
    }

    fn stop_without_loss(self, cluster: &Cluster, what: &str, notes: &Notes) -> Result<()> {
        for loss in self.stop(cluster, what, notes)? {
            ensure!(loss.lost == 0 && loss.sent > 500, "{what}: {loss:?}");
        }
        Ok(())
    }
}

fn sees() -> Result<()> {
    let cluster = cluster(VXLAN)?;
    let traffic = Traffic::start(&cluster)?;
    // An odd number: where packets of the two families take turns, an even one would only ever meet one of them.
    let dropper = Dropper::every(49, cluster.node("n1")?.ns())?;
    std::thread::sleep(Duration::from_millis(500));
    drop(dropper);
    let losses = traffic.stop(&cluster, "with one packet in 49 dropped", &Notes::default())?;
    ensure!(losses.iter().all(|loss| loss.lost > 0), "nothing is missing: {losses:?}");
    // One moment in which the other end answers with a reset, as one does that knows of no connection.
    let traffic = Traffic::start(&cluster)?;
    let there = cluster.pod("n2.a")?.ns();
    there.nft(
        "table inet lab_reset { chain in { type filter hook input priority 0; \
         meta l4proto tcp reject with tcp reset\n}\n}",
    )?;
    std::thread::sleep(FLOW_PACE * 3);
    there.nft("delete table inet lab_reset")?;
    let outcome = traffic.stop(&cluster, "with a reset", &Notes::default());
    let said = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("reset"), "no connection broke: {said}");
    Ok(())
}

fn restart(cluster: &mut Cluster, name: &str, signal: Signal, upgrade: bool) -> Result<()> {
    cluster.node_mut(name)?.stop_daemon(signal)?;
    let mut launch = cluster.launch(name)?;
    if upgrade {
        let other = cluster.dir().join("flanneld-of-another-version");
        if !other.exists() {
            std::fs::copy(daemon::binary()?, &other)?;
        }
        launch = launch.binary(other);
    }
    let daemon = launch.spawn()?;
    cluster.node_mut(name)?.adopt(daemon).wait_ready()?;
    Ok(())
}

fn state(node: &Node) -> Result<String> {
    Ok(format!("{}\n{}", kernel_state::of(node, "flannel.1")?, kernel_state::of(node, "flannel-v6.1")?))
}

fn restarts(backend: &str, notes: &Notes) -> Result<()> {
    let mut cluster = cluster(backend)?;
    let before = state(cluster.node("n1")?)?;
    let traffic = Traffic::start(&cluster)?;
    // There, back, and there again, as an upgrade and its withdrawal go.
    let changes = [
        (Signal::SIGTERM, false),
        (Signal::SIGKILL, false),
        (Signal::SIGTERM, true),
        (Signal::SIGTERM, false),
    ];
    for (signal, upgraded) in changes {
        for name in ["n1", "n2"] {
            restart(&mut cluster, name, signal, upgraded)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    traffic.stop_without_loss(&cluster, &format!("{backend}, eight restarts"), notes)?;
    let after = state(cluster.node("n1")?)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    let writes = cluster.node("n1")?.daemon()?.metrics()?.sum("loden_kernel_writes_total", &[]);
    // Traffic rules of each family and the tunnel's doors are written once by each daemon: it cannot know what the last
    // one meant.
    ensure!(writes <= 3.0, "{writes} writes although everything was there");
    Ok(())
}

/// Traffic runs over what a flannel left; a Loden takes its place on both nodes.
fn upgrade(backend: &str, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(backend).build()?;
    let [n1, n2] = [cluster.node("n1")?, cluster.node("n2")?];
    for (node, peer) in [(n1, n2), (n2, n1)] {
        if backend == VXLAN {
            stock::vxlan(node, &[peer])?;
        } else {
            stock::host_gw(node, &[peer])?;
        }
    }
    cluster.attach_pods_with(1450)?;
    let traffic = Traffic::start(&cluster)?;
    for name in ["n1", "n2"] {
        cluster.start_daemon(name)?;
        cluster.node_mut(name)?.daemon_mut()?.wait_ready()?;
        std::thread::sleep(Duration::from_millis(300));
    }
    traffic.stop_without_loss(&cluster, &format!("{backend}, flannel to Loden"), notes)?;
    let now = kernel_state::of(cluster.node("n1")?, "flannel.1")?;
    ensure!(now.contains("ours: 10.244.2.0/24") && !now.contains("proto boot"), "{now}");
    Ok(())
}

fn udp(notes: &Notes) -> Result<()> {
    let mut cluster = cluster(UDP)?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let traffic = Traffic::start(&cluster)?;
        std::thread::sleep(Duration::from_millis(200));
        restart(&mut cluster, "n1", signal, false)?;
        std::thread::sleep(Duration::from_millis(500));
        let losses = traffic.stop(&cluster, &format!("udp, {signal} and a start"), notes)?;
        ensure!(losses.iter().all(|loss| loss.lost < loss.sent), "nothing came back: {losses:?}");
    }
    Ok(())
}

/// Whatever lies between two of the daemon's steps lasts fifteen packets here: were there a moment in which the kernel
/// holds too little, they would be missing.
fn starved(backend: &str, notes: &Notes) -> Result<()> {
    let mut cluster = cluster(backend)?;
    let traffic = Traffic::start(&cluster)?;
    for name in ["n1", "n2"] {
        cluster.node_mut(name)?.stop_daemon(Signal::SIGKILL)?;
        let daemon = cluster.launch(name)?.slowed(SLOWED).spawn()?;
        let took = cluster.node_mut(name)?.adopt(daemon).wait_ready()?;
        notes.took(&format!("{backend}: a start with every message held up {}", human(SLOWED)), took);
    }
    traffic.stop_without_loss(&cluster, &format!("{backend}, slowed starts"), notes)?;
    if backend == VXLAN {
        // That it would show: the same start where the device has to be made anew, which cannot be done without a gap.
        let traffic = Traffic::start(&cluster)?;
        cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
        let node = cluster.node("n1")?;
        node.ns().ip("link del flannel.1\nlink add flannel.1 type vxlan id 7 dstport 4790 dev eth0")?;
        let daemon = cluster.launch("n1")?.slowed(SLOWED).spawn()?;
        cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
        let losses = traffic.stop(&cluster, "vxlan, a slowed start that makes the device anew", notes)?;
        ensure!(losses[0].lost > 15, "a gap was not seen: {losses:?}");
        wait::until_true("all is well", || {
            Ok(cluster.node("n1")?.daemon()?.get("/readyz")?.body == "flanneld is ready")
        })?;
    }
    Ok(())
}
