use super::*;

fn senders(entries: &[(&str, &[&str])]) -> Senders {
    let parsed = entries.iter().map(|(addr, prefixes)| {
        (addr.parse().unwrap(), prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect())
    });
    Senders::new(parsed)
}

fn guard(entries: &[(&str, &[&str])]) -> Guard {
    let networks = vec!["10.244.0.0/16".parse().unwrap(), "fd10:244::/48".parse().unwrap()];
    let check = Check { vni: Vni::new(1).unwrap(), networks, enforce: true };
    Guard { port: 8472, senders: senders(entries), untracked: true, check: Some(check) }
}

const N2: (&str, &[&str]) = ("192.168.77.2", &["10.244.2.0/24", "fd10:244:0:2::/64"]);
const N3: (&str, &[&str]) = ("fd77::3", &["10.244.3.0/25", "10.244.7.9/32"]);

#[test]
fn nodes_are_bound_to_their_prefixes_across_families() {
    let text = guard(&[N2, N3]).script();
    for line in [
        "set pairs44 {\n    typeof ip saddr . @th,336,32\n    flags interval\n    elements = { 192.168.77.2 . 0x0af40200/24 }",
        "elements = { 192.168.77.2 . 0xfd100244000000020000000000000000/64 }",
        "elements = { fd77::3 . 0x0af40300/25, fd77::3 . 0x0af40709 }",
        "set nodes4 {\n    type ipv4_addr\n    elements = { 192.168.77.2 }",
        "@th,96,24 != 1 return",
        "@th,224,16 0x0800 ip saddr . @th,336,32 @pairs44 return",
        "@th,224,16 0x0800 @th,336,16 != 0xaf4 return",
        "@th,224,16 0x86dd @th,304,48 != 0xfd1002440000 return",
        "udp dport 8472 ip saddr 10.244.0.0/16 ip daddr @nodes4 counter name unknown_sender drop",
        "udp dport 8472 ip saddr @nodes4 @th,64,8 & 0x8 == 0x8 @th,96,24 1 notrack",
    ] {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }
}

#[test]
fn counting_drops_nothing() {
    let mut guard = guard(&[N2]);
    guard.check.as_mut().unwrap().enforce = false;
    assert!(!guard.script().contains("drop"), "{}", guard.script());
}

#[test]
fn a_family_without_a_cluster_network_has_no_source_to_check() {
    let mut guard = guard(&[N2]);
    guard.check.as_mut().unwrap().networks.pop();
    let text = guard.script();
    assert!(text.contains("    @th,224,16 0x86dd return\n") && !text.contains("@pairs46"), "{text}");
}

/// `set first-last` for each member, in hexadecimal.
fn shown(members: &[Member]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let end = |member: &Member| member.end.as_ref().map(|end| format!("-{}", hex(end))).unwrap_or_default();
    members.iter().map(|member| format!("{} {}{}", member.set, hex(&member.key), end(member))).collect()
}

#[test]
fn only_what_differs_is_changed() {
    let (before, after) = (guard(&[N2]), guard(&[N2, N3]));
    assert_eq!(before.update(&before), Some(Update::default()));
    let n3 = "fd770000000000000000000000000003";
    let joined = after.update(&before).unwrap();
    assert_eq!(
        shown(&joined.added),
        [
            format!("nodes6 {n3}"),
            format!("pairs64 {n3}0af40300-{n3}0af4037f"),
            format!("pairs64 {n3}0af40709-{n3}0af40709"),
        ]
    );
    assert!(joined.removed.is_empty());
    let left = before.update(&after).unwrap();
    assert_eq!((left.removed, left.added), (joined.added, joined.removed));
    let narrower = guard(&[("192.168.77.2", &["10.244.2.0/25", "fd10:244:0:2::/64"])]);
    let narrowed = narrower.update(&before).unwrap();
    assert_eq!(shown(&narrowed.removed), ["pairs44 c0a84d020af40200-c0a84d020af402ff"]);
    assert_eq!(shown(&narrowed.added), ["pairs44 c0a84d020af40200-c0a84d020af4027f"]);
    assert_eq!(Guard { port: 4789, ..after }.update(&before), None);
}

#[test]
fn what_checks_nothing_knows_nodes_only() {
    let unchecked = |entries| Guard { check: None, ..guard(entries) };
    let update = unchecked(&[N2]).update(&unchecked(&[])).unwrap();
    assert_eq!(shown(&update.added), ["nodes4 c0a84d02"]);
}

#[test]
fn a_whole_cluster_is_no_update() {
    let entries = (0..2000_u32).map(|number| (IpAddr::from((number + (10 << 24)).to_be_bytes()), Vec::new()));
    let all = Guard { senders: Senders::new(entries), ..guard(&[]) };
    assert_eq!(all.update(&guard(&[])), None);
}

#[test]
fn prefixes_of_one_address_do_not_overlap() {
    let text = guard(&[("192.168.77.2", &["10.244.2.0/24", "10.244.2.7/32"])]).script();
    assert!(!text.contains("0x0af40207"), "{text}");
}

#[test]
fn where_a_firewall_refuses_input_the_tunnel_stays_tracked() {
    let guard = guard(&[N2]);
    assert_eq!(guard.beside(false), Some(guard.clone()));
    let tracked = guard.beside(true).unwrap();
    assert!(!tracked.script().contains("notrack") && tracked.script().contains("jump tunnel"));
    assert_eq!(Guard { check: None, ..guard }.beside(true), None);
}
