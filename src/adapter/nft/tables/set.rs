//! Sets, maps and their elements as attributes.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetDescription, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use super::{change, expression, nested, number, userdata};
use crate::adapter::netlink::wire::{Change, Nfnetlink};
use crate::tables::{Element, Set, TableName, To, Type};

/// Elements of one message: their list has to fit an attribute, which is at most 64 KiB long.
const ELEMENTS: usize = 400;

/// `NFT_DATA_VERDICT`.
const VERDICT: u32 = 0xffff_ff00;
/// `NFTA_LIST_ELEM` and `NFTA_SET_FIELD_LEN`.
const LIST_ELEMENT: u16 = 1;
const FIELD_LENGTH: u16 = 1;
/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;

type Attributes = Vec<SetElementAttribute>;

/// Makes a set, which is empty. `id` tells it from the others of the transaction.
pub(super) fn new(table: TableName, set: &Set, id: u32) -> Change<Nfnetlink> {
    let types = set.key.types();
    let mut attributes = vec![
        SetAttribute::Table(table.name.to_owned()),
        SetAttribute::Name(set.name.clone()),
        SetAttribute::Flags(flags(set, &types)),
        SetAttribute::KeyType(type_number(&types)),
        SetAttribute::KeyLen(length(&types)),
        SetAttribute::Id(id),
    ];
    match &set.to {
        None => {}
        Some(To::Verdict) => {
            attributes.extend([SetAttribute::DataType(VERDICT), SetAttribute::DataLen(0)]);
        }
        Some(To::Types(to)) => {
            attributes.extend([SetAttribute::DataType(type_number(to)), SetAttribute::DataLen(length(to))]);
        }
    }
    let described = description(set, &types);
    if !described.is_empty() {
        attributes.push(SetAttribute::Description(described));
    }
    attributes.extend(set.timeout.map(|timeout| SetAttribute::Timeout(timeout.as_millis() as u64)));
    attributes.push(SetAttribute::UserData(userdata::set(set)));
    change(table, NLM_F_CREATE, NfTablesMessage::NewSet(SetMessage { attributes }))
}

fn flags(set: &Set, types: &[Type]) -> SetFlags {
    let ranges = set.interval && types.len() > 1;
    let flags = [
        (set.constant, SetFlags::Constant),
        (set.interval, SetFlags::Interval),
        (set.to.is_some(), SetFlags::Map),
        (set.timeouts, SetFlags::Timeout),
        (set.dynamic, SetFlags::Eval),
        (ranges, SetFlags::Concat),
    ];
    flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect()
}

/// nft numbers a key of several parts by the numbers of their types, six bits each.
fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, of| number << 6 | of.number())
}

/// Length of a key: of several parts, each fills words of four octets.
fn length(types: &[Type]) -> u32 {
    let octets = match types {
        [one] => one.octets(),
        all => all.iter().map(|of| of.octets().next_multiple_of(4)).sum(),
    };
    octets as u32
}

fn description(set: &Set, types: &[Type]) -> Vec<SetDescription> {
    // The borders of ranges count as elements.
    let size = if set.constant { Some(members(set).len() as u32) } else { set.size };
    let field = |of: &Type| nested(LIST_ELEMENT, &[number(FIELD_LENGTH, of.octets() as u32)]);
    let ranges = set.interval && types.len() > 1;
    let fields = ranges.then(|| SetDescription::Concat(types.iter().map(field).collect()));
    size.map(SetDescription::Size).into_iter().chain(fields).collect()
}

/// Puts a set's elements into it.
pub(super) fn filled(table: TableName, set: &Set) -> Vec<Change<Nfnetlink>> {
    members(set).chunks(ELEMENTS).map(|elements| list(table, &set.name, elements, false)).collect()
}

/// The elements of a set as the kernel has them.
fn members(set: &Set) -> Vec<Attributes> {
    let concatenated = set.key.types().len() > 1;
    if set.interval && !concatenated {
        intervals(set.elements.clone())
    } else {
        set.elements.iter().map(element).collect()
    }
}

/// Adds elements to sets, or removes them.
pub(super) fn elements(
    table: TableName,
    members: &[(String, Element)],
    remove: bool,
) -> impl Iterator<Item = Change<Nfnetlink>> {
    let of_one_set = members.chunk_by(|a, b| a.0 == b.0).flat_map(|members| members.chunks(ELEMENTS));
    of_one_set.map(move |members| {
        let elements: Vec<Attributes> = members.iter().map(|(_, one)| element(one)).collect();
        list(table, &members[0].0, &elements, remove)
    })
}

fn list(table: TableName, set: &str, elements: &[Attributes], remove: bool) -> Change<Nfnetlink> {
    let elements = elements.iter().cloned().map(ListAttribute::Element).collect();
    let attributes = vec![
        SetElementList::Table(table.name.to_owned()),
        SetElementList::Set(set.to_owned()),
        SetElementList::Elements(elements),
    ];
    let message = SetElementMessage { attributes };
    if remove {
        change(table, 0, NfTablesMessage::DeleteSetElement(message))
    } else {
        change(table, NLM_F_CREATE, NfTablesMessage::NewSetElement(message))
    }
}

/// An element that is a key, or a range of a key of several parts.
fn element(element: &Element) -> Attributes {
    let mut attributes = vec![key(&element.key)];
    let last = element.last.as_ref();
    let last = last.map(|last| SetElementAttribute::KeyEnd(vec![DefaultNla::new(DATA_VALUE, last.clone())]));
    attributes.extend(last);
    attributes
        .extend(element.timeout.map(|timeout| SetElementAttribute::Timeout(timeout.as_millis() as u64)));
    attributes.extend(element.to.as_ref().map(|to| SetElementAttribute::Data(expression::data(to))));
    attributes
}

/// Ranges of a key of one part: the kernel keeps the first of each and, marked as an end, the first behind it. In front
/// of all, `nft` marks zero as an end.
fn intervals(mut elements: Vec<Element>) -> Vec<Attributes> {
    elements.sort();
    let mut marks = Vec::with_capacity(2 * elements.len() + 1);
    let end = |key: &[u8]| vec![self::key(key), SetElementAttribute::Flags(SetElementFlags::IntervalEnd)];
    if let Some(first) = elements.first().filter(|first| first.key.iter().any(|octet| *octet != 0)) {
        marks.push(end(&vec![0; first.key.len()]));
    }
    for range in &elements {
        let behind = after(range.last.as_ref().unwrap_or(&range.key));
        let mut begin = element(&Element { last: None, ..range.clone() });
        if behind.is_none() {
            begin.push(SetElementAttribute::UserData(userdata::open_interval()));
        }
        marks.push(begin);
        marks.extend(behind.map(|behind| end(&behind)));
    }
    marks
}

/// The number behind this one; `None` behind the last.
fn after(number: &[u8]) -> Option<Vec<u8>> {
    let at = number.iter().rposition(|octet| *octet != 0xff)?;
    let mut next = number.to_vec();
    next[at] += 1;
    next[at + 1..].fill(0);
    Some(next)
}

fn key(key: &[u8]) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(key.to_vec()))
}
