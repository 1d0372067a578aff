//! Rules: what is asked of a packet, and what is done with it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use super::Key;

/// A rule. Its statements are carried out in order, as long as what they ask is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it asks and does.
    pub statements: Vec<Statement>,
    /// For people.
    pub comment: Option<Cow<'static, str>>,
}

/// A rule of these statements.
pub fn rule(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule { statements: statements.into_iter().collect(), comment: None }
}

impl Rule {
    /// The same with a comment.
    #[must_use]
    pub fn comment(self, comment: impl Into<Cow<'static, str>>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }
}

/// Something that a rule asks or does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Goes on if this is so.
    Match(Match),
    /// Goes on if the packet is within the rate, or above it.
    Limit(Limit),
    /// Counts the packet in the rule.
    Count,
    /// Counts the packet in a counter of the table.
    CountIn(String),
    /// Puts a key into a set. Where there is no room for it, the rule ends here.
    Remember {
        /// One that is there already begins its time anew.
        anew: bool,
        /// What is put there.
        key: Key,
        /// The set.
        set: String,
        /// How long it stays, if not as long as the set says.
        timeout: Option<Duration>,
    },
    /// Keeps the packet out of conntrack.
    NoTrack,
    /// Changes the packet's mark.
    SetMark(SetMark),
    /// Changes the connection's mark to this.
    SetCtMark(u32),
    /// Gives the connection the address of the device that it goes out by as its source.
    Masquerade(NatFlags),
    /// Gives the connection another source or destination.
    Nat {
        /// Which of both.
        kind: NatKind,
        /// Its new address.
        addr: IpAddr,
        /// Its new port.
        port: Option<u16>,
        /// How a port is chosen where none is named.
        flags: NatFlags,
    },
    /// Sends the connection to this machine, to this port.
    Redirect(Option<u16>),
    /// Does what a verdict map says about the key; goes on where it says nothing.
    VerdictMap(Key, String),
    /// Decides about the packet.
    Verdict(Verdict),
}

/// A question about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// What is looked at.
    pub key: Key,
    /// What it has to be.
    pub test: Test,
}

/// What a key has to be. Values are in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Equal.
    Is(Vec<u8>),
    /// Not equal.
    IsNot(Vec<u8>),
    /// From the first to the second.
    Between(Vec<u8>, Vec<u8>),
    /// Below the first or above the second.
    NotBetween(Vec<u8>, Vec<u8>),
    /// In a set.
    In(String),
    /// In no element of a set.
    NotIn(String),
}

/// A rate of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// So many packets.
    pub packets: u64,
    /// In so much time, in whole seconds.
    pub per: Duration,
    /// So many more at once.
    pub burst: u32,
    /// What is above the rate goes on, rather than what is within it.
    pub over: bool,
}

/// How a packet's mark is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMark {
    /// To this.
    To(u32),
    /// These bits are set, the others stay.
    With(u32),
    /// To that of its connection.
    ToCtMark,
}

/// Which end of a connection gets another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The one that it comes from.
    Source = 0,
    /// The one that it goes to.
    Destination = 1,
}

/// How translation chooses a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatFlags {
    /// At random.
    pub random: bool,
    /// One client always gets the same address.
    pub persistent: bool,
    /// At random, without looking at the original port.
    pub fully_random: bool,
}

impl NatFlags {
    /// `NF_NAT_RANGE_*`.
    pub const fn number(self) -> u32 {
        (self.random as u32) << 2 | (self.persistent as u32) << 3 | (self.fully_random as u32) << 4
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passes this chain, and all that call it.
    Accept,
    /// It is lost.
    Drop,
    /// The chain that called this one goes on.
    Return,
    /// The next rule is asked.
    Continue,
    /// Another chain is asked, then this one goes on.
    Jump(String),
    /// Another chain is asked in place of this one.
    Goto(String),
}

impl Verdict {
    /// `NF_*` or `NFT_*`.
    pub const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// The other chain.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// The packet passes.
pub const fn accept() -> Statement {
    Statement::Verdict(Verdict::Accept)
}

/// The packet is lost.
pub const fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}

/// The chain that called this one goes on.
pub const fn returns() -> Statement {
    Statement::Verdict(Verdict::Return)
}

/// Another chain is asked, then this one goes on.
pub fn jump(chain: impl Into<String>) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

/// Another chain is asked in place of this one.
pub fn goto(chain: impl Into<String>) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

/// What the map says about the key is done.
pub fn vmap(key: Key, map: impl Into<String>) -> Statement {
    Statement::VerdictMap(key, map.into())
}

/// The packet is counted in the rule.
pub const fn count() -> Statement {
    Statement::Count
}

/// The packet is counted in a counter of the table.
pub fn count_in(counter: impl Into<String>) -> Statement {
    Statement::CountIn(counter.into())
}

/// The packet is kept out of conntrack.
pub const fn notrack() -> Statement {
    Statement::NoTrack
}

/// The connection gets this machine's address as its source.
pub const fn masquerade(flags: NatFlags) -> Statement {
    Statement::Masquerade(flags)
}

/// The connection goes to this address, and to this port.
pub const fn dnat(addr: IpAddr, port: Option<u16>) -> Statement {
    let flags = NatFlags { random: false, persistent: false, fully_random: false };
    Statement::Nat { kind: NatKind::Destination, addr, port, flags }
}

/// The connection comes from this address, and from this port.
pub const fn snat(addr: IpAddr, port: Option<u16>, flags: NatFlags) -> Statement {
    Statement::Nat { kind: NatKind::Source, addr, port, flags }
}

/// The connection goes to this port of this machine.
pub const fn redirect(port: Option<u16>) -> Statement {
    Statement::Redirect(port)
}

/// Goes on as long as no more than so many packets come in a second, and so many at once.
pub const fn limit(packets: u64, burst: u32) -> Statement {
    Statement::Limit(Limit { packets, per: Duration::from_secs(1), burst, over: false })
}
