//! What is said to the kernel and how its answers are understood, apart from any socket: requests as bytes, and one
//! state machine per way of asking.

use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkHeader, NetlinkSerializable,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use nix::errno::Errno;

use super::wire::{Change, Error, HEADER, Nfnetlink, Part, Protocol, Refusal, parts};

/// Requests on their way at once. Their acknowledgements (some 800 bytes each with the kernel's bookkeeping) have to
/// fit a receive buffer of the default size, 208 kB.
pub(super) const BATCH: usize = 128;

/// How often a dump that raced with a change is begun anew. What is read at last may lack a part or have one twice.
pub(super) const ATTEMPTS: usize = 3;

/// Requests as bytes.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) bytes: Vec<u8>,
    /// Number of the first.
    first: u32,
    count: usize,
}

/// Numbers requests, so that answers can be told apart.
#[derive(Debug, Default)]
pub(super) struct Sequence(u32);

impl Sequence {
    pub(super) fn dump(&mut self, message: &impl NetlinkSerializable) -> Requests {
        self.requests([(message, NLM_F_REQUEST | NLM_F_DUMP)])
    }

    pub(super) fn get(&mut self, message: &impl NetlinkSerializable) -> Requests {
        self.requests([(message, NLM_F_REQUEST)])
    }

    /// Each is carried out whatever becomes of the others.
    pub(super) fn batch<P: Protocol>(&mut self, changes: &[Change<P>]) -> Requests {
        self.requests(changes.iter().map(|(message, flags)| (message, NLM_F_REQUEST | NLM_F_ACK | flags)))
    }

    /// All are carried out, or none. Only the last is acknowledged, and any that is refused: more acknowledgements than
    /// the receive buffer holds would be lost.
    pub(super) fn transaction(&mut self, changes: &[Change<Nfnetlink>]) -> Requests {
        let [begin, end] = [ControlMessage::BatchBegin, ControlMessage::BatchEnd].map(|border| {
            let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
            NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, resource), border)
        });
        let last = changes.len().saturating_sub(1);
        let inner = changes.iter().enumerate().map(|(at, (message, flags))| {
            (message, NLM_F_REQUEST | flags | if at == last { NLM_F_ACK } else { 0 })
        });
        let border = |message| std::iter::once((message, NLM_F_REQUEST));
        self.requests(border(&begin).chain(inner).chain(border(&end)))
    }

    fn requests<'a, M: NetlinkSerializable + 'a>(
        &mut self,
        messages: impl IntoIterator<Item = (&'a M, u16)>,
    ) -> Requests {
        let mut requests = Requests { first: self.0.wrapping_add(1), ..Requests::default() };
        for (message, flags) in messages {
            self.0 = self.0.wrapping_add(1);
            requests.append(message, flags, self.0);
        }
        requests
    }
}

impl Requests {
    fn append(&mut self, message: &impl NetlinkSerializable, flags: u16, sequence: u32) {
        let start = self.bytes.len();
        let length = HEADER + message.buffer_len();
        self.bytes.resize(start + length.next_multiple_of(4), 0);
        let mut header = NetlinkHeader::default();
        // One message is far below 4 GiB.
        header.length = length as u32;
        header.message_type = message.message_type();
        header.flags = flags;
        header.sequence_number = sequence;
        header.emit(&mut self.bytes[start..]);
        message.serialize(&mut self.bytes[start + HEADER..start + length]);
        self.count += 1;
    }

    /// Which of the requests a message answers.
    fn answered_by(&self, part: &Part<'_>) -> Option<usize> {
        let place = part.sequence.wrapping_sub(self.first) as usize;
        (place < self.count).then_some(place)
    }
}

/// How the kernel's answers to requests are understood.
pub(super) trait Dialog {
    /// Takes in a datagram; `true` when it was the last.
    fn hear(&mut self, requests: &Requests, datagram: &[u8]) -> Result<bool, Error>;
}

/// A question for one object.
pub(super) struct Answer<F, T> {
    read: F,
    pub(super) found: Option<T>,
}

/// A question for all objects that match.
pub(super) struct Dump<F, T> {
    read: F,
    pub(super) found: Vec<T>,
    /// It raced with a change: something may be missing, or be there twice.
    pub(super) raced: bool,
}

/// Changes that are carried out each for itself.
pub(super) struct Acknowledgements(Vec<Option<Result<(), Refusal>>>);

/// Changes that are carried out together.
pub(super) struct Transaction;

impl<F: FnMut(&Part<'_>) -> Option<T>, T> Answer<F, T> {
    pub(super) fn new(read: F) -> Self {
        Self { read, found: None }
    }
}

impl<F: FnMut(&Part<'_>) -> Option<T>, T> Dialog for Answer<F, T> {
    fn hear(&mut self, requests: &Requests, datagram: &[u8]) -> Result<bool, Error> {
        for part in parts(datagram) {
            let part = part?;
            if requests.answered_by(&part).is_none() {
                continue;
            }
            match part.kind {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Error::Overrun),
                NLMSG_ERROR => return part.acknowledged()?.map_or(Ok(true), |refusal| Err(refusal.into())),
                _ => {
                    self.found = (self.read)(&part);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl<F: FnMut(&Part<'_>) -> Option<T>, T> Dump<F, T> {
    pub(super) fn new(read: F) -> Self {
        Self { read, found: Vec::new(), raced: false }
    }

    /// Forgets what was read, to begin anew.
    pub(super) fn begin_anew(&mut self) {
        self.found.clear();
        self.raced = false;
    }

    /// Whether what was heard may be wrong, and another attempt right.
    pub(super) fn is_to_be_repeated(&self, heard: &Result<(), Error>) -> bool {
        match heard {
            Ok(()) => self.raced,
            Err(error) => matches!(error, Error::Overrun),
        }
    }
}

impl<F: FnMut(&Part<'_>) -> Option<T>, T> Dialog for Dump<F, T> {
    fn hear(&mut self, requests: &Requests, datagram: &[u8]) -> Result<bool, Error> {
        for part in parts(datagram) {
            let part = part?;
            if requests.answered_by(&part).is_none() {
                continue;
            }
            self.raced |= part.flags & NLM_F_DUMP_INTR != 0;
            match part.kind {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Error::Overrun),
                NLMSG_ERROR => return part.acknowledged()?.map_or(Ok(true), |refusal| Err(refusal.into())),
                NLMSG_DONE => return part.broken_off().map_or(Ok(true), |refusal| Err(refusal.into())),
                // An object that cannot be read is none that we could have made.
                _ => self.found.extend((self.read)(&part)),
            }
        }
        Ok(false)
    }
}

impl Acknowledgements {
    pub(super) fn new(requests: &Requests) -> Self {
        Self(vec![None; requests.count])
    }

    /// What became of each change. Where an answer was lost, nobody knows, and whoever asked has to look.
    pub(super) fn after(self, heard: Result<(), Error>) -> Result<Vec<Result<(), Refusal>>, Error> {
        match heard {
            Ok(()) | Err(Error::Overrun) => {}
            Err(error) => return Err(error),
        }
        let lost = || Refusal { errno: Errno::ENOBUFS, text: Some("the kernel's answer was lost".into()) };
        Ok(self.0.into_iter().map(|answer| answer.unwrap_or_else(|| Err(lost()))).collect())
    }
}

impl Dialog for Acknowledgements {
    fn hear(&mut self, requests: &Requests, datagram: &[u8]) -> Result<bool, Error> {
        for part in parts(datagram) {
            let part = part?;
            let place = requests.answered_by(&part).filter(|_| part.kind == NLMSG_ERROR);
            if let Some(answer) = place.and_then(|place| self.0.get_mut(place)) {
                *answer = Some(part.acknowledged()?.map_or(Ok(()), Err));
            }
        }
        Ok(self.0.iter().all(Option::is_some))
    }
}

impl Dialog for Transaction {
    fn hear(&mut self, requests: &Requests, datagram: &[u8]) -> Result<bool, Error> {
        for part in parts(datagram) {
            let part = part?;
            let Some(place) = requests.answered_by(&part).filter(|_| part.kind == NLMSG_ERROR) else {
                continue;
            };
            // The first of the messages, and the last, are the transaction's borders.
            let last = requests.count.saturating_sub(2);
            match part.acknowledged()? {
                Some(refusal) if (1..=last).contains(&place) => {
                    return Err(Error::Aborted { at: place - 1, refusal });
                }
                Some(refusal) => return Err(refusal.into()),
                None if place == last => return Ok(true),
                None => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
