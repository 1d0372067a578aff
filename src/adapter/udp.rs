//! The outer socket: UDP, batched by `recvmmsg` and `sendmmsg`.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use encap::DropReason;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::mmsg::{Mmsg, RecvOutcome, send_segments};
use crate::config::offload::{Feature, Features};
use crate::ports::{Batch, PacketIo, SegmentIo, SendError, Transmit, Wake};

/// Socket buffers, bytes. The kernel charges a 1,500-byte packet with up to 2,300 bytes and doubles what is
/// asked for, so this holds some 14,000 packets: the full windows of three bulk TCP streams.
const SOCKET_BUFFER: usize = 16 << 20;

/// Wakes a thread that sleeps in `poll`, and says how long it may look before it sleeps.
#[derive(Debug)]
pub struct WakeFd {
    event: EventFd,
    spin: Duration,
}

impl WakeFd {
    /// A fresh one, not yet rung. A thread that has nothing to do stays awake for `spin` more.
    pub fn new(spin: Duration) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).context("cannot create an eventfd")?;
        Ok(Self { event, spin })
    }

    /// Wakes every thread that waits, now and later: nobody reads the counter back.
    pub fn ring(&self) -> Result<()> {
        self.event.write(1).context("cannot ring the data path's eventfd").map(drop)
    }
}

/// Sleeps until one of the descriptors is readable (or in error: the next read says which) or `wake` rings.
pub(super) fn wait_readable(from: [Option<BorrowedFd<'_>>; 2], wake: &WakeFd) -> io::Result<Wake> {
    // Being woken costs more than a packet's whole way does. Whoever else wants this CPU goes first.
    let asleep = (!wake.spin.is_zero()).then(|| Instant::now() + wake.spin);
    let wake = wake.event.as_fd();
    loop {
        let awake = asleep.is_some_and(|asleep| Instant::now() < asleep);
        let patience = if awake { PollTimeout::ZERO } else { PollTimeout::NONE };
        // The same one twice does no harm.
        let mut fds =
            [Some(wake), from[0], from[1]].map(|fd| PollFd::new(fd.unwrap_or(wake), PollFlags::POLLIN));
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => {}
            Ok(0) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
            Ok(_) if fds[0].any() == Some(true) => return Ok(Wake::Stop),
            Ok(_) => return Ok(Wake::Ready),
        }
    }
}

/// The UDP socket of the overlay, bound to the external interface's address.
#[derive(Debug, Clone)]
pub struct OuterSocket {
    socket: Arc<Socket>,
    port: u16,
    v6: bool,
}

/// What the kernel granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBuffers {
    /// Receive buffer as the kernel accounts it, bytes.
    pub receive: usize,
    /// Send buffer as the kernel accounts it, bytes.
    pub send: usize,
    /// Buffers beyond the system's limit needed CAP_NET_ADMIN in the first user namespace and were not granted.
    pub limited: bool,
}

impl OuterSocket {
    /// Binds `address:port`.
    pub fn bind(address: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))
            .context("cannot create the UDP socket")?;
        socket.set_nonblocking(true).context("cannot make the UDP socket non-blocking")?;
        if let Err(error) = socket.bind(&at.into()) {
            match error.kind() {
                ErrorKind::AddrInUse => bail!(
                    "UDP {at} is in use: another flannel runs here, or another program has the port \
                     (`ss -lunp 'sport = :{port}'` names it, or `ip -d link show type vxlan`); stop it, or set Backend.Port in net-conf.json on every node"
                ),
                ErrorKind::AddrNotAvailable => bail!(
                    "UDP {at}: no interface has address {address} (any more): check --iface and --public-ip"
                ),
                _ => return Err(error).with_context(|| format!("cannot bind UDP {at}")),
            }
        }
        Ok(Self { socket: Arc::new(socket), port, v6: address.is_ipv6() })
    }

    /// Enlarges the buffers past the system's limit where allowed, else as far as it goes.
    pub fn enlarge_buffers(&self) -> Result<SocketBuffers> {
        let forced = setsockopt(&self.socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
            .and_then(|()| setsockopt(&self.socket, sockopt::SndBufForce, &SOCKET_BUFFER));
        if forced.is_err() {
            self.socket.set_recv_buffer_size(SOCKET_BUFFER).context("cannot set SO_RCVBUF")?;
            self.socket.set_send_buffer_size(SOCKET_BUFFER).context("cannot set SO_SNDBUF")?;
        }
        Ok(SocketBuffers {
            receive: self.socket.recv_buffer_size().context("cannot read SO_RCVBUF")?,
            send: self.socket.send_buffer_size().context("cannot read SO_SNDBUF")?,
            limited: forced.is_err(),
        })
    }

    /// Datagrams that the kernel dropped because the receive buffer was full, since the socket was made.
    pub fn overflows(&self) -> Option<u64> {
        super::mmsg::receive_drops(&SockRef::from(&*self.socket)).ok().map(u64::from)
    }

    /// Turns on what `wanted` names and the kernel has, and turns off the rest; says what is on.
    pub fn set_offloads(&self, wanted: Features) -> Features {
        let mut on = Features::NONE;
        if setsockopt(&self.socket, sockopt::UdpGroSegment, &wanted.has(Feature::Gro)).is_ok()
            && wanted.has(Feature::Gro)
        {
            on = on.with(Feature::Gro);
        }
        // Asked for with each send; here only whether the kernel knows it.
        if wanted.has(Feature::Gso) && setsockopt(&self.socket, sockopt::UdpGsoSegment, &0).is_ok() {
            on = on.with(Feature::Gso);
        }
        on
    }

    /// A handle for one data-path thread. `slots` is the largest batch.
    pub fn io(&self, wake: &Arc<WakeFd>, slots: usize) -> UdpIo {
        UdpIo::new(self.clone(), None, wake, slots)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The UDP socket, or one for each family, as one side of the data path.
#[derive(Debug)]
pub struct UdpIo {
    /// The one that was received from last comes last.
    socket: OuterSocket,
    /// Of the other family.
    other: Option<OuterSocket>,
    wake: Arc<WakeFd>,
    messages: Mmsg,
}

impl UdpIo {
    /// A handle for one data-path thread. `slots` is the largest batch.
    pub fn new(socket: OuterSocket, other: Option<OuterSocket>, wake: &Arc<WakeFd>, slots: usize) -> Self {
        Self { socket, other, wake: wake.clone(), messages: Mmsg::new(slots) }
    }

    /// The socket that reaches an address.
    fn toward(&self, to: IpAddr) -> &OuterSocket {
        match &self.other {
            Some(other) if other.v6 == to.is_ipv6() => other,
            _ => &self.socket,
        }
    }
}

impl PacketIo for UdpIo {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        if let Some(other) = &mut self.other {
            // In turns, so that neither family starves the other.
            std::mem::swap(&mut self.socket, other);
        }
        for socket in [Some(&self.socket), self.other.as_ref()].into_iter().flatten() {
            match self.messages.recv(socket.fd(), batch) {
                Ok(()) => break,
                Err(RecvOutcome::Empty) => {}
                Err(RecvOutcome::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        batch: &Batch,
        mut packets: &[Transmit],
        mut outcome: impl FnMut(&Transmit, Result<(), DropReason>),
    ) {
        // The plain form has one socket.
        let socket = self.socket.clone();
        while !packets.is_empty() {
            let sent = match self.messages.send(socket.fd(), batch, packets, socket.port) {
                Ok(sent) => sent,
                Err(Errno::EINTR) => continue,
                // The send buffer is full: waiting holds the queue of the device, which holds back the senders.
                Err(Errno::EAGAIN) if self.wait_writable(&socket) => continue,
                Err(errno) => {
                    if let Some(first) = packets.first() {
                        outcome(first, Err(reason(errno)));
                    }
                    packets = packets.get(1..).unwrap_or_default();
                    continue;
                }
            };
            let (done, rest) = packets.split_at(sent.min(packets.len()));
            done.iter().for_each(|packet| outcome(packet, Ok(())));
            packets = rest;
        }
    }

    fn wait(&mut self) -> io::Result<Wake> {
        wait_readable([Some(self.socket.fd()), self.other.as_ref().map(OuterSocket::fd)], &self.wake)
    }
}

impl SegmentIo for UdpIo {
    fn send(&mut self, to: IpAddr, size: usize, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let several = bytes > size;
        let size = if several { Some(u16::try_from(size).map_err(|_| SendError::TooMuch)?) } else { None };
        let socket = self.toward(to);
        loop {
            match send_segments(socket.fd(), to, socket.port, size, parts) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                // The send buffer is full: waiting holds the queue of the device, which holds back the senders.
                Err(Errno::EAGAIN) if self.wait_writable(socket) => {}
                // Longer than the path takes or than a send holds; the datagrams one by one may still pass.
                Err(Errno::EMSGSIZE) => return Err(SendError::TooMuch),
                // An interface that cannot do checksums, or a kernel that knows the option and refuses its use.
                Err(Errno::EIO | Errno::EINVAL) if several => return Err(SendError::Unsupported),
                Err(errno) => return Err(SendError::Dropped(reason(errno))),
            }
        }
    }
}

impl UdpIo {
    /// Sleeps until the socket takes more; `false` when told to stop meanwhile.
    fn wait_writable(&self, socket: &OuterSocket) -> bool {
        let mut fds = [
            PollFd::new(socket.fd(), PollFlags::POLLOUT),
            PollFd::new(self.wake.event.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).is_ok() && fds[1].any() != Some(true)
    }
}

fn reason(errno: Errno) -> DropReason {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::QueueFull,
        Errno::EMSGSIZE => DropReason::TooBig,
        _ => DropReason::SendFailed,
    }
}
