//! Whatever can be raised is cleared when its cause is gone, and the log has both: the daemon's own causes, one by one.
//!
//! Other suites bring about the same and look at what becomes of pods; here it is the metric `loden_concerns` and the
//! two lines that count.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Result, ensure};
use integration::fixture::Two;
use integration::nodes_file::{self, NodeManifest};
use integration::probe::reach;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, GATEWAY, NETWORK, Node};
use integration::{handmade, underlay};

pub(super) fn suite() -> Checks {
    Suite::<Two>::new()
        .check("SubnetFile: something else is in its place", subnet_file)
        .check("NoAddress: the external interface has lost its own", no_address)
        .check("DataPathDown: at the node's new address somebody else has our port", data_path_down)
        .check("KernelFailing: a foreign route is in the way of ours", kernel_failing)
        .check("ForeignRules: another program rejects what pods send", foreign_rules)
        .check("SourceUnreadable and OwnNode: the file of Nodes is broken, or has ours no more", source)
        .check(
            "NodeRefused, BackendMismatch and AddressUnlisted: another Node is not as it should be",
            others,
        )
        .checks()
}

/// Brings a cause about and takes it away again. It is raised and cleared, and both are said.
fn comes_and_goes(
    node: &Node,
    notes: &Notes,
    code: &str,
    cause: impl FnOnce() -> Result<()>,
    remedy: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let daemon = node.daemon()?;
    cause()?;
    notes.took(&format!("{code}: raised after"), daemon.wait_concern(code)?);
    remedy()?;
    notes.took(&format!("{code}: cleared after"), daemon.wait_no_concern(code)?);
    Ok(())
}

fn subnet_file(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let path = node.subnet_file();
    let before = std::fs::read_to_string(&path)?;
    let cause = || {
        std::fs::remove_file(&path)?;
        std::fs::create_dir(&path)?;
        Ok(std::fs::write(path.join("in the way"), "")?)
    };
    comes_and_goes(node, notes, "SubnetFile", cause, || Ok(std::fs::remove_dir_all(&path)?))?;
    ensure!(std::fs::read_to_string(&path)? == before, "the file is not as it was");
    Ok(())
}

fn no_address(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let back = format!(
        "address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\nroute replace default via {GATEWAY}",
        node.address(),
        node.address6()
    );
    let cause = || node.ns().ip("address flush dev eth0");
    comes_and_goes(node, notes, "NoAddress", cause, || node.ns().ip(&back))
}

/// On n1 the port is free after a while; n2 gets back the address that it had.
fn data_path_down(two: &mut Two, notes: &Notes) -> Result<()> {
    for (name, number) in [("n1", 61), ("n2", 62)] {
        let new = Ipv4Addr::new(192, 168, 77, number);
        let new6 = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, number.into());
        let node = two.0.node(name)?;
        node.ns().ip(&format!("address add {new}/32 dev eth0"))?;
        let occupant = node.ns().run(|| Ok(UdpSocket::bind((new, handmade::PORT))?))?;
        underlay::renumber(&mut two.0, name, new, new6)?;
        let daemon = two.0.node(name)?.daemon()?;
        notes.took("DataPathDown: raised after", daemon.wait_concern("DataPathDown")?);
        if name == "n1" {
            drop(occupant);
            let took = daemon.wait_no_concern("DataPathDown")?;
            notes.took("DataPathDown: the port is free, cleared after", took);
            home(&mut two.0, name, new, new6)?;
        } else {
            home(&mut two.0, name, new, new6)?;
            let took = two.0.node(name)?.daemon()?.wait_no_concern("DataPathDown")?;
            notes.took("DataPathDown: the address is the old one, cleared after", took);
        }
        reach::wait_everybody(&two.0)?;
    }
    Ok(())
}

/// Gives a node back its own addresses, in place of those that it has.
fn home(cluster: &mut Cluster, name: &str, from: Ipv4Addr, from6: Ipv6Addr) -> Result<()> {
    let node = cluster.node(name)?;
    node.ns().ip(&format!(
        "address del {from}/32 dev eth0\naddress del {from}/24 dev eth0\naddress del {from6}/64 dev eth0\n\
         address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\nroute replace default via {GATEWAY}",
        node.address(),
        node.address6()
    ))?;
    cluster.publish()
}

fn kernel_failing(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let cause = || node.ns().ip(&format!("route replace {NETWORK} via {GATEWAY}"));
    comes_and_goes(node, notes, "KernelFailing", cause, || node.ns().ip(&format!("route del {NETWORK}")))
}

fn foreign_rules(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let cause =
        || node.ns().nft("table inet strict { chain c { type filter hook forward priority -10; drop; }; }");
    comes_and_goes(node, notes, "ForeignRules", cause, || node.ns().nft("delete table inet strict"))
}

fn source(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let publish = |text: &str| two.0.nodes_file().replace(text);
    let all = nodes_file::render(&two.0.manifests());
    comes_and_goes(node, notes, "SourceUnreadable", || publish("items: ["), || publish(&all))?;
    let others: Vec<_> = two.0.manifests().into_iter().filter(|node| node.name != "n1").collect();
    comes_and_goes(node, notes, "OwnNode", || publish(&nodes_file::render(&others)), || publish(&all))
}

fn others(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let publish = |nodes: &[NodeManifest]| two.0.nodes_file().replace(&nodes_file::render(nodes));
    let odd = |cidr: &str, annotations: &[(&str, &str)]| NodeManifest {
        name: "odd".into(),
        pod_cidrs: vec![cidr.into()],
        internal_ips: vec![[192, 168, 77, 90].into()],
        annotations: annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    };
    let flannel = "flannel.alpha.coreos.com";
    for (code, odd) in [
        ("NodeRefused", odd("10.244.2.0/24", &[])),
        ("BackendMismatch", odd("10.244.90.0/24", &[(&format!("{flannel}/backend-type"), "vxlan")])),
        ("AddressUnlisted", odd("10.244.90.0/24", &[(&format!("{flannel}/public-ip"), "192.168.77.91")])),
    ] {
        let (all, mut more) = (two.0.manifests(), two.0.manifests());
        more.push(odd);
        comes_and_goes(node, notes, code, || publish(&more), || publish(&all))?;
    }
    Ok(())
}
