//! What our tables become in the kernel: each rule and set that is written by netlink stands there octet for octet as
//! when `nft` writes it from the same text.

mod dump;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use encap::{Family as Ip, Prefix, Vni};
use integration::netns::Netns;
use integration::suite::{Checks, Notes, Suite};
use loden::adapter::firewall::Firewall;
use loden::adapter::nft::tables;
use loden::plan::firewall::{
    Check, FirewallOp, FirewallState, Guard, Masquerade, OWN_TABLES, Rules, Senders, guard, nftables,
};
use loden::tables::{
    AddressType, Base, Chain, Data, Direction, Element, ElementChange, Family, Field, Header, HeldTable,
    Hook, Limit, NatFlags, OwnTable, Policy, Raw, Rule, Set, SetMark, State, Statement, Table, TableName,
    TableOp, To, Transport, Type, Verdict, accept, concatenated, count, count_in, ct_daddr, ct_direction,
    ct_mark, ct_saddr, ct_state, ct_status, daddr, daddr_in, daddr_not_in, daddr_type, dnat, dport, drop,
    goto, iifname, jump, l4proto, limit, mark, masquerade, nfproto, notrack, oifname, priority, raw,
    redirect, returns, rule, saddr, saddr_in, saddr_not_in, saddr_type, snat, sport, vmap,
};

use self::dump::{commit, compare, is_as_nft_writes_it};

pub(super) fn suite() -> Checks {
    Suite::<()>::without_daemon()
        .check("rules", rules)
        .check("rules that translate, of each family", translation)
        .check("sets: elements, ranges, keys of several parts, timeouts", sets)
        .check("maps", maps)
        .check("a thousand elements", many)
        .check("a table takes the place of another in one go, and goes", replaced)
        .check("elements change, and the table stays", elements_change)
        .check("what the kernel refuses leaves everything as it was", refused)
        .check("flannel's tables, of each family and in each variant", flannels)
        .check("the tunnel's doors", doors)
        .check("a second table of ours is recognised, repaired and removed as ours", second)
        .checks()
}

const INET: TableName = TableName { family: Family::Inet, name: "example" };

fn table(name: TableName, sets: Vec<Set>, chains: Vec<Chain>) -> Table {
    Table { comment: Some("for people"), counters: vec!["met"], sets, chains, ..Table::new(name) }
}

fn udp() -> Statement {
    l4proto().is(17_u8)
}

fn rules(_: &mut (), _: &Notes) -> Result<()> {
    let addresses = [
        vec![saddr_in("10.244.0.0/16".parse()?), accept()],
        vec![saddr_not_in("10.244.1.0/24".parse()?), daddr_in("10.240.0.0/13".parse()?), accept()],
        vec![saddr_in("0.0.0.0/0".parse()?), daddr_not_in("224.0.0.0/4".parse()?), drop()],
        vec![saddr_in("10.0.0.1/32".parse()?), returns()],
        vec![saddr_in("fd10:244::/48".parse()?), daddr_not_in("fd10:244::/47".parse()?), accept()],
        vec![daddr_in("::/0".parse()?), accept()],
        vec![saddr_in("fd10::1/128".parse()?), daddr_not_in("ff00::/8".parse()?), accept()],
        vec![nfproto().is(Family::Ip6.number()), daddr_in("fd10::/16".parse()?), accept()],
    ];
    let ports = [
        vec![dport(Transport::Udp).is(8472_u16), saddr(Ip::V4).in_set("nodes"), jump("next")],
        vec![dport(Transport::Tcp).between(1000_u16, 2000_u16), accept()],
        vec![dport(Transport::Tcp).not_between(1000_u16, 2000_u16), goto("next")],
        vec![sport(Transport::Sctp).is_not(80_u16), accept()],
        vec![udp(), dport(Transport::Udp).is(53_u16), dport(Transport::Any).is(53_u16), accept()],
        vec![
            // (nft loads two fields that lie side by side at once, so none do here.)
            dport(Transport::Udp).is(1_u16),
            daddr(Ip::V4).not_in_set("nodes"),
            drop(),
        ],
    ];
    let raws = [
        vec![raw(Header::Transport, 12, 24).is(1_u32), accept()],
        vec![
            raw(Header::Transport, 8, 8).has_all(8),
            raw(Header::Transport, 28, 16).is(0x0800_u16),
            accept(),
        ],
        vec![raw(Header::Transport, 42, 12).is_not(vec![0x0a, 0xf0]), drop()],
        vec![raw(Header::Transport, 38, 45).is_not(vec![0xfd, 0x10, 2, 0x44, 0, 0]), drop()],
        vec![raw(Header::Network, 8, 8).is(64_u8), accept()],
    ];
    let metas = [
        vec![mark().has_all(0x4000), returns()],
        vec![mark().is(1_u32), accept()],
        vec![Statement::SetMark(SetMark::To(0x10))],
        vec![Statement::SetMark(SetMark::With(0x2000))],
        vec![Statement::SetMark(SetMark::ToCtMark)],
        vec![Statement::SetCtMark(5)],
        vec![iifname().is("cni0"), oifname().is_not("lo"), accept()],
        vec![saddr_type().is(AddressType::Local), returns()],
        vec![daddr_type().is_not(AddressType::Multicast), count(), accept()],
    ];
    let connections = [
        vec![ct_state().has_any(&[State::Invalid, State::Untracked][..]), count_in("met"), drop()],
        vec![ct_state().has_any(&[State::New][..]), accept()],
        vec![ct_status().has_any(32_u32), accept()],
        vec![ct_mark().is(1_u32), ct_direction().is(Direction::Reply), accept()],
        vec![ct_saddr(Direction::Original, Ip::V4).in_set("nodes"), accept()],
        vec![ct_saddr(Direction::Reply, Ip::V4).not_in_set("nodes"), accept()],
        vec![ct_daddr(Direction::Original, Ip::V4).is(IpAddr::from([10, 0, 0, 1])), accept()],
    ];
    let rates = [
        vec![limit(10, 5), accept()],
        vec![
            Statement::Limit(Limit { packets: 3, per: Duration::from_secs(60), burst: 7, over: true }),
            drop(),
        ],
        vec![saddr(Ip::V4).update("seen")],
        vec![Statement::Remember {
            anew: false,
            key: saddr(Ip::V4),
            set: "seen".into(),
            timeout: Some(Duration::from_secs(30)),
        }],
    ];
    let lists = [&addresses[..], &ports, &raws, &metas, &connections, &rates];
    let mut all: Vec<Rule> = lists.into_iter().flatten().cloned().map(rule).collect();
    all.push(rule([accept()]).comment("why"));
    let seen = Set {
        dynamic: true,
        timeouts: true,
        timeout: Some(Duration::from_secs(600)),
        size: Some(256),
        ..Set::of("seen", [Type::Ipv4Addr])
    };
    let sets = vec![Set::of("nodes", [Type::Ipv4Addr]), seen];
    let early = Base::filter(Hook::Prerouting, priority::RAW);
    let closed = Base { policy: Policy::Drop, ..Base::filter(Hook::Forward, -7) };
    let chains = vec![
        Chain::base("forward", Base::filter(Hook::Forward, priority::FILTER), all).comment("of all sorts"),
        Chain::base("early", early, vec![rule([udp(), notrack()])]),
        Chain::base("closed", closed, Vec::new()),
        Chain::regular("next", vec![rule([returns()])]),
    ];
    is_as_nft_writes_it(&table(INET, sets, chains))
}

fn translation(_: &mut (), _: &Notes) -> Result<()> {
    let flags = |random, persistent, fully_random| NatFlags { random, persistent, fully_random };
    let plain = NatFlags::default();
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        let four = if family == Family::Ip6 { "fd10:244::/48" } else { "10.244.0.0/16" }.parse::<Prefix>()?;
        let addr = four.addr();
        let before = [
            vec![
                daddr_type().is(AddressType::Local),
                dport(Transport::Tcp).is(8080_u16),
                dnat(addr, Some(80)),
            ],
            vec![udp(), dport(Transport::Any).is(8080_u16), dnat(addr, None)],
            vec![dport(Transport::Tcp).is(90_u16), redirect(Some(8080))],
            vec![dport(Transport::Tcp).is(91_u16), redirect(None)],
        ];
        let after = [
            vec![saddr_in(four), daddr_not_in(four), masquerade(plain)],
            vec![masquerade(flags(false, false, true))],
            vec![mark().has_all(0x2000), masquerade(flags(true, true, false))],
            vec![ct_status().has_any(32_u32), snat(addr, None, plain)],
            vec![dport(Transport::Udp).is(9_u16), snat(addr, Some(10), flags(false, true, false))],
        ];
        let chains = vec![
            Chain::base("before", Base::nat(Hook::Prerouting, priority::DSTNAT), before.map(rule).into()),
            Chain::base("here", Base::nat(Hook::Output, priority::DSTNAT), Vec::new()),
            Chain::base("after", Base::nat(Hook::Postrouting, priority::SRCNAT), after.map(rule).into()),
        ];
        is_as_nft_writes_it(&table(TableName { family, name: "translation" }, Vec::new(), chains))?;
    }
    Ok(())
}

fn octets(addr: &str) -> Result<Vec<u8>> {
    Ok(match addr.parse()? {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    })
}

fn range(first: &str, last: &str) -> Result<Element> {
    Ok(Element::range(octets(first)?, octets(last)?))
}

fn sets(_: &mut (), _: &Notes) -> Result<()> {
    let inner = Field::Raw(Raw { header: Header::Transport, offset: 42, bits: 24 });
    let half = Field::Raw(Raw { header: Header::Transport, offset: 42, bits: 32 });
    let pair = concatenated([&octets("192.168.77.2")?[..], &[10, 244, 2]]);
    let pair6 = concatenated([&octets("fd77::3")?[..], &[10, 244, 3, 0]]);
    let five = Duration::from_secs(300);
    let sets = vec![
        Set::of("nodes4", [Type::Ipv4Addr])
            .with([Element::new(octets("192.168.77.2")?), Element::new(octets("10.0.0.9")?)]),
        Set::of("nodes6", [Type::Ipv6Addr]).with([Element::new(octets("fd77::3")?)]),
        Set::of_fields("pairs44_24", [Field::Saddr(Ip::V4), inner]).with([Element::new(pair)]),
        Set::of_fields("pairs64_25", [Field::Saddr(Ip::V6), half]).with([Element::new(pair6)]),
        Set {
            timeouts: true,
            ..Set::of("guarded", [Type::InetProto]).with([Element::new(vec![17]).lasting(five)])
        },
        Set {
            timeouts: true,
            timeout: Some(Duration::from_secs(3600)),
            comment: Some("an hour"),
            ..Set::of("recent", [Type::Ipv4Addr]).with([Element::new(octets("192.0.2.1")?)])
        },
        Set { interval: true, ..Set::of("empty", [Type::Ipv4Addr]) },
        // The first begins at zero, two follow one another at once, and the last goes to the end.
        Set {
            interval: true,
            ..Set::of("blocks4", [Type::Ipv4Addr]).with([
                range("224.0.0.0", "255.255.255.255")?,
                range("0.0.0.0", "0.255.255.255")?,
                range("10.0.0.0", "10.0.0.127")?,
                range("10.0.0.128", "10.0.0.255")?,
                Element::new(octets("192.0.2.1")?),
                range("198.51.100.3", "198.51.100.9")?,
            ])
        },
        Set {
            interval: true,
            constant: true,
            ..Set::of("blocks6", [Type::Ipv6Addr])
                .with([range("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")?])
        },
        Set {
            constant: true,
            ..Set::of("ports", [Type::InetProto, Type::InetService]).with([
                Element::new(concatenated([&[6][..], &[0, 80]])),
                Element::new(concatenated([&[17][..], &[0, 53]])),
            ])
        },
        Set {
            interval: true,
            ..Set::of("areas", [Type::Ipv4Addr, Type::InetProto, Type::InetService]).with([Element::range(
                concatenated([&[10, 0, 0, 0][..], &[6], &[0, 80]]),
                concatenated([&[10, 255, 255, 255][..], &[6], &[0, 90]]),
            )])
        },
        Set::of("names", [Type::IfName]).with([Element::new(Type::IfName.value("eth0".into()))]),
        Set::of("marks", [Type::Mark]).with([Element::new(Type::Mark.value(0x4000_u32.into()))]),
        Set::of("families", [Type::NfProto]).with([Element::new(vec![Family::Ip.number()])]),
    ];
    let pairs = saddr(Ip::V4).and(raw(Header::Transport, 42, 24));
    let masked = saddr(Ip::V6).and(raw(Header::Transport, 42, 32).masked(0xffff_ff80_u32));
    let lookups = [
        vec![raw(Header::Transport, 28, 16).is(0x0800_u16), pairs.in_set("pairs44_24"), returns()],
        vec![masked.in_set("pairs64_25"), returns()],
        vec![l4proto().in_set("guarded"), l4proto().and(dport(Transport::Any)).in_set("ports"), returns()],
        vec![saddr(Ip::V4).in_set("blocks4"), saddr(Ip::V4).not_in_set("recent"), returns()],
        vec![daddr(Ip::V6).in_set("blocks6"), iifname().in_set("names"), mark().in_set("marks"), returns()],
        vec![nfproto().not_in_set("families"), accept()],
    ];
    let input = Chain::base("input", Base::filter(Hook::Input, priority::RAW), lookups.map(rule).into());
    is_as_nft_writes_it(&table(INET, sets, vec![input]))
}

fn maps(_: &mut (), _: &Notes) -> Result<()> {
    let port = |protocol: u8, port: u16| concatenated([&[protocol][..], &port.to_be_bytes()]);
    let mut to_addresses = Set::of("pods", [Type::InetProto, Type::InetService]);
    to_addresses.to = Some(To::Types(vec![Type::Ipv4Addr, Type::InetService]));
    let pod = concatenated([&[10, 244, 1, 2][..], &[0, 80]]);
    to_addresses.elements = vec![Element { to: Some(Data::Octets(pod)), ..Element::new(port(6, 8080)) }];
    let sets = vec![
        Set::verdicts("chains", [Type::Ipv4Addr]).with([
            Element::new(octets("10.244.1.2")?).to(Verdict::Jump("profile".into())),
            Element::new(octets("10.244.1.3")?).to(Verdict::Drop),
            Element::new(octets("10.244.1.4")?).to(Verdict::Return),
        ]),
        Set::verdicts("ports", [Type::InetProto, Type::InetService])
            .with([Element::new(port(6, 80)).to(Verdict::Goto("profile".into()))]),
        to_addresses,
    ];
    let asked = [
        vec![vmap(saddr(Ip::V4), "chains")],
        vec![vmap(ct_saddr(Direction::Original, Ip::V4), "chains")],
        vec![vmap(l4proto().and(dport(Transport::Any)), "ports")],
    ];
    let chains = vec![
        Chain::regular("profile", vec![rule([count(), accept()])]),
        Chain::base("post", Base::filter(Hook::Postrouting, 95), asked.map(rule).into()),
    ];
    is_as_nft_writes_it(&table(INET, sets, chains))
}

fn many(_: &mut (), _: &Notes) -> Result<()> {
    let elements = (0..1000_u32).map(|number| Element::new((number + (10 << 24)).to_be_bytes().to_vec()));
    let sets = vec![Set::of("nodes4", [Type::Ipv4Addr]).with(elements)];
    is_as_nft_writes_it(&table(INET, sets, Vec::new()))
}

const OTHER: TableName = TableName { family: Family::Inet, name: "other" };

fn one_rule(name: TableName, addr: &str) -> Result<Table> {
    let nodes = Set::of("nodes", [Type::Ipv4Addr]).with([Element::new(octets(addr)?)]);
    let asked = rule([saddr(Ip::V4).in_set("nodes"), count_in("met"), accept()]);
    let chains = vec![Chain::base("input", Base::filter(Hook::Input, priority::FILTER), vec![asked])];
    Ok(table(name, vec![nodes], chains))
}

fn listed(netns: &Netns) -> Result<String> {
    netns.command("nft").args(["list", "tables"]).run()
}

fn replaced(_: &mut (), _: &Notes) -> Result<()> {
    let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
    // What is there before has other chains, other sets under the same names, and a neighbour.
    ours.nft("table inet example { set nodes { type ipv6_addr; }; chain old { drop; }; }")?;
    for netns in [&ours, &theirs] {
        netns.nft("table inet other { chain kept { accept; }; }")?;
    }
    let first = one_rule(INET, "192.0.2.1")?;
    commit(&ours, &tables::put(&first))?;
    let second = one_rule(INET, "192.0.2.2")?;
    commit(&ours, &tables::put(&second))?;
    theirs.nft(&second.to_string())?;
    compare(&ours, &theirs)?;
    // To remove what is not there is no fault.
    for _ in 0..2 {
        commit(&ours, &tables::drop(INET))?;
        ensure!(listed(&ours)? == "table inet other\n", "{}", listed(&ours)?);
    }
    Ok(())
}

fn elements_change(_: &mut (), _: &Notes) -> Result<()> {
    let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
    let before = one_rule(INET, "192.0.2.1")?;
    commit(&ours, &tables::put(&before))?;
    let element = |addr: &str| Ok(("nodes".to_owned(), Element::new(octets(addr)?)));
    let added: Vec<_> = (2..200).map(|last| element(&format!("192.0.2.{last}"))).collect::<Result<_>>()?;
    let change = ElementChange { table: INET, removed: vec![element("192.0.2.1")?], added };
    commit(&ours, &tables::change_elements(&change))?;
    let mut after = before;
    after.sets[0].elements = change.added.iter().map(|(_, element)| element.clone()).collect();
    theirs.nft(&after.to_string())?;
    compare(&ours, &theirs)
}

fn refused(_: &mut (), _: &Notes) -> Result<()> {
    let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
    let held = one_rule(OTHER, "192.0.2.1")?;
    commit(&ours, &tables::put(&held))?;
    theirs.nft(&held.to_string())?;
    let mut wrong = one_rule(OTHER, "192.0.2.2")?;
    wrong.chains[0].rules.push(rule([jump("nowhere")]));
    let error = commit(&ours, &tables::put(&wrong)).err().context("a jump to nowhere was taken")?;
    ensure!(format!("{error:#}").contains("message"), "{error:#}");
    compare(&ours, &theirs)
}

fn flannels(_: &mut (), _: &Notes) -> Result<()> {
    let random = |fully_random| Some(Masquerade { fully_random });
    for (cluster, node) in [
        ("10.244.0.0/16", "10.244.1.0/24"),
        ("fd10:244::/48", "fd10:244:0:1::/64"),
        ("10.240.0.0/13", "10.244.1.0/25"),
    ] {
        for node in [None, Some(node.parse()?)] {
            for masquerade in [None, random(false), random(true)] {
                for forward in [false, true] {
                    let rules = Rules { cluster: cluster.parse()?, node, masquerade, forward };
                    is_as_nft_writes_it(&nftables::table(&rules))?;
                }
            }
        }
    }
    is_as_nft_writes_it(&nftables::fully_random_trial())
}

fn doors_of(nodes: &[(&str, &[&str])]) -> Result<Guard> {
    let parsed = |(addr, prefixes): &(&str, &[&str])| {
        let prefixes =
            prefixes.iter().map(|prefix| Ok(prefix.parse::<Prefix>()?)).collect::<Result<Vec<_>>>()?;
        Ok((addr.parse::<IpAddr>()?, prefixes))
    };
    let nodes = nodes.iter().map(parsed).collect::<Result<Vec<_>>>()?;
    let networks = vec!["10.244.0.0/16".parse()?, "fd10:244::/48".parse()?];
    let check = Check { vni: Vni::new(4096)?, networks, enforce: true };
    Ok(Guard { port: 8472, senders: Senders::new(nodes.into_iter()), untracked: true, check: Some(check) })
}

fn doors(_: &mut (), _: &Notes) -> Result<()> {
    let all: [(&str, &[&str]); 4] = [
        ("192.168.77.2", &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        ("192.168.77.3", &["10.240.0.0/13", "fd10:244:0:3::/63", "fd10:244:0:9::1/128"]),
        ("fd77::3", &["10.244.3.0/25", "10.244.7.9/32", "::/0"]),
        ("192.168.77.4", &["0.0.0.0/0"]),
    ];
    for nodes in [&all[..], &all[..1], &[]] {
        let guard = doors_of(nodes)?;
        let check = guard.check.clone().context("a check")?;
        is_as_nft_writes_it(&guard.table())?;
        is_as_nft_writes_it(&Guard { check: None, ..guard.clone() }.table())?;
        let networks: [&[&str]; 4] = [&["10.244.0.0/12"], &["fd10:244::/45"], &["0.0.0.0/0", "::/0"], &[]];
        for networks in networks {
            let networks = networks.iter().map(|network| Ok(network.parse()?)).collect::<Result<_>>()?;
            let check = Some(Check { enforce: false, networks, ..check.clone() });
            is_as_nft_writes_it(&Guard { check, untracked: false, ..guard.clone() }.table())?;
        }
    }
    Ok(())
}

/// The tables that a daemon with one more than today's knows as its own.
const WITH_ANOTHER: [TableName; 4] = [OWN_TABLES[0], OWN_TABLES[1], OWN_TABLES[2], INET];

fn second(_: &mut (), _: &Notes) -> Result<()> {
    let netns = Netns::new("own")?;
    let inside = netns.clone();
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tokio::task::LocalSet::new().run_until(second_in(inside)))
    })
}

async fn second_in(netns: Netns) -> Result<()> {
    let mut firewall = Firewall::with(Duration::from_secs(3600), &WITH_ANOTHER).await?;
    let doors = doors_of(&[("192.168.77.2", &["10.244.2.0/24"])])?.table();
    let own = |table: Table| OwnTable { table: Arc::new(table), optional: false, elements: "who is known" };
    let one = own(one_rule(INET, "192.0.2.1")?);
    let want = |first: &OwnTable| [own(doors.clone()), first.clone()];
    settle(&mut firewall, &want(&one)).await?;
    // What is not theirs is nothing to them, and is nobody's obstacle: this one drops what is forwarded.
    netns.nft("add chain inet example closed { type filter hook forward priority 0; policy drop; }")?;
    let state = firewall.observe().await?;
    ensure!(
        state.foreign.obstacles.is_empty(),
        "a chain of our own table stands in the way: {:?}",
        state.foreign
    );
    for breaks in [
        "delete chain inet example closed",
        "flush set inet example nodes",
        "add element inet example nodes { 192.0.2.7 }",
        "insert rule inet example input drop",
        "delete table inet example",
        "flush ruleset",
    ] {
        netns.nft(breaks)?;
        let state = firewall.observe().await?;
        let held = state.tables.get(&INET);
        ensure!(
            breaks.contains("closed") || !matches!(held, Some(HeldTable::InForce(_))),
            "{breaks}: unnoticed"
        );
        settle(&mut firewall, &want(&one)).await?;
    }
    // Elements alone change: the table, and what its counters have counted, stays.
    let handles = || netns.command("nft").args(["-a", "list", "table", "inet", "example"]).run();
    let rules = |listed: String| {
        listed.lines().filter(|line| line.contains("handle")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules(handles()?);
    let two = own(one_rule(INET, "192.0.2.2")?);
    let ops = loden::tables::diff(&want(&two), &firewall.observe().await?.tables).0;
    ensure!(matches!(ops[..], [TableOp::ChangeElements { .. }]), "{ops:?}");
    settle(&mut firewall, &want(&two)).await?;
    ensure!(rules(handles()?) == before && handles()?.contains("192.0.2.2"), "{}", handles()?);
    // Who is no longer wanted goes, and the other stays.
    settle(&mut firewall, &want(&two)[..1]).await?;
    ensure!(listed(&netns)? == format!("table {}\n", guard::TABLE), "{}", listed(&netns)?);
    Ok(())
}

/// Takes the steps to what is wanted; then nothing is left to do, and the kernel holds just that.
async fn settle(firewall: &mut Firewall, want: &[OwnTable]) -> Result<FirewallState> {
    let (puts, drops) = loden::tables::diff(want, &firewall.observe().await?.tables);
    for op in puts.into_iter().chain(drops) {
        firewall.apply(&FirewallOp::Table(op)).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    let state = firewall.observe().await?;
    let left = loden::tables::diff(want, &state.tables);
    ensure!(left.0.is_empty() && left.1.is_empty(), "still to do: {left:?}");
    Ok(state)
}
