//! Checksums that one daemon leaves to the other: known on the other side, and the same in the end.

use crate::bodies::offload::{cut, expand, gather};
use crate::offload::{Super, any_super, join};
use encap::offload::coalesce::MAX_RUN;
use encap::offload::segment::{Segments, finish_checksum};
use encap::offload::unfinished::unfinished;
use proptest::prelude::*;

proptest! {
    #[test]
    fn checksums_that_are_left_are_known_and_come_out_as_if_made_here(given in any_super()) {
        let (vnet, packet) = given.build();
        let whole = expand(&vnet, &packet);
        let plan = Segments::plan(&packet, vnet.partial, vnet.gso.expect("a super-packet")).unwrap();
        let left = cut(&plan.leave_checksums(), &packet);
        for (left, whole) in left.iter().zip(&whole) {
            let todo = unfinished(left, usize::MAX);
            prop_assert_eq!(todo.map(|todo| (todo.partial, todo.gso)), Some((vnet.partial, None)));
            let mut finished = left.clone();
            finish_checksum(&mut finished, vnet.partial.expect("partial")).unwrap();
            prop_assert_eq!(&finished, whole);
        }
        // Also in one run with such as are whole.
        let mut mixed = left.clone();
        mixed.iter_mut().zip(&whole).step_by(2).for_each(|(left, whole)| left.clone_from(whole));
        for packets in [left, mixed] {
            if given.extra == 0 && packets.len() > 1 && packets.len() <= MAX_RUN {
                let mut memory = Vec::new();
                let joined: Vec<_> =
                    join(&packets, &mut memory).groups().map(|group| gather(&group, &memory)).collect();
                prop_assert_eq!(joined, vec![(vnet, packet.clone())]);
            }
        }
    }
}

#[test]
fn a_checksum_that_the_receiver_would_not_know_as_left_is_not_left() {
    // As with a routing header: the kernel's sum is over another address than the packet shows.
    let (vnet, mut packet) = Super::tcp(3000, 1400).build();
    packet[36] ^= 1;
    let plan = Segments::plan(&packet, vnet.partial, vnet.gso.expect("a super-packet")).unwrap();
    assert_eq!(cut(&plan.leave_checksums(), &packet), cut(&plan, &packet));
}
