//! What other nodes publish, and what strangers send.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::fixture::Kube;
use integration::forger::{Forged, Forger, PORT};
use integration::kube_feed::key;
use integration::nodes_file::NodeManifest;
use integration::probe::reach;
use integration::probe::udp::Sink;
use integration::suite::Notes;
use integration::topology::Cluster;
use integration::wait::{self, human};

use super::{Golden, annotation, flannel, row, state, traffic, wait_state};

/// A Node of `10.244.<number>.0/24` that nobody runs, as flannel would have annotated it.
fn peer(backend: Backend, number: u8) -> NodeManifest {
    let (v4, v6) = (format!("192.168.77.{number}"), format!("fd00:77::{number:x}"));
    let mut all = vec![
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", v4.clone()),
        ("public-ipv6", v6.clone()),
        ("backend-type", flannel(backend, ["vxlan", "host-gw", ""]).to_owned()),
    ];
    match backend {
        Backend::Vxlan => {
            let mac = |v6: u8| format!(r#"{{"VNI":1,"VtepMAC":"0e:99:00:00:{v6:02x}:{number:02x}"}}"#);
            all.extend([("backend-data", mac(4)), ("backend-v6-data", mac(6))]);
        }
        // Over UDP the second family needs a Loden.
        Backend::Udp => all.extend([
            ("backend-data", "null".to_owned()),
            ("loden", r#"{"version":"9","MTU":65535,"capabilities":["ipv6"]}"#.to_owned()),
        ]),
        Backend::HostGw => all.push(("backend-data", "null".to_owned())),
    }
    NodeManifest {
        name: format!("peer{number}"),
        pod_cidrs: vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")],
        internal_ips: [v4, v6].iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).collect(),
        annotations: all.into_iter().map(|(name, value)| (key(name), value)).collect(),
    }
}

pub(super) fn create(kube: &Kube, backend: Backend, number: u8) -> Result<String> {
    let manifest = peer(backend, number);
    let name = manifest.name.clone();
    kube.server.create_node(&manifest.into())?;
    kube.n1()?.wait_lease(&name)?;
    wait_state(kube, &format!("10.244.{number}.0/24"), true)?;
    Ok(name)
}

/// Removes a peer again, and waits until the kernel has forgotten it.
pub(super) fn remove(kube: &Kube, name: &str, number: u8) -> Result<()> {
    kube.server.delete_node(name)?;
    wait_state(kube, &format!("10.244.{number}."), false).map(drop)
}

pub(super) fn own_annotations(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    for name in ["public-ip", "kube-subnet-manager", "backend-data"] {
        let before = annotation(kube, name)?;
        kube.set("n1", name, None)?;
        let took = wait::until_true("it is back", || Ok(annotation(kube, name)? == before))?;
        row(
            notes,
            backend,
            &format!("own {name} removed"),
            "never put back",
            &format!("back after {}", human(took)),
        );
    }
    Ok(())
}

pub(super) fn bad_address(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let name = create(kube, backend, 122)?;
    let before = state(kube.n1()?)?;
    for bad in ["garbage", "127.0.0.1", "0.0.0.0", "192.168.77.1", "192.168.77.2"] {
        kube.set(&name, "public-ip", Some(bad))?;
        wait::until_true("the refusal is said", || {
            let row = kube.n1()?.route(&name)?.context("no row")?;
            Ok(row["note"].as_str().is_some_and(|note| note.contains(bad)))
        })?;
        ensure!(state(kube.n1()?)? == before, "{bad} changed the kernel:\n{}", state(kube.n1()?)?);
        let taken = if bad == "garbage" { "last good state kept" } else { "taken over as it is" };
        let routes = match bad {
            "127.0.0.1" => "route removed",
            "0.0.0.0" => "route on-link",
            _ => taken,
        };
        let said = flannel(backend, [taken, routes, "not looked at"]);
        row(
            notes,
            backend,
            &format!("a peer's public-ip {bad}"),
            said,
            "refused by name, last good state kept",
        );
    }
    reach::first_two(&kube.cluster)?;
    remove(kube, &name, 122)
}

pub(super) fn no_mac(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let (bad, honest) = (create(kube, backend, 123)?, create(kube, backend, 124)?);
    let before = state(kube.n1()?)?;
    kube.set(&bad, "backend-data", Some("null"))?;
    let started = std::time::Instant::now();
    kube.set(&honest, "public-ip", Some("192.168.77.224"))?;
    wait_state(kube, "192.168.77.224", true)?;
    row(notes, backend, "an honest change beside a peer without MAC", "50.7 s", &human(started.elapsed()));
    let now = state(kube.n1()?)?.replace("192.168.77.224", "192.168.77.124");
    ensure!(now == before, "the bad one changed the kernel");
    remove(kube, &bad, 123)?;
    remove(kube, &honest, 124)
}

pub(super) fn stranger(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let name = create(kube, backend, 125)?;
    let before = state(kube.n1()?)?;
    kube.set(&name, "kube-subnet-manager", Some("false"))?;
    wait::until_true("it is said", || {
        let row = kube.n1()?.route(&name)?.context("no row")?;
        Ok(row["note"].as_str().is_some_and(|note| note.contains("kube-subnet-manager")))
    })?;
    ensure!(state(kube.n1()?)? == before, "what it had did not stay");
    row(notes, backend, "kube-subnet-manager false", "ignored, old state stays", "named, old state stays");
    kube.set(&name, "kube-subnet-manager", Some("true"))?;
    let other = flannel(backend, ["host-gw", "vxlan", "host-gw"]);
    kube.set(&name, "backend-type", Some(other))?;
    let took = wait_state(kube, "10.244.125.", false)?;
    ensure!(kube.n1()?.route(&name)?.is_some_and(|row| row["state"] == "mismatch"), "not told as a mismatch");
    row(
        notes,
        backend,
        "backend-type of another backend",
        "ignored, old state stays",
        &format!("a mismatch, gone after {}", human(took)),
    );
    kube.server.delete_node(&name)
}

pub(super) fn thief(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let traffic = traffic(kube)?;
    let before = state(kube.n1()?)?;
    let mut thief = peer(backend, 126);
    thief.pod_cidrs = vec!["10.244.2.0/24".into(), "fd00:10:244:2::/64".into()];
    kube.server.create_node(&thief.into())?;
    wait::until_true("the thief is refused", || {
        Ok(kube.n1()?.route("peer126")?.is_some_and(|row| row["state"] == "refused"))
    })?;
    ensure!(state(kube.n1()?)? == before, "{}", state(kube.n1()?)?);
    kube.server.delete_node("peer126")?;
    kube.wait_gone("peer126")?;
    ensure!(state(kube.n1()?)? == before, "{}", state(kube.n1()?)?);
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(
        notes,
        backend,
        "a second Node claims n2's podCIDR",
        "takes the traffic, and its end kills n2",
        &format!("refused, 0 of {} lost", loss.sent),
    );
    Ok(())
}

pub(super) fn one_mac(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let name = create(kube, backend, 127)?;
    let before = state(kube.n1()?)?;
    kube.set(&name, "backend-data", Some(r#"{"VNI":1,"VtepMAC":"0e:99:00:00:05:7f"}"#))?;
    let took = wait_state(kube, "neighbour: 10.244.127.0 lladdr 0e:99:00:00:05:7f", true)?;
    ensure!(
        state(kube.n1()?)?.replace("0e:99:00:00:05:7f", "0e:99:00:00:04:7f") == before,
        "more changed than that"
    );
    row(
        notes,
        backend,
        "only the v4 MAC of a peer changes",
        "never applied",
        &format!("applied after {}", human(took)),
    );
    remove(kube, &name, 127)
}

pub(super) fn intruders(_: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    const VICTIM: u16 = 9000;
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(backend.conf()).start()?;
    let stranger = Forger::plug(&mut cluster, 66)?;
    let (victim, n1) = (cluster.pod("n1.a")?, cluster.node("n1")?);
    let sink = Sink::bind(victim.ns(), VICTIM)?;
    let attacker = cluster.pod("n2.a")?;
    let socket = attacker.ns().run(|| Ok(std::net::UdpSocket::bind((attacker.ip(), 0))?))?;
    for from in [IpAddr::from(attacker.ip()), "8.8.8.8".parse()?] {
        let forged = Forged::new(from, (victim.ip(), VICTIM));
        stranger.send(n1, &forged)?;
        socket.send_to(&forged.datagram(n1)?, (n1.address(), PORT))?;
    }
    // A plain packet, sent last, arrives: so the others had their chance.
    stranger.ns().ip(&format!("route add 10.244.1.0/24 via {}", n1.address()))?;
    let plain = stranger.ns().run(|| Ok(std::net::UdpSocket::bind((stranger_address()?, 0))?))?;
    plain.send_to(b"plain", (victim.ip(), VICTIM))?;
    let (text, _) = sink.next()?;
    ensure!(text == b"plain", "an intruder's packet was delivered: {}", String::from_utf8_lossy(&text));
    ensure!(sink.arrived()?.is_empty(), "an intruder's packet was delivered");
    row(
        notes,
        backend,
        "encapsulated packets of a stranger and of a pod",
        "delivered, all four",
        "dropped, all four",
    );
    row(notes, backend, "a plain packet of a stranger via the node", "delivered", "delivered");
    Ok(())
}

fn stranger_address() -> Result<IpAddr> {
    Ok("192.168.77.66".parse()?)
}
