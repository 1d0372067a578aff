//! A netlink socket that lets others run while it waits, and one that listens to what the kernel announces.
//!
//! Many requests go out in one datagram and the kernel works through them in order, one acknowledgement each; waiting
//! for every answer before the next request would cost a wake-up per kernel object.

use std::io;
use std::marker::PhantomData;

use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::blocking::{PATIENCE, connect, make_room, or_none, receive, understood};
use super::dialog::{ATTEMPTS, Acknowledgements, Answer, BATCH, Dialog, Dump, Requests, Sequence};
use super::wire::{Change, Error, Part, Protocol, Refusal, Rtnetlink};

/// Room for what a storm of changes says before the kernel drops some; a drop costs a look at everything.
const STORM: usize = 4 << 20;

/// A connection to the kernel, one request at a time. A request that nobody waits for any more harms none after it.
#[derive(Debug)]
pub struct Socket<P> {
    io: AsyncFd<netlink_sys::Socket>,
    port: u32,
    sequence: Sequence,
    buffer: Vec<u8>,
    raced: bool,
    protocol: PhantomData<P>,
}

impl<P: Protocol> Socket<P> {
    /// Opens one.
    ///
    /// # Errors
    /// EPROTONOSUPPORT where the kernel does not have the protocol.
    pub fn open() -> io::Result<Self> {
        let mut io = netlink_sys::Socket::new(P::NUMBER)?;
        let port = connect(&mut io)?;
        io.set_non_blocking(true)?;
        Ok(Self {
            io: register(io)?,
            port,
            sequence: Sequence::default(),
            buffer: Vec::new(),
            raced: false,
            protocol: PhantomData,
        })
    }

    /// What the kernel marks our own changes with when it tells everybody about them.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Whether a dump since this was asked last may lack something, because it raced with changes to the end.
    pub fn has_raced(&mut self) -> bool {
        std::mem::take(&mut self.raced)
    }

    /// Asks for one object; `None` when the answer is not one that `read` understands.
    ///
    /// # Errors
    /// The kernel refuses, also because there is no such object.
    pub async fn get<T>(
        &mut self,
        message: &P::Message,
        read: impl FnMut(&Part<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut answer = Answer::new(read);
        let requests = self.sequence.get(message);
        self.converse(&requests, &mut answer).await?;
        Ok(answer.found)
    }

    /// Asks for all objects that match, again where changes came in between. On a machine that never rests the last
    /// look counts, and [`Socket::has_raced`] tells of it.
    ///
    /// # Errors
    /// The kernel refuses, or breaks off.
    pub async fn dump<T>(
        &mut self,
        message: &P::Message,
        read: impl FnMut(&Part<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut dump = Dump::new(read);
        let mut attempt = 1;
        loop {
            dump.begin_anew();
            let requests = self.sequence.dump(message);
            let heard = self.converse(&requests, &mut dump).await;
            if attempt == ATTEMPTS || !dump.is_to_be_repeated(&heard) {
                self.raced |= dump.raced;
                return heard.map(|()| dump.found);
            }
            attempt += 1;
        }
    }

    /// Carries out changes, each whatever becomes of the others; the outcomes are in their order.
    ///
    /// # Errors
    /// The socket failed; what became of the changes is not known.
    pub async fn write(&mut self, changes: &[Change<P>]) -> Result<Vec<Result<(), Refusal>>, Error> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for batch in changes.chunks(BATCH) {
            let requests = self.sequence.batch::<P>(batch);
            let mut answers = Acknowledgements::new(&requests);
            let heard = self.converse(&requests, &mut answers).await;
            outcomes.extend(answers.after(heard)?);
        }
        Ok(outcomes)
    }

    async fn converse(&mut self, requests: &Requests, dialog: &mut impl Dialog) -> Result<(), Error> {
        // What is left of an answer that nobody waited for.
        while !matches!(
            understood(receive(self.io.get_ref(), &mut self.buffer, 0)),
            Err(Error::Silent | Error::Socket(_))
        ) {}
        make_room(self.io.get_ref(), requests);
        self.io.async_io(Interest::WRITABLE, |io| io.send(&requests.bytes, 0)).await?;
        let mut lost = false;
        loop {
            let heard = if lost {
                // Those of the answers that were not lost are there already.
                understood(receive(self.io.get_ref(), &mut self.buffer, 0))
            } else {
                self.receive().await
            };
            match heard {
                Ok(()) if dialog.hear(requests, &self.buffer)? => return Ok(()),
                // A long dump is always there to be read on. Others have something to do too.
                Ok(()) => tokio::task::yield_now().await,
                Err(Error::Overrun) => lost = true,
                Err(Error::Silent) if lost => return Err(Error::Overrun),
                Err(error) => return Err(error),
            }
        }
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let buffer = &mut self.buffer;
        let datagram = self.io.async_io(Interest::READABLE, |io| receive(io, buffer, 0));
        tokio::time::timeout(PATIENCE, datagram).await.map_or(Err(Error::Silent), understood)
    }
}

impl Socket<Rtnetlink> {
    /// The answer to a request for one object; `None` when there is no such object.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub async fn find(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        match self.get(message, |part| part.object()).await {
            Err(Error::Refused(refusal)) if refusal.is_absence() => Ok(None),
            answer => answer,
        }
    }

    /// All objects that match a request; none where a device of the request has just gone.
    ///
    /// # Errors
    /// The kernel refuses for another reason, or breaks off.
    pub async fn list(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        or_none(self.dump(message, |part| part.object()).await)
    }
}

/// What the kernel announces to everybody.
#[derive(Debug)]
pub struct Announcements<P> {
    io: AsyncFd<netlink_sys::Socket>,
    buffer: Vec<u8>,
    protocol: PhantomData<P>,
}

impl<P: Protocol> Announcements<P> {
    /// Subscribes to groups of announcements, by number.
    ///
    /// # Errors
    /// EPROTONOSUPPORT where the kernel does not have the protocol.
    pub fn subscribe(groups: &[u32]) -> io::Result<Self> {
        let mut io = netlink_sys::Socket::new(P::NUMBER)?;
        // Best effort: with the smaller buffer announcements are lost, and everything is looked at, more often.
        let _ = setsockopt(&io, sockopt::RcvBufForce, &STORM);
        io.bind_auto()?;
        for group in groups {
            io.add_membership(*group)?;
        }
        io.set_non_blocking(true)?;
        Ok(Self { io: register(io)?, buffer: Vec::new(), protocol: PhantomData })
    }

    /// Waits for the next datagram.
    ///
    /// # Errors
    /// [`Error::Overrun`] when announcements were lost; the next ones can be read.
    pub async fn next(&mut self) -> Result<&[u8], Error> {
        let buffer = &mut self.buffer;
        understood(self.io.async_io(Interest::READABLE, |io| receive(io, buffer, 0)).await)?;
        Ok(&self.buffer)
    }

    /// The next datagram, if one is there.
    ///
    /// # Errors
    /// As [`Announcements::next`].
    pub fn waiting(&mut self) -> Option<Result<&[u8], Error>> {
        match understood(receive(self.io.get_ref(), &mut self.buffer, 0)) {
            Ok(()) => Some(Ok(&self.buffer)),
            Err(Error::Silent | Error::Socket(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot see that the socket keeps its descriptor")]
fn register(io: netlink_sys::Socket) -> io::Result<AsyncFd<netlink_sys::Socket>> {
    // SAFETY: the socket owns its descriptor and closes it only when it is dropped, and nothing can put another
    // socket into its place: no mutable reference to it is ever taken.
    unsafe { AsyncFd::register(io) }.map_err(io::Error::from)
}
