//! `recvmmsg(2)` into the slots of a [`Batch`], and `sendmmsg(2)`, with message headers that are allocated once.
//!
//! No safe wrapper that we know of does this without an allocation per call.
#![expect(unsafe_code, reason = "raw message headers; the only module that builds them")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use encap::ecn;
use libc::{c_int, iovec, mmsghdr, msghdr, sockaddr_storage, socklen_t};
use nix::errno::Errno;
use socket2::SockRef;

use crate::ports::{Batch, Received, Target, Transmit};

/// Message headers, vectors and addresses for a batch.
pub(super) struct Mmsg {
    headers: Box<[mmsghdr]>,
    vectors: Box<[iovec]>,
    addresses: Box<[sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// Room for what comes or goes beside a datagram: a number of `UDP_GRO` or `UDP_SEGMENT`, and one of `IP_TOS`. Of words,
/// because that is its alignment.
type Control = [usize; 8];
const _: () = assert!(2 * control_space(size_of::<c_int>()) <= size_of::<Control>());

const fn control_space(len: usize) -> usize {
    // SAFETY: a calculation.
    unsafe { libc::CMSG_SPACE(len as u32) as usize }
}

// SAFETY: the raw pointers inside point into this value's own boxes, or, only while a call below runs, into
// what the call borrows. Nothing refers to the thread it was made on.
unsafe impl Send for Mmsg {}

impl std::fmt::Debug for Mmsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mmsg").field("slots", &self.headers.len()).finish()
    }
}

/// Why nothing was received.
pub(super) enum RecvOutcome {
    /// Nothing is there.
    Empty,
    /// The socket failed.
    Failed(io::Error),
}

impl Mmsg {
    pub(super) fn new(slots: usize) -> Self {
        // SAFETY: all three are plain C structures for which all-zero is a valid value.
        let zeroed =
            unsafe { (mem::zeroed::<mmsghdr>(), mem::zeroed::<iovec>(), mem::zeroed::<sockaddr_storage>()) };
        Self {
            headers: vec![zeroed.0; slots].into_boxed_slice(),
            vectors: vec![zeroed.1; slots].into_boxed_slice(),
            addresses: vec![zeroed.2; slots].into_boxed_slice(),
            controls: vec![Control::default(); slots].into_boxed_slice(),
        }
    }

    /// Fills `batch` with the datagrams that wait in the socket.
    pub(super) fn recv(&mut self, socket: BorrowedFd<'_>, batch: &mut Batch) -> Result<(), RecvOutcome> {
        batch.clear();
        let slots = batch.capacity().min(self.headers.len());
        for slot in 0..slots {
            let memory = batch.slot_mut(slot);
            self.vectors[slot] = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.addresses[slot]).cast();
            header.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
            header.msg_iov = ptr::from_mut(&mut self.vectors[slot]);
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(&mut self.controls[slot]).cast();
            header.msg_controllen = size_of::<Control>();
            header.msg_flags = 0;
        }
        // SAFETY: the first `slots` headers point to one vector and one address each, owned by `self`; the vectors
        // point to disjoint slots of `batch`, which is borrowed for the whole call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                slots as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EINTR) => RecvOutcome::Empty,
                // Left by an ICMP error about a datagram of ours, or by an interface that went down: both pass.
                Some(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENETDOWN) => {
                    RecvOutcome::Empty
                }
                _ => RecvOutcome::Failed(error),
            });
        };
        for (header, address) in self.headers.iter().zip(&self.addresses).take(count) {
            let (segment, ecn) = beside(&header.msg_hdr);
            batch.push(Received {
                len: header.msg_len as usize,
                from: source(address),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                segment,
                ecn,
            });
        }
        Ok(())
    }

    /// Sends to `port` of each one's node as many of `transmits` as the kernel takes now, in order; says how many those
    /// are, at least one.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        transmits: &[Transmit<'_>],
        port: u16,
    ) -> Result<usize, Errno> {
        let count = transmits.len().min(self.headers.len());
        let slots = self.headers.iter_mut().zip(&mut self.addresses).zip(&mut self.controls);
        for (transmit, ((header, address), control)) in transmits.iter().zip(slots) {
            let header = &mut header.msg_hdr;
            let Target { addr, ecn, .. } = transmit.to;
            header.msg_namelen = fill(address, addr, port) as socklen_t;
            header.msg_name = ptr::from_mut(address).cast();
            // The kernel only reads what is sent, and an `IoSlice` is an `iovec`.
            header.msg_iov = transmit.parts.as_ptr().cast_mut().cast();
            header.msg_iovlen = transmit.parts.len();
            header.msg_control = ptr::null_mut();
            header.msg_controllen = 0;
            header.msg_flags = 0;
            if let Some(size) = transmit.segment {
                add_control(header, control, (libc::SOL_UDP, libc::UDP_SEGMENT), size);
            }
            if ecn != ecn::NOT_ECT {
                let kind = match addr {
                    IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                    IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
                };
                add_control(header, control, kind, c_int::from(ecn));
            }
        }
        // SAFETY: the first `count` headers point to one address and one control memory each, owned by `self`, and to parts
        // that are borrowed for the whole call, as is what the parts point to.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).map_err(|_| Errno::last())
    }
}

/// What came beside a received message: the segment size, if the kernel put several datagrams into it, and the
/// congestion mark, which is the same for all of them.
fn beside(message: &msghdr) -> (Option<NonZeroU16>, u8) {
    let (mut segment, mut ecn) = (None, ecn::NOT_ECT);
    // SAFETY: the kernel has just filled in `message`, whose control memory is alive and as long as it says; the
    // walk stays inside it, and each header that it finds is followed by as many bytes as the header says: a byte for
    // IPv4's TOS, an `int` for the others.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while !control.is_null() {
            let data = libc::CMSG_DATA(control);
            match ((*control).cmsg_level, (*control).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.cast::<c_int>().read_unaligned();
                    segment = u16::try_from(size).ok().and_then(NonZeroU16::new);
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = *data & ecn::CE,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = data.cast::<c_int>().read_unaligned() as u8 & ecn::CE;
                }
                _ => {}
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    (segment, ecn)
}

/// Puts a number beside a message, behind those that are there already. There is room for two.
fn add_control<N: Copy>(message: &mut msghdr, control: &mut Control, kind: (c_int, c_int), number: N) {
    let at = message.msg_controllen;
    let space = control_space(size_of::<N>());
    if at + space > size_of::<Control>() {
        return;
    }
    message.msg_control = ptr::from_mut(control).cast();
    message.msg_controllen = at + space;
    // SAFETY: the control memory reaches beyond `at + space`, `at` is aligned because every space is, and a space holds
    // one header and the number.
    unsafe {
        let header = ptr::from_mut(control).cast::<u8>().add(at).cast::<libc::cmsghdr>();
        (*header).cmsg_level = kind.0;
        (*header).cmsg_type = kind.1;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<N>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<N>().write_unaligned(number);
    }
}

/// Writes `to:port` into `address`; the number of bytes used.
fn fill(address: &mut sockaddr_storage, to: IpAddr, port: u16) -> usize {
    match to {
        IpAddr::V4(to) => {
            let v4 = ptr::from_mut(address).cast::<libc::sockaddr_in>();
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` is large and aligned enough for a `sockaddr_in`, and is borrowed mutably.
            unsafe { v4.write(value) };
            size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(to) => {
            let v6 = ptr::from_mut(address).cast::<libc::sockaddr_in6>();
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: to.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above, for a `sockaddr_in6`.
            unsafe { v6.write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    }
}

fn source(address: &sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which a `sockaddr_storage` can hold.
            let v4 = unsafe { &*ptr::from_ref(address).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a `sockaddr_in6`.
            let v6 = unsafe { &*ptr::from_ref(address).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::from((ip, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}

/// Has a socket take the interface's MTU for the path's, whatever ICMP says (`IP_PMTUDISC_OMIT`, `IPV6_PMTUDISC_OMIT`; Linux
/// 3.15). What is longer is sent in fragments, which routers of an IPv4 network may cut once more.
pub(super) fn ignore_path_mtu(socket: &SockRef<'_>, v6: bool) -> io::Result<()> {
    let (level, name, value): (c_int, c_int, c_int) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
    };
    // SAFETY: `value` is as long as is said and lives across the call, which only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams lost to a full receive buffer: `SO_MEMINFO`, field `SK_MEMINFO_DROPS` (linux/sock_diag.h).
pub(super) fn receive_drops(socket: &SockRef<'_>) -> io::Result<u32> {
    const SK_MEMINFO_DROPS: usize = 8;
    const SK_MEMINFO_VARS: usize = 9;
    let mut info = [MaybeUninit::<u32>::zeroed(); SK_MEMINFO_VARS];
    let mut len = size_of_val(&info) as socklen_t;
    // SAFETY: `info` is `len` bytes of writable memory and both live across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the array began zeroed, and every u32 is a valid value.
    Ok(unsafe { info[SK_MEMINFO_DROPS].assume_init() })
}
