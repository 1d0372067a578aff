//! The outer socket: UDP, batched by `recvmmsg` and `sendmmsg`.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use encap::DropReason;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{info, warn};

use super::mmsg::{Mmsg, RecvOutcome};
use super::reuseport;
use super::wake::{WakeFd, wait_readable, wait_writable};
use crate::ports::{Batch, DatagramIo, SendError, Transmit, Wake};
use encap::offload::{Feature, Features};

/// Socket buffers, bytes. The kernel charges a 1,500-byte packet with up to 2,300 bytes and doubles what is
/// asked for, so this holds some 14,000 packets: the full windows of three bulk TCP streams.
const SOCKET_BUFFER: usize = 16 << 20;

/// The UDP sockets of the overlay, bound to the external interface's address: one for each queue, among which the
/// kernel shares out what arrives by its addresses and ports (`SO_REUSEPORT`), so that a flow stays with one.
#[derive(Debug, Clone)]
pub struct OuterSocket {
    /// At least one.
    sockets: Arc<[Socket]>,
    /// Other ports to send from, `None` where it is the tunnel's.
    senders: Arc<[Option<Socket>]>,
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
    /// Binds `address:port`, with a socket for each of `queues`.
    pub fn bind(address: IpAddr, port: u16, queues: usize) -> Result<Self> {
        let at = SocketAddr::new(address, port);
        // The first one shares only once it is bound, so that another program at the port is not joined but reported.
        let first = Self::bind_one(at)?;
        let mut sockets = vec![first];
        if queues > 1 {
            sockets[0].set_reuse_port(true).context("cannot share the UDP port among threads")?;
        }
        for _ in 1..queues {
            let socket = Self::create(at)?;
            socket.set_reuse_port(true).context("cannot share the UDP port among threads")?;
            socket.bind(&at.into()).with_context(|| format!("cannot bind UDP {at} once more"))?;
            sockets.push(socket);
        }
        let bound = Self { sockets: sockets.into(), senders: Arc::default(), port, v6: address.is_ipv6() };
        if queues > 1 {
            let outcome = reuseport::share_out(&bound.sockets[0], queues, bound.v6);
            let _ = outcome
                .inspect_err(|errno| info!(%errno, "the kernel shares out what arrives by its own hash"));
        }
        Ok(bound)
    }

    /// Has as many ports to send from as there are queues: the network and the receiver then tell flows apart. Any, or
    /// where the receiver judges by it, the tunnel's and those `above`; for one that another program has it is the tunnel's.
    pub fn spread(mut self, address: IpAddr, above: bool) -> Result<Self> {
        if self.sockets.len() > 1 {
            let own = |at| if above { Ok(self.above(address, at)) } else { Self::any(address).map(Some) };
            let senders: Result<Vec<_>> = (0..self.sockets.len()).map(own).collect();
            self.senders = senders?.into();
        }
        Ok(self)
    }

    fn any(address: IpAddr) -> Result<Socket> {
        Self::bind_one(SocketAddr::new(address, 0))
    }

    fn above(&self, address: IpAddr, by: usize) -> Option<Socket> {
        let port = u16::try_from(by).ok().filter(|by| *by > 0)?.checked_add(self.port)?;
        let bound = Self::bind_one(SocketAddr::new(address, port));
        bound.inspect_err(|_| info!(port, "is in use: its flows are sent from the tunnel's own port")).ok()
    }

    /// Not yet bound. Says of each datagram whether the network marked it.
    fn create(at: SocketAddr) -> Result<Socket> {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))
            .context("cannot create the UDP socket")?;
        socket.set_nonblocking(true).context("cannot make the UDP socket non-blocking")?;
        let marks = if at.is_ipv6() { socket.set_recv_tclass_v6(true) } else { socket.set_recv_tos_v4(true) };
        marks.context("cannot have congestion marks reported")?;
        // Anybody can forge the ICMP messages that tell of a smaller MTU: they need to know no more than the port.
        if let Err(error) = super::mmsg::ignore_path_mtu(&SockRef::from(&socket), at.is_ipv6()) {
            warn!(%error, "forged ICMP messages can make the tunnel slow: the kernel refuses IP_PMTUDISC_OMIT");
        }
        Ok(socket)
    }

    fn bind_one(at: SocketAddr) -> Result<Socket> {
        let (socket, address, port) = (Self::create(at)?, at.ip(), at.port());
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
        Ok(socket)
    }

    /// How many sockets take what arrives.
    pub fn queues(&self) -> usize {
        self.sockets.len()
    }

    /// Enlarges the buffers past the system's limit where allowed, else as far as it goes.
    pub fn enlarge_buffers(&self) -> Result<SocketBuffers> {
        let mut limited = false;
        for socket in self.sockets.iter() {
            if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
                socket.set_recv_buffer_size(SOCKET_BUFFER).context("cannot set SO_RCVBUF")?;
                limited = true;
            }
        }
        for socket in self.senders.iter().flatten() {
            // Nobody reads what strangers send there: the least that the kernel allows.
            socket.set_recv_buffer_size(0).context("cannot set SO_RCVBUF")?;
        }
        for socket in self.sockets.iter().chain(self.senders.iter().flatten()) {
            if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
                socket.set_send_buffer_size(SOCKET_BUFFER).context("cannot set SO_SNDBUF")?;
                limited = true;
            }
        }
        let first = &self.sockets[0];
        Ok(SocketBuffers {
            receive: first.recv_buffer_size().context("cannot read SO_RCVBUF")?,
            send: first.send_buffer_size().context("cannot read SO_SNDBUF")?,
            limited,
        })
    }

    /// Datagrams that the kernel dropped because a receive buffer was full, since the sockets were made.
    pub fn overflows(&self) -> Option<u64> {
        let drops = |socket| super::mmsg::receive_drops(&SockRef::from(socket)).ok().map(u64::from);
        self.sockets.iter().map(drops).sum()
    }

    /// Turns on what `wanted` names and the kernel has, and turns off the rest; says what is on.
    pub fn set_offloads(&self, wanted: Features) -> Features {
        let mut on = Features::NONE;
        let gro = wanted.has(Feature::Gro);
        let agreed = |socket: &Socket| setsockopt(socket, sockopt::UdpGroSegment, &gro).is_ok();
        // Of each, also if one refuses.
        if self.sockets.iter().filter(|socket| agreed(socket)).count() == self.sockets.len() && gro {
            on = on.with(Feature::Gro);
        }
        // Asked for with each send; here only whether the kernel knows it.
        if wanted.has(Feature::Gso) && setsockopt(&self.sockets[0], sockopt::UdpGsoSegment, &0).is_ok() {
            on = on.with(Feature::Gso);
        }
        on
    }

    /// A handle for one data-path thread of that queue. `slots` is the largest batch.
    pub fn io(&self, queue: usize, wake: &Arc<WakeFd>, slots: usize) -> UdpIo {
        UdpIo::new(self.clone(), None, queue, wake, slots)
    }

    fn receiver(&self, queue: usize) -> BorrowedFd<'_> {
        self.sockets[queue % self.sockets.len()].as_fd()
    }

    fn sender(&self, queue: usize, flow: Option<usize>) -> BorrowedFd<'_> {
        let other = flow.and_then(|flow| self.senders.get(flow)?.as_ref());
        other.unwrap_or(&self.sockets[queue % self.sockets.len()]).as_fd()
    }
}

/// The UDP socket, or one for each family, as one side of the data path.
#[derive(Debug)]
pub struct UdpIo {
    /// The one that was received from last comes last.
    socket: OuterSocket,
    /// Of the other family.
    other: Option<OuterSocket>,
    queue: usize,
    wake: Arc<WakeFd>,
    messages: Mmsg,
}

impl UdpIo {
    /// A handle for one data-path thread of that queue; queues are counted round. `slots` is the largest batch.
    pub fn new(
        socket: OuterSocket,
        other: Option<OuterSocket>,
        queue: usize,
        wake: &Arc<WakeFd>,
        slots: usize,
    ) -> Self {
        Self { socket, other, queue, wake: wake.clone(), messages: Mmsg::new(slots) }
    }
}

impl DatagramIo for UdpIo {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        if let Some(other) = &mut self.other {
            // In turns, so that neither family starves the other.
            std::mem::swap(&mut self.socket, other);
        }
        for socket in [Some(&self.socket), self.other.as_ref()].into_iter().flatten() {
            match self.messages.recv(socket.receiver(self.queue), batch) {
                Ok(()) => break,
                Err(RecvOutcome::Empty) => {}
                Err(RecvOutcome::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self, transmits: &[Transmit<'_>]) -> Result<usize, SendError> {
        let Some(first) = transmits.first() else { return Ok(0) };
        let outer = toward(&self.socket, self.other.as_ref(), first.to.addr);
        let socket = outer.sender(self.queue, first.to.flow);
        // One call goes through one socket.
        let alike = |one: &&Transmit<'_>| {
            one.to.flow == first.to.flow && one.to.addr.is_ipv6() == first.to.addr.is_ipv6()
        };
        let alike = transmits.iter().take_while(alike).count();
        let transmits = transmits.get(..alike).unwrap_or(transmits);
        loop {
            match self.messages.send(socket, transmits, outer.port) {
                Ok(sent) => return Ok(sent),
                Err(Errno::EINTR) => {}
                // The send buffer is full: waiting holds the queue of the device, which holds back the senders.
                Err(Errno::EAGAIN) if wait_writable(socket, &self.wake) => {}
                Err(Errno::EMSGSIZE) => return Err(SendError::TooMuch),
                // A datagram is longer than the interface takes now (newer kernels say EMSGSIZE), which passes. One
                // by one they go in fragments.
                Err(Errno::EINVAL) if first.segment.is_some() => return Err(SendError::TooMuch),
                // The interface cannot do checksums.
                Err(Errno::EIO) if first.segment.is_some() => return Err(SendError::Unsupported),
                Err(errno) => return Err(SendError::Dropped(reason(errno))),
            }
        }
    }

    fn flow_ports(&self) -> usize {
        self.socket.queues()
    }

    fn wait(&mut self) -> io::Result<Wake> {
        let other = self.other.as_ref().map(|other| other.receiver(self.queue));
        wait_readable([Some(self.socket.receiver(self.queue)), other], &self.wake)
    }
}

/// The socket that reaches an address.
fn toward<'s>(socket: &'s OuterSocket, other: Option<&'s OuterSocket>, to: IpAddr) -> &'s OuterSocket {
    other.filter(|other| other.v6 == to.is_ipv6()).unwrap_or(socket)
}

fn reason(errno: Errno) -> DropReason {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::QueueFull,
        Errno::EMSGSIZE => DropReason::TooBig,
        _ => DropReason::SendFailed,
    }
}
