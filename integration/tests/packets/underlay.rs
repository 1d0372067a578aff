//! The network below the nodes changes while daemons run: its MTU, its addresses, its link, the interface's name.
//! Whatever it was, pods reach each other again by themselves.

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::probe::{icmp, reach};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::Node;
use integration::{underlay, wait};

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .each("A3.6 another MTU is followed, down and up, and new pods get it", a3_06_mtu)
        .each("A3.6 a link that goes down and comes back", a3_06_flap)
        .each("A3.6 an interface that gets another name", a3_06_rename)
        .each("A3.6 other addresses of the node, told to peers whose doors are in force", a3_06_address)
        .checks()
}

fn wait_ready(node: &Node) -> Result<()> {
    let ready = || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready");
    wait::until_true("ready without a worry", ready)
        .map(drop)
        .with_context(|| node.daemon().and_then(|d| d.get("/readyz")).map(|r| r.body).unwrap_or_default())
}

fn a3_06_mtu((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let mut cluster = backend.two()?;
    for underlay in [1400, 1500] {
        for node in cluster.nodes() {
            node.ns().ip(&format!("link set eth0 mtu {underlay}"))?;
        }
        let mtu = underlay - backend.overhead();
        let took = wait::until_true("subnet.env follows on both nodes", || {
            let mut files = cluster.nodes().iter().map(|node| node.subnet_env("FLANNEL_MTU"));
            Ok(files.all(|file| file.is_ok_and(|file| file == mtu.to_string())))
        })?;
        notes.took(&format!("{backend}: an underlay of {underlay} bytes, subnet.env says {mtu} after"), took);
        reach::wait_everybody(&cluster)?;
        // Pods that run keep the links they have; those that come get what subnet.env says.
        for name in ["n1", "n2"] {
            cluster.node_mut(name)?.restart_pods()?;
        }
        cluster.attach_pods()?;
        let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
        ensure!(from.mtu() == mtu, "a new pod has {} bytes", from.mtu());
        reach::wait_everybody(&cluster)?;
        for at in to.ips() {
            icmp::ping(from.ns(), at, mtu as usize)?;
        }
    }
    Ok(())
}

/// Without its IPv6 address, which the kernel takes away with the link, and its default route.
fn restore(node: &Node, device: &str) -> Result<()> {
    node.ns().ip(&format!(
        "address replace {}/64 dev {device} nodad\nroute replace default via 192.168.77.254",
        node.address6()
    ))
}

fn a3_06_flap((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = backend.two()?;
    reach::everybody(&cluster)?;
    let node = cluster.node("n1")?;
    node.ns().ip("link set eth0 down")?;
    ensure!(!reach::answered(&cluster)?, "packets pass a link that is down");
    node.ns().ip("link set eth0 up")?;
    restore(node, "eth0")?;
    notes.took(
        &format!("{backend}: the link is back, everybody reaches everybody after"),
        reach::wait_everybody(&cluster)?,
    );
    wait_ready(node)
}

fn a3_06_rename((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = backend.two()?;
    reach::everybody(&cluster)?;
    let node = cluster.node("n1")?;
    for (old, new) in [("eth0", "net0"), ("net0", "eth0")] {
        node.ns().ip(&format!("link set {old} down\nlink set {old} name {new}\nlink set {new} up"))?;
        restore(node, new)?;
        let took = reach::wait_everybody(&cluster)?;
        notes.took(&format!("{backend}: {old} is now {new}, everybody reaches everybody after"), took);
        wait_ready(node)?;
    }
    Ok(())
}

fn a3_06_address((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let mut cluster = backend.two()?;
    reach::everybody(&cluster)?;
    let node = cluster.node("n1")?;
    let (old, old6) = (node.address().to_string(), node.address6().to_string());
    let (new, new6) = ("192.168.77.61", "fd00:77::61");
    underlay::renumber(&mut cluster, "n1", new.parse()?, new6.parse()?)?;
    let took = wait::until_true("every pod answers every pod", || reach::answered(&cluster))?;
    notes.took(&format!("{backend}: at other addresses, pods reach each other after"), took);
    wait_ready(cluster.node("n1")?)?;
    wait_ready(cluster.node("n2")?)?;
    // Not every node: in host-gw they are seen at their own addresses, of which the lab knows the first.
    wait::until_true("every pod answers every pod", || reach::answered(&cluster))?;
    reach::first_two(&cluster)?;
    if backend == Backend::Vxlan {
        let peer = cluster.node("n2")?;
        let doors = peer.ns().command("nft").args(["list", "table", "inet", "loden"]).run()?;
        for (gone, there) in [(&old, new), (&old6, new6)] {
            let named = |address: &str| {
                doors.contains(&format!("{address} . ")) || doors.contains(&format!("{address} }}"))
            };
            ensure!(named(there) && !named(gone), "the doors know the wrong address:\n{doors}");
        }
        let metrics = peer.daemon()?.metrics()?;
        notes.add(format!(
            "vxlan: refused at the doors on the way: {}",
            metrics.sum("loden_drops_total", &[("reason", "unknown_sender")])
        ));
    }
    Ok(())
}
