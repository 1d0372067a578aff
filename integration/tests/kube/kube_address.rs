//! Which address a node publishes while its own is away, late or elsewhere, and by which interface its packets leave. The
//! decision itself has a table of its own; here the kernel announces what it is about.

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::kube_feed::key;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check(
            "a virtual address is not published while the Node's own is away, nor at a start",
            |(), notes| vip(notes),
        )
        .check("another NIC stands in, that is said, and the Node's address is taken again", |(), notes| {
            second(notes)
        })
        .check("VXLAN: the address on lo, the packets by eth0", |(), _| on_lo("vxlan"))
        .check("host-gw: the address on lo, the packets by eth0", |(), _| on_lo("host-gw"))
        .check("the MTU follows the kernel's route to the peers", |(), notes| way(notes))
        .checks()
}

/// Two nodes; the daemon of n1 is told no interface.
fn cluster(backend: &str) -> Result<Kube> {
    let backend = format!("{{\"Type\": \"{backend}\"}}");
    let mut kube = Kube::with(Options::default(), |builder| builder.backend(&backend), |_, _| Ok(()))?;
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    start(&mut kube)?;
    kube.wait_ready()?;
    Ok(kube)
}

fn start(kube: &mut Kube) -> Result<()> {
    let daemon = kube.cluster.launch("n1")?.unset("--iface").spawn()?;
    kube.cluster.node_mut("n1")?.adopt(daemon);
    Ok(())
}

fn ip(kube: &Kube, commands: &str) -> Result<()> {
    kube.n1()?.ns().ip(commands)
}

fn published(kube: &Kube) -> Result<String> {
    let annotations = kube.server.node("n1")?.metadata.annotations.unwrap_or_default();
    annotations.get(&key("public-ip")).cloned().context("no public-ip")
}

fn wait_said(kube: &Kube, status: u16, part: &str) -> Result<std::time::Duration> {
    let daemon = kube.n1()?.daemon()?;
    wait::until_true(&format!("{status} with {part}"), || {
        let answer = daemon.get("/readyz")?;
        Ok(answer.status == status && answer.body.contains(part))
    })
    .with_context(|| format!("/readyz says {:?}", daemon.get("/readyz").map(|answer| answer.body)))
}

fn wait_well(kube: &Kube) -> Result<()> {
    wait::until_true("pods reach each other", || Ok(reach::first_two(&kube.cluster).is_ok()))?;
    kube.wait_ready()?;
    wait::until_true("its own address is published", || Ok(published(kube)? == "192.168.77.1"))?;
    Ok(())
}

const BACK: &str = "addr add 192.168.77.1/24 dev eth0\nroute replace default via 192.168.77.254";

fn vip(notes: &Notes) -> Result<()> {
    let mut kube = cluster("vxlan")?;
    wait_well(&kube)?;
    let alone = "addr add 192.168.77.200/32 dev eth0\naddr del 192.168.77.1/24 dev eth0";
    ip(&kube, alone)?;
    notes.took(
        "the Node's address is missed after",
        wait_said(&kube, 503, "InternalIP 192.168.77.1 is on no interface")?,
    );
    ensure!(published(&kube)? == "192.168.77.1", "n1 publishes {}", published(&kube)?);
    ip(&kube, BACK)?;
    wait_well(&kube)?;
    // A start finds the virtual address alone, and our own annotation; what that says is no evidence.
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    kube.set("n1", "public-ip", Some("192.168.77.200"))?;
    ip(&kube, "addr del 192.168.77.1/24 dev eth0")?;
    start(&mut kube)?;
    wait_said(&kube, 503, "waiting")?;
    ip(&kube, BACK)?;
    wait_well(&kube)
}

fn second(notes: &Notes) -> Result<()> {
    let kube = cluster("vxlan")?;
    wait_well(&kube)?;
    ip(
        &kube,
        "link add eth1 type veth peer name eth1p\nlink set eth1p up\nlink set eth1 up\naddr add 10.9.0.5/24 dev eth1",
    )?;
    ip(&kube, "addr del 192.168.77.1/24 dev eth0\nroute replace default via 10.9.0.1")?;
    let took =
        wait_said(&kube, 200, "peers are told 10.9.0.5 on eth1, which is none of the Node's addresses")?;
    notes.took("another NIC stands in after", took);
    ip(&kube, BACK)?;
    wait_well(&kube)
}

fn on_lo(backend: &str) -> Result<()> {
    let mut kube = cluster(backend)?;
    wait_well(&kube)?;
    let mtu = kube.n1()?.subnet_env("FLANNEL_MTU")?;
    ip(&kube, "addr add 192.168.77.1/32 dev lo\naddr del 192.168.77.1/24 dev eth0")?;
    ip(
        &kube,
        "addr add 192.168.77.101/24 dev eth0\nroute replace default via 192.168.77.254 src 192.168.77.1",
    )?;
    // Without a source of its own, the kernel would answer neighbours from the other address.
    ip(&kube, "route replace 192.168.77.0/24 dev eth0 src 192.168.77.1")?;
    for _ in 0..2 {
        wait_well(&kube)?;
        ensure!(kube.n1()?.subnet_env("FLANNEL_MTU")? == mtu, "pods got the MTU of lo");
        // Also for a daemon that starts so.
        kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        start(&mut kube)?;
        kube.wait_ready()?;
    }
    Ok(())
}

fn way(notes: &Notes) -> Result<()> {
    let kube = cluster("vxlan")?;
    let mtu = |want: &str| {
        let node = kube.n1()?;
        wait::until_true("subnet.env follows", || Ok(node.subnet_env("FLANNEL_MTU")? == want))
            .with_context(|| format!("FLANNEL_MTU is {:?}, not {want}", node.subnet_env("FLANNEL_MTU")))
    };
    mtu("1450")?;
    ip(
        &kube,
        "link add eth9 mtu 1400 type veth peer name eth9p\nlink set eth9p up\nlink set eth9 up\nroute add 192.168.77.2/32 dev eth9",
    )?;
    notes.took("a route to a peer over a narrower interface: MTU after", mtu("1350")?);
    ip(&kube, "link set eth9 mtu 1300")?;
    mtu("1250")?;
    ip(&kube, "route del 192.168.77.2/32 dev eth9")?;
    mtu("1450")?;
    wait_well(&kube)
}
