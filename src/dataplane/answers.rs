//! ICMP errors that go back into the tunnel, so that a sender learns why its packet went nowhere.

use std::io::IoSlice;

use encap::offload::vnet::VNET_LEN;
use encap::{IcmpCause, IpPacket, RateLimit, icmp};

use super::Lane;
use crate::ports::{Batch, FrameIo, PacketIo, Received, Transmit};

/// Builds them, as many as the limit allows.
#[derive(Default)]
pub(super) struct Answers {
    limit: RateLimit,
    batch: Option<Batch>,
}

impl Answers {
    /// Sends one through a plain device.
    pub(super) fn packet<T: PacketIo>(
        &mut self,
        cause: IcmpCause,
        offending: &[u8],
        tun: &mut T,
        lane: &Lane,
        now: impl Fn() -> u64,
    ) {
        let mut memory = [0; icmp::MAX_V6];
        let Some(answer) = self.build(cause, offending, &mut memory, now) else { return };
        let batch = self.batch.get_or_insert_with(|| Batch::new(1));
        batch.clear();
        if let Some(slot) = batch.slot_mut(0).get_mut(..answer.len()) {
            slot.copy_from_slice(answer);
        }
        batch.push(Received { len: answer.len(), from: None, truncated: false, segment: None, ecn: 0 });
        let answer = Transmit { slot: 0, len: answer.len(), to: None, peer: None };
        tun.send(batch, &[answer], |_, outcome| {
            if outcome.is_ok() {
                lane.answered();
            }
        });
    }

    /// Sends one through a device that wants frames.
    pub(super) fn frame<T: FrameIo>(
        &mut self,
        cause: IcmpCause,
        offending: &[u8],
        tun: &mut T,
        lane: &Lane,
        now: impl Fn() -> u64,
    ) {
        let mut memory = [0; icmp::MAX_V6];
        let Some(answer) = self.build(cause, offending, &mut memory, now) else { return };
        if tun.write(&[IoSlice::new(&[0; VNET_LEN]), IoSlice::new(answer)]).is_ok() {
            lane.answered();
        }
    }

    fn build<'m>(
        &mut self,
        cause: IcmpCause,
        offending: &[u8],
        memory: &'m mut [u8],
        now: impl Fn() -> u64,
    ) -> Option<&'m [u8]> {
        if !self.limit.allow(now()) {
            return None;
        }
        // From the unreachable destination itself: the kernel takes nothing from the tunnel that claims to come from an
        // address of this machine (`accept_local` is off, and has to be, or peers could speak in our name).
        let from = IpPacket::parse(offending).ok()?.dst();
        let len = icmp::error(cause, offending, from, memory)?;
        memory.get(..len)
    }
}
