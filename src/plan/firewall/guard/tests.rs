use super::*;
use crate::tables::ElementChange;

/// The way from one guard to another.
fn update(before: &Guard, after: &Guard) -> Option<ElementChange> {
    before.table().change_to(&after.table())
}

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
    let text = guard(&[N2, N3]).table().to_string();
    for line in [
        "set pairs44_24 {\n    typeof ip saddr . @th,336,24\n    elements = { 192.168.77.2 . 0x0af402 }",
        "set pairs46_64 {\n    typeof ip saddr . @th,304,64\n    elements = { 192.168.77.2 . 0xfd10024400000002 }",
        "set pairs64_25 {\n    typeof ip6 saddr . @th,336,32\n    elements = { fd77::3 . 0x0af40300 }",
        "set pairs64_32 {\n    typeof ip6 saddr . @th,336,32\n    elements = { fd77::3 . 0x0af40709 }",
        "set nodes4 {\n    type ipv4_addr\n    elements = { 192.168.77.2 }",
        "@th,96,24 != 0x000001 return",
        "@th,224,16 0x0800 ip saddr . @th,336,24 @pairs44_24 return",
        "@th,224,16 0x86dd ip saddr . @th,304,64 @pairs46_64 return",
        "@th,224,16 0x0800 ip6 saddr . (@th,336,32 & 0xffffff80) @pairs64_25 return",
        "@th,224,16 0x0800 ip6 saddr . @th,336,32 @pairs64_32 return",
        "@th,224,16 0x0800 @th,336,16 != 0x0af4 return",
        "@th,224,16 0x86dd @th,304,48 != 0xfd1002440000 return",
        "udp dport 8472 ip saddr 10.244.0.0/16 ip daddr @nodes4 counter name unknown_sender drop",
        "udp dport 8472 ip saddr @nodes4 @th,64,8 & 0x08 == 0x08 @th,96,24 0x000001 notrack",
    ] {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }
}

#[test]
fn counting_drops_nothing() {
    let mut guard = guard(&[N2]);
    guard.check.as_mut().unwrap().enforce = false;
    assert!(!guard.table().to_string().contains("drop"), "{}", guard.table().to_string());
}

#[test]
fn a_family_without_a_cluster_network_has_no_source_to_check() {
    let mut guard = guard(&[N2]);
    guard.check.as_mut().unwrap().networks.pop();
    let text = guard.table().to_string();
    assert!(text.contains("    @th,224,16 0x86dd return\n") && !text.contains("@pairs46"), "{text}");
}

/// `set key` for each member, in hexadecimal.
fn shown(members: &[(String, Element)]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    members.iter().map(|(set, element)| format!("{set} {}", hex(&element.key))).collect()
}

#[test]
fn only_what_differs_is_changed() {
    const N4: (&str, &[&str]) = ("fd77::4", &["10.244.4.0/25", "10.244.7.10/32"]);
    let (before, after) = (guard(&[N2, N3]), guard(&[N2, N3, N4]));
    let nothing = ElementChange { table: TABLE, removed: Vec::new(), added: Vec::new() };
    assert_eq!(update(&before, &before), Some(nothing));
    let n4 = "fd770000000000000000000000000004";
    let joined = update(&before, &after).unwrap();
    assert_eq!(
        shown(&joined.added),
        [format!("nodes6 {n4}"), format!("pairs64_25 {n4}0af40400"), format!("pairs64_32 {n4}0af4070a"),]
    );
    assert!(joined.removed.is_empty());
    let left = update(&after, &before).unwrap();
    assert_eq!((left.removed, left.added), (joined.added, joined.removed));
    let other = guard(&[("192.168.77.2", &["10.244.5.0/24", "fd10:244:0:2::/64"]), N3]);
    let changed = update(&before, &other).unwrap();
    assert_eq!(shown(&changed.removed), ["pairs44_24 c0a84d020af40200"]);
    assert_eq!(shown(&changed.added), ["pairs44_24 c0a84d020af40500"]);
    assert_eq!(update(&before, &Guard { port: 4789, ..after }), None);
}

#[test]
fn another_length_needs_another_table() {
    let narrow = ("192.168.77.2", ["10.244.2.0/25"].as_slice());
    assert_eq!(update(&guard(&[N2]), &guard(&[N2, narrow])), None);
    assert_eq!(update(&guard(&[N2, N3]), &guard(&[N2])), None);
}

#[test]
fn any_length_is_compared_as_far_as_it_goes() {
    for (prefix, source, element) in [
        ("10.244.2.0/24", "@th,336,24 @pairs44_24", "0x0af402"),
        ("10.244.0.0/15", "(@th,336,16 & 0xfffe) @pairs44_15", "0x0af4"),
        ("10.244.2.128/26", "(@th,336,32 & 0xffffffc0) @pairs44_26", "0x0af40280"),
        ("0.0.0.0/0", "(@th,336,8 & 0x00) @pairs44_0", "0x00"),
        ("fd10:244:0:2::/63", "(@th,304,64 & 0xfffffffffffffffe) @pairs46_63", "0xfd10024400000002"),
        ("::/0", "(@th,304,8 & 0x00) @pairs46_0", "0x00"),
        ("fd10:244::1/128", "@th,304,128 @pairs46_128", "0xfd100244000000000000000000000001"),
    ] {
        let text = guard(&[("192.168.77.2", &[prefix])]).table().to_string();
        for part in [format!("ip saddr . {source} return"), format!("{{ 192.168.77.2 . {element} }}")] {
            assert!(text.contains(&part), "`{part}` is missing in\n{text}");
        }
    }
}

#[test]
fn what_checks_nothing_knows_nodes_only() {
    let unchecked = |entries| Guard { check: None, ..guard(entries) };
    let update = update(&unchecked(&[]), &unchecked(&[N2])).unwrap();
    assert_eq!(shown(&update.added), ["nodes4 c0a84d02"]);
}

#[test]
fn a_whole_cluster_is_no_update() {
    let entries = (0..2000_u32).map(|number| (IpAddr::from((number + (10 << 24)).to_be_bytes()), Vec::new()));
    let all = Guard { senders: Senders::new(entries), ..guard(&[]) };
    assert_eq!(update(&guard(&[]), &all), None);
}

#[test]
fn prefixes_of_one_address_do_not_overlap() {
    let text = guard(&[("192.168.77.2", &["10.244.2.0/24", "10.244.2.7/32"])]).table().to_string();
    assert!(!text.contains("pairs44_32"), "{text}");
}

#[test]
fn where_a_firewall_refuses_input_the_tunnel_stays_tracked() {
    let guard = guard(&[N2]);
    assert_eq!(guard.beside(false), Some(guard.clone()));
    let tracked = guard.beside(true).unwrap();
    assert!(
        !tracked.table().to_string().contains("notrack")
            && tracked.table().to_string().contains("jump tunnel")
    );
    assert_eq!(Guard { check: None, ..guard }.beside(true), None);
}
