//! Traffic rules in the other homes: flannel's nftables tables, and legacy iptables; and moving between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::probe::reach::{self, Source};
use integration::process::NsCommand;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Node};
use integration::wait;
use nix::sys::signal::Signal;

use super::tracer::Tracer;

/// What a real flannel with `EnableNFTables` leaves, with its two mistakes mended: the mark is masked, and the fourth
/// rule is the one of its iptables set.
const FLANNEL: &str = r#"table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
		ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
	}

	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept
		ip daddr 10.244.0.0/16 accept
	}
}
"#;

/// What a real flannel's first rules are, and its empty table.
const STOCK: &str = r#"table ip flannel-ipv4 {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return
	}
}
table ip6 flannel-ipv6 {
	comment "rules for flannel-ipv6"
}
"#;

const LEGACY_SAVE: &str = "iptables-legacy-save";

/// Legacy chains of Kubernetes: what says that a machine uses that kind.
const KUBE_LEGACY: &str =
    "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n";

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("A3.11 nft list table is flannel's, with its mistakes mended", golden)
        .check("a table that is flushed", |l, n| repaired(l, n, "flush table ip flannel-ipv4"))
        .check("a table that is deleted", |l, n| repaired(l, n, "delete table ip flannel-ipv4"))
        .check("a chain that is deleted", |l, n| repaired(l, n, "delete chain ip flannel-ipv4 forward"))
        .check("a rule that is inserted", |l, n| repaired(l, n, "insert rule ip flannel-ipv4 postrtg return"))
        .check("A3.12 a foreign chain that drops is named, and opened where iptables can", a3_12_forward_drop)
        .check("without nft and without any iptables it works", without_programs)
        .check("no program is run, whatever changes", no_programs)
        .check("what a stock flannel left is replaced", stock)
        .check("from nftables to iptables and back: pods are masqueraded at every moment", switch)
        .check("A3.12 a legacy FORWARD policy of DROP that comes later is opened too", a3_12_legacy_later)
        .check("legacy iptables where Kubernetes uses that", legacy)
        .check("legacy rules are restored by looking", legacy_repair)
        .check("A3.12 a legacy FORWARD policy of DROP: pods reach each other", a3_12_legacy_forward)
        .check("cleanup of legacy chains", legacy_cleanup)
        .checks()
}

struct Lab(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        Ok(Self(Cluster::builder().nodes(2).pods_per_node(1).nftables().start()?))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn table(node: &Node) -> Result<String> {
    node.ns().command("nft").args(["list", "table", "ip", "flannel-ipv4"]).run()
}

fn wait_golden(node: &Node) -> Result<Duration> {
    wait::until_true("the table is flannel's", || Ok(table(node)? == FLANNEL))
        .with_context(|| table(node).unwrap_or_default())
}

fn golden(lab: &mut Lab, _: &Notes) -> Result<()> {
    let node = lab.0.node("n1")?;
    let listed = table(node)?;
    ensure!(listed == FLANNEL, "{listed}");
    ensure!(!node.iptables_save("iptables-nft-save")?.contains("FLANNEL"), "chains in iptables too");
    connected(&lab.0)
}

fn repaired(lab: &mut Lab, notes: &Notes, breaks: &str) -> Result<()> {
    let node = lab.0.node("n1")?;
    let repairs = || {
        Ok::<_, anyhow::Error>(
            node.daemon()?.metrics()?.sum("loden_repairs_total", &[("object", "firewall")]),
        )
    };
    wait_golden(node)?;
    let before = repairs()?;
    node.ns().nft(breaks)?;
    notes.took(&format!("restored after `nft {breaks}`"), wait_golden(node)?);
    wait::until_true("the repair is counted", || Ok(repairs()? > before))?;
    connected(&lab.0)
}

fn ready_says(node: &Node, part: &str) -> Result<()> {
    let said = wait::until_true(part, || {
        let answer = node.daemon()?.get("/readyz")?;
        Ok(answer.status == 200 && answer.body.contains(part))
    });
    said.map(drop)
        .with_context(|| node.daemon().and_then(|d| d.get("/readyz")).map(|r| r.body).unwrap_or_default())
}

fn a3_12_forward_drop(lab: &mut Lab, _: &Notes) -> Result<()> {
    let node = lab.0.node("n1")?;
    // firewalld's and an admin's own: in nftables nobody can overrule them.
    for rules in ["policy drop", "policy accept\n counter reject with icmpx admin-prohibited"] {
        node.ns().nft(&format!(
            "table inet other {{\n chain transit {{\n type filter hook forward priority 10\n {rules}\n }}\n}}"
        ))?;
        ready_says(node, "chain inet other transit")?;
        node.ns().nft("delete table inet other")?;
        ready_says(node, "flanneld is ready")?;
    }
    // Docker's: iptables' own FORWARD is opened from within.
    for name in ["n1", "n2"] {
        lab.0.node(name)?.ns().command("iptables-nft").args(["-P", "FORWARD", "DROP"]).run()?;
    }
    for name in ["n1", "n2"] {
        let node = lab.0.node(name)?;
        wait::until_true("FORWARD is opened", || {
            Ok(node.iptables_save("iptables-nft-save")?.contains("FLANNEL-FWD"))
        })?;
        ready_says(node, "flanneld is ready")?;
        ensure!(!node.iptables_save("iptables-nft-save")?.contains("MASQUERADE"), "masqueraded twice");
    }
    connected(&lab.0)?;
    for name in ["n1", "n2"] {
        lab.0.node(name)?.ns().command("iptables-nft").args(["-P", "FORWARD", "ACCEPT"]).run()?;
    }
    let node = lab.0.node("n1")?;
    wait::until_true("the chain goes with its reason", || {
        Ok(!node.iptables_save("iptables-nft-save")?.contains("FLANNEL"))
    })?;
    wait_golden(node).map(drop)
}

fn restart(lab: &mut Lab) -> Result<()> {
    lab.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    lab.0.start_daemon("n1")?;
    lab.0.node_mut("n1")?.daemon_mut()?.wait_ready().map(drop)
}

/// No program is to be found.
fn no_program(command: NsCommand) -> NsCommand {
    command.without_dir(c"/usr/sbin").env("PATH", "/nonexistent")
}

fn without_programs(lab: &mut Lab, _: &Notes) -> Result<()> {
    lab.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    lab.0.node("n1")?.ns().nft("delete table ip flannel-ipv4")?;
    let daemon = lab.0.launch("n1")?.shape(no_program).spawn()?;
    lab.0.node_mut("n1")?.adopt(daemon).wait_ready()?;
    wait_golden(lab.0.node("n1")?)?;
    connected(&lab.0)?;
    // Chains in iptables over nf_tables go all the same; a DROP there can only be named.
    lab.0.node("n1")?.ns().command("iptables-nft").args(["-N", "FLANNEL-FWD"]).run()?;
    let node = lab.0.node("n1")?;
    wait::until_true("a left chain goes", || {
        Ok(!node.iptables_save("iptables-nft-save")?.contains("FLANNEL"))
    })?;
    node.ns().command("iptables-nft").args(["-P", "FORWARD", "DROP"]).run()?;
    ready_says(node, "FORWARD policy DROP")?;
    node.ns().command("iptables-nft").args(["-P", "FORWARD", "ACCEPT"]).run()?;
    restart(lab)
}

/// Our tables are written, repaired and removed by netlink. Only a chain of iptables' own that drops, and that can be
/// opened from within, is a reason to run a program.
fn no_programs(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let node = lab.0.node("n1")?;
    let tracer = Tracer::attach(node)?;
    node.ns().nft("flush table ip flannel-ipv4")?;
    wait_golden(node)?;
    node.ns().nft("delete table ip flannel-ipv4")?;
    wait_golden(node)?;
    node.ns().command("iptables-nft").args(["-t", "nat", "-N", "KUBE-MARK-MASQ"]).run()?;
    std::thread::sleep(Duration::from_secs(6));
    let run = tracer.programs()?;
    notes.add(format!("programs run in nftables mode: {}", run.len()));
    ensure!(run.is_empty(), "{run:?}");
    // The tracer does see them when there are some.
    node.ns().command("iptables-nft").args(["-P", "FORWARD", "DROP"]).run()?;
    wait::until_true("iptables is run to open a chain", || Ok(!tracer.programs()?.is_empty()))?;
    node.ns().command("iptables-nft").args(["-P", "FORWARD", "ACCEPT"]).run()?;
    node.ns().command("iptables-nft").args(["-t", "nat", "-X", "KUBE-MARK-MASQ"]).run()?;
    wait::until_true("the chain is closed again", || {
        Ok(!node.iptables_save("iptables-nft-save")?.contains("FLANNEL"))
    })
    .map(drop)
}

fn stock(lab: &mut Lab, _: &Notes) -> Result<()> {
    lab.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    lab.0.node("n1")?.ns().nft(&format!("delete table ip flannel-ipv4\n{STOCK}"))?;
    lab.0.start_daemon("n1")?;
    lab.0.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    let node = lab.0.node("n1")?;
    wait_golden(node)?;
    let tables = node.ns().command("nft").args(["list", "tables"]).run()?;
    ensure!(!tables.contains("flannel-ipv6"), "an empty table is left: {tables}");
    Ok(())
}

/// Whether pods' packets to the outside are masqueraded, looked at again and again by somebody else.
fn masqueraded(node: &Node) -> Result<bool> {
    let rules = node.ns().command("nft").args(["list", "ruleset"]).run()?;
    Ok(rules.contains("ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4") && rules.contains("masquerade"))
}

fn switch(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let (stop, ns) = (Arc::new(AtomicBool::new(false)), lab.0.node("n1")?.ns().clone());
    let looker = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || -> Result<(u32, u32)> {
            let (mut looks, mut bare) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let rules = ns.command("nft").args(["list", "ruleset"]).run()?;
                looks += 1;
                bare += u32::from(!rules.contains("10.244.0.0/16 ip daddr != 224.0.0.0/4"));
            }
            Ok((looks, bare))
        }
    });
    for nftables in [false, true, false, true] {
        lab.0.set_nftables(nftables)?;
        restart(lab)?;
        let node = lab.0.node("n1")?;
        let chains = node.iptables_save("iptables-nft-save")?.contains("FLANNEL");
        let tables = node.ns().command("nft").args(["list", "tables"]).run()?.contains("flannel-ipv4");
        ensure!((chains, tables) == (!nftables, nftables), "EnableNFTables {nftables}: {chains}, {tables}");
        ensure!(masqueraded(node)?);
        connected(&lab.0)?;
    }
    stop.store(true, Ordering::Relaxed);
    let (looks, bare) = looker.join().map_err(|_| anyhow::anyhow!("the looker panicked"))??;
    notes.add(format!("four switches of managers: masquerading missing in {bare} of {looks} looks"));
    ensure!(bare == 0 && looks > 20, "{bare} of {looks}");
    Ok(())
}

/// Makes n1 a machine on which Kubernetes uses legacy iptables.
fn be_legacy(lab: &mut Lab) -> Result<()> {
    lab.0.set_nftables(false)?;
    lab.0.node("n1")?.ns().command("iptables-legacy-restore").arg("--noflush").input(KUBE_LEGACY).run()?;
    restart(lab)
}

fn legacy(lab: &mut Lab, _: &Notes) -> Result<()> {
    be_legacy(lab)?;
    let node = lab.0.node("n1")?;
    let saved = node.iptables_save(LEGACY_SAVE)?;
    let mine = saved.lines().filter(|line| line.contains("FLANNEL")).count();
    ensure!(mine == 12, "{mine} lines of ours in\n{saved}");
    ensure!(!node.iptables_save("iptables-nft-save")?.contains("FLANNEL"), "rules in nf_tables too");
    ensure!(node.daemon()?.log()?.contains("variant=legacy"), "the choice is not said");
    let labels = [("manager", "iptables"), ("variant", "legacy")];
    ensure!(node.daemon()?.metrics()?.sum("loden_rules_info", &labels) == 1.0, "the metric does not say it");
    ensure!(node.flanneld(&["routes"])?.run()?.contains("rules in iptables (legacy)"));
    node.flanneld(&["verify"])?.run()?;
    connected(&lab.0)
}

fn legacy_repair(lab: &mut Lab, notes: &Notes) -> Result<()> {
    be_legacy(lab)?;
    let node = lab.0.node("n1")?;
    let before = node.iptables_save(LEGACY_SAVE)?;
    for breaks in ["-t nat -F FLANNEL-POSTRTG", "-D FORWARD 1", "-t nat -F"] {
        node.ns().command("iptables-legacy").args(breaks.split(' ')).run()?;
        let restored = || {
            let now = node.iptables_save(LEGACY_SAVE)?;
            let ours = |text: &str| {
                text.lines().filter(|line| line.contains("FLANNEL")).map(str::to_owned).collect::<Vec<_>>()
            };
            Ok(ours(&now) == ours(&before))
        };
        notes.took(
            &format!("legacy: restored after `{breaks}`"),
            wait::until_true("legacy rules are restored", restored)?,
        );
    }
    connected(&lab.0)
}

/// Nobody is told of it, and until then this machine had no table of legacy iptables at all.
fn a3_12_legacy_later(lab: &mut Lab, notes: &Notes) -> Result<()> {
    lab.0.set_nftables(true)?;
    restart(lab)?;
    connected(&lab.0)?;
    let node = lab.0.node("n1")?;
    let legacy =
        |arguments: &str| node.ns().command("iptables-legacy").args(arguments.split(' ')).run().map(drop);
    let opened = || Ok(node.iptables_save(LEGACY_SAVE)?.contains("-A FLANNEL-FWD"));
    let tables = node.ns().run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")?))?;
    ensure!(tables.is_empty(), "not the first: {tables}");
    legacy("-P FORWARD DROP")?;
    notes.took("a legacy FORWARD policy of DROP is opened after", wait::until_true("it is opened", opened)?);
    connected(&lab.0)?;
    ready_says(node, "flanneld is ready")?;
    ensure!(!node.iptables_save(LEGACY_SAVE)?.contains("MASQUERADE"), "masqueraded twice");
    legacy("-P FORWARD ACCEPT")?;
    wait::until_true("the chain goes with its reason", || Ok(!opened()?)).map(drop)
}

fn a3_12_legacy_forward(lab: &mut Lab, _: &Notes) -> Result<()> {
    be_legacy(lab)?;
    lab.0.node("n1")?.ns().command("iptables-legacy").args(["-P", "FORWARD", "DROP"]).run()?;
    connected(&lab.0)?;
    ready_says(lab.0.node("n1")?, "flanneld is ready")?;
    // The same in nftables mode: opened from within, and still not masqueraded twice.
    lab.0.set_nftables(true)?;
    restart(lab)?;
    let node = lab.0.node("n1")?;
    wait::until_true("FORWARD is opened", || {
        Ok(node.iptables_save(LEGACY_SAVE)?.contains("-A FLANNEL-FWD"))
    })?;
    ensure!(!node.iptables_save(LEGACY_SAVE)?.contains("MASQUERADE"), "masqueraded twice");
    connected(&lab.0)?;
    lab.0.node("n1")?.ns().command("iptables-legacy").args(["-P", "FORWARD", "ACCEPT"]).run()?;
    lab.0.set_nftables(false)?;
    restart(lab)
}

fn legacy_cleanup(lab: &mut Lab, _: &Notes) -> Result<()> {
    be_legacy(lab)?;
    lab.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let node = lab.0.node("n1")?;
    node.flanneld(&["cleanup"])?.run()?;
    let saved = node.iptables_save(LEGACY_SAVE)?;
    ensure!(!saved.contains("FLANNEL") && saved.contains("KUBE-MARK-MASQ"), "{saved}");
    Ok(())
}
