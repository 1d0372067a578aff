//! Instructions of a rule as attributes. The library has types for some; the others are written attribute by attribute.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register as Place, Verdict as Code, VerdictAttribute,
};

use super::{nested, number, number64, text};
use crate::tables::{Data, Expression, Limit, Load, Register, Verdict};

/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;
const META_MARK: u32 = 3;
const CT_MARK: u32 = 3;
/// `NFT_FIB_RESULT_ADDRTYPE`.
const ADDRESS_TYPE: u32 = 3;
/// `NFT_RANGE_NEQ`.
const NOT_IN_RANGE: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`.
const PORT_IS_GIVEN: u32 = 2;

/// An instruction as an element of a rule.
pub(super) fn attribute(expression: &Expression) -> ListAttribute<ExpressionAttribute> {
    match expression {
        Expression::Load(load, to) => loaded(*load, *to),
        Expression::Immediate(to, data) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(to.map_or(Place::Verdict, place)),
            Immediate::Data(self::data(data)),
        ])
        .into(),
        Expression::Bitwise { register, mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(place(*register)),
            Bitwise::DestinationRegister(place(*register)),
            Bitwise::Length(mask.len() as u32),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(xor.clone())),
        ])
        .into(),
        Expression::Compare(register, how, value) => Expressions::Cmp(vec![
            Cmp::SourceRegister(place(*register)),
            Cmp::Op(Operator::from(*how as u32)),
            Cmp::Data(DataAttribute::Value(value.clone())),
        ])
        .into(),
        Expression::NotInRange(register, first, last) => {
            let value = |value: &[u8]| [DefaultNla::new(DATA_VALUE, value.to_vec())];
            let borders = [nested(3, &value(first)), nested(4, &value(last))];
            let [first, last] = borders;
            other("range", vec![number(1, register.number()), number(2, NOT_IN_RANGE), first, last])
        }
        Expression::Lookup { set, from, inverted, verdict } => {
            let mut attributes = vec![Lookup::Set(set.clone()), Lookup::SourceRegister(place(*from))];
            attributes.extend(verdict.then_some(Lookup::DestinationRegister(Place::Verdict)));
            attributes.extend(inverted.then_some(Lookup::Flags(INVERTED)));
            Expressions::Lookup(attributes).into()
        }
        Expression::DynSet { set, key, update, timeout } => {
            let mut attributes = vec![text(1, set), number(3, (*update).into()), number(4, key.number())];
            attributes.extend(timeout.map(|timeout| number64(6, timeout.as_millis() as u64)));
            other("dynset", attributes)
        }
        Expression::Counter => other("counter", Vec::new()),
        Expression::CounterOf(name) => other("objref", vec![number(1, COUNTER), text(2, name)]),
        Expression::Limit(Limit { packets, per, burst, over }) => other(
            "limit",
            vec![
                number64(1, *packets),
                number64(2, per.as_secs()),
                number(3, *burst),
                number(4, 0),
                number(5, (*over).into()),
            ],
        ),
        Expression::NoTrack => ListAttribute::Element(vec![ExpressionAttribute::Name("notrack".into())]),
        Expression::SetMark(from) => {
            let key = Meta::Key(MetaKey::from(META_MARK));
            Expressions::Meta(vec![key, Meta::SourceRegister(place(*from))]).into()
        }
        Expression::SetCtMark(from) => other("ct", vec![number(2, CT_MARK), number(4, from.number())]),
        Expression::Masquerade(flags) => {
            other("masq", (*flags != 0).then(|| number(1, *flags)).into_iter().collect())
        }
        Expression::Nat { kind, family, addr, port, flags } => {
            let mut attributes =
                vec![number(1, *kind as u32), number(2, (*family).into()), number(3, addr.number())];
            attributes.extend(port.map(|port| number(5, port.number())));
            attributes.extend((*flags != 0).then(|| number(7, *flags)));
            other("nat", attributes)
        }
        Expression::Redirect(port) => {
            let port = port.map(|port| [number(1, port.number()), number(3, PORT_IS_GIVEN)]);
            other("redir", port.into_iter().flatten().collect())
        }
    }
}

fn loaded(load: Load, to: Register) -> ListAttribute<ExpressionAttribute> {
    match load {
        Load::Payload { header, offset, length } => Expressions::Payload(vec![
            Payload::DestinationRegister(place(to)),
            Payload::Base(header as u32),
            Payload::Offset(offset),
            Payload::Len(length),
        ])
        .into(),
        Load::Meta(key) => {
            Expressions::Meta(vec![Meta::Key(MetaKey::from(key)), Meta::DestinationRegister(place(to))])
                .into()
        }
        Load::Ct(key, direction) => {
            let mut attributes = vec![number(2, key), number(1, to.number())];
            attributes.extend(direction.map(|direction| DefaultNla::new(3, vec![direction as u8])));
            other("ct", attributes)
        }
        Load::FibType(flags) => {
            other("fib", vec![number(1, to.number()), number(2, ADDRESS_TYPE), number(3, flags)])
        }
    }
}

/// A value, or what to do, as the attributes in which nftables has either.
pub(super) fn data(data: &Data) -> DataAttribute {
    match data {
        Data::Octets(octets) => DataAttribute::Value(octets.clone()),
        Data::Verdict(verdict) => DataAttribute::Verdict(self::verdict(verdict)),
    }
}

fn verdict(verdict: &Verdict) -> Vec<VerdictAttribute> {
    let code = VerdictAttribute::Code(Code::from(verdict.code().cast_unsigned()));
    let chain = verdict.chain().map(|chain| VerdictAttribute::Chain(chain.to_owned()));
    std::iter::once(code).chain(chain).collect()
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> ListAttribute<ExpressionAttribute> {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

fn place(register: Register) -> Place {
    Place::from(register.number())
}
