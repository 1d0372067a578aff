//! What other nodes publish, and what strangers send.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use integration::forger::{Forged, Forger, PORT};
use integration::probe::udp::Sink;
use integration::suite::Notes;
use integration::topology::Cluster;
use integration::wait::{self, human};

use super::{Golden, VXLAN, annotation, connected, create, peer, remove, row, state, traffic, wait_state};

pub(super) fn own_annotations(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    for name in ["public-ip", "kube-subnet-manager", "backend-data"] {
        let before = annotation(kube, name)?;
        kube.set("n1", name, None)?;
        let took = wait::until_true("it is back", || Ok(annotation(kube, name)? == before))?;
        row(notes, &format!("own {name} removed"), "never put back", &format!("back after {}", human(took)));
    }
    Ok(())
}

pub(super) fn bad_address(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let name = create(kube, 122)?;
    let before = state(kube.n1()?)?;
    for bad in ["garbage", "127.0.0.1", "0.0.0.0", "192.168.77.1", "192.168.77.2"] {
        kube.set(&name, "public-ip", Some(bad))?;
        wait::until_true("the refusal is said", || {
            let row = kube.n1()?.route(&name)?.context("no row")?;
            Ok(row["note"].as_str().is_some_and(|note| note.contains(bad)))
        })?;
        ensure!(state(kube.n1()?)? == before, "{bad} changed the kernel:\n{}", state(kube.n1()?)?);
        let flannel = if bad == "garbage" { "last good state kept" } else { "taken over as it is" };
        row(notes, &format!("a peer's public-ip {bad}"), flannel, "refused by name, last good state kept");
    }
    connected(&kube.cluster)?;
    remove(kube, &name, 122)
}

pub(super) fn no_mac(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let (bad, honest) = (create(kube, 123)?, create(kube, 124)?);
    let before = state(kube.n1()?)?;
    kube.set(&bad, "backend-data", Some("null"))?;
    let started = std::time::Instant::now();
    kube.set(&honest, "public-ip", Some("192.168.99.224"))?;
    wait_state(kube, "192.168.99.224", true)?;
    row(notes, "an honest change beside a peer without MAC", "50.7 s", &human(started.elapsed()));
    let now = state(kube.n1()?)?.replace("192.168.99.224", "192.168.99.124");
    ensure!(now == before, "the bad one changed the kernel");
    remove(kube, &bad, 123)?;
    remove(kube, &honest, 124)
}

pub(super) fn stranger(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let name = create(kube, 125)?;
    let before = state(kube.n1()?)?;
    kube.set(&name, "kube-subnet-manager", Some("false"))?;
    wait::until_true("it is said", || {
        let row = kube.n1()?.route(&name)?.context("no row")?;
        Ok(row["note"].as_str().is_some_and(|note| note.contains("kube-subnet-manager")))
    })?;
    ensure!(state(kube.n1()?)? == before, "what it had did not stay");
    row(notes, "kube-subnet-manager false", "ignored, old state stays", "named, old state stays");
    kube.set(&name, "kube-subnet-manager", Some("true"))?;
    kube.set(&name, "backend-type", Some("host-gw"))?;
    let took = wait_state(kube, "10.244.125.", false)?;
    ensure!(kube.n1()?.route(&name)?.is_some_and(|row| row["state"] == "mismatch"), "not told as a mismatch");
    row(
        notes,
        "backend-type of another backend",
        "ignored, old state stays",
        &format!("a mismatch, gone after {}", human(took)),
    );
    kube.server.delete_node(&name)
}

pub(super) fn thief(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let traffic = traffic(kube)?;
    let before = state(kube.n1()?)?;
    let mut thief = peer(126);
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
        "a second Node claims n2's podCIDR",
        "takes the traffic, and its end kills n2",
        &format!("refused, 0 of {} lost", loss.sent),
    );
    Ok(())
}

pub(super) fn one_mac(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let name = create(kube, 127)?;
    let before = state(kube.n1()?)?;
    kube.set(&name, "backend-data", Some(r#"{"VNI":1,"VtepMAC":"0e:99:00:00:aa:7f"}"#))?;
    let took = wait_state(kube, "neighbour: 10.244.127.0 lladdr 0e:99:00:00:aa:7f", true)?;
    ensure!(
        state(kube.n1()?)?.replace("0e:99:00:00:aa:7f", "0e:99:00:00:04:7f") == before,
        "more changed than that"
    );
    row(
        notes,
        "only the v4 MAC of a peer changes",
        "never applied",
        &format!("applied after {}", human(took)),
    );
    remove(kube, &name, 127)
}

pub(super) fn intruders(_: &mut Golden, notes: &Notes) -> Result<()> {
    const VICTIM: u16 = 9000;
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).start()?;
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
    row(notes, "encapsulated packets of a stranger and of a pod", "delivered, all four", "dropped, all four");
    row(notes, "a plain packet of a stranger via the node", "delivered", "delivered");
    Ok(())
}

fn stranger_address() -> Result<IpAddr> {
    Ok("192.168.77.66".parse()?)
}
