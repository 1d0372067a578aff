//! `flanneld verify`: what the kernel holds beside what it should, traffic rules and doors included.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::daemon;
use integration::process::{NsCommand, find_program};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use loden::adapter::netlink::blocking::Socket;
use loden::adapter::netlink::wire::Nfnetlink;
use loden::adapter::nft::tables;
use loden::plan::firewall::guard;
use loden::tables::TableName;
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableFlags, TableMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use serde_json::Value;

/// Where n1's daemon finds its programs, until they are taken away.
const PROGRAMS: &str = "/run/lab/verify-programs";

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("all is as it should be: exit 0, and it says who keeps the rules", in_order)
        .check("chains that somebody deleted, where iptables cannot be run any more", |lab, _| {
            let breaks = ["-t", "nat", "-F", "FLANNEL-POSTRTG"];
            lab.broken("ip6tables-nft-save", "chains FLANNEL-POSTRTG and FLANNEL-FWD in force", |node| {
                node.ns().command("iptables-nft").args(breaks).run().map(drop)
            })
        })
        .check("a table of doors that belongs to another program", |lab, _| {
            let theirs = take_doors(lab.0.node("n1")?)?;
            let step = "table inet loden in force (what is there is not what was written)";
            lab.named(step, || {
                drop(theirs);
                Ok(())
            })
        })
        .checks()
}

struct Lab(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        let builder = Cluster::builder().nodes(2).pods_per_node(1).backend(r#"{"Type": "vxlan"}"#);
        let mut cluster = builder.families(Families::Dual).start()?;
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                lend(&format!("{family}-nft{verb}"))?;
            }
        }
        cluster.node_mut("n1")?.stop_daemon(nix::sys::signal::Signal::SIGTERM)?;
        let daemon = cluster.launch("n1")?.shape(lent_only).spawn()?;
        cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
        Ok(Self(cluster))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

/// Puts a table of another owner in the place of the doors: nobody else can change it as long as the socket is there.
fn take_doors(node: &Node) -> Result<Socket<Nfnetlink>> {
    let TableName { family, name } = guard::TABLE;
    let attributes = vec![TableAttribute::Name(name.into()), TableAttribute::Flags(TableFlags::Owner)];
    let header = NetfilterHeader::new(NetfilterProtoFamily::from(family.number()), 0, 0);
    let made = NetfilterMessage::new(header, NfTablesMessage::NewTable(TableMessage { attributes }));
    let mut changes = tables::drop(guard::TABLE);
    changes.push((made, libc::NLM_F_CREATE as u16));
    node.ns().run(|| {
        let mut socket = Socket::open()?;
        socket.commit(&changes)?;
        Ok(socket)
    })
}

fn lend(program: &str) -> Result<()> {
    std::fs::create_dir_all(PROGRAMS)?;
    let from = find_program(program).with_context(|| program.to_owned())?;
    std::fs::copy(from, Path::new(PROGRAMS).join(program))?;
    Ok(())
}

fn lent_only(command: NsCommand) -> NsCommand {
    command.without_dir(c"/usr/sbin").env("PATH", PROGRAMS)
}

/// What it prints, as JSON and for people, and its exit status.
fn verify(node: &Node) -> Result<(Value, String, Option<i32>)> {
    let json = node.flanneld(&["verify", "-o", "json"])?.output()?;
    let text = node.flanneld(&["verify"])?.output()?;
    ensure!(json.status.code() == text.status.code(), "{} and {}", json.status, text.status);
    let view = serde_json::from_slice(&json.stdout).with_context(|| format!("{json:?}"))?;
    Ok((view, String::from_utf8_lossy(&text.stdout).into_owned(), text.status.code()))
}

fn in_order(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let node = lab.0.node("n1")?;
    let (view, text, code) = verify(node)?;
    notes.add(text.replace('\n', "\n    "));
    ensure!(code == Some(0) && view["differences"].as_array().is_some_and(Vec::is_empty), "{text}");
    ensure!(text.ends_with("the kernel holds what it should\n"), "{text}");
    // Chains of each family, and the doors.
    ensure!(view["wanted"]["firewall"] == 3, "{view}");
    for place in ["iptables (nf_tables) chains", "ip6tables (nf_tables) chains", "nftables table inet loden"]
    {
        ensure!(text.contains(&format!("rules in {place}")), "{place} is missing in\n{text}");
    }
    let table = node.flanneld(&["routes"])?.run()?;
    ensure!(table.contains(" · rules in iptables (nf_tables)\n"), "{table}");
    let labels = [("manager", "iptables"), ("variant", "nf_tables")];
    ensure!(node.daemon()?.metrics()?.sum("loden_rules_info", &labels) == 1.0);
    Ok(())
}

impl Lab {
    /// Breaks something that the daemon cannot put right without `program`, and requires that it is named with the
    /// reason, until the program is back.
    fn broken(&self, program: &str, step: &str, breaks: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
        let node = self.0.node("n1")?;
        for program in [program, &program.replace("ip6", "ip")] {
            std::fs::remove_file(Path::new(PROGRAMS).join(program)).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        breaks(node)?;
        self.named(step, || {
            for program in [program, &program.replace("ip6", "ip")] {
                lend(program)?;
            }
            Ok(())
        })
    }

    /// Requires that a step which the daemon cannot take is named with the reason, and that the command which it gives
    /// takes it once `mends` has cleared the way.
    fn named(&self, step: &str, mends: impl FnOnce() -> Result<()>) -> Result<()> {
        let node = self.0.node("n1")?;
        let mut by_hand = String::new();
        wait::until_true("the daemon says why it cannot", || {
            let (view, text, code) = verify(node)?;
            let differences = view["differences"].as_array().context("differences")?;
            ensure!(code == Some(1) && differences.len() == 1, "exit {code:?}: {text}");
            let said = text.contains(step) && differences[0]["object"] == "firewall";
            ensure!(said && text.contains("the daemon tried: "), "{text}");
            ensure!(text.contains("  by hand: flanneld verify --repair "), "{text}");
            by_hand = differences[0]["command"].as_str().unwrap_or_default().to_owned();
            Ok(true)
        })?;
        let words = by_hand.split(' ').skip(1);
        let repair = || node.ns().command(daemon::binary()?).args(words.clone()).output();
        mends()?;
        wait::until_true("the command has it put right", || Ok(repair()?.status.code() == Some(0))).map(drop)
    }
}
