//! Objects that somebody breaks, and the network below.

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::probe::reach;
use integration::suite::Notes;
use integration::topology::{Cluster, Node};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

use super::{Golden, annotation, flannel, heals, row, state, traffic, wait_connected};

const MASQ: &str = "FLANNEL-POSTRTG";

pub(super) fn new_address(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    for last in [61, 1] {
        let node = kube.n1()?;
        node.ns().command("ip").args(["-4", "address", "flush", "dev", "eth0"]).run()?;
        node.ns().ip(&format!(
            "address add 192.168.77.{last}/24 dev eth0\n\
             route replace default via 192.168.77.254"
        ))?;
        let address = format!("192.168.77.{last}");
        let published = || Ok(annotation(kube, "public-ip")?.is_some_and(|ip| ip == address));
        let took = wait::until_true("the address is published", published)?;
        row(notes, backend, "another underlay address is published after", "never", &human(took));
        wait_connected(kube)?;
    }
    Ok(())
}

pub(super) fn link_flap(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let before = state(kube.n1()?)?;
    let traffic = traffic(kube)?;
    kube.n1()?.ns().ip("link set eth0 down\nlink set eth0 up\nroute replace default via 192.168.77.254\n\
         address add fd00:77::1/64 dev eth0 nodad")?;
    wait_connected(kube)?;
    wait::until_true("the kernel is as it was", || Ok(state(kube.n1()?)? == before))?;
    let loss = traffic.stop()?;
    row(
        notes,
        backend,
        "underlay down and up: gap",
        flannel(backend, ["0.9 s", "5.2 s", "1.0 s"]),
        &human(loss.longest_gap),
    );
    Ok(())
}

pub(super) fn underlay_mtu(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let node = kube.n1()?;
    for mtu in [1400, 1500] {
        node.ns().ip(&format!("link set eth0 mtu {mtu}"))?;
        let pods = mtu - backend.overhead();
        let devices = match backend {
            Backend::Vxlan => vec![("flannel.1", mtu - 50), ("flannel-v6.1", pods)],
            Backend::Udp => vec![("flannel0", pods)],
            Backend::HostGw => Vec::new(),
        };
        let followed = || {
            for (device, mtu) in &devices {
                let link = node.link(device)?.context("no device")?;
                if !link.contains(&format!(" mtu {mtu} ")) {
                    return Ok(false);
                }
            }
            Ok(node.subnet_env("FLANNEL_MTU")? == pods.to_string())
        };
        let took = wait::until_true("devices and subnet.env follow", followed)?;
        let fragmented = "never: outer packets fragmented";
        let said = flannel(backend, [fragmented, "subnet.env never", fragmented]);
        row(notes, backend, &format!("underlay MTU {mtu} followed after"), said, &human(took));
    }
    wait_connected(kube).map(drop)
}

/// The device of the backend, and the one that IPv6 has beside it.
fn devices(backend: Backend) -> &'static [&'static str] {
    if backend == Backend::Vxlan { &["flannel.1", "flannel-v6.1"] } else { &["flannel0"] }
}

/// Runs `ip` for each device of the backend.
fn for_each_device(backend: Backend, command: &str) -> String {
    devices(backend).iter().map(|device| command.replace("DEVICE", device) + "\n").collect()
}

pub(super) fn route(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let commands = match backend {
        Backend::Udp => "route del 10.244.0.0/16\nroute del fd00:10:244::/48",
        _ => "route del 10.244.2.0/24\nroute del fd00:10:244:2::/64",
    };
    let said = flannel(backend, ["never", "7.4 s", "never"]);
    heals(golden, backend, notes, said, |kube| kube.n1()?.ns().ip(commands))
}

pub(super) fn address_flushed(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let commands = for_each_device(backend, "address flush dev DEVICE scope global");
    heals(golden, backend, notes, "never", |kube| kube.n1()?.ns().ip(&commands))
}

pub(super) fn device_down(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let command = format!("link set {} down", devices(backend)[0]);
    heals(golden, backend, notes, "never", |kube| kube.n1()?.ns().ip(&command))
}

pub(super) fn device_deleted(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let said = flannel(backend, ["its peers never", "", "never"]);
    let commands = for_each_device(backend, "link del DEVICE");
    heals(golden, backend, notes, said, |kube| kube.n1()?.ns().ip(&commands))
}

pub(super) fn device_mtu(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let said = flannel(backend, ["never, not even by a restart", "", "never; a restart heals"]);
    let command = format!("link set {} mtu 1300", devices(backend)[0]);
    heals(golden, backend, notes, said, |kube| kube.n1()?.ns().ip(&command))
}

pub(super) fn device_mac(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    heals(golden, backend, notes, "never; publishes the new one", |kube| {
        kube.n1()?.ns().ip("link set flannel.1 address 02:11:22:33:44:55")
    })
}

pub(super) fn fdb_or_neighbour(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    heals(golden, backend, notes, "never", |kube| {
        kube.n1()?.ns().ip("neigh del 10.244.2.0 dev flannel.1\nneigh del fd00:10:244:2:: dev flannel-v6.1")
    })?;
    heals(golden, backend, notes, "never", |kube| {
        for device in ["flannel.1", "flannel-v6.1"] {
            let entries = kube.n1()?.ns().command("bridge").args(["fdb", "show", "dev", device]).run()?;
            let mac = entries.split_whitespace().next().context("an entry")?.to_owned();
            kube.n1()?.ns().command("bridge").args(["fdb", "del", &mac, "dev", device]).run()?;
        }
        Ok(())
    })
}

pub(super) fn iptables(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let node = kube.n1()?;
    let ours = || {
        let saved = node.iptables_save("iptables-nft-save")?;
        Ok::<_, anyhow::Error>(
            saved.lines().filter(|line| line.contains("FLANNEL")).map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let before = ours()?;
    let steps: [(&str, &str, &[&str]); 3] = [
        ("chain flushed", "1.9 s", &["-t nat -F FLANNEL-POSTRTG"]),
        ("nat and filter flushed", "3.6 s", &["-t nat -F", "-F"]),
        ("chains deleted", "1.3 s", &["-t nat -F", "-t nat -X FLANNEL-POSTRTG", "-F", "-X FLANNEL-FWD"]),
    ];
    for (what, flannel, commands) in steps {
        for command in commands {
            // The daemon may be back between two of them, and the second then finds something in its way.
            node.ns().command("iptables-nft").args(command.split(' ')).output()?;
        }
        let took = wait::until_true("the rules are as they were", || Ok(ours()? == before));
        if took.is_err() {
            ensure!(false, "before: {before:#?}\nafter: {:#?}", ours()?);
        }
        row(notes, backend, what, flannel, &human(took?));
    }
    reach::first_two(&kube.cluster)
}

pub(super) fn foreign_accept(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let rule = |verb: &str| {
        let rule = ["-t", "nat", verb, "POSTROUTING", "-j", "ACCEPT"];
        kube.n1()?.ns().command("iptables-nft").args(rule).run().map(drop)
    };
    rule("-I")?;
    let took = kube.wait_body(&["takes every packet (ACCEPT) before the jump", MASQ])?;
    row(
        notes,
        backend,
        "a foreign ACCEPT before the jump",
        "never noticed",
        &format!("named after {}", human(took)),
    );
    rule("-D")?;
    kube.wait_ready().map(drop)
}

fn rules(node: &Node) -> Result<String> {
    node.ns().command("nft").args(["--stateless", "list", "ruleset"]).run()
}

pub(super) fn other_rules(_: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let mut cluster =
        Cluster::builder().nodes(2).pods_per_node(1).backend(backend.conf()).nftables().start()?;
    let node = cluster.node("n1")?;
    let before = rules(node)?;
    for (what, command) in
        [("flushed", "flush table ip flannel-ipv4"), ("deleted", "delete table ip flannel-ipv4")]
    {
        node.ns().nft(command)?;
        let took = wait::until_true("the rules are as they were", || Ok(rules(node)? == before))?;
        row(notes, backend, &format!("nft mode: table {what}"), "never", &human(took));
    }
    for nftables in [true, false] {
        cluster.set_nftables(nftables)?;
        for name in ["n1", "n2"] {
            cluster.node(name)?.ns().command("iptables-nft").args(["-P", "FORWARD", "DROP"]).run()?;
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        }
        cluster.start_daemons()?;
        reach::first_two(&cluster).with_context(|| format!("nftables: {nftables}"))?;
        let flannel = if nftables { "no traffic" } else { "works" };
        row(notes, backend, &format!("FORWARD policy DROP, nftables {nftables}"), flannel, "works");
    }
    Ok(())
}

pub(super) fn subnet_env(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let path = kube.n1()?.subnet_file();
    let before = std::fs::read_to_string(&path)?;
    let repairs = || kube.metric("loden_repairs_total", &[("object", "subnet_env")]);
    let counted = repairs()?;
    std::fs::remove_file(&path)?;
    let back = || Ok(std::fs::read_to_string(&path)? == before);
    row(
        notes,
        backend,
        "subnet.env deleted: back after",
        "never",
        &human(wait::until_true("it is back", back)?),
    );
    std::fs::write(&path, "FLANNEL_MTU=9000\n")?;
    row(notes, backend, "subnet.env edited: back after", "-", &human(wait::until_true("it is back", back)?));
    wait::until_true("both are counted", || Ok(repairs()? == counted + 2.0)).map(drop)
}
