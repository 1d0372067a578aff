use std::time::Duration;

use encap::Family as Ip;

use super::*;

fn instructions(family: Family, statements: impl IntoIterator<Item = Statement>) -> Vec<Expression> {
    expressions(family, &rule(statements))
}

fn payload(header: Header, offset: u32, length: u32, word: u32) -> Expression {
    Expression::Load(Load::Payload { header, offset, length }, Register(word))
}

fn equal(octets: &[u8]) -> Expression {
    Expression::Compare(Register(0), Comparison::Equal, octets.to_vec())
}

#[test]
fn a_rule_reads_as_nft_prints_it() {
    let node = "10.244.1.0/24".parse().unwrap();
    let random = NatFlags { fully_random: true, ..NatFlags::default() };
    let pairs = saddr(Ip::V6).and(raw(Header::Transport, 42, 32).masked(0xffff_ff80_u32));
    for (statements, words) in [
        (
            vec![l4proto().in_set("guarded"), dport(Transport::Udp).is(8472_u16), jump("tunnel")],
            "meta l4proto @guarded udp dport 8472 jump tunnel",
        ),
        (vec![mark().has_all(0x4000), returns()], "meta mark & 0x00004000 == 0x00004000 return"),
        (
            vec![saddr_in(node), daddr_not_in("224.0.0.0/4".parse().unwrap()), masquerade(random)],
            "ip saddr 10.244.1.0/24 ip daddr != 224.0.0.0/4 masquerade fully-random",
        ),
        (
            vec![pairs.in_set("pairs64_25"), returns()],
            "ip6 saddr . (@th,336,32 & 0xffffff80) @pairs64_25 return",
        ),
        (
            vec![raw(Header::Transport, 42, 12).is_not(vec![0x0a, 0xf0]), count_in("spoofed"), drop()],
            "@th,336,12 != 0xaf counter name spoofed drop",
        ),
        (
            vec![ct_state().has_any(&[State::Invalid, State::Untracked][..]), count(), accept()],
            "ct state invalid,untracked counter accept",
        ),
        (
            vec![daddr_type().is(AddressType::Local), dnat([10, 244, 1, 2].into(), Some(80))],
            "fib daddr type local dnat ip to 10.244.1.2:80",
        ),
        (
            vec![iifname().is_not("lo"), limit(10, 5), goto("next")],
            "iifname != \"lo\" limit rate 10/second burst 5 packets goto next",
        ),
        (vec![ct_saddr(Direction::Reply, Ip::V4).not_in_set("known")], "ct reply ip saddr != @known"),
        (vec![saddr(Ip::V4).update("seen")], "update @seen { ip saddr }"),
        (vec![dport(Transport::Tcp).not_between(80_u16, 90_u16)], "tcp dport != 80-90"),
    ] {
        assert_eq!(rule(statements).to_string(), words);
    }
}

#[test]
fn what_a_field_needs_is_asked_once() {
    let asked = instructions(
        Family::Inet,
        [dport(Transport::Udp).is(8472_u16), saddr(Ip::V4).in_set("a"), daddr(Ip::V4).in_set("b")],
    );
    let needs: Vec<_> =
        asked.iter().filter(|one| matches!(one, Expression::Load(Load::Meta(_), _))).collect();
    assert_eq!(needs.len(), 2);
    // A table of one family sees no other.
    let asked = instructions(Family::Ip, [saddr(Ip::V4).in_set("a")]);
    assert_eq!(asked[0], payload(Header::Network, 12, 4, 0));
    // What the rule asked itself is known.
    let asked = instructions(Family::Inet, [nfproto().is(Family::Ip.number()), saddr(Ip::V4).in_set("a")]);
    assert_eq!(asked.len(), 4);
}

#[test]
fn whole_octets_of_an_address_are_compared_without_a_mask() {
    let asked = |prefix: &str| instructions(Family::Ip, [saddr_in(prefix.parse().unwrap())]);
    assert_eq!(asked("10.244.0.0/16"), [payload(Header::Network, 12, 2, 0), equal(&[10, 244])]);
    let mask =
        |mask: &[u8]| Expression::Bitwise { register: Register(0), mask: mask.into(), xor: vec![0; 4] };
    let loaded = payload(Header::Network, 12, 4, 0);
    assert_eq!(asked("10.240.0.0/13"), [loaded.clone(), mask(&[255, 248, 0, 0]), equal(&[10, 240, 0, 0])]);
    assert_eq!(asked("0.0.0.0/0"), [loaded.clone(), mask(&[0; 4]), equal(&[0; 4])]);
    assert_eq!(asked("10.0.0.1/32"), [loaded, equal(&[10, 0, 0, 1])]);
}

#[test]
fn parts_of_a_key_begin_at_words() {
    let key = saddr(Ip::V4).and(raw(Header::Transport, 42, 24));
    let asked = instructions(Family::Ip, [key.in_set("pairs")]);
    assert_eq!(asked[..2], [payload(Header::Network, 12, 4, 0), payload(Header::Transport, 42, 3, 1)]);
    assert_eq!([0, 1, 4, 5].map(|word| Register(word).number()), [1, 9, 2, 13]);
    assert_eq!(concatenated([&[192, 168, 77, 2][..], &[10, 244, 2]]), [192, 168, 77, 2, 10, 244, 2, 0]);
}

#[test]
fn a_table_reads_as_nft_takes_it() {
    let http = concatenated([&[6][..], &[0, 80]]);
    let mut table = Table::new(TableName { family: Family::Inet, name: "example" });
    table.comment = Some("for people");
    table.counters = vec!["denied"];
    table.sets = vec![
        Set {
            timeouts: true,
            timeout: Some(Duration::from_secs(60)),
            size: Some(16),
            ..Set::of("seen", [Type::Ipv4Addr])
        },
        Set {
            interval: true,
            ..Set::of("blocks", [Type::Ipv4Addr]).with([
                Element::range(vec![10, 0, 0, 0], vec![10, 255, 255, 255]),
                Element::range(vec![192, 0, 2, 1], vec![192, 0, 2, 9]),
            ])
        },
        Set::verdicts("ports", [Type::InetProto, Type::InetService])
            .with([Element::new(http).to(Verdict::Goto("web".into()))]),
    ];
    table.chains = vec![
        Chain::regular("web", vec![rule([accept()]).comment("why")]),
        Chain::base(
            "in",
            Base::filter(Hook::Input, priority::RAW),
            vec![rule([vmap(l4proto().and(dport(Transport::Any)), "ports")])],
        ),
    ];
    assert_eq!(
        table.to_string(),
        "table inet example {\n  comment \"for people\"\n  counter denied { }\n  \
         set seen {\n    type ipv4_addr\n    size 16\n    flags timeout\n    timeout 60000ms\n  }\n  \
         set blocks {\n    type ipv4_addr\n    flags interval\n    elements = { 10.0.0.0/8, 192.0.2.1-192.0.2.9 }\n  }\n  \
         map ports {\n    type inet_proto . inet_service : verdict\n    elements = { tcp . 80 : goto web }\n  }\n  \
         chain web {\n    accept comment \"why\"\n  }\n  \
         chain in {\n    type filter hook input priority raw; policy accept;\n    meta l4proto . th dport vmap @ports\n  }\n}\n"
    );
}
