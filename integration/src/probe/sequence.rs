//! Datagrams that must come out as they went in: every byte, every one, in order.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use super::bulk::End;
use super::echo::noise;
use super::udp::PATIENCE;
use crate::netns::Netns;

/// How much may be on its way at a time; a socket buffer of ordinary size holds it, headers and all.
const WINDOW: usize = 32;

/// Sends datagrams of the given sizes, one per call, and checks each that arrives.
///
/// # Errors
/// When one is missing, changed, or out of order.
pub fn in_order(from: End<'_>, to: End<'_>, sizes: &[usize]) -> Result<()> {
    let (sender, receiver) = sockets(from, to)?;
    let mut buffer = vec![0; 1 << 16];
    let mut number = 0;
    for window in sizes.chunks(WINDOW) {
        for (at, size) in window.iter().enumerate() {
            sender.send(&noise(number + at, *size)).with_context(|| format!("send {size} bytes"))?;
        }
        for size in window {
            let length =
                receiver.recv(&mut buffer).with_context(|| format!("number {number} of {size} bytes"))?;
            ensure!(buffer[..length] == noise(number, *size), "not number {number} of {size} bytes came");
            number += 1;
        }
    }
    Ok(())
}

/// Sends numbered datagrams of the given sizes, without waiting for what becomes of them, and says how many arrived.
///
/// # Errors
/// When one comes after a later one, or none comes.
pub fn never_overtaken(from: End<'_>, to: End<'_>, sizes: &[usize]) -> Result<usize> {
    let (sender, receiver) = sockets(from, to)?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<usize> {
            let (mut arrived, mut next, mut buffer) = (0, 0, vec![0; 1 << 16]);
            while let Ok(length) = receiver.recv(&mut buffer) {
                let number = buffer[..length].first_chunk().copied().context("too short for a number")?;
                let number = u64::from_be_bytes(number);
                ensure!(number >= next, "number {number} came after {}", next - 1);
                (arrived, next) = (arrived + 1, number + 1);
                // Once they come, silence for so long says that what is not here yet is lost.
                receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
            }
            Ok(arrived)
        });
        for (number, size) in sizes.iter().enumerate() {
            // More at once would be lost before it gets anywhere.
            if number % WINDOW == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut payload = vec![0; (*size).max(8)];
            payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
            sender.send(&payload).with_context(|| format!("send {size} bytes"))?;
        }
        let arrived = receiving.join().map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(arrived > 0, "not one of {} datagrams arrived", sizes.len());
        Ok(arrived)
    })
}

/// Sends `total` bytes in one call, which the kernel makes datagrams of `segment` bytes of, and checks each that
/// arrives.
///
/// # Errors
/// When one is missing, changed, or out of order.
pub fn segmented(from: End<'_>, to: End<'_>, segment: usize, total: usize) -> Result<()> {
    let (sender, receiver) = sockets(from, to)?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(segment)?)?;
    let sent = noise(segment, total);
    sender.send(&sent).with_context(|| format!("send {total} bytes by {segment}"))?;
    let mut buffer = vec![0; 1 << 16];
    for (number, part) in sent.chunks(segment).enumerate() {
        let length =
            receiver.recv(&mut buffer).with_context(|| format!("datagram {number} of {total}/{segment}"))?;
        ensure!(buffer[..length] == *part, "datagram {number} of {total}/{segment} differs");
    }
    Ok(())
}

/// Packets of TCP, UDP and ICMP whose checksum the kernel of this namespace found wrong.
///
/// # Errors
/// When the counters cannot be read.
pub fn checksum_errors(ns: &Netns) -> Result<u64> {
    snmp(ns, "InCsumErrors")
}

/// Datagrams that arrived in this namespace for a socket that was full: nobody read it in time.
///
/// # Errors
/// When the counters cannot be read.
pub fn unread(ns: &Netns) -> Result<u64> {
    snmp(ns, "RcvbufErrors")
}

/// A counter of proc(5)'s net/snmp, summed over the protocols that have it.
fn snmp(ns: &Netns, counter: &str) -> Result<u64> {
    let text = ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let mut sum = 0;
    for pair in lines.chunks(2) {
        let [names, values] = pair else { continue };
        let found = names.iter().zip(values).filter(|(name, _)| **name == counter);
        for (_, value) in found {
            sum += value.parse::<u64>()?;
        }
    }
    ensure!(text.contains(counter), "no {counter} in {text}");
    Ok(sum)
}

fn sockets(from: End<'_>, to: End<'_>) -> Result<(UdpSocket, UdpSocket)> {
    let receiver = to.ns.run(|| Ok(UdpSocket::bind((to.ip, 0))?))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    SockRef::from(&receiver).set_recv_buffer_size(4 << 20)?;
    let address = receiver.local_addr()?;
    let sender = from.ns.run(|| {
        let sender = UdpSocket::bind((from.ip, 0))?;
        sender.connect(address)?;
        Ok(sender)
    })?;
    Ok((sender, receiver))
}
