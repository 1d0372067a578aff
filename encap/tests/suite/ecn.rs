//! Congestion marks at the end of the tunnel.

use encap::ecn::{self, CE, ECT_0, ECT_1, NOT_ECT, Verdict, combine, decapsulate};
use encap::offload::checksum::Sum;
use proptest::prelude::*;

use crate::support::ipv4;

/// What becomes of one inner mark.
type Row = [(u8, Option<u8>); 4];

/// RFC 6040 §4.2, figure 4: a row for each inner mark, a column for each outer one; `None` for "drop".
const FIGURE: [(u8, Row); 4] = [
    (NOT_ECT, [(NOT_ECT, Some(NOT_ECT)), (ECT_0, Some(NOT_ECT)), (ECT_1, Some(NOT_ECT)), (CE, None)]),
    (ECT_0, [(NOT_ECT, Some(ECT_0)), (ECT_0, Some(ECT_0)), (ECT_1, Some(ECT_1)), (CE, Some(CE))]),
    (ECT_1, [(NOT_ECT, Some(ECT_1)), (ECT_0, Some(ECT_1)), (ECT_1, Some(ECT_1)), (CE, Some(CE))]),
    (CE, [(NOT_ECT, Some(CE)), (ECT_0, Some(CE)), (ECT_1, Some(CE)), (CE, Some(CE))]),
];

/// A packet of either family with this mark and DSCP 46.
fn packet(v4: bool, mark: u8) -> Vec<u8> {
    if v4 {
        let mut packet = ipv4("10.244.1.3", "10.244.2.5", 40, 17, 0x4000);
        packet[1] = 46 << 2 | mark;
        let sum = Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        return packet;
    }
    let class = 46 << 2 | mark;
    let mut packet = vec![0x60 | class >> 4, class << 4 | 0x0a, 0xbc, 0xde, 0, 8, 17, 64];
    packet.resize(48, 0x11);
    packet
}

#[test]
fn every_pair_of_marks_ends_as_the_rfc_says() {
    for (inner, row) in FIGURE {
        for (outer, expected) in row {
            for v4 in [true, false] {
                let (mut got, before) = (packet(v4, inner), packet(v4, inner));
                assert_eq!(ecn::of(&got), inner);
                let kept = decapsulate(&mut got, outer);
                assert_eq!(kept, expected.is_some(), "{inner} in {outer}");
                assert_eq!(got, packet(v4, expected.unwrap_or(inner)), "{inner} in {outer}: all else stays");
                let changes = expected.is_some_and(|mark| mark != inner);
                assert_eq!(changes, matches!(combine(inner, outer), Verdict::Mark(_)));
                assert_eq!(changes, got != before);
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), outer: u8) {
        let before = bytes.clone();
        let kept = decapsulate(&mut bytes, outer);
        prop_assert!(kept || bytes == before, "what is dropped is not changed");
        prop_assert_eq!(before.len(), bytes.len());
        let _ = ecn::of(&bytes);
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong_as_it_was(error in 1..0xffff_u16, outer in 0..4_u8) {
        let mut good = packet(true, ECT_0);
        let mut bad = good.clone();
        let sum = u16::from_be_bytes([bad[10], bad[11]]);
        let wrong = Sum::from_folded(sum).word(error).fold();
        prop_assume!(wrong != sum && (wrong ^ sum) != 0xffff);
        bad[10..12].copy_from_slice(&wrong.to_be_bytes());
        prop_assert!(decapsulate(&mut good, outer) && decapsulate(&mut bad, outer));
        prop_assert!(Sum::default().bytes(&good[..20]).is_right());
        prop_assert!(!Sum::default().bytes(&bad[..20]).is_right());
    }
}
