//! A number for each flow.

use encap::flow::hash;
use etherparse::PacketBuilder;
use proptest::prelude::*;

fn tcp(from: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from, [10, 244, 2, 5], 64).tcp(ports.0, ports.1, 7, 9);
    builder.write(&mut packet, payload).expect("writing to a Vec");
    packet
}

fn udp6(from: [u8; 16], ports: (u16, u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(from, [9; 16], 64)
        .udp(ports.0, ports.1)
        .write(&mut packet, &[1])
        .expect("writing to a Vec");
    packet
}

#[test]
fn tcp_is_told_apart_by_ports_and_all_else_by_addresses() {
    let one = hash(&tcp([10, 244, 1, 3], (4000, 80), b"a"));
    assert_eq!(one, hash(&tcp([10, 244, 1, 3], (4000, 80), b"other bytes")));
    assert_ne!(one, hash(&tcp([10, 244, 1, 3], (4001, 80), b"a")));
    assert_ne!(one, hash(&tcp([10, 244, 1, 4], (4000, 80), b"a")));
    assert_eq!(hash(&udp6([1; 16], (1, 2))), hash(&udp6([1; 16], (3, 4))));
    assert_ne!(hash(&udp6([1; 16], (1, 2))), hash(&udp6([2; 16], (1, 2))));
}

/// The first has the ports, the others have not.
#[test]
fn fragments_stay_together() {
    let mut first = tcp([10, 244, 1, 3], (4000, 80), &[1; 64]);
    let mut later = first.clone();
    first[6] |= 0x20;
    later[7] = 8;
    later[20..24].fill(0xee);
    assert_eq!(hash(&first), hash(&later));
}

/// Consecutive ports, as clients have them, over four queues.
#[test]
fn flows_are_spread() {
    let mut queues = [0; 4];
    for port in 30_000..31_000 {
        queues[hash(&tcp([10, 244, 1, 3], (port, 80), b"")) as usize % 4] += 1;
    }
    assert!(queues.iter().all(|flows| (200..300).contains(flows)), "{queues:?}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(hash(&bytes) < 1 << 16);
    }
}
