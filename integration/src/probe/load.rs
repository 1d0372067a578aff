//! Load that is measured and not checked: packets per second, round trips, connections per second.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use super::bulk::End;

/// Nothing in here is silent for longer.
const SILENCE: Duration = Duration::from_secs(20);

/// Datagrams that were sent as fast as one socket takes them.
#[derive(Debug, Clone, Copy)]
pub struct Blast {
    /// Sent per second.
    pub sent: f64,
    /// Arrived per second.
    pub arrived: f64,
}

/// Sends datagrams of `size` bytes for `length`, and counts those that arrive.
///
/// # Errors
/// When a socket fails, or none arrives for long.
pub fn blast(from: End<'_>, to: End<'_>, size: usize, length: Duration) -> Result<Blast> {
    let (receiver, sender) = sockets(from, to)?;
    let sending = Arc::new(AtomicBool::new(true));
    let counting = {
        let sending = Arc::clone(&sending);
        thread::spawn(move || -> Result<u64> {
            let (mut arrived, mut buffer, start) = (0, vec![0; 65_536], Instant::now());
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(_) => arrived += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        // Behind bulk, on a machine that is busy with others, the first one may be slow.
                        let waited = arrived > 0 || start.elapsed() > SILENCE;
                        if waited && !sending.load(Ordering::Relaxed) {
                            return Ok(arrived);
                        }
                    }
                    Err(error) => return Err(error).context("receive"),
                }
            }
        })
    };
    let (start, payload, mut sent) = (Instant::now(), vec![0x5a; size], 0_u64);
    while start.elapsed() < length {
        for _ in 0..64 {
            match sender.send(&payload) {
                Ok(_) => sent += 1,
                // A full queue on the way out is not a packet sent.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {}
                Err(error) => return Err(error).context("send"),
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    sending.store(false, Ordering::Relaxed);
    let arrived = counting.join().map_err(|_| anyhow!("the receiver panicked"))??;
    ensure!(arrived > 0, "not one datagram of {sent} arrived");
    Ok(Blast { sent: sent as f64 / took, arrived: arrived as f64 / took })
}

/// Datagrams that were sent at a pace.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// How many were sent.
    pub sent: u64,
    /// How many arrived.
    pub arrived: u64,
    /// Sent per second.
    pub rate: f64,
}

impl Paced {
    /// How many did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }
}

/// Sends datagrams of `size` bytes at `rate` per second for `length`, each numbered, and counts those that arrive. A
/// sender that was held up does not make up for it: a burst would be another rate.
///
/// # Errors
/// When a socket fails, or one arrives out of order.
pub fn paced(from: End<'_>, to: End<'_>, size: usize, rate: f64, length: Duration) -> Result<Paced> {
    let (receiver, sender) = sockets(from, to)?;
    let counting = thread::spawn(move || -> Result<u64> {
        let (mut arrived, mut next, mut buffer) = (0, 0, vec![0; 65_536]);
        // Nothing for as long as the timeout: everything that is to come has come.
        while let Ok(length) = receiver.recv(&mut buffer) {
            let number: [u8; 8] =
                buffer[..length].first_chunk().copied().context("too short for a number")?;
            let number = u64::from_be_bytes(number);
            ensure!(number >= next, "number {number} came after {}", next - 1);
            (arrived, next) = (arrived + 1, number + 1);
        }
        Ok(arrived)
    });
    let (start, mut sent, mut payload) = (Instant::now(), 0_u64, vec![0; size.max(8)]);
    let (mut last, mut due) = (start, 0.0);
    while start.elapsed() < length {
        let now = Instant::now();
        due += rate * (now - last).min(Duration::from_millis(2)).as_secs_f64();
        last = now;
        while due >= 1.0 {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            sender.send(&payload).context("send")?;
            sent += 1;
            due -= 1.0;
        }
        thread::sleep(Duration::from_micros(200));
    }
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    let arrived = counting.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok(Paced { sent, arrived, rate })
}

fn sockets(from: End<'_>, to: End<'_>) -> Result<(UdpSocket, UdpSocket)> {
    let receiver = to.ns.run(|| Ok(UdpSocket::bind((to.ip, 0))?))?;
    // Losses are to be those of the path, not of the receiver's buffer.
    if setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).is_err() {
        SockRef::from(&receiver).set_recv_buffer_size(16 << 20)?;
    }
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let address = receiver.local_addr()?;
    let sender = from.ns.run(|| {
        let sender = UdpSocket::bind((from.ip, 0))?;
        sender.connect(address)?;
        Ok(sender)
    })?;
    Ok((receiver, sender))
}

/// Answers every byte, connection by connection. Dropping it ends it.
struct Echo {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(at: End<'_>) -> Result<Self> {
        let listener = at.ns.run(|| Ok(TcpListener::bind((at.ip, 0))?))?;
        listener.set_nonblocking(false)?;
        let address = listener.local_addr()?;
        let (stopping, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stopping, served) = (Arc::clone(&stopping), Arc::clone(&served));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    // A connection that the other end has reset is over, and nothing else.
                    let _ = answer(stream);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Ok(Self { address, stopping, served, thread: Some(thread) })
    }

    fn stop(mut self, from: End<'_>) -> Result<u64> {
        self.stopping.store(true, Ordering::Relaxed);
        let address = self.address;
        from.ns.run(|| Ok(TcpStream::connect_timeout(&address, SILENCE)?))?;
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the echo server panicked"))?;
        }
        Ok(self.served.load(Ordering::Relaxed))
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut byte = [0; 1];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Round trips of one byte over one TCP connection for `length`, in microseconds, sorted.
///
/// # Errors
/// When the connection fails.
pub fn round_trips(from: End<'_>, to: End<'_>, length: Duration) -> Result<Vec<f64>> {
    let server = Echo::start(to)?;
    let address = server.address;
    let mut stream = from.ns.run(|| Ok(TcpStream::connect_timeout(&address, SILENCE)?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let (start, mut trips, mut byte) = (Instant::now(), Vec::new(), [0; 1]);
    while start.elapsed() < length {
        let begun = Instant::now();
        stream.write_all(&byte).context("send")?;
        stream.read_exact(&mut byte).context("receive")?;
        trips.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(stream);
    server.stop(from)?;
    trips.sort_by(f64::total_cmp);
    Ok(trips)
}

/// Connections per second that are made, answered with one byte and closed, one after the other.
///
/// # Errors
/// When more than one in a hundred fails. Single ones do where packets are lost: they come from a port whose last
/// connection the other end has not seen the end of.
pub fn connections(from: End<'_>, to: End<'_>, length: Duration) -> Result<f64> {
    let server = Echo::start(to)?;
    let address = server.address;
    let (start, mut made, mut failed) = (Instant::now(), 0_u32, 0_u32);
    from.ns.run(|| {
        while start.elapsed() < length {
            match connection(address) {
                Ok(()) => made += 1,
                Err(error) => {
                    failed += 1;
                    ensure!(failed <= 1 + made / 100, "connection {}: {error}", made + failed);
                }
            }
        }
        Ok(())
    })?;
    let took = start.elapsed().as_secs_f64();
    server.stop(from)?;
    Ok(f64::from(made) / took)
}

fn connection(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, SILENCE)?;
    // Closed by a reset, or the ports of one second would be waiting for a minute.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0; 1])
}
