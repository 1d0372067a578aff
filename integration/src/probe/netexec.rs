//! The server in every pod, a small twin of the one Kubernetes' own network tests use (agnhost netexec):
//! who are you, who am I to you, say this back, and ask another the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use serde_json::json;
use socket2::SockRef;

use super::{http, sockopt, udp};
use crate::netns::Netns;

/// `GET /`, `/hostname`, `/clientip`, `/healthz`, `/echo?msg=`, `POST /echo` with a body to be sent back, and
/// `/dial?host=&protocol=http|udp&request=&tries=`.
pub const HTTP_PORT: u16 = 8080;
/// Datagrams `hostname`, `clientip`, and `echo <anything>`; the words in any case, what is echoed as it came.
pub const UDP_PORT: u16 = 8081;

/// A request body larger than this is not read: the tests need 2,000 bytes.
const MAX_BODY: usize = 1 << 20;

/// Who serves.
struct Server {
    hostname: String,
    ns: Netns,
    stopping: AtomicBool,
}

/// A running server. Dropping it closes its sockets, so that nothing keeps the namespace alive.
pub struct Netexec {
    udp: Arc<UdpSocket>,
    tcp: Arc<TcpListener>,
    server: Arc<Server>,
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
        let server =
            Server { hostname: hostname.to_owned(), ns: ns.clone(), stopping: AtomicBool::new(false) };
        let server = Arc::new(server);
        let threads = vec![
            thread::spawn({
                let (udp, server) = (Arc::clone(&udp), Arc::clone(&server));
                move || serve_udp(&udp, &server)
            }),
            thread::spawn({
                let (tcp, server) = (Arc::clone(&tcp), Arc::clone(&server));
                move || serve_http(&tcp, &server)
            }),
        ];
        Ok(Self { udp, tcp, server, threads })
    }
}

impl Drop for Netexec {
    fn drop(&mut self) {
        self.server.stopping.store(true, Ordering::Release);
        // Both calls wake the thread that blocks in the socket; on an unconnected UDP socket the call also reports
        // ENOTCONN, which changes nothing.
        let _ = SockRef::from(&*self.udp).shutdown(Shutdown::Both);
        let _ = SockRef::from(&*self.tcp).shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, server: &Server) {
    let mut buffer = vec![0; 1 << 16];
    while !server.stopping.load(Ordering::Acquire) {
        // Not std's recv_from: it panics on the answer without an address that a shutdown gives.
        let Ok((length, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) else {
            continue;
        };
        let v4 = from.as_sockaddr_in().map(|from| SocketAddr::V4((*from).into()));
        let Some(from) = v4.or(from.as_sockaddr_in6().map(|from| SocketAddr::V6((*from).into()))) else {
            continue;
        };
        let asked = buffer[..length].trim_ascii_end();
        let answer = match asked {
            _ if asked.eq_ignore_ascii_case(b"hostname") => server.hostname.as_bytes(),
            _ if asked.eq_ignore_ascii_case(b"clientip") => &from.to_string().into_bytes(),
            _ => match buffer[..length].strip_prefix(b"echo ") {
                Some(text) => text,
                None => continue,
            },
        };
        let _ = socket.send_to(answer, from);
    }
}

fn serve_http(listener: &TcpListener, server: &Arc<Server>) {
    while !server.stopping.load(Ordering::Acquire) {
        let Ok((stream, from)) = listener.accept() else { continue };
        let server = Arc::clone(server);
        thread::spawn(move || answer(stream, from, &server));
    }
}

fn answer(stream: TcpStream, from: SocketAddr, server: &Server) -> Result<()> {
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
    let target = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, body) = match path {
        "/" => ("200 OK", format!("NOW: {:?}", SystemTime::now()).into_bytes()),
        "/hostname" | "/hostName" => ("200 OK", server.hostname.as_bytes().to_vec()),
        "/clientip" => ("200 OK", from.to_string().into_bytes()),
        "/healthz" => ("200 OK", Vec::new()),
        "/echo" if length == 0 => ("200 OK", parameter(query, "msg").unwrap_or_default().into()),
        "/echo" => ("200 OK", body),
        "/dial" => match dial(server, query) {
            Ok(report) => ("200 OK", report.into_bytes()),
            Err(error) => ("400 Bad Request", format!("{error:#}").into_bytes()),
        },
        _ => ("404 Not Found", Vec::new()),
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    Ok(())
}

/// The value of a parameter; nothing that the tests ask has to be unescaped.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Asks another server, and reports in the words of the original: a question without an answer is an error among
/// others, and no failure of the whole.
fn dial(server: &Server, query: &str) -> Result<String> {
    let wanted = |name: &str| parameter(query, name).with_context(|| format!("no parameter {name}"));
    let host: IpAddr = wanted("host")?.trim_matches(['[', ']']).parse().context("parameter host")?;
    let (request, protocol) = (wanted("request")?, wanted("protocol")?);
    let tries: u32 = parameter(query, "tries").unwrap_or("1").parse().context("parameter tries")?;
    let (mut responses, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..tries {
        let answer = match protocol {
            "udp" => udp::ask(&server.ns, host, request.as_bytes())
                .map(|answer| String::from_utf8_lossy(&answer).into_owned()),
            "http" => http::get(&server.ns, host, &format!("/{request}")),
            _ => bail!("parameter protocol: {protocol}"),
        };
        match answer {
            Ok(answer) => responses.push(answer),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    Ok(json!({"responses": responses, "errors": errors}).to_string())
}
