//! Every size there is, said back over TCP and UDP (RFC 862), and compared byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::MsgFlags;
use nix::sys::socket::{SockaddrStorage, recvfrom, sendto};
use socket2::SockRef;

use super::sockopt;
use super::udp::PATIENCE;
use crate::netns::Netns;
use crate::wait;

/// The port of the echo protocol.
pub const PORT: u16 = 7;

/// A server that says everything back. Dropping it closes its sockets.
pub struct Echo {
    udp: Arc<UdpSocket>,
    tcp: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves on one address of the namespace.
    ///
    /// # Errors
    /// When the port is taken there, or the address is not.
    pub fn start(ns: &Netns, at: IpAddr) -> Result<Self> {
        let (udp, tcp) = ns.run(|| {
            let udp = UdpSocket::bind((at, PORT)).context("bind the UDP echo server")?;
            sockopt::patient(&udp);
            let tcp = TcpListener::bind((at, PORT)).context("bind the TCP echo server")?;
            Ok((Arc::new(udp), Arc::new(tcp)))
        })?;
        let stopping = Arc::new(AtomicBool::new(false));
        let serve_datagrams = {
            let (udp, stopping) = (Arc::clone(&udp), Arc::clone(&stopping));
            thread::spawn(move || datagrams(&udp, &stopping))
        };
        let serve_streams = {
            let (tcp, stopping) = (Arc::clone(&tcp), Arc::clone(&stopping));
            thread::spawn(move || {
                while !stopping.load(Ordering::Acquire) {
                    let Ok((stream, _)) = tcp.accept() else { continue };
                    thread::spawn(move || say_back(stream));
                }
            })
        };
        Ok(Self { udp, tcp, stopping, threads: vec![serve_datagrams, serve_streams] })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Both calls wake the thread that blocks in the socket.
        let _ = SockRef::from(&*self.udp).shutdown(Shutdown::Both);
        let _ = SockRef::from(&*self.tcp).shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn datagrams(socket: &UdpSocket, stopping: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stopping.load(Ordering::Acquire) {
        // Not std's recv_from: it panics on the answer without an address that a shutdown gives.
        if let Ok((length, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            let _ = sendto(socket.as_raw_fd(), &buffer[..length], &from, MsgFlags::empty());
        }
    }
}

fn say_back(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Whether datagrams may be fragmented on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// They may.
    Allowed,
    /// They may not: DF is set.
    Forbidden,
}

/// Sends a datagram of each size from one socket, each after the answer to the one before; says how many came back.
///
/// # Errors
/// When one is refused, missing or changed, with its size.
pub fn datagrams_of(
    from: &Netns,
    to: IpAddr,
    fragments: Fragments,
    sizes: impl Iterator<Item = usize>,
) -> Result<usize> {
    let socket = from.run(|| {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = UdpSocket::bind(any)?;
        socket.connect((to, PORT)).with_context(|| format!("no route to {to}"))?;
        if fragments == Fragments::Forbidden {
            sockopt::dont_fragment(&socket)?;
        }
        sockopt::patient(&socket);
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 16];
    let mut count = 0;
    for size in sizes {
        let sent = noise(count, size);
        socket.send(&sent).with_context(|| format!("send {size} bytes"))?;
        let length = socket.recv(&mut buffer).with_context(|| format!("{size} bytes did not come back"))?;
        ensure!(buffer[..length] == sent, "{size} bytes came back changed, as {length}");
        count += 1;
    }
    Ok(count)
}

/// Sends a message of each size over one connection, each after the answer to the one before; says how many came back.
///
/// # Errors
/// When the connection fails or an answer differs, with the size.
pub fn messages_of(from: &Netns, to: IpAddr, sizes: impl Iterator<Item = usize>) -> Result<usize> {
    let mut stream = from.run(|| {
        TcpStream::connect_timeout(&(to, PORT).into(), PATIENCE).with_context(|| format!("connect to {to}"))
    })?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut count = 0;
    for size in sizes {
        let sent = noise(count, size);
        stream.write_all(&sent).with_context(|| format!("send {size} bytes"))?;
        let mut answer = vec![0; size];
        stream.read_exact(&mut answer).with_context(|| format!("{size} bytes did not come back"))?;
        ensure!(answer == sent, "{size} bytes came back changed");
        count += 1;
    }
    Ok(count)
}

/// Bytes that tell number and size, so that a late or a mixed-up answer differs (Knuth's MMIX generator).
pub(super) fn noise(number: usize, size: usize) -> Vec<u8> {
    let mut state = (number as u64) << 20 | size as u64;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// One TCP connection on which full-size segments go to a server and back, again and again, in the background.
pub struct Talk {
    rounds: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Talk {
    /// Connects and begins.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub fn start(from: &Netns, to: IpAddr) -> Result<Self> {
        const SIZE: usize = 32 << 10;
        let mut stream = from.run(|| {
            TcpStream::connect_timeout(&(to, PORT).into(), PATIENCE)
                .with_context(|| format!("connect to {to}"))
        })?;
        stream.set_nodelay(true)?;
        // What is not there by then will never be: a break is found long before.
        stream.set_read_timeout(Some(wait::DEADLINE * 2))?;
        let (rounds, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (rounds, stopping) = (Arc::clone(&rounds), Arc::clone(&stopping));
            thread::spawn(move || {
                let mut answer = vec![0; SIZE];
                while !stopping.load(Ordering::Acquire) {
                    let round = rounds.load(Ordering::Acquire);
                    let sent = noise(usize::try_from(round)?, SIZE);
                    stream.write_all(&sent).with_context(|| format!("send round {round}"))?;
                    stream.read_exact(&mut answer).with_context(|| format!("no answer in round {round}"))?;
                    ensure!(answer == sent, "round {round} came back changed");
                    rounds.store(round + 1, Ordering::Release);
                }
                Ok(())
            })
        };
        Ok(Self { rounds, stopping, thread })
    }

    /// Waits until `more` rounds are through and says how long that took.
    ///
    /// # Errors
    /// When they are not within the deadline, or the connection has failed.
    pub fn goes_on(&self, more: u64) -> Result<Duration> {
        let goal = self.rounds.load(Ordering::Acquire) + more;
        wait::until_true("the connection goes on", || {
            Ok(self.rounds.load(Ordering::Acquire) >= goal || self.thread.is_finished())
        })
        .and_then(|took| {
            ensure!(self.rounds.load(Ordering::Acquire) >= goal, "the connection failed");
            Ok(took)
        })
    }

    /// Ends it, and says how many rounds were made.
    ///
    /// # Errors
    /// When it failed at any time.
    pub fn stop(self) -> Result<u64> {
        self.stopping.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the talking thread panicked"))??;
        Ok(self.rounds.load(Ordering::Acquire))
    }
}
