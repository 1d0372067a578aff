//! Counting what is lost while something happens, and making losses on purpose to prove that the counting works.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::netexec::UDP_PORT;
use super::sockopt;
use crate::netns::Netns;

/// How long after the last question an answer still counts.
const GRACE: Duration = Duration::from_secs(1);

/// Asks a pod at a fixed pace in the background and remembers what was answered.
pub struct LossCounter {
    asking: Arc<AtomicBool>,
    listening: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<(u32, Instant)>>>,
    sent: Arc<AtomicU32>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
    started: Instant,
}

/// What a [`LossCounter`] saw.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Questions sent.
    pub sent: u32,
    /// Questions never answered.
    pub lost: u32,
    /// Longest time without an answer.
    pub longest_gap: Duration,
}

impl LossCounter {
    /// Starts asking `to` from `from`, one datagram each `pace`.
    ///
    /// # Errors
    /// When there is no route to `to`.
    pub fn start(from: &Netns, to: impl Into<IpAddr>, pace: Duration) -> Result<Self> {
        let to: IpAddr = to.into();
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = from.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            sockopt::patient(&socket);
            socket.connect((to, UDP_PORT)).with_context(|| format!("no route to {to}"))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(Arc::new(socket))
        })?;
        let asking = Arc::new(AtomicBool::new(true));
        let listening = Arc::new(AtomicBool::new(true));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::new(AtomicU32::new(0));
        let started = Instant::now();
        let sender = {
            let (socket, asking, sent) = (Arc::clone(&socket), Arc::clone(&asking), Arc::clone(&sent));
            thread::spawn(move || {
                while asking.load(Ordering::Acquire) {
                    let number = sent.fetch_add(1, Ordering::AcqRel);
                    // A refused send is a lost question, and is counted as one by having no answer.
                    let _ = socket.send(format!("echo {number}").as_bytes());
                    thread::sleep((started + pace * (number + 1)).saturating_duration_since(Instant::now()));
                }
            })
        };
        let receiver = {
            let (listening, answers) = (Arc::clone(&listening), Arc::clone(&answers));
            thread::spawn(move || receive(&socket, &listening, &answers))
        };
        Ok(Self { asking, listening, answers, sent, sender, receiver, started })
    }

    /// Stops asking, gives late answers a moment, and counts.
    ///
    /// # Errors
    /// When one of its threads panicked.
    pub fn stop(self) -> Result<Loss> {
        self.stop_within(GRACE)
    }

    /// [`LossCounter::stop`] with a grace of its own: whoever answers may be too busy to do so at once.
    ///
    /// # Errors
    /// When one of its threads panicked.
    pub fn stop_within(self, grace: Duration) -> Result<Loss> {
        self.asking.store(false, Ordering::Release);
        self.sender.join().map_err(|_| anyhow!("the asking thread panicked"))?;
        let sent = self.sent.load(Ordering::Acquire);
        let end = Instant::now();
        while end.elapsed() < grace && self.answers.lock().is_ok_and(|answers| answers.len() < sent as usize)
        {
            thread::sleep(Duration::from_millis(5));
        }
        self.listening.store(false, Ordering::Release);
        self.receiver.join().map_err(|_| anyhow!("the listening thread panicked"))?;
        let mut answers = self.answers.lock().map_err(|_| anyhow!("the listening thread panicked"))?.clone();
        let mut times: Vec<Instant> = answers.iter().map(|(_, at)| *at).collect();
        times.insert(0, self.started);
        times.push(end);
        let longest_gap = times.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).max();
        answers.sort_unstable();
        answers.dedup_by_key(|(number, _)| *number);
        let answered = u32::try_from(answers.len())?;
        Ok(Loss { sent, lost: sent.saturating_sub(answered), longest_gap: longest_gap.unwrap_or_default() })
    }
}

fn receive(socket: &UdpSocket, listening: &AtomicBool, answers: &Mutex<Vec<(u32, Instant)>>) {
    let mut buffer = [0; 64];
    while listening.load(Ordering::Acquire) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let number = std::str::from_utf8(&buffer[..length]).ok().and_then(|text| text.parse().ok());
        if let (Some(number), Ok(mut answers)) = (number, answers.lock()) {
            answers.push((number, Instant::now()));
        }
    }
}

/// Drops every `n`th datagram that `node` forwards to a server, until dropped itself.
pub struct Dropper {
    ns: Netns,
}

impl Dropper {
    /// Starts dropping.
    ///
    /// # Errors
    /// When nftables refuses the rule.
    pub fn every(n: u32, node: &Netns) -> Result<Self> {
        Self::every_of(n, UDP_PORT, node)
    }

    /// The same for another port than that of the servers in all pods.
    ///
    /// # Errors
    /// When nftables refuses the rule.
    pub fn every_of(n: u32, port: u16, node: &Netns) -> Result<Self> {
        node.nft(&format!(
            "table inet lab_loss {{ chain forward {{ type filter hook forward priority -300; \
             udp dport {port} numgen inc mod {n} == 0 drop\n}}\n}}"
        ))?;
        Ok(Self { ns: node.clone() })
    }
}

impl Drop for Dropper {
    fn drop(&mut self) {
        let _ = self.ns.nft("delete table inet lab_loss");
    }
}
