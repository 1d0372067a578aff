//! What the kernel keeps for `nft` and does not read: comments, and how a set's keys are to be printed. The numbers are
//! libnftnl's (`udata.h`) and nft's own.

use encap::Family as Ip;

use crate::tables::{Field, Header, Set, SetKey, To, Type};

/// `NFTNL_UDATA_TABLE_COMMENT`, and those of chains and rules.
const COMMENT: u8 = 0;

/// `NFTNL_UDATA_SET_*`.
mod of_set {
    pub(super) const KEY_ORDER: u8 = 0;
    pub(super) const DATA_ORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const DATA_INTERVAL: u8 = 6;
    pub(super) const COMMENT: u8 = 7;
}

/// `NFTNL_UDATA_SET_ELEM_FLAGS` and `SET_ELEM_F_INTERVAL_OPEN`.
const ELEMENT_FLAGS: u8 = 1;
const INTERVAL_IS_OPEN: u32 = 1;

/// `NFTNL_UDATA_SET_TYPEOF_EXPR` and `NFTNL_UDATA_SET_TYPEOF_DATA`.
const TYPEOF_EXPRESSION: u8 = 0;
const TYPEOF_DATA: u8 = 1;
/// `EXPR_PAYLOAD` and `EXPR_CONCAT` of nft.
const PAYLOAD: u32 = 7;
const CONCATENATION: u32 = 13;
/// Protocols of nft (`proto_desc_id`) and their fields.
const IP: u32 = 12;
const IP6: u32 = 13;

/// A comment of a table, a chain or a rule.
pub(super) fn comment(comment: &str) -> Vec<u8> {
    text(COMMENT, comment)
}

/// The comment among what the kernel keeps of a rule.
pub(super) fn read_comment(mut all: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = all {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(b"\0").unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        all = behind;
    }
    None
}

/// Says of the last element of an interval set that nothing ends it.
pub(super) fn open_interval() -> Vec<u8> {
    number(ELEMENT_FLAGS, INTERVAL_IS_OPEN)
}

/// How a set's keys, and what a map says of them, are to be printed.
pub(super) fn set(set: &Set) -> Vec<u8> {
    let types = set.key.types();
    let mut all = number(of_set::KEY_ORDER, order(&types));
    match &set.to {
        None => {}
        Some(To::Verdict) => all.extend(number(of_set::DATA_ORDER, 0)),
        Some(To::Types(types)) => all.extend(number(of_set::DATA_ORDER, order(types))),
    }
    all.extend(match &set.key {
        SetKey::Types(types) => typeof_types(of_set::KEY_TYPEOF, types),
        SetKey::Fields(fields) => entry(of_set::KEY_TYPEOF, &typeof_fields(fields)),
    });
    if let Some(to) = &set.to {
        if let To::Types(types) = to {
            all.extend(typeof_types(of_set::DATA_TYPEOF, types));
        }
        all.extend(number(of_set::DATA_INTERVAL, 0));
    }
    all.extend(set.comment.map(|comment| text(of_set::COMMENT, comment)).unwrap_or_default());
    all
}

/// The order of the octets of a key: none where it has several parts.
fn order(types: &[Type]) -> u32 {
    match types {
        [one] => one.order() as u32,
        _ => 0,
    }
}

/// Of a key of several types nft keeps that there are several, and nothing of them.
fn typeof_types(kind: u8, types: &[Type]) -> Vec<u8> {
    match types {
        [_] => Vec::new(),
        _ => entry(kind, &[number(TYPEOF_EXPRESSION, CONCATENATION), entry(TYPEOF_DATA, &[])].concat()),
    }
}

fn typeof_fields(fields: &[Field]) -> Vec<u8> {
    match fields {
        [one] => typeof_field(*one),
        all => {
            let parts: Vec<u8> =
                all.iter().zip(0..).flat_map(|(field, at)| entry(at, &typeof_field(*field))).collect();
            [number(TYPEOF_EXPRESSION, CONCATENATION), entry(TYPEOF_DATA, &parts)].concat()
        }
    }
}

fn typeof_field(field: Field) -> Vec<u8> {
    let of = |protocol, field| [number(0, protocol), number(1, field)].concat();
    let place = match field {
        Field::Saddr(Ip::V4) => of(IP, 11),
        Field::Daddr(Ip::V4) => of(IP, 12),
        Field::Saddr(Ip::V6) => of(IP6, 8),
        Field::Daddr(Ip::V6) => of(IP6, 9),
        Field::Raw(raw) => {
            let header = match raw.header {
                Header::Network => 2,
                Header::Transport => 3,
            };
            [of(0, 0), number(2, header), number(3, raw.offset * 8), number(4, raw.bits.into())].concat()
        }
        _ => Vec::new(),
    };
    [number(TYPEOF_EXPRESSION, PAYLOAD), entry(TYPEOF_DATA, &place)].concat()
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    entry(kind, &value.to_ne_bytes())
}

fn text(kind: u8, value: &str) -> Vec<u8> {
    entry(kind, &[value.as_bytes(), b"\0"].concat())
}

/// A kind, a length of one octet, a value. What is longer than nft could read is cut off.
fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut all = vec![kind, length];
    all.extend(&value[..usize::from(length)]);
    all
}
