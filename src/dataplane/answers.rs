//! ICMP errors that go back into the tunnel, so that a sender learns why its packet went nowhere.

use std::io::IoSlice;

use encap::offload::vnet::VNET_LEN;
use encap::{IcmpCause, IpPacket, RateLimit, icmp};

use super::Lane;
use crate::ports::FrameIo;

/// Builds them, as many as the limit allows.
#[derive(Default)]
pub(super) struct Answers {
    limit: RateLimit,
}

impl Answers {
    /// Writes the error that the sender of `offending` is owed to the device.
    pub(super) fn write<T: FrameIo>(
        &mut self,
        cause: IcmpCause,
        offending: &[u8],
        tun: &mut T,
        lane: &Lane,
        now: impl Fn() -> u64,
    ) {
        if !self.limit.allow(now()) {
            return;
        }
        // From the unreachable destination itself: the kernel takes nothing from the tunnel that claims to come from an
        // address of this machine (`accept_local` is off, and has to be, or peers could speak in our name).
        let Ok(from) = IpPacket::parse(offending).map(|packet| packet.dst()) else { return };
        let mut memory = [0; icmp::MAX_V6];
        let answer = icmp::error(cause, offending, from, &mut memory).and_then(|len| memory.get(..len));
        let Some(answer) = answer else { return };
        if tun.write(&[IoSlice::new(&[0; VNET_LEN]), IoSlice::new(answer)]).is_ok() {
            lane.answered();
        }
    }
}
