//! Tables in nft's own words: what commands and logs print, and what `nft -f` takes.

use std::fmt::{self, Display, Formatter, Write as _};
use std::net::IpAddr;

use encap::{Family as Ip, Prefix};

use super::chain::priority;
use super::rule::{Match, NatFlags, NatKind, SetMark, Statement, Test, Verdict};
use super::{
    Base, Chain, Data, Direction, Element, Field, Header, Hook, Key, Rule, Set, SetKey, Table, To, Type,
};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.name)?;
        if let Some(comment) = self.comment {
            writeln!(f, "  comment \"{comment}\"")?;
        }
        for counter in &self.counters {
            writeln!(f, "  counter {counter} {{ }}")?;
        }
        for set in &self.sets {
            write!(f, "{set}")?;
        }
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if let Some(comment) = self.comment {
            writeln!(f, "    comment \"{comment}\"")?;
        }
        if let Some(base) = &self.base {
            writeln!(f, "    {base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "    {rule}")?;
        }
        writeln!(f, "  }}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { kind, hook, priority, policy } = self;
        write!(f, "type {} hook {} priority ", kind.as_str(), hook.as_str())?;
        match (*priority, hook) {
            (priority::RAW, _) => f.write_str("raw")?,
            (priority::MANGLE, _) => f.write_str("mangle")?,
            (priority::FILTER, _) => f.write_str("filter")?,
            (priority::SECURITY, _) => f.write_str("security")?,
            (priority::DSTNAT, Hook::Prerouting) => f.write_str("dstnat")?,
            (priority::SRCNAT, Hook::Postrouting) => f.write_str("srcnat")?,
            (other, _) => write!(f, "{other}")?,
        }
        write!(f, "; policy {};", policy.as_str())
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let word = if self.to.is_some() { "map" } else { "set" };
        writeln!(f, "  {word} {} {{", self.name)?;
        match &self.key {
            SetKey::Types(types) => write!(f, "    type {}", joined(types.iter().map(|t| t.as_str())))?,
            SetKey::Fields(fields) => write!(f, "    typeof {}", joined(fields.iter().copied().map(words)))?,
        }
        match &self.to {
            None => writeln!(f)?,
            Some(To::Verdict) => writeln!(f, " : verdict")?,
            Some(To::Types(types)) => writeln!(f, " : {}", joined(types.iter().map(|t| t.as_str())))?,
        }
        if let Some(size) = self.size {
            writeln!(f, "    size {size}")?;
        }
        let flags = [
            (self.constant, "constant"),
            (self.dynamic, "dynamic"),
            (self.interval, "interval"),
            (self.timeouts, "timeout"),
        ];
        let flags: Vec<_> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        if !flags.is_empty() {
            writeln!(f, "    flags {}", flags.join(","))?;
        }
        if let Some(timeout) = self.timeout {
            writeln!(f, "    timeout {}ms", timeout.as_millis())?;
        }
        if let Some(comment) = self.comment {
            writeln!(f, "    comment \"{comment}\"")?;
        }
        if !self.elements.is_empty() {
            let elements: Vec<_> = self.elements.iter().map(|element| self.element(element)).collect();
            writeln!(f, "    elements = {{ {} }}", elements.join(", "))?;
        }
        writeln!(f, "  }}")
    }
}

impl Set {
    fn element(&self, element: &Element) -> String {
        let types = self.key.types();
        let mut text = parts(&types, &element.key, element.last.as_deref());
        if let Some(timeout) = element.timeout {
            let _ = write!(text, " timeout {}ms", timeout.as_millis());
        }
        match (&element.to, &self.to) {
            (Some(Data::Verdict(verdict)), _) => {
                let _ = write!(text, " : {verdict}");
            }
            (Some(Data::Octets(octets)), Some(To::Types(types))) => {
                let _ = write!(text, " : {}", parts(types, octets, None));
            }
            _ => {}
        }
        text
    }
}

/// A key, part by part.
fn parts(types: &[Type], first: &[u8], last: Option<&[u8]>) -> String {
    let mut at = 0;
    let each = types.iter().map(|of| {
        let place = at..at + of.octets();
        at = place.end.next_multiple_of(4);
        let first = first.get(place.clone()).unwrap_or_default();
        match last.and_then(|last| last.get(place)) {
            Some(last) if last != first => range(*of, first, last),
            _ => of.words(first),
        }
    });
    joined(each)
}

fn range(of: Type, first: &[u8], last: &[u8]) -> String {
    let differing = of.number_of(first) ^ of.number_of(last);
    let bits = 128 - differing.leading_zeros();
    let whole = differing.count_ones() == bits;
    let begins = of.number_of(first) & differing == 0;
    match of {
        Type::Ipv4Addr | Type::Ipv6Addr if whole && begins => {
            format!("{}/{}", of.words(first), of.octets() as u32 * 8 - bits)
        }
        _ => format!("{}-{}", of.words(first), of.words(last)),
    }
}

fn joined<T: AsRef<str>>(parts: impl Iterator<Item = T>) -> String {
    let parts: Vec<T> = parts.collect();
    parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" . ")
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (at, statement) in self.statements.iter().enumerate() {
            write!(f, "{}{statement}", if at == 0 { "" } else { " " })?;
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(asked) => write!(f, "{asked}"),
            Self::Limit(limit) => {
                let over = if limit.over { "over " } else { "" };
                let per = match limit.per.as_secs() {
                    60 => "minute",
                    3600 => "hour",
                    86_400 => "day",
                    _ => "second",
                };
                write!(f, "limit rate {over}{}/{per} burst {} packets", limit.packets, limit.burst)
            }
            Self::Count => f.write_str("counter"),
            Self::CountIn(counter) => write!(f, "counter name {counter}"),
            Self::Remember { anew, key, set, timeout } => {
                let word = if *anew { "update" } else { "add" };
                write!(f, "{word} @{set} {{ {key}")?;
                if let Some(timeout) = timeout {
                    write!(f, " timeout {}ms", timeout.as_millis())?;
                }
                f.write_str(" }")
            }
            Self::NoTrack => f.write_str("notrack"),
            Self::SetMark(SetMark::To(mark)) => write!(f, "meta mark set {mark:#010x}"),
            Self::SetMark(SetMark::With(bits)) => write!(f, "meta mark set meta mark | {bits:#010x}"),
            Self::SetMark(SetMark::ToCtMark) => f.write_str("meta mark set ct mark"),
            Self::SetCtMark(mark) => write!(f, "ct mark set {mark:#010x}"),
            Self::Masquerade(flags) => write!(f, "masquerade{flags}"),
            Self::Nat { kind, addr, port, flags } => {
                let word = if *kind == NatKind::Source { "snat" } else { "dnat" };
                match (addr, port) {
                    (IpAddr::V4(addr), Some(port)) => write!(f, "{word} ip to {addr}:{port}")?,
                    (IpAddr::V4(addr), None) => write!(f, "{word} ip to {addr}")?,
                    (IpAddr::V6(addr), Some(port)) => write!(f, "{word} ip6 to [{addr}]:{port}")?,
                    (IpAddr::V6(addr), None) => write!(f, "{word} ip6 to {addr}")?,
                }
                write!(f, "{flags}")
            }
            Self::Redirect(Some(port)) => write!(f, "redirect to :{port}"),
            Self::Redirect(None) => f.write_str("redirect"),
            Self::VerdictMap(key, map) => write!(f, "{key} vmap @{map}"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for NatFlags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flags =
            [(self.random, "random"), (self.fully_random, "fully-random"), (self.persistent, "persistent")];
        let flags: Vec<_> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        if flags.is_empty() { Ok(()) } else { write!(f, " {}", flags.join(",")) }
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.test {
            Test::In(set) => return write!(f, "{key} @{set}"),
            Test::NotIn(set) => return write!(f, "{key} != @{set}"),
            Test::Between(..) | Test::NotBetween(..) | Test::Is(_) | Test::IsNot(_) => {}
        }
        let [(field, mask)] = &key.0[..] else { return write!(f, "{key}") };
        let (field, of) = (*field, field.data_type());
        let value = |octets: &[u8]| value(field, octets);
        match (&self.test, mask) {
            (Test::Between(first, last), _) => write!(f, "{key} {}-{}", value(first), value(last)),
            (Test::NotBetween(first, last), _) => write!(f, "{key} != {}-{}", value(first), value(last)),
            (Test::Is(octets), None) => write!(f, "{key} {}", value(octets)),
            (Test::IsNot(octets), None) => write!(f, "{key} != {}", value(octets)),
            (Test::Is(octets), Some(mask)) => match prefix(of, octets, mask) {
                Some(prefix) => write!(f, "{} {prefix}", words(field)),
                None => write!(f, "{key} == {}", value(octets)),
            },
            (Test::IsNot(octets), Some(mask)) => match prefix(of, octets, mask) {
                Some(prefix) => write!(f, "{} != {prefix}", words(field)),
                None if matches!(of, Type::CtState | Type::CtStatus) && of.number_of(octets) == 0 => {
                    write!(f, "{} {}", words(field), value(mask))
                }
                None => write!(f, "{key} != {}", value(octets)),
            },
            (Test::In(_) | Test::NotIn(_), _) => Ok(()),
        }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let alone = self.0.len() == 1;
        let part = |(field, mask): &(Field, Option<Vec<u8>>)| match mask {
            None => words(*field),
            Some(mask) if alone => format!("{} & {}", words(*field), value(*field, mask)),
            Some(mask) => format!("({} & {})", words(*field), value(*field, mask)),
        };
        f.write_str(&joined(self.0.iter().map(part)))
    }
}

/// A value of a field. A raw field that ends within an octet is a number of so many bits.
fn value(field: Field, octets: &[u8]) -> String {
    match field {
        Field::Raw(raw) if !raw.bits.is_multiple_of(8) => {
            let number = field.data_type().number_of(octets) >> (8 - raw.bits % 8);
            format!("{number:#x}")
        }
        _ => field.data_type().words(octets),
    }
}

/// The prefix that an address and a mask stand for.
fn prefix(of: Type, octets: &[u8], mask: &[u8]) -> Option<Prefix> {
    let addr: IpAddr = match of {
        Type::Ipv4Addr => (*octets.first_chunk::<4>()?).into(),
        Type::Ipv6Addr => (*octets.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let ones = mask.iter().map(|octet| octet.count_ones()).sum::<u32>();
    let length = u8::try_from(ones).ok()?;
    (mask == super::field::leading_ones(mask.len(), length.into())).then_some(())?;
    Prefix::new(addr, length).ok()
}

fn words(field: Field) -> String {
    let ip = |family| if family == Ip::V4 { "ip" } else { "ip6" };
    let way = |direction| if direction == Direction::Original { "original" } else { "reply" };
    match field {
        Field::Saddr(family) => format!("{} saddr", ip(family)),
        Field::Daddr(family) => format!("{} daddr", ip(family)),
        Field::Sport(transport) => format!("{} sport", transport.as_str()),
        Field::Dport(transport) => format!("{} dport", transport.as_str()),
        Field::Raw(raw) => {
            let header = if raw.header == Header::Network { "nh" } else { "th" };
            format!("@{header},{},{}", raw.offset * 8, raw.bits)
        }
        Field::L4Proto => "meta l4proto".into(),
        Field::NfProto => "meta nfproto".into(),
        Field::Mark => "meta mark".into(),
        Field::IifName => "iifname".into(),
        Field::OifName => "oifname".into(),
        Field::SaddrType => "fib saddr type".into(),
        Field::DaddrType => "fib daddr type".into(),
        Field::CtState => "ct state".into(),
        Field::CtStatus => "ct status".into(),
        Field::CtMark => "ct mark".into(),
        Field::CtDirection => "ct direction".into(),
        Field::CtSaddr(direction, family) => format!("ct {} {} saddr", way(direction), ip(family)),
        Field::CtDaddr(direction, family) => format!("ct {} {} daddr", way(direction), ip(family)),
        Field::CtProtoSrc(direction) => format!("ct {} proto-src", way(direction)),
        Field::CtProtoDst(direction) => format!("ct {} proto-dst", way(direction)),
    }
}
