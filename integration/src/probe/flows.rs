//! Many long-lived TCP connections that carry numbered bytes: is each still there, and did every byte come once and in
//! its place.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::bulk::End;

/// How long the last bytes may take once nothing more is sent.
const GRACE: Duration = Duration::from_secs(30);

/// Bytes that each connection sends at a time: eight numbers.
const PORTION: usize = 64;

/// Connections that are open, with two threads for all of them.
pub struct Flows {
    stopping: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Sent>>,
    receiver: JoinHandle<Vec<Received>>,
}

/// What became of a set of connections.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How many there were.
    pub flows: usize,
    /// Bytes that arrived, of all.
    pub bytes: u64,
    /// Why a connection ended before its time (a reset, a timeout), or what was wrong in it; a sentence each.
    pub broken: Vec<String>,
    /// The longest time for which a connection had nothing new.
    pub longest_silence: Duration,
}

struct Sent {
    stream: TcpStream,
    bytes: u64,
    error: Option<String>,
}

struct Received {
    stream: TcpStream,
    bytes: u64,
    ended: bool,
    error: Option<String>,
    last: Instant,
    silence: Duration,
}

impl Flows {
    /// Opens `count` connections, each of which sends a few numbered bytes every `pace`.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn start(from: End<'_>, to: End<'_>, count: usize, pace: Duration) -> Result<Self> {
        let listener = to.ns.run(|| Ok(TcpListener::bind((to.ip, 0))?))?;
        let address: SocketAddr = listener.local_addr()?;
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        let connected = from.ns.run(|| {
            (0..count)
                .map(|_| {
                    let stream = TcpStream::connect_timeout(&address, GRACE)?;
                    let (accepted, _) = listener.accept()?;
                    for end in [&stream, &accepted] {
                        end.set_nonblocking(true)?;
                        end.set_nodelay(true)?;
                    }
                    Ok((stream, accepted))
                })
                .collect::<Result<Vec<_>>>()
        });
        for (stream, accepted) in connected.with_context(|| format!("connect to {address}"))? {
            senders.push(Sent { stream, bytes: 0, error: None });
            receivers.push(Received {
                stream: accepted,
                bytes: 0,
                ended: false,
                error: None,
                last: Instant::now(),
                silence: Duration::ZERO,
            });
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let sender = {
            let stopping = Arc::clone(&stopping);
            thread::spawn(move || send(senders, pace, &stopping))
        };
        let receiver = {
            let stopping = Arc::clone(&stopping);
            thread::spawn(move || receive(receivers, &stopping))
        };
        Ok(Self { stopping, sender, receiver })
    }

    /// Ends all connections in order, waits for what is on its way, and says what became of them.
    ///
    /// # Errors
    /// When one of its threads panicked.
    pub fn stop(self) -> Result<Outcome> {
        self.stopping.store(true, Ordering::Release);
        let sent = self.sender.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        let received = self.receiver.join().map_err(|_| anyhow!("the receiving thread panicked"))?;
        let mut outcome = Outcome { flows: sent.len(), ..Outcome::default() };
        for (number, (sent, received)) in sent.iter().zip(&received).enumerate() {
            outcome.bytes += received.bytes;
            outcome.longest_silence = outcome.longest_silence.max(received.silence);
            let missing = (sent.bytes != received.bytes)
                .then(|| format!("{} of {} bytes came", received.bytes, sent.bytes));
            let why = sent.error.clone().or_else(|| received.error.clone()).or(missing);
            outcome.broken.extend(why.map(|why| format!("connection {number}: {why}")));
        }
        Ok(outcome)
    }
}

/// Byte `at` of every connection: the numbers 0, 1, 2, ... in eight bytes each.
fn byte(at: u64) -> u8 {
    (at / 8).to_be_bytes()[(at % 8) as usize]
}

fn send(mut flows: Vec<Sent>, pace: Duration, stopping: &AtomicBool) -> Vec<Sent> {
    while !stopping.load(Ordering::Acquire) {
        let next = Instant::now() + pace;
        for flow in flows.iter_mut().filter(|flow| flow.error.is_none()) {
            let portion: Vec<u8> = (0..PORTION as u64).map(|at| byte(flow.bytes + at)).collect();
            match flow.stream.write(&portion) {
                Ok(written) => flow.bytes += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => flow.error = Some(format!("sending: {error}")),
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for flow in &mut flows {
        // The end of the stream is behind all of its bytes, so whoever sees it has seen them.
        let _ = flow.stream.shutdown(Shutdown::Write);
    }
    flows
}

fn receive(mut flows: Vec<Received>, stopping: &AtomicBool) -> Vec<Received> {
    let mut buffer = [0; 4096];
    let mut stopped_at = None;
    loop {
        for flow in flows.iter_mut().filter(|flow| !flow.ended && flow.error.is_none()) {
            flow.read(&mut buffer);
        }
        if stopping.load(Ordering::Acquire) {
            let done = flows.iter().all(|flow| flow.ended || flow.error.is_some());
            if done || stopped_at.get_or_insert_with(Instant::now).elapsed() > GRACE {
                return flows;
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

impl Received {
    fn read(&mut self, buffer: &mut [u8]) {
        match self.stream.read(buffer) {
            Ok(0) => self.ended = true,
            Ok(length) => {
                let now = Instant::now();
                self.silence = self.silence.max(now - self.last);
                self.last = now;
                let right = (self.bytes..).zip(&buffer[..length]).all(|(at, found)| byte(at) == *found);
                if !right {
                    self.error = Some(format!("other bytes than were sent, after {}", self.bytes));
                }
                self.bytes += length as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.error = Some(format!("receiving: {error}")),
        }
    }
}
