//! A netlink socket that waits for its answers, for whoever has a thread to wait on and no runtime.

use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::dialog::{
    ATTEMPTS, Acknowledgements, Answer, BATCH, Dialog, Dump, Requests, Sequence, Transaction,
};
use super::wire::{Change, Error, Nfnetlink, Part, Protocol, Refusal, Rtnetlink};

/// The kernel builds dumps in pieces of at most 32 kB.
const BUFFER: usize = 64 << 10;

/// What a socket takes in one piece without being asked to take more: half of the default send buffer.
const LARGE: usize = 100 << 10;

/// The kernel answers while a request is being sent. Whoever waits longer than this waits in vain.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the kernel, one request at a time.
///
/// Whoever makes transactions keeps it: to close one, the kernel waits until what the last ones removed is freed
/// (`nft_rcv_nl_event`), and that takes it some ten milliseconds.
#[derive(Debug)]
pub struct Socket<P> {
    io: netlink_sys::Socket,
    sequence: Sequence,
    buffer: Vec<u8>,
    protocol: PhantomData<P>,
}

impl<P: Protocol> Socket<P> {
    /// Opens one.
    ///
    /// # Errors
    /// EPROTONOSUPPORT where the kernel does not have the protocol.
    pub fn open() -> io::Result<Self> {
        let mut io = netlink_sys::Socket::new(P::NUMBER)?;
        connect(&mut io)?;
        setsockopt(&io, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0))?;
        Ok(Self { io, sequence: Sequence::default(), buffer: Vec::new(), protocol: PhantomData })
    }

    /// Asks for one object; `None` when the answer is not one that `read` understands.
    ///
    /// # Errors
    /// The kernel refuses, also because there is no such object.
    pub fn get<T>(
        &mut self,
        message: &P::Message,
        read: impl FnMut(&Part<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut answer = Answer::new(read);
        let requests = self.sequence.get(message);
        self.converse(&requests, &mut answer)?;
        Ok(answer.found)
    }

    /// Asks for all objects that match, again where changes came in between. On a machine that never rests the last
    /// look counts: something may be missing then, or be there twice.
    ///
    /// # Errors
    /// The kernel refuses, or breaks off.
    pub fn dump<T>(
        &mut self,
        message: &P::Message,
        read: impl FnMut(&Part<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut dump = Dump::new(read);
        let mut attempt = 1;
        loop {
            dump.begin_anew();
            let requests = self.sequence.dump(message);
            let heard = self.converse(&requests, &mut dump);
            if attempt == ATTEMPTS || !dump.is_to_be_repeated(&heard) {
                return heard.map(|()| dump.found);
            }
            attempt += 1;
        }
    }

    /// Carries out changes, each whatever becomes of the others; the outcomes are in their order.
    ///
    /// # Errors
    /// The socket failed; what became of the changes is not known.
    pub fn write(&mut self, changes: &[Change<P>]) -> Result<Vec<Result<(), Refusal>>, Error> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for batch in changes.chunks(BATCH) {
            let requests = self.sequence.batch::<P>(batch);
            let mut answers = Acknowledgements::new(&requests);
            let heard = self.converse(&requests, &mut answers);
            outcomes.extend(answers.after(heard)?);
        }
        Ok(outcomes)
    }

    fn converse(&mut self, requests: &Requests, dialog: &mut impl Dialog) -> Result<(), Error> {
        // What is left of an earlier answer.
        while !matches!(self.receive(libc::MSG_DONTWAIT), Err(Error::Silent | Error::Socket(_))) {}
        make_room(&self.io, requests);
        self.io.send(&requests.bytes, 0)?;
        let mut lost = false;
        loop {
            // Once answers were lost, those that were not are there already.
            match self.receive(if lost { libc::MSG_DONTWAIT } else { 0 }) {
                Ok(()) if dialog.hear(requests, &self.buffer)? => return Ok(()),
                Ok(()) => {}
                Err(Error::Overrun) => lost = true,
                Err(Error::Silent) if lost => return Err(Error::Overrun),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, flags: i32) -> Result<(), Error> {
        loop {
            match receive(&self.io, &mut self.buffer, flags) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => return understood(outcome),
            }
        }
    }
}

impl Socket<Rtnetlink> {
    /// All objects that match a request; none where a device of the request has just gone.
    ///
    /// # Errors
    /// The kernel refuses for another reason, or breaks off.
    pub fn list(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        or_none(self.dump(message, |part| part.object()))
    }
}

impl Socket<Nfnetlink> {
    /// Carries out changes as one transaction: all of them, or none.
    ///
    /// # Errors
    /// The kernel's first refusal, and which of the messages it is about.
    pub fn commit(&mut self, changes: &[Change<Nfnetlink>]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let requests = self.sequence.transaction(changes);
        self.converse(&requests, &mut Transaction)
    }
}

/// A list that is empty where a device of the request has just gone.
pub(super) fn or_none<T>(list: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match list {
        Err(Error::Refused(Refusal { errno: Errno::ENODEV | Errno::ENOENT, .. })) => Ok(Vec::new()),
        list => list,
    }
}

/// Binds a socket and ties it to the kernel; what the kernel knows it by.
pub(super) fn connect(io: &mut netlink_sys::Socket) -> io::Result<u32> {
    let port = io.bind_auto()?.port_number();
    io.connect(&SocketAddr::new(0, 0))?;
    io.set_cap_ack(true)?;
    io.set_ext_ack(true)?;
    // Linux 4.20. Without it the kernel sends everything, and what was not asked for is dropped by whoever asked.
    let _ = io.set_netlink_get_strict_chk(true);
    Ok(port)
}

/// A transaction is one datagram, however large.
pub(super) fn make_room(io: &netlink_sys::Socket, requests: &Requests) {
    if requests.bytes.len() > LARGE {
        // Without the right to force it, sending says that it is too large (EMSGSIZE).
        let _ = setsockopt(io, sockopt::SndBufForce, &(2 * requests.bytes.len()));
    }
}

/// Reads one datagram.
pub(super) fn receive(io: &netlink_sys::Socket, buffer: &mut Vec<u8>, flags: i32) -> io::Result<bool> {
    buffer.clear();
    buffer.reserve(BUFFER);
    // With this flag the kernel says how long the datagram is, also when it does not fit.
    let length = io.recv(buffer, flags | libc::MSG_TRUNC)?;
    Ok(length == buffer.len())
}

/// What became of an attempt to read a datagram, of which `false` says that it was too long.
pub(super) fn understood(received: io::Result<bool>) -> Result<(), Error> {
    match received {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Truncated),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Error::Silent),
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Err(Error::Overrun),
        Err(error) => Err(error.into()),
    }
}
