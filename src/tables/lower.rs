//! From a rule in words to the instructions that the kernel runs for it, as `nft` writes them.
//!
//! What a field needs to be there is asked first: an address of the IP header for a packet of its family, a port for one
//! of its transport protocol. Each is asked once in a rule.

use encap::Family as Ip;

use super::field::leading_ones;
use super::rule::{Match, SetMark, Statement, Test};
use super::{Comparison, Data, Direction, Expression, Family, Field, Header, Key, Load, Register, Rule};

const FIRST: Register = Register(0);
/// Where `nft` puts a port beside an address, whatever the address's length.
const SECOND: Register = Register(4);

/// `NF_NAT_RANGE_PROTO_SPECIFIED`.
const PORT_IS_GIVEN: u32 = 2;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_PROTO_SRC: u32 = 11;
const CT_PROTO_DST: u32 = 12;
const CT_SRC_IP: u32 = 19;
const CT_DST_IP: u32 = 20;
const CT_SRC_IP6: u32 = 21;
const CT_DST_IP6: u32 = 22;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;

/// The instructions for a rule of a table that sees packets of `family`.
pub fn expressions(family: Family, rule: &Rule) -> Vec<Expression> {
    let mut lowering = Lowering { family, network: None, transport: None, out: Vec::new() };
    rule.statements.iter().for_each(|statement| lowering.statement(statement));
    lowering.out
}

struct Lowering {
    family: Family,
    /// The address family that packets which come so far have, `NFPROTO_*`.
    network: Option<u8>,
    /// Their transport protocol.
    transport: Option<u8>,
    out: Vec<Expression>,
}

impl Lowering {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match(asked) => self.matches(asked),
            Statement::Limit(limit) => self.out.push(Expression::Limit(*limit)),
            Statement::Count => self.out.push(Expression::Counter),
            Statement::CountIn(counter) => self.out.push(Expression::CounterOf(counter.clone())),
            Statement::Remember { anew, key, set, timeout } => {
                self.load(key);
                let (set, timeout) = (set.clone(), *timeout);
                self.out.push(Expression::DynSet { set, key: FIRST, update: *anew, timeout });
            }
            Statement::NoTrack => self.out.push(Expression::NoTrack),
            Statement::SetMark(mark) => self.set_mark(*mark),
            Statement::SetCtMark(mark) => {
                self.immediate(FIRST, mark.to_ne_bytes().to_vec());
                self.out.push(Expression::SetCtMark(FIRST));
            }
            Statement::Masquerade(flags) => self.out.push(Expression::Masquerade(flags.number())),
            Statement::Nat { kind, addr, port, flags } => {
                let (family, octets) = match addr {
                    std::net::IpAddr::V4(addr) => (Family::Ip.number(), addr.octets().to_vec()),
                    std::net::IpAddr::V6(addr) => (Family::Ip6.number(), addr.octets().to_vec()),
                };
                self.immediate(FIRST, octets);
                let port = port.map(|port| {
                    self.immediate(SECOND, port.to_be_bytes().to_vec());
                    SECOND
                });
                let flags = flags.number() | port.map_or(0, |_| PORT_IS_GIVEN);
                self.out.push(Expression::Nat { kind: *kind, family, addr: FIRST, port, flags });
            }
            Statement::Redirect(port) => {
                let port = port.map(|port| {
                    self.immediate(FIRST, port.to_be_bytes().to_vec());
                    FIRST
                });
                self.out.push(Expression::Redirect(port));
            }
            Statement::VerdictMap(key, map) => {
                self.load(key);
                self.lookup(map, false, true);
            }
            Statement::Verdict(verdict) => {
                self.out.push(Expression::Immediate(None, Data::Verdict(verdict.clone())));
            }
        }
    }

    fn matches(&mut self, asked: &Match) {
        if let Some((field, value)) = shortened(asked) {
            self.need(field);
            let Load::Payload { header, offset, .. } = source(field) else { return };
            let (comparison, octets) = value;
            let length = octets.len() as u32;
            self.out.push(Expression::Load(Load::Payload { header, offset, length }, FIRST));
            self.out.push(Expression::Compare(FIRST, comparison, octets.to_vec()));
            return;
        }
        self.load(&asked.key);
        let mut compare = |how, octets: &Vec<u8>| {
            self.out.push(Expression::Compare(FIRST, how, octets.clone()));
        };
        match &asked.test {
            Test::Is(value) => compare(Comparison::Equal, value),
            Test::IsNot(value) => compare(Comparison::NotEqual, value),
            Test::Between(first, last) => {
                compare(Comparison::AtLeast, first);
                compare(Comparison::AtMost, last);
            }
            Test::NotBetween(first, last) => {
                self.out.push(Expression::NotInRange(FIRST, first.clone(), last.clone()));
            }
            Test::In(set) => self.lookup(set, false, false),
            Test::NotIn(set) => self.lookup(set, true, false),
        }
        if let (&[(field, None)], Test::Is(value)) = (&asked.key.0[..], &asked.test) {
            match field {
                Field::NfProto => self.network = value.first().copied(),
                Field::L4Proto => self.transport = value.first().copied(),
                _ => {}
            }
        }
    }

    /// Brings a key into the registers from the first one on.
    fn load(&mut self, key: &Key) {
        for (field, _) in &key.0 {
            self.need(*field);
        }
        let mut word = 0;
        for (field, mask) in &key.0 {
            let octets = field.data_type().octets();
            self.out.push(Expression::Load(source(*field), Register(word)));
            if let Some(mask) = mask.clone().or_else(|| of_whole_octets(*field)) {
                let xor = vec![0; mask.len()];
                self.out.push(Expression::Bitwise { register: Register(word), mask, xor });
            }
            word += octets.div_ceil(4) as u32;
        }
    }

    /// Asks for what a field needs.
    fn need(&mut self, field: Field) {
        match field {
            Field::Saddr(ip) | Field::Daddr(ip) if self.family == Family::Inet => {
                let number = match ip {
                    Ip::V4 => Family::Ip.number(),
                    Ip::V6 => Family::Ip6.number(),
                };
                if self.network.replace(number) != Some(number) {
                    self.ask(META_NFPROTO, number);
                }
            }
            Field::Sport(transport) | Field::Dport(transport) => {
                let Some(number) = transport.number() else { return };
                if self.transport.replace(number) != Some(number) {
                    self.ask(META_L4PROTO, number);
                }
            }
            _ => {}
        }
    }

    fn ask(&mut self, meta: u32, number: u8) {
        self.out.push(Expression::Load(Load::Meta(meta), FIRST));
        self.out.push(Expression::Compare(FIRST, Comparison::Equal, vec![number]));
    }

    fn immediate(&mut self, register: Register, octets: Vec<u8>) {
        self.out.push(Expression::Immediate(Some(register), Data::Octets(octets)));
    }

    fn lookup(&mut self, set: &str, inverted: bool, verdict: bool) {
        self.out.push(Expression::Lookup { set: set.to_owned(), from: FIRST, inverted, verdict });
    }

    fn set_mark(&mut self, mark: SetMark) {
        match mark {
            SetMark::To(mark) => self.immediate(FIRST, mark.to_ne_bytes().to_vec()),
            SetMark::With(bits) => {
                self.out.push(Expression::Load(Load::Meta(META_MARK), FIRST));
                let (mask, xor) = ((!bits).to_ne_bytes().to_vec(), bits.to_ne_bytes().to_vec());
                self.out.push(Expression::Bitwise { register: FIRST, mask, xor });
            }
            SetMark::ToCtMark => self.out.push(Expression::Load(Load::Ct(CT_MARK, None), FIRST)),
        }
        self.out.push(Expression::SetMark(FIRST));
    }
}

/// An address that is compared as far as some whole octet needs no mask: only those octets are loaded.
fn shortened(asked: &Match) -> Option<(Field, (Comparison, &[u8]))> {
    let [(field @ (Field::Saddr(_) | Field::Daddr(_)), Some(mask))] = &asked.key.0[..] else { return None };
    let octets = mask.iter().take_while(|octet| **octet == 0xff).count();
    if octets == 0 || mask[octets..].iter().any(|octet| *octet != 0) {
        return None;
    }
    let (comparison, value) = match &asked.test {
        Test::Is(value) => (Comparison::Equal, value),
        Test::IsNot(value) => (Comparison::NotEqual, value),
        _ => return None,
    };
    Some((*field, (comparison, value.get(..octets)?)))
}

/// The mask of a field that ends within an octet.
fn of_whole_octets(field: Field) -> Option<Vec<u8>> {
    let Field::Raw(raw) = field else { return None };
    let octets = field.data_type().octets();
    (!raw.bits.is_multiple_of(8)).then(|| leading_ones(octets, raw.bits.into()))
}

/// Where a field is.
fn source(field: Field) -> Load {
    let payload = |header, offset| {
        let length = field.data_type().octets() as u32;
        Load::Payload { header, offset, length }
    };
    let of = |direction: Direction, key| Load::Ct(key, Some(direction));
    match field {
        Field::Saddr(Ip::V4) => payload(Header::Network, 12),
        Field::Saddr(Ip::V6) => payload(Header::Network, 8),
        Field::Daddr(Ip::V4) => payload(Header::Network, 16),
        Field::Daddr(Ip::V6) => payload(Header::Network, 24),
        Field::Sport(_) => payload(Header::Transport, 0),
        Field::Dport(_) => payload(Header::Transport, 2),
        Field::Raw(raw) => payload(raw.header, raw.offset),
        Field::L4Proto => Load::Meta(META_L4PROTO),
        Field::NfProto => Load::Meta(META_NFPROTO),
        Field::Mark => Load::Meta(META_MARK),
        Field::IifName => Load::Meta(META_IIFNAME),
        Field::OifName => Load::Meta(META_OIFNAME),
        Field::SaddrType => Load::FibType(FIB_SADDR),
        Field::DaddrType => Load::FibType(FIB_DADDR),
        Field::CtState => Load::Ct(CT_STATE, None),
        Field::CtStatus => Load::Ct(CT_STATUS, None),
        Field::CtMark => Load::Ct(CT_MARK, None),
        Field::CtDirection => Load::Ct(CT_DIRECTION, None),
        Field::CtSaddr(direction, Ip::V4) => of(direction, CT_SRC_IP),
        Field::CtSaddr(direction, Ip::V6) => of(direction, CT_SRC_IP6),
        Field::CtDaddr(direction, Ip::V4) => of(direction, CT_DST_IP),
        Field::CtDaddr(direction, Ip::V6) => of(direction, CT_DST_IP6),
        Field::CtProtoSrc(direction) => of(direction, CT_PROTO_SRC),
        Field::CtProtoDst(direction) => of(direction, CT_PROTO_DST),
    }
}
