//! One connection: requests go to the real server, and its answers come back as the plan wants them.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use socket2::SockRef;

use super::http::{self, Head};
use super::plan::{At, Fault, Plan, Recorded};
use super::wire::{self, Event};
use super::{Kept, Open};
use crate::apiserver::ApiServer;

/// What it takes to serve connections.
pub(super) struct Relay {
    plan: Arc<Plan>,
    open: Arc<Open>,
    to: SocketAddr,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

const JSON: &str = "application/json";

type Upstream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// The side of the daemon.
struct Downstream {
    stream: BufReader<StreamOwned<ServerConnection, TcpStream>>,
    from: IpAddr,
    /// Bytes per second, when they are few.
    rate: Option<u32>,
}

impl Relay {
    pub(super) fn new(server: &ApiServer, plan: Arc<Plan>, open: Arc<Open>) -> Result<Self> {
        let dir = server.dir();
        let certificate = CertificateDer::from_pem_file(dir.join("server.crt"))?;
        let key = PrivateKeyDer::from_pem_file(dir.join("server.key"))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(Path::new(&dir.join("ca.crt")))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let as_server = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let as_client = ClientConfig::builder_with_provider(provider);
        Ok(Self {
            plan,
            open,
            to: server.address(),
            server: Arc::new(
                as_server
                    .with_safe_default_protocol_versions()?
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate], key)?,
            ),
            client: Arc::new(
                as_client
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth(),
            ),
        })
    }

    /// Serves one connection to its end.
    pub(super) fn serve(&self, stream: TcpStream, from: IpAddr) -> Result<()> {
        let _kept = self.open.keep(&stream)?;
        stream.set_nodelay(true)?;
        let tls = StreamOwned::new(ServerConnection::new(Arc::clone(&self.server))?, stream);
        let mut down = Downstream { stream: BufReader::new(tls), from, rate: None };
        let mut up = None;
        while let Some(request) = http::read_head(&mut down.stream)? {
            let mut body = Vec::new();
            request.body(&mut down.stream).read_to_end(&mut body)?;
            let at = sort(&request.line);
            if let Some(fault) = self.plan.take(from, at)
                && self.refuse(&mut down, at, &fault)?
            {
                continue;
            }
            let up = match &mut up {
                Some((up, _)) => up,
                None => &mut up.insert(self.connect()?).0,
            };
            up.get_mut().write_all(&request.bytes)?;
            up.get_mut().write_all(&body)?;
            up.get_mut().flush()?;
            let answer = http::read_head(up)?.context("the server hung up")?;
            if answer.status() == 200 && matches!(at, At::StreamingList | At::Watch) {
                self.relay_watch(&mut down, up, &answer, at == At::StreamingList)?;
            } else {
                let mut body = Vec::new();
                answer.body(up).read_to_end(&mut body)?;
                http::answer(&mut down, answer.status(), &answer.kind, "", &body)?;
            }
        }
        Ok(())
    }

    fn connect(&self) -> Result<(Upstream, Kept)> {
        let stream = TcpStream::connect(self.to)?;
        stream.set_nodelay(true)?;
        let kept = self.open.keep(&stream)?;
        let name = ServerName::IpAddress(self.to.ip().into());
        let connection = ClientConnection::new(Arc::clone(&self.client), name)?;
        Ok((BufReader::new(StreamOwned::new(connection, stream)), kept))
    }

    /// Does to a request what the plan says. `true` when it is answered by that.
    fn refuse(&self, down: &mut Downstream, at: At, fault: &Fault) -> Result<bool> {
        match fault {
            Fault::Reset => Err(down.reset())?,
            Fault::Silence => Err(down.say_nothing())?,
            // Who answers in the server's place does so in words of its own.
            Fault::Status(code) => http::answer(down, *code, JSON, "", status(*code).to_string().as_bytes())?,
            Fault::Overloaded(seconds) => {
                http::answer(down, 429, JSON, &format!("Retry-After: {seconds}\r\n"), b"Too many requests")?;
            }
            Fault::Garbage => http::answer(down, 200, wire::TYPE, "", b"<html>\x01{]not what you want\n")?,
            Fault::Truncated => {
                http::begin_chunks(down, wire::TYPE)?;
                down.write_all(b"1000\r\n\0\0\x04\0\x0a\x05ADDED")?;
                down.flush()?;
                Err(io::Error::from(ErrorKind::UnexpectedEof))?;
            }
            Fault::Stale if at == At::Page => {
                let Recorded { version, objects } = self.plan.recorded();
                http::answer(down, 200, wire::TYPE, "", &wire::list(&version, &objects))?;
            }
            Fault::Stale => {
                let Recorded { version, objects } = self.plan.recorded();
                http::begin_chunks(down, wire::TYPE)?;
                for object in &objects {
                    http::write_chunk(down, &wire::event("ADDED", object))?;
                }
                http::write_chunk(down, &wire::bookmark(&version, true))?;
                Err(down.say_nothing())?;
            }
            Fault::Slow(rate) => {
                down.rate = Some(*rate);
                return Ok(false);
            }
            Fault::Late(time) => {
                std::thread::sleep(*time);
                return Ok(false);
            }
            Fault::Twice | Fault::Swapped | Fault::Again | Fault::Bookmark => return Ok(false),
        }
        Ok(true)
    }

    fn relay_watch(
        &self,
        down: &mut Downstream,
        up: &mut Upstream,
        head: &Head,
        mut listing: bool,
    ) -> Result<()> {
        http::begin_chunks(down, &head.kind)?;
        let mut body = head.body(up);
        let mut list = Recorded::default();
        let (mut held, mut last) = (None, None);
        loop {
            let Some(frame) = wire::read_frame(&mut body)? else {
                http::write_chunk(down, b"")?;
                return Ok(());
            };
            let event = Event::of(&frame)?;
            if listing {
                if event.bookmark {
                    listing = false;
                    list.version = event.version();
                    self.plan.record(std::mem::take(&mut list));
                } else {
                    list.objects.push(event.object.to_vec());
                }
                http::write_chunk(down, &frame)?;
                continue;
            }
            let fault = if event.bookmark { None } else { self.plan.take(down.from, At::Event) };
            match fault {
                None => http::write_chunk(down, &frame)?,
                Some(Fault::Swapped) => {
                    held = Some(frame);
                    continue;
                }
                Some(fault) => spoil(down, &fault, &frame, &event, last.as_deref())?,
            }
            if let Some(held) = held.take() {
                http::write_chunk(down, &held)?;
            }
            last = Some(frame);
        }
    }
}

/// Does to an event what the plan says.
fn spoil(
    down: &mut Downstream,
    fault: &Fault,
    frame: &[u8],
    event: &Event<'_>,
    last: Option<&[u8]>,
) -> Result<()> {
    match fault {
        Fault::Reset => Err(down.reset())?,
        Fault::Silence => Err(down.say_nothing())?,
        Fault::Status(code) => {
            http::write_chunk(down, &wire::error(*code, reason(*code)))?;
            http::write_chunk(down, b"")?;
            Err(io::Error::from(ErrorKind::ConnectionAborted))?;
        }
        Fault::Garbage => http::write_chunk(down, b"{\"type\":\"ADDED\",\"object\":}{\x01\n")?,
        Fault::Truncated => {
            write!(down, "{:x}\r\n", frame.len())?;
            down.write_all(&frame[..frame.len() / 2])?;
            down.flush()?;
            Err(io::Error::from(ErrorKind::UnexpectedEof))?;
        }
        Fault::Twice => {
            http::write_chunk(down, frame)?;
            http::write_chunk(down, frame)?;
        }
        Fault::Again => {
            http::write_chunk(down, frame)?;
            http::write_chunk(down, last.unwrap_or(frame))?;
        }
        Fault::Bookmark => {
            http::write_chunk(down, frame)?;
            http::write_chunk(down, &wire::bookmark(&event.version(), false))?;
        }
        Fault::Slow(_) | Fault::Late(_) | Fault::Stale | Fault::Swapped | Fault::Overloaded(_) => {
            http::write_chunk(down, frame)?;
        }
    }
    Ok(())
}

impl Downstream {
    /// Ends the connection with a reset, and what is done for it.
    fn reset(&mut self) -> io::Error {
        let _ = SockRef::from(&self.stream.get_ref().sock).set_linger(Some(Duration::ZERO));
        ErrorKind::ConnectionReset.into()
    }

    /// Keeps the connection until the other side gives up.
    fn say_nothing(&mut self) -> io::Error {
        let _ = self.stream.get_mut().sock.read(&mut [0; 1]);
        ErrorKind::TimedOut.into()
    }
}

impl Write for Downstream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some(rate) = self.rate else { return self.stream.get_mut().write(data) };
        let few = data.len().min(usize::try_from(rate / 20).unwrap_or_default().max(1));
        std::thread::sleep(Duration::from_millis(50));
        let written = self.stream.get_mut().write(data.get(..few).unwrap_or_default())?;
        self.stream.get_mut().flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}

fn sort(line: &str) -> At {
    let mut words = line.split(' ');
    let (method, uri) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let nodes = uri.strip_prefix("/api/v1/nodes?");
    match (method, nodes) {
        ("PATCH", _) => At::Patch,
        ("GET", Some(query)) if query.contains("sendInitialEvents=true") => At::StreamingList,
        ("GET", Some(query)) if query.contains("watch=true") => At::Watch,
        // A list of one object asks only how far the server's history goes.
        ("GET", Some(query)) if !query.split('&').any(|word| word == "limit=1") => At::Page,
        _ => At::Request,
    }
}

fn reason(code: u16) -> &'static str {
    if code == 410 { "Expired" } else { "Fault" }
}

fn status(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason(code),
        "message": "a fault on purpose", "code": code })
}
