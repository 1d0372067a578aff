//! The instructions that the kernel runs for a rule: its own machine of registers.

use std::time::Duration;

use super::{Direction, Header, Limit, NatKind, Verdict};

/// A place in the kernel's registers, in words of four octets. There are sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    /// `NFT_REG_*` where the place is the beginning of a register of sixteen octets, otherwise `NFT_REG32_*`.
    pub const fn number(self) -> u32 {
        if self.0.is_multiple_of(4) { 1 + self.0 / 4 } else { 8 + self.0 }
    }
}

/// Something that is known while a rule is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// A value in the kernel's form.
    Octets(Vec<u8>),
    /// What to do.
    Verdict(Verdict),
}

/// Where a register is filled from, or a mark is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Octets of the packet.
    Payload {
        /// Counted from here.
        header: Header,
        /// So many octets lie before them.
        offset: u32,
        /// So many are loaded.
        length: u32,
    },
    /// `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_*`, of a direction where there are two.
    Ct(u32, Option<Direction>),
    /// Type of the address that these flags, `NFTA_FIB_F_*`, say.
    FibType(u32),
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Fills a register.
    Load(Load, Register),
    /// Fills a register, or says what to do.
    Immediate(Option<Register>, Data),
    /// Register := register & mask ^ xor.
    Bitwise {
        /// The register.
        register: Register,
        /// Which bits stay.
        mask: Vec<u8>,
        /// Which bits change afterwards.
        xor: Vec<u8>,
    },
    /// Ends the rule unless the register compares so.
    Compare(Register, Comparison, Vec<u8>),
    /// Ends the rule if the register is between these.
    NotInRange(Register, Vec<u8>, Vec<u8>),
    /// Ends the rule unless the register is in the set, or unless it is in none of its elements.
    Lookup {
        /// The set.
        set: String,
        /// The register.
        from: Register,
        /// Unless it is not there.
        inverted: bool,
        /// Does what the set, a map of verdicts, says about it.
        verdict: bool,
    },
    /// Puts the register into the set.
    DynSet {
        /// The set.
        set: String,
        /// The register.
        key: Register,
        /// One that is there begins its time anew.
        update: bool,
        /// How long it stays.
        timeout: Option<Duration>,
    },
    /// Counts in the rule.
    Counter,
    /// Counts in a counter of the table.
    CounterOf(String),
    /// Ends the rule when the rate is exceeded, or when it is not.
    Limit(Limit),
    /// Keeps the packet out of conntrack.
    NoTrack,
    /// The packet's mark := register.
    SetMark(Register),
    /// The connection's mark := register.
    SetCtMark(Register),
    /// `NF_NAT_RANGE_*`.
    Masquerade(u32),
    /// Translates.
    Nat {
        /// Which end.
        kind: NatKind,
        /// `NFPROTO_*` of the address.
        family: u8,
        /// Where the address is.
        addr: Register,
        /// Where the port is.
        port: Option<Register>,
        /// `NF_NAT_RANGE_*`.
        flags: u32,
    },
    /// Sends to this machine, to the port in the register.
    Redirect(Option<Register>),
}

/// How a register compares, `NFT_CMP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}
