//! The server in every pod, a small twin of the one Kubernetes' own network tests use (agnhost netexec):
//! who are you, who am I to you, say this back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::SockRef;

use super::sockopt;
use crate::netns::Netns;

/// `GET /hostname`, `/clientip`, and `POST /echo` with a body to be sent back.
pub const HTTP_PORT: u16 = 8080;
/// Datagrams `hostname`, `clientip`, and `echo <anything>`.
pub const UDP_PORT: u16 = 8081;

/// A request body larger than this is not read: the tests need 2,000 bytes.
const MAX_BODY: usize = 1 << 20;

/// A running server. Dropping it closes its sockets, so that nothing keeps the namespace alive.
pub struct Netexec {
    udp: Arc<UdpSocket>,
    tcp: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Netexec {
    /// Serves on all IPv4 addresses of the namespace.
    ///
    /// # Errors
    /// When a port is taken there.
    pub fn start(ns: &Netns, hostname: &str) -> Result<Self> {
        Self::start_at(ns, hostname, Ipv4Addr::UNSPECIFIED.into())
    }

    /// Serves on one address of the namespace.
    ///
    /// # Errors
    /// When a port is taken there, or the address is not.
    pub fn start_at(ns: &Netns, hostname: &str, at: IpAddr) -> Result<Self> {
        let (udp, tcp) = ns.run(|| {
            let udp = UdpSocket::bind((at, UDP_PORT)).context("bind the UDP server")?;
            sockopt::patient(&udp);
            let tcp = TcpListener::bind((at, HTTP_PORT)).context("bind the HTTP server")?;
            Ok((Arc::new(udp), Arc::new(tcp)))
        })?;
        let stopping = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let (udp, stopping, name) = (Arc::clone(&udp), Arc::clone(&stopping), hostname.to_owned());
                move || serve_udp(&udp, &stopping, &name)
            }),
            thread::spawn({
                let (tcp, stopping, name) = (Arc::clone(&tcp), Arc::clone(&stopping), hostname.to_owned());
                move || serve_http(&tcp, &stopping, &name)
            }),
        ];
        Ok(Self { udp, tcp, stopping, threads })
    }
}

impl Drop for Netexec {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Both calls wake the thread that blocks in the socket; on an unconnected UDP socket the call also reports
        // ENOTCONN, which changes nothing.
        let _ = SockRef::from(&*self.udp).shutdown(Shutdown::Both);
        let _ = SockRef::from(&*self.tcp).shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, stopping: &AtomicBool, hostname: &str) {
    let mut buffer = vec![0; 1 << 16];
    while !stopping.load(Ordering::Acquire) {
        // Not std's recv_from: it panics on the answer without an address that a shutdown gives.
        let Ok((length, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) else {
            continue;
        };
        let v4 = from.as_sockaddr_in().map(|from| SocketAddr::V4((*from).into()));
        let Some(from) = v4.or(from.as_sockaddr_in6().map(|from| SocketAddr::V6((*from).into()))) else {
            continue;
        };
        let answer = match &buffer[..length] {
            b"hostname" => hostname.as_bytes().to_vec(),
            b"clientip" => from.to_string().into_bytes(),
            other => match other.strip_prefix(b"echo ") {
                Some(text) => text.to_vec(),
                None => continue,
            },
        };
        let _ = socket.send_to(&answer, from);
    }
}

fn serve_http(listener: &TcpListener, stopping: &AtomicBool, hostname: &str) {
    while !stopping.load(Ordering::Acquire) {
        let Ok((stream, from)) = listener.accept() else { continue };
        let hostname = hostname.to_owned();
        thread::spawn(move || answer(stream, from, &hostname));
    }
}

fn answer(stream: TcpStream, from: SocketAddr, hostname: &str) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>()?.min(MAX_BODY);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, body) = match request.split(' ').nth(1) {
        Some("/hostname") => ("200 OK", hostname.as_bytes().to_vec()),
        Some("/clientip") => ("200 OK", from.to_string().into_bytes()),
        Some("/echo") => ("200 OK", body),
        _ => ("404 Not Found", Vec::new()),
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    Ok(())
}
