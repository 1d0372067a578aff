//! Bulk TCP: is every byte right, and how fast.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};

use crate::netns::Netns;

/// A connection that says nothing for this long is dead.
const SILENCE: Duration = Duration::from_secs(20);
const CHUNK: usize = 256 * 1024;

/// One end of a transfer: a namespace and an address in it.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where the socket is opened.
    pub ns: &'a Netns,
    /// The address the other end sees.
    pub ip: Ipv4Addr,
}

/// A finished transfer.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte sent to the last one received.
    pub took: Duration,
    /// SHA-256 of what was sent, in hex.
    pub sent: String,
    /// SHA-256 of what arrived, in hex.
    pub received: String,
}

/// Sends `bytes` bytes of noise over TCP and digests them at both ends. `arrived` is told the running total.
///
/// # Errors
/// When the connection fails or goes silent.
pub fn transfer(from: End<'_>, to: End<'_>, bytes: u64, mut arrived: impl FnMut(u64)) -> Result<Transfer> {
    let (mut sender, mut receiver) = connect(from, to)?;
    let start = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<String> {
            let (mut noise, mut digest, mut left) = (Noise::new(bytes), Sha256::new(), bytes);
            let mut chunk = vec![0; CHUNK];
            while left > 0 {
                let length = usize::try_from(left.min(CHUNK as u64))?;
                noise.fill(&mut chunk[..length]);
                digest.update(&chunk[..length]);
                sender.write_all(&chunk[..length]).context("send")?;
                left -= length as u64;
            }
            Ok(hex(&digest.finalize()))
        });
        let (mut digest, mut total, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            let length = receiver.read(&mut chunk).context("receive")?;
            if length == 0 {
                break;
            }
            digest.update(&chunk[..length]);
            total += length as u64;
            arrived(total);
        }
        let took = start.elapsed();
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(Transfer { bytes: total, took, sent, received: hex(&digest.finalize()) })
    })
}

/// Sends zeros for `length` and returns bytes per second as the receiver counted them. `so_far` is told the running
/// rate.
///
/// # Errors
/// When the connection fails or goes silent.
pub fn throughput(from: End<'_>, to: End<'_>, length: Duration, mut so_far: impl FnMut(f64)) -> Result<f64> {
    let stream = Stream::start(from, to)?;
    // The first moments are TCP finding out how fast it may go.
    thread::sleep(length / 10);
    let (start, before) = (Instant::now(), stream.received());
    let rate = |stream: &Stream| (stream.received() - before) as f64 / start.elapsed().as_secs_f64();
    while start.elapsed() < length {
        thread::sleep(Duration::from_millis(50));
        so_far(rate(&stream));
    }
    let rate = rate(&stream);
    stream.stop()?;
    Ok(rate)
}

/// A TCP stream that runs in the background until stopped.
pub struct Stream {
    received: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Stream {
    /// Connects and starts sending as fast as the path takes it.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub fn start(from: End<'_>, to: End<'_>) -> Result<Self> {
        Self::paced(from, to, CHUNK, Duration::ZERO)
    }

    /// Connects and sends a little at a time: enough to notice a broken path, too little to fill its queues.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub fn trickle(from: End<'_>, to: End<'_>) -> Result<Self> {
        Self::paced(from, to, 8 << 10, Duration::from_millis(10))
    }

    fn paced(from: End<'_>, to: End<'_>, size: usize, pause: Duration) -> Result<Self> {
        let (mut sender, mut receiver) = connect(from, to)?;
        let (received, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let sending = {
            let stopping = Arc::clone(&stopping);
            thread::spawn(move || {
                let chunk = vec![0; size];
                while !stopping.load(Ordering::Relaxed) {
                    sender.write_all(&chunk).context("send")?;
                    thread::sleep(pause);
                }
                Ok(())
            })
        };
        let receiving = {
            let received = Arc::clone(&received);
            thread::spawn(move || {
                let mut chunk = vec![0; CHUNK];
                loop {
                    let length = receiver.read(&mut chunk).context("receive")?;
                    if length == 0 {
                        return Ok(());
                    }
                    received.fetch_add(length as u64, Ordering::Relaxed);
                }
            })
        };
        Ok(Self { received, stopping, threads: vec![sending, receiving] })
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops the sender, lets the rest arrive, and returns the bytes received.
    ///
    /// # Errors
    /// When the connection failed or went silent at any time.
    pub fn stop(mut self) -> Result<u64> {
        self.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a stream's thread panicked"))??;
        }
        ensure!(self.received() > 0, "the stream carried nothing");
        Ok(self.received())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn connect(from: End<'_>, to: End<'_>) -> Result<(TcpStream, TcpStream)> {
    let listener = to.ns.run(|| Ok(TcpListener::bind((to.ip, 0))?))?;
    let address = SocketAddr::new(IpAddr::V4(to.ip), listener.local_addr()?.port());
    let sender = from.ns.run(|| {
        TcpStream::connect_timeout(&address, SILENCE).with_context(|| format!("connect to {address}"))
    })?;
    let (receiver, peer) = listener.accept()?;
    ensure!(peer.ip() == from.ip, "{} was seen as {}: someone translated its address", from.ip, peer.ip());
    sender.set_write_timeout(Some(SILENCE))?;
    receiver.set_read_timeout(Some(SILENCE))?;
    Ok((sender, receiver))
}

/// Bytes that do not repeat, so that a lost, doubled or swapped packet changes the digest (xorshift64, Marsaglia 2003).
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A rate for people, from bytes per second: `3.14 Gbit/s`, `720 Mbit/s`.
pub fn human_rate(bytes_per_second: f64) -> String {
    match bytes_per_second * 8.0 {
        bits if bits >= 1e9 => format!("{:.2} Gbit/s", bits / 1e9),
        bits => format!("{:.0} Mbit/s", bits / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::human_rate;

    #[test]
    fn rates_are_bits() {
        assert_eq!(human_rate(90e6), "720 Mbit/s");
        assert_eq!(human_rate(392.5e6), "3.14 Gbit/s");
    }
}
