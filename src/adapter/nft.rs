//! Our nftables table: `nft -f -` puts it in force, netlink says whether it still stands.
//!
//! Nobody's listing is parsed. After each change of ours the table's rules are dumped as raw netlink messages and
//! reduced to a digest; a later dump with another digest means that somebody changed the table. Handles are part
//! of the messages, so even a rule that was removed and added again by hand shows.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::plan::{FIREWALL_TABLE, FirewallState, Ruleset, removal_script};
use crate::ports::KernelError;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` are all attribute 1.
const NFTA_TABLE: u16 = 1;
const NFNLGRP_NFTABLES: u32 = 7;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;

/// Our table: what we last put there, and what it looked like then.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Option<(Ruleset, u64)>,
}

impl Firewall {
    /// How the table stands.
    pub fn observe(&self) -> Result<FirewallState> {
        let Some(digest) = table_digest().context("cannot ask the kernel about nftables")? else {
            return Ok(FirewallState::Absent);
        };
        Ok(match &self.applied {
            Some((rules, applied)) if *applied == digest => FirewallState::InForce(rules.clone()),
            _ => FirewallState::Changed,
        })
    }

    /// Puts `rules` in force in one transaction.
    pub async fn install(&mut self, rules: &Ruleset) -> Result<(), KernelError> {
        let fail = |cause: String| KernelError {
            doing: format!("put nftables table inet {FIREWALL_TABLE} in force"),
            cause,
            remedy: None,
        };
        self.applied = None;
        run(rules.script()).await?;
        let digest = table_digest().map_err(|error| fail(format!("{error:#}")))?;
        let digest = digest.ok_or_else(|| fail("nft reported success, and there is no such table".into()))?;
        self.applied = Some((rules.clone(), digest));
        Ok(())
    }

    /// Removes the table; succeeds when there is none.
    pub async fn remove(&mut self) -> Result<(), KernelError> {
        self.applied = None;
        run(removal_script()).await
    }
}

/// Whether there is a table of ours.
pub fn present() -> Result<bool> {
    Ok(table_digest()?.is_some())
}

fn failed(cause: String, remedy: Option<&'static str>) -> KernelError {
    KernelError { doing: format!("run `nft -f -` for table inet {FIREWALL_TABLE}"), cause, remedy }
}

async fn run(script: String) -> Result<(), KernelError> {
    let finished = tokio::task::spawn_blocking(move || run_script(&script)).await;
    finished.unwrap_or_else(|error| Err(failed(error.to_string(), None)))
}

fn run_script(script: &str) -> Result<(), KernelError> {
    let fail = failed;
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        fail(
            error.to_string(),
            missing.then_some(
                "install the package nftables, or run without --ip-masq and with --iptables-forward-rules=false",
            ),
        )
    })?;
    // The child reads all of it before it answers, and the pipe closes at the end of this statement.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(|error| fail(error.to_string(), None))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let first = stderr.lines().next().unwrap_or("no message").to_owned();
        let remedy = "the kernel needs nf_tables with inet NAT (Linux 5.2) and the daemon CAP_NET_ADMIN";
        return Err(fail(first, Some(remedy)));
    }
    match written {
        Some(Err(error)) => Err(fail(error.to_string(), None)),
        _ => Ok(()),
    }
}

/// Digest of the chains and rules of our table; `None` when it has none.
fn table_digest() -> Result<Option<u64>> {
    // A dump that raced with a transaction says so; the next one is complete.
    for _ in 0..5 {
        let mut hasher = DefaultHasher::new();
        let chains = dump(NFT_MSG_GETCHAIN, &mut hasher)?;
        let rules = dump(NFT_MSG_GETRULE, &mut hasher)?;
        if let (Some(chains), Some(rules)) = (chains, rules) {
            return Ok((chains + rules > 0).then(|| hasher.finish()));
        }
    }
    bail!("nftables changes faster than it can be read")
}

/// Hashes the objects of our table; how many there were, or `None` when the dump was interrupted.
fn dump(message: u16, hasher: &mut DefaultHasher) -> Result<Option<usize>> {
    let (mut found, mut intact) = (0, true);
    dump_each(&request(message, NFPROTO_INET), |part| {
        intact &= part.flags & NLM_F_DUMP_INTR == 0;
        if concerns_us(part.payload) {
            hasher.write(part.payload);
            found += 1;
        }
    })?;
    Ok(intact.then_some(found))
}

/// Sends a request and hands over each object of the answer.
fn dump_each(request: &[u8], mut each: impl FnMut(&Part<'_>)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("no netfilter netlink socket")?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for part in messages(&buffer) {
            match part.kind {
                // An error means no nf_tables, or no such table: either way there is nothing. Installing says more.
                NLMSG_DONE | NLMSG_ERROR => return Ok(()),
                _ => each(&part),
            }
        }
    }
}

/// A dump request for our table in `family`, or for everything when that is 0.
fn request(message: u16, family: u8) -> Vec<u8> {
    let name = [FIREWALL_TABLE.as_bytes(), b"\0"].concat();
    let attribute = 4 + name.len();
    let padded = attribute.next_multiple_of(4);
    let total = NLMSG_HEADER + NFGENMSG + padded;
    let mut bytes = Vec::with_capacity(total);
    bytes.extend((total as u32).to_ne_bytes());
    bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | message).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    if family == 0 {
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_ne_bytes());
        return bytes;
    }
    bytes.extend((attribute as u16).to_ne_bytes());
    bytes.extend(NFTA_TABLE.to_ne_bytes());
    bytes.extend(name);
    bytes.resize(total, 0);
    bytes
}

/// One netlink message of a datagram.
struct Part<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

fn messages(buffer: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let message = rest.get(..length).filter(|_| length >= NLMSG_HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Part {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            payload: &message[NLMSG_HEADER..],
        })
    })
}

/// The attributes of a message or of a nested attribute: kind and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[l0, l1, t0, t1] = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two upper bits say "nested" and "network byte order".
        Some((u16::from_ne_bytes([t0, t1]) & 0x3fff, value))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Whether a table, chain or rule message speaks of our table in family inet.
fn concerns_us(payload: &[u8]) -> bool {
    let Some((header, rest)) = payload.split_at_checked(NFGENMSG) else { return false };
    header[0] == NFPROTO_INET && attribute(rest, NFTA_TABLE).and_then(text) == Some(FIREWALL_TABLE)
}

/// Whether a message is about a chain that hangs in the kernel's packet path.
fn is_base_chain(part: &Part<'_>) -> bool {
    part.kind & 0xff <= NFT_MSG_DELCHAIN
        && part.payload.get(NFGENMSG..).is_some_and(|rest| attribute(rest, NFTA_CHAIN_HOOK).is_some())
}

/// A chain of somebody else that drops forwarded packets unless one of its rules takes them, by name.
///
/// An `accept` in our table cannot overrule it: nftables asks every chain of a hook.
pub fn forward_drop() -> Result<Option<String>> {
    let mut found = None;
    // Family 0 asks for all.
    dump_each(&request(NFT_MSG_GETCHAIN, 0), |part| {
        found = found.take().or_else(|| drops_forwarded(part.payload));
    })?;
    Ok(found)
}

fn drops_forwarded(payload: &[u8]) -> Option<String> {
    let (header, rest) = payload.split_at_checked(NFGENMSG)?;
    let family = match header[0] {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        _ => return None,
    };
    let hook = attribute(rest, NFTA_CHAIN_HOOK)?;
    let forward = attribute(hook, NFTA_HOOK_HOOKNUM).and_then(number) == Some(NF_INET_FORWARD);
    let drop = attribute(rest, NFTA_CHAIN_POLICY).and_then(number) == Some(NF_DROP);
    let (table, chain) = (attribute(rest, NFTA_TABLE)?, attribute(rest, NFTA_CHAIN_NAME)?);
    (forward && drop)
        .then(|| format!("{family} {} {}", text(table).unwrap_or("?"), text(chain).unwrap_or("?")))
}

/// Hears about every change of nftables on this machine.
pub struct FirewallEvents {
    socket: netlink_sys::TokioSocket,
}

impl FirewallEvents {
    /// Subscribes.
    pub fn subscribe() -> Result<Self> {
        use netlink_sys::AsyncSocket as _;
        let mut socket = netlink_sys::TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket })
    }

    /// Waits for a change to our table, or to a chain that packets pass. A lost event counts as one.
    pub async fn changed(&mut self) {
        use netlink_sys::AsyncSocketExt as _;
        loop {
            match self.socket.recv_from_full().await {
                Ok((buffer, _))
                    if messages(&buffer).any(|part| concerns_us(part.payload) || is_base_chain(&part)) =>
                {
                    return;
                }
                Ok(_) => {}
                // ENOBUFS: the kernel could not keep up with telling us.
                Err(_) => return,
            }
        }
    }
}
