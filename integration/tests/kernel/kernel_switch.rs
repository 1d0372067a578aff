//! A3.13: every switch of backend and of who keeps the rules leaves nothing of the old one, uninstalling leaves nothing
//! at all, and what belongs to others is the same before and after.

use anyhow::{Context, Result, ensure};
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families, NETWORK, NETWORK6, Node};
use nix::sys::signal::Signal;

const VXLAN: &str = r#"{"Type": "vxlan"}"#;
const HOST_GW: &str = r#"{"Type": "host-gw"}"#;
const UDP: &str = r#"{"Type": "udp"}"#;
const DIRECT: &str = r#"{"Type": "vxlan", "DirectRouting": true}"#;

/// Who keeps the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Iptables,
    Legacy,
    Nftables,
}

/// In this order every backend follows every other, and every keeper of rules every other.
const STEPS: [(&str, Rules); 9] = [
    (VXLAN, Rules::Iptables),
    (HOST_GW, Rules::Nftables),
    (VXLAN, Rules::Legacy),
    (UDP, Rules::Iptables),
    (VXLAN, Rules::Nftables),
    (UDP, Rules::Legacy),
    (HOST_GW, Rules::Iptables),
    (UDP, Rules::Nftables),
    (HOST_GW, Rules::Legacy),
];

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check(
            "A3.13 switches leave nothing of the last backend or rules, and what is not ours stays",
            |(), notes| switches(notes),
        )
        .check("a family that is disabled leaves nothing", |(), _| one_family())
        .check("A3.13 uninstalling leaves nothing of ours, whatever ran last", |(), notes| uninstall(notes))
        .checks()
}

fn cluster() -> Result<Cluster> {
    let cluster =
        Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).families(Families::Dual).build()?;
    foreign(cluster.node("n1")?)?;
    Ok(cluster)
}

/// Things of others of every kind that we also make.
fn foreign(node: &Node) -> Result<()> {
    node.ns().ip(
        "link add vxlan77 type vxlan id 77 dstport 4790 dev eth0\nlink set vxlan77 up\n\
         address add 172.30.0.1/24 dev vxlan77\nneigh add 172.30.0.9 lladdr 02:00:00:00:00:77 dev vxlan77 nud permanent\n\
         route add 172.31.0.0/16 via 192.168.77.254\nroute add 10.244.200.0/24 via 192.168.77.254 proto static\n\
         route add blackhole 10.250.0.0/16",
    )?;
    node.ns().nft(
        "table inet other { set s { type ipv4_addr\nelements = { 192.0.2.1 }\n}\n\
         chain c { type filter hook input priority 5\nip saddr @s drop\n}\n}",
    )?;
    for program in [
        "iptables-nft-restore",
        "iptables-legacy-restore",
        "ip6tables-nft-restore",
        "ip6tables-legacy-restore",
    ] {
        let host = if program.starts_with("ip6") { "2001:db8::1" } else { "192.0.2.1" };
        let rules = format!(
            "*filter\n:OTHER - [0:0]\n-A FORWARD -j OTHER\n-A OTHER -s {host} -j ACCEPT\n-A INPUT -s {host} -j DROP\nCOMMIT\n\
             *nat\n:OTHER - [0:0]\n-A POSTROUTING -j OTHER\n-A OTHER -d {host} -j RETURN\nCOMMIT\n"
        );
        node.ns().command(program).arg("--noflush").input(rules).run()?;
    }
    Ok(())
}

/// Everything that a daemon could have made or touched, a line each, ours and others', without what counts or changes by
/// itself.
fn inventory(node: &Node) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut add = |what: &str, text: String| {
        let lines_of = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(lines_of.map(|line| format!("{what}: {line}")));
    };
    add("link", node.ns().ip_show("-brief link show")?);
    add(
        "alias",
        node.ns().ip_show("-details link show")?.lines().filter(|l| l.contains(" alias ")).collect(),
    );
    for family in ["-4", "-6"] {
        add("address", node.ns().ip_show(&format!("{family} -oneline address show scope global"))?);
        add("route", node.ns().ip_show(&format!("{family} route show table all"))?);
        add("rule", node.ns().ip_show(&format!("{family} rule show"))?);
        add("neighbour", node.ns().ip_show(&format!("{family} neigh show nud permanent"))?);
    }
    add("fdb", node.ns().command("bridge").args(["fdb", "show"]).run()?);
    add("nft", node.ns().command("nft").args(["--stateless", "list", "ruleset"]).run()?);
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let saved = node.ns().command(program).run()?;
        add(
            program,
            saved.lines().map(|line| format!("{}\n", line.split(" [").next().unwrap_or(line))).collect(),
        );
    }
    Ok(lines)
}

/// Words by which things of ours are known: devices, chains, tables, and what leads to peers' pods.
const OURS: [&str; 9] = [
    "flannel",
    "FLANNEL",
    "proto 76",
    "loden",
    "tunnel's doors",
    "10.244.2.",
    "fd00:10:244:2:",
    "0e:10:24:4a",
    "10.244.1.0/32",
];

/// Parts of the inventory that are ours, and all others. In nftables a table's lines belong together.
fn split(node: &Node) -> Result<(Vec<String>, Vec<String>)> {
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    let mut table_is_ours = false;
    let mut chain_is_ours = false;
    for line in inventory(node)? {
        if line.starts_with("nft: table ") {
            table_is_ours = line.contains("flannel") || line.contains("inet loden");
        }
        if line.starts_with("nft: chain ") {
            chain_is_ours = line.contains("FLANNEL");
        }
        let inside = line.starts_with("nft: ") && (table_is_ours || chain_is_ours);
        if inside || OURS.iter().any(|word| line.contains(word)) {
            ours.push(line);
        } else {
            others.push(line);
        }
        if chain_is_ours && ours.last().is_some_and(|last| last == "nft: }") {
            chain_is_ours = false;
        }
    }
    // What iptables leaves of its own tables, once somebody made a chain in them, says nothing.
    others.retain(|line| !["nft: }", "nft: {"].contains(&line.as_str()));
    Ok((ours, others))
}

/// Which kinds of things of ours there are.
fn kinds(ours: &[String]) -> Vec<&'static str> {
    let all = [
        ("flannel.1", "link: flannel.1"),
        ("flannel-v6.1", "link: flannel-v6.1"),
        ("flannel0", "link: flannel0"),
        ("forwarding entries", "fdb: 0e:10:24:4a"),
        ("neighbours", "neighbour: 10.244.2.0 dev flannel.1"),
        ("routes by flannel.1", "via 10.244.2.0 dev flannel.1 proto 76"),
        ("routes by eth0", "route: 10.244.2.0/24 via 192.168.77.2 dev eth0 proto 76"),
        ("IPv6 routes by eth0", "route: fd00:10:244:2::/64 via fd00:77::2 dev eth0 proto 76"),
        ("route by flannel0", "route: 10.244.0.0/16 dev flannel0 proto 76"),
        ("chains in nf_tables", "nft: chain FLANNEL-POSTRTG"),
        ("chains in legacy", "iptables-legacy-save: :FLANNEL-POSTRTG"),
        ("IPv6 chains in legacy", "ip6tables-legacy-save: :FLANNEL-POSTRTG"),
        ("flannel's table", "nft: table ip flannel-ipv4"),
        ("flannel's IPv6 table", "nft: table ip6 flannel-ipv6"),
        ("doors", "nft: table inet loden"),
    ];
    all.into_iter()
        .filter(|(_, sign)| ours.iter().any(|line| line.contains(sign)))
        .map(|(kind, _)| kind)
        .collect()
}

fn wanted(backend: &str, rules: Rules) -> Vec<&'static str> {
    let mut wanted = match backend {
        VXLAN => vec!["flannel.1", "flannel-v6.1", "forwarding entries", "neighbours", "routes by flannel.1"],
        HOST_GW => vec!["routes by eth0", "IPv6 routes by eth0"],
        _ => vec!["flannel0", "route by flannel0"],
    };
    match rules {
        Rules::Iptables => wanted.push("chains in nf_tables"),
        Rules::Legacy => wanted.extend(["chains in legacy", "IPv6 chains in legacy"]),
        Rules::Nftables => wanted.extend(["flannel's table", "flannel's IPv6 table"]),
    }
    if backend != HOST_GW {
        wanted.push("doors");
    }
    wanted
}

/// Has both nodes run another backend with other rules, from a start.
fn switch(cluster: &mut Cluster, backend: &str, rules: Rules) -> Result<()> {
    for name in ["n1", "n2"] {
        if cluster.node(name)?.daemon().is_ok() {
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        }
        // Legacy iptables is used where Kubernetes has its chains in it.
        let node = cluster.node(name)?;
        let sign = |program: &str, verb: &str| {
            node.ns().command(program).args(["-t", "nat", verb, "KUBE-MARK-MASQ"]).output().map(drop)
        };
        sign("iptables-legacy", if rules == Rules::Legacy { "-N" } else { "-X" })?;
    }
    let mut manifests = cluster.manifests();
    if backend != VXLAN {
        // What a daemon would write: without it a node takes no IPv6 in the UDP backend.
        let caps = r#"{"version":"9","MTU":1430,"capabilities":["ipv6"]}"#;
        for node in &mut manifests {
            node.annotations = vec![("flannel.alpha.coreos.com/loden".into(), caps.into())];
        }
    }
    cluster.publish_only(&manifests)?;
    configure(cluster, backend, rules, Families::Dual)?;
    cluster.start_daemons()?;
    cluster.attach_pods()
}

fn configure(cluster: &Cluster, backend: &str, rules: Rules, families: Families) -> Result<()> {
    let (v4, v6, nftables) = (families.v4(), families.v6(), rules == Rules::Nftables);
    let conf = format!(
        r#"{{"EnableIPv4": {v4}, "Network": "{NETWORK}", "EnableIPv6": {v6}, "IPv6Network": "{NETWORK6}",
            "EnableNFTables": {nftables}, "Backend": {backend}}}"#
    );
    Ok(std::fs::write(cluster.dir().join("net-conf.json"), conf)?)
}

/// What carried a family goes when that is disabled, with the backend that carried it or another.
fn one_family() -> Result<()> {
    const SIGNS4: [&str; 4] = ["flannel.1 ", "10.244.2.", "10.244.1.0/32", "table ip flannel"];
    const SIGNS6: [&str; 4] = ["flannel-v6.1", "fd00:10:244:2:", "blackhole fd00", "table ip6 flannel"];
    let cases = [(VXLAN, VXLAN), (VXLAN, UDP), (DIRECT, DIRECT), (HOST_GW, HOST_GW), (HOST_GW, VXLAN)];
    let mut cluster = cluster()?;
    switch(&mut cluster, VXLAN, Rules::Iptables)?;
    let before = split(cluster.node("n1")?)?.1;
    for (number, (carried, backend)) in cases.into_iter().enumerate() {
        // UDP has one device for both families, so the first case alone has another family left.
        let (left, gone) = if number == 0 { (Families::V6, SIGNS4) } else { (Families::V4, SIGNS6) };
        let rules = if number % 2 == 0 { Rules::Iptables } else { Rules::Nftables };
        let context = || format!("{carried}, then {backend} with {left:?} only, {rules:?}");
        switch(&mut cluster, carried, rules).with_context(context)?;
        let node = cluster.node_mut("n1")?;
        node.stop_daemon(Signal::SIGTERM)?;
        let has = |node: &Node| -> Result<String> {
            let lines = split(node)?.0;
            let lines = lines.iter().filter(|line| gone.iter().any(|sign| line.contains(sign)));
            Ok(lines.fold(String::new(), |text, line| text + line + "\n"))
        };
        ensure!(!has(node)?.is_empty(), "{}: there was nothing before", context());
        configure(&cluster, backend, rules, left)?;
        cluster.start_daemon("n1")?;
        cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
        let node = cluster.node("n1")?;
        let remains = has(node)?;
        ensure!(remains.is_empty(), "{}: left behind:\n{remains}", context());
        let save = if left == Families::V4 { "ip6tables-nft-save" } else { "iptables-nft-save" };
        ensure!(!node.iptables_save(save)?.contains("FLANNEL"), "{}: chains are left", context());
        same(&before, &split(node)?.1).with_context(context)?;
    }
    Ok(())
}

fn switches(notes: &Notes) -> Result<()> {
    let mut cluster = cluster()?;
    switch(&mut cluster, VXLAN, Rules::Iptables)?;
    let before = split(cluster.node("n1")?)?.1;
    for (backend, rules) in STEPS.into_iter().chain(STEPS.into_iter().rev()) {
        switch(&mut cluster, backend, rules)?;
        let context = || format!("{backend}, {rules:?}");
        let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
        reach::check(Source::Pod(here), there).with_context(context)?;
        reach::check(Source::Pod(there), here).with_context(context)?;
        let (ours, mut others) = split(cluster.node("n1")?)?;
        let (mut have, mut want) = (kinds(&ours), wanted(backend, rules));
        have.sort_unstable();
        want.sort_unstable();
        ensure!(have == want, "{}: there is {have:?} instead of {want:?}\n{}", context(), ours.join("\n"));
        others.retain(|line| !line.contains("KUBE-MARK-MASQ"));
        same(&before, &others).with_context(context)?;
    }
    notes.add(format!(
        "{} switches between three backends and three keepers of rules: 0 objects of the last one, {} lines of others \
         unchanged",
        STEPS.len() * 2,
        before.len()
    ));
    Ok(())
}

/// The others' things, but for pods' links and the addresses of neighbours, which come with pods.
fn same(before: &[String], after: &[String]) -> Result<()> {
    let stable = |lines: &[String]| -> Vec<String> {
        let pods = |line: &&String| !line.contains("veth") && !line.contains("cni0");
        lines.iter().filter(pods).cloned().collect()
    };
    let (before, after) = (stable(before), stable(after));
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let come: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    ensure!(gone.is_empty() && come.is_empty(), "gone: {gone:#?}\ncome: {come:#?}");
    Ok(())
}

fn uninstall(notes: &Notes) -> Result<()> {
    let mut cluster = cluster()?;
    let before = inventory(cluster.node("n1")?)?;
    for (backend, rules) in [(VXLAN, Rules::Iptables), (HOST_GW, Rules::Nftables), (UDP, Rules::Legacy)] {
        switch(&mut cluster, backend, rules)?;
        for name in ["n1", "n2"] {
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
            cluster.node(name)?.flanneld(&["cleanup"])?.run()?;
        }
        let node = cluster.node("n1")?;
        ensure!(!node.subnet_file().exists(), "subnet.env is left");
        let left = split(node)?.0;
        ensure!(left.is_empty(), "{backend}, {rules:?}: left behind:\n{}", left.join("\n"));
        let mut others = inventory(node)?;
        others.retain(|line| !line.contains("KUBE-MARK-MASQ"));
        same(&before, &others).with_context(|| format!("{backend}, {rules:?}"))?;
        // Once more finds nothing, and is no error.
        node.flanneld(&["cleanup"])?.run()?;
    }
    notes.add(format!("three uninstalls: nothing of ours, {} lines of others unchanged", before.len()));
    Ok(())
}
