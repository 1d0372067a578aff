//! flannel's chains in iptables: byte for byte what flannel writes, there once whatever was there before, put back
//! when somebody breaks them, and gone when they are to go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::probe::reach::{self, Source};
use integration::process::NsCommand;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families, NETWORK6, Node};
use integration::wait;
use nix::sys::signal::Signal;

use super::tracer::Tracer;

/// What a real flannel leaves on n1 (iptables 1.8.9 over nf_tables), counters cut off.
const FLANNEL: &str = r#"*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:FLANNEL-FWD -
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:FLANNEL-POSTRTG -
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;

const NFT_SAVE: &str = "iptables-nft-save";
const LEGACY_SAVE: &str = "iptables-legacy-save";

pub(super) fn suite() -> Checks {
    Suite::<Cluster>::new()
        .check("A3.11 iptables-save is flannel's, byte for byte", a3_11_golden)
        .check("A3.11 ip6tables-save is flannel's with IPv6, and untouched without", a3_11_golden6)
        .check("a chain that is flushed", |c, n| repaired(c, n, "-t nat -F FLANNEL-POSTRTG"))
        .check("a chain of filter that is flushed", |c, n| repaired(c, n, "-t filter -F FLANNEL-FWD"))
        .check("a rule that is deleted", |c, n| repaired(c, n, "-t nat -D FLANNEL-POSTRTG 5"))
        .check("a rule that is inserted", |c, n| repaired(c, n, "-t nat -I FLANNEL-POSTRTG -j RETURN"))
        .check("a jump that is deleted", |c, n| repaired(c, n, "-t filter -D FORWARD 1"))
        .check("a jump that is there twice", second_jump)
        .check("a table that is flushed", |c, n| repaired(c, n, "-t nat -F"))
        .check("chains that are deleted", chains_deleted)
        .check("tables that are deleted", tables_deleted)
        .check("somebody else's rules stay as they are, and wake nobody", others)
        .check("a rule before ours that takes every packet is named", hidden)
        .check("no program is run while nothing changes", no_programs)
        .check("a restart writes nothing and opens no window", restart)
        .check("what a former flannel left is replaced, not doubled", leftovers)
        .check("A3.12 a FORWARD policy of DROP: pods reach each other", a3_12_forward_drop)
        .check("without iptables it says what to install", absent)
        .check("cleanup removes ours and nothing else", cleanup)
        .checks()
}

fn iptables(node: &Node, arguments: &str) -> Result<()> {
    node.ns().command("iptables-nft").args(arguments.split_whitespace()).run().map(drop)
}

fn is_golden(node: &Node) -> Result<bool> {
    Ok(node.iptables_save(NFT_SAVE)? == FLANNEL)
}

fn wait_golden(node: &Node) -> Result<Duration> {
    wait::until_true("the rules are as flannel's", || is_golden(node))
        .with_context(|| node.iptables_save(NFT_SAVE).unwrap_or_default())
}

fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn repairs(node: &Node) -> Result<f64> {
    Ok(node.daemon()?.metrics()?.sum("loden_repairs_total", &[("object", "firewall")]))
}

fn a3_11_golden(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let saved = cluster.node("n1")?.iptables_save(NFT_SAVE)?;
    ensure!(saved == FLANNEL, "{saved}");
    ensure!(
        cluster.node("n1")?.daemon()?.log()?.contains("iptables of this machine"),
        "the choice is not said"
    );
    let listed = cluster.node("n1")?.ns().command("nft").args(["list", "tables"]).run()?;
    ensure!(!listed.contains("flannel-ipv"), "{listed}");
    connected(cluster)
}

fn a3_11_golden6(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let plain = cluster.node("n1")?.iptables_save("ip6tables-nft-save")?;
    ensure!(!plain.contains("FLANNEL"), "{plain}");
    let builder = Cluster::builder().nodes(2).pods_per_node(1).families(Families::Dual);
    let dual = builder.backend(r#"{"Type": "vxlan"}"#).start()?;
    let node = dual.node("n1")?;
    let flannel = FLANNEL
        .replace("10.244.0.0/16", NETWORK6)
        .replace("10.244.1.0/24", &node.pod_cidr6())
        .replace("224.0.0.0/4", "ff00::/8");
    let restored = |node: &Node| Ok(node.iptables_save("ip6tables-nft-save")? == flannel);
    ensure!(restored(node)?, "{}", node.iptables_save("ip6tables-nft-save")?);
    node.ns().command("ip6tables-nft").args(["-t", "nat", "-F"]).run()?;
    notes.took("restored after `ip6tables -t nat -F`", wait::until_true("IPv6 rules", || restored(node))?);
    ensure!(is_golden(node)?, "IPv4 has other rules beside IPv6");
    connected(&dual)
}

/// Breaks something with an iptables command, and waits until everything is as flannel's again and counted.
fn repaired(cluster: &mut Cluster, notes: &Notes, command: &str) -> Result<()> {
    broken(cluster, notes, command, |node| iptables(node, command))
}

fn broken(
    cluster: &Cluster,
    notes: &Notes,
    what: &str,
    breaks: impl FnOnce(&Node) -> Result<()>,
) -> Result<()> {
    let node = cluster.node("n1")?;
    wait_golden(node)?;
    let before = repairs(node)?;
    breaks(node)?;
    notes.took(&format!("restored after `{what}`"), wait_golden(node)?);
    wait::until_true("the repair is counted", || Ok(repairs(node)? > before))?;
    wait::until_true("ready", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
    connected(cluster)
}

fn second_jump(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    repaired(cluster, notes, "-t nat -I POSTROUTING -j FLANNEL-POSTRTG")?;
    broken(cluster, notes, "the same jump again", |node| {
        let jump = "*nat\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\nCOMMIT\n";
        node.ns().command("iptables-nft-restore").arg("--noflush").input(jump).run().map(drop)
    })
}

fn chains_deleted(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    broken(cluster, notes, "-D, -F and -X of both chains", |node| {
        let gone = "*nat\n-F POSTROUTING\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n\
                    *filter\n-F FORWARD\n-F FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n";
        node.ns().command("iptables-nft-restore").arg("--noflush").input(gone).run().map(drop)
    })
}

fn tables_deleted(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    broken(cluster, notes, "nft delete table ip nat, ip filter", |node| {
        node.ns().nft("delete table ip nat\ndelete table ip filter")
    })
}

/// What kube-proxy and Docker do beside us.
fn others(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    let theirs = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -d 10.96.0.1/32 -j RETURN\n\
                  -I POSTROUTING 1 -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n\
                  *filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n-I FORWARD 1 -j DOCKER-USER\nCOMMIT\n";
    let before = repairs(node)?;
    node.ns().command("iptables-nft-restore").arg("--noflush").input(theirs).run()?;
    iptables(node, "-t nat -F FLANNEL-POSTRTG")?;
    let mine = |text: &str| text.lines().filter(|line| line.contains("FLANNEL")).map(str::to_owned).collect();
    let want: Vec<String> = mine(FLANNEL);
    wait::until_true("ours are restored beside theirs", || {
        let now: Vec<String> = mine(&node.iptables_save(NFT_SAVE)?);
        Ok(now == want)
    })?;
    let saved = node.iptables_save(NFT_SAVE)?;
    for line in [
        "-A KUBE-SERVICES -d 10.96.0.1/32 -j RETURN",
        "-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
        "-A FORWARD -j DOCKER-USER",
    ] {
        ensure!(saved.contains(line), "`{line}` is gone:\n{saved}");
    }
    ensure!(
        saved.find("172.17.0.0/16") < saved.find("POSTROUTING -m comment"),
        "the order was changed:\n{saved}"
    );
    wait::until_true("the one repair is counted", || Ok(repairs(node)? == before + 1.0))?;
    let clean = "*nat\n-D POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\n-F KUBE-SERVICES\n-X KUBE-SERVICES\nCOMMIT\n\
                 *filter\n-D FORWARD -j DOCKER-USER\n-F DOCKER-USER\n-X DOCKER-USER\nCOMMIT\n";
    node.ns().command("iptables-nft-restore").arg("--noflush").input(clean).run()?;
    wait_golden(node)?;
    ensure!(repairs(node)? == before + 1.0, "a foreign rule was taken for one of ours");
    Ok(())
}

/// flannel never notices. The order among rules is not ours to fight over, but pods without masquerading are said.
fn hidden(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    let says = |part: &'static str| {
        wait::until_true(part, || {
            let answer = node.daemon()?.get("/readyz")?;
            Ok(answer.status == 200 && answer.body.contains(part))
        })
    };
    iptables(node, "-t nat -I POSTROUTING -j ACCEPT")?;
    says("takes every packet (ACCEPT) before the jump to FLANNEL-POSTRTG")?;
    iptables(node, "-t nat -D POSTROUTING 1")?;
    says("flanneld is ready")?;
    iptables(node, "-I FORWARD -j REJECT --reject-with icmp-host-prohibited")?;
    says("refuses every forwarded packet that comes to it (REJECT)")?;
    iptables(node, "-D FORWARD 1")?;
    says("flanneld is ready")?;
    // A rule with a condition is its author's business.
    iptables(node, "-t nat -I POSTROUTING -d 192.0.2.0/24 -j ACCEPT")?;
    std::thread::sleep(Duration::from_millis(300));
    says("flanneld is ready")?;
    iptables(node, "-t nat -D POSTROUTING 1")
}

fn no_programs(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    let tracer = Tracer::attach(node)?;
    // Somebody else is busy in the same tables, and our own MTU is touched: every reason to look again.
    for round in 0..20 {
        iptables(node, &format!("-t nat -N KUBE-SVC-{round}"))?;
        node.ns().ip(&format!("link set flannel0 mtu {}", 1300 + round))?;
    }
    wait::until_true("the MTU is restored", || {
        Ok(node.link("flannel0")?.is_some_and(|l| l.contains("mtu 1472")))
    })?;
    std::thread::sleep(Duration::from_secs(6));
    let quiet = tracer.programs()?;
    notes.add(format!("programs run in 6 s beside a busy kube-proxy: {}", quiet.len()));
    ensure!(quiet.is_empty(), "{quiet:?}");
    // The tracer does see them when there are some.
    iptables(node, "-t nat -F FLANNEL-POSTRTG")?;
    wait::until_true("a repair runs a program", || Ok(!tracer.programs()?.is_empty()))?;
    drop(tracer);
    for round in 0..20 {
        iptables(node, &format!("-t nat -X KUBE-SVC-{round}"))?;
    }
    Ok(())
}

fn restart(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    // A rule that is written anew has another handle.
    let rules = |node: &Node| -> Result<String> {
        let list = |table| node.ns().command("nft").args(["-a", "-s", "list", "table", "ip", table]).run();
        Ok(list("nat")? + &list("filter")?)
    };
    let before = rules(cluster.node("n1")?)?;
    ensure!(before.matches("# handle").count() >= 14, "{before}");
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    cluster.start_daemon("n1")?;
    cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    let after = rules(cluster.node("n1")?)?;
    ensure!(before == after, "{before}\n{after}");
    connected(cluster)
}

/// Chains of another podCIDR and network, and rules from before flannel had chains.
fn leftovers(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let node = cluster.node("n1")?;
    node.ns().command(NFT_SAVE).run()?;
    let old = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-F POSTROUTING
-A POSTROUTING -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.1.9.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;
    node.ns().command("iptables-nft-restore").arg("--noflush").input(old).run()?;
    ensure!(!is_golden(node)?);
    cluster.start_daemon("n1")?;
    cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    wait_golden(cluster.node("n1")?)?;
    connected(cluster)
}

fn a3_12_forward_drop(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    for name in ["n1", "n2"] {
        iptables(cluster.node(name)?, "-P FORWARD DROP")?;
    }
    connected(cluster)?;
    let ready = cluster.node("n1")?.daemon()?.get("/readyz")?.body;
    ensure!(ready == "flanneld is ready", "{ready}");
    for name in ["n1", "n2"] {
        iptables(cluster.node(name)?, "-P FORWARD ACCEPT")?;
    }
    Ok(())
}

fn hide_programs(command: NsCommand) -> NsCommand {
    command.without_dir(c"/usr/sbin").env("PATH", "/nonexistent")
}

fn absent(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    iptables(cluster.node("n1")?, "-t nat -F")?;
    let daemon = cluster.launch("n1")?.shape(hide_programs).spawn()?;
    let node = cluster.node_mut("n1")?;
    node.adopt(daemon);
    wait::until_true("it says what is missing", || {
        let answer = node.daemon()?.get("/readyz")?;
        Ok(answer.status == 503 && answer.body.contains("install the package iptables"))
    })?;
    node.stop_daemon(Signal::SIGTERM)?;
    cluster.start_daemon("n1")?;
    cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    wait_golden(cluster.node("n1")?).map(drop)
}

fn cleanup(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let node = cluster.node("n1")?;
    let theirs = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -d 10.96.0.1/32 -j RETURN\nCOMMIT\n";
    node.ns().command("iptables-nft-restore").arg("--noflush").input(theirs).run()?;
    // Also what other modes and the other variant may have left.
    node.ns().command("iptables-legacy-restore").arg("--noflush").input(FLANNEL_LEGACY).run()?;
    node.ns().nft("add table ip flannel-ipv4\nadd table ip6 flannel-ipv6\nadd table inet loden")?;
    let said = node.flanneld(&["cleanup"])?.run()?;
    ensure!(!node.has_firewall()?, "something is left");
    ensure!(!node.iptables_save(LEGACY_SAVE)?.contains("FLANNEL"), "legacy chains are left");
    ensure!(said.contains("legacy") && said.contains("nf_tables") && said.contains("inet loden"), "{said}");
    ensure!(node.iptables_save(NFT_SAVE)?.contains("-A KUBE-SERVICES"), "a foreign chain is gone");
    let again = node.flanneld(&["cleanup"])?.run()?;
    ensure!(again.contains("nothing"), "a second cleanup says `{again}`");
    Ok(())
}

const FLANNEL_LEGACY: &str = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.1.9.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;
