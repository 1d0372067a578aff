//! What the kernel holds of two namespaces, compared octet for octet.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use integration::netns::Netns;
use loden::adapter::netlink::blocking::Socket;
use loden::adapter::netlink::wire::{Change, Nfnetlink, Part, attribute, attributes, text};
use loden::adapter::nft::tables;
use loden::tables::Table;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleMessage, SetElementList, SetElementMessage, SetMessage, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

pub(super) fn commit(netns: &Netns, changes: &[Change<Nfnetlink>]) -> Result<()> {
    netns.run(|| Ok(Socket::open()?.commit(changes)?))
}

/// Writes the table both ways, each into a namespace of its own, and compares what the kernel holds then.
pub(super) fn is_as_nft_writes_it(table: &Table) -> Result<()> {
    let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
    commit(&ours, &tables::put(table)).with_context(|| format!("our way:\n{table}"))?;
    theirs.nft(&table.to_string()).with_context(|| format!("nft's way:\n{table}"))?;
    compare(&ours, &theirs)
}

pub(super) fn compare(ours: &Netns, theirs: &Netns) -> Result<()> {
    let (held, expected) = (dump(ours)?, dump(theirs)?);
    for (what, expected) in &expected {
        let held = held.get(what).map_or("nothing", String::as_str);
        ensure!(held == expected, "{what} is\n{held}\nand by nft\n{expected}");
    }
    ensure!(held.len() == expected.len(), "there are {:?}, and by nft {:?}", held.keys(), expected.keys());
    let listed = |netns: &Netns| netns.command("nft").args(["list", "ruleset"]).run();
    let without_time = |text: String| text.lines().map(without_expiry).collect::<Vec<_>>().join("\n");
    let (held, expected) = (without_time(listed(ours)?), without_time(listed(theirs)?));
    ensure!(held == expected, "nft lists\n{held}\nand of its own\n{expected}");
    Ok(())
}

/// `… expires 4m59s992ms` is how long an element has still to go.
fn without_expiry(line: &str) -> String {
    let mut words = Vec::new();
    let mut all = line.split_whitespace();
    while let Some(word) = all.next() {
        match word {
            "expires" => words.extend(all.next().filter(|time| time.ends_with(',')).map(|_| ",")),
            _ => words.push(word),
        }
    }
    words.join(" ")
}

/// Everything that the kernel holds in its own octets, by kind and name, without what is counted or numbered.
fn dump(netns: &Netns) -> Result<BTreeMap<String, String>> {
    netns.run(|| {
        let mut socket = Socket::<Nfnetlink>::open()?;
        let mut found = BTreeMap::new();
        let named = |part: &Part<'_>, kind| {
            attribute(part.attributes(), kind).and_then(text).unwrap_or_default().to_owned()
        };
        let message = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
        for (name, octets) in socket
            .dump(&request(0, message), |part| Some((named(part, 1), shown(part.attributes(), &[3, 4]))))?
        {
            found.insert(format!("table {name}"), octets);
        }
        let message = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        for (name, octets) in socket.dump(&request(0, message), |part| {
            // Neither its number nor how often it is used.
            Some((named(part, 3), shown(part.attributes(), &[2, 6])))
        })? {
            found.insert(format!("chain {name}"), octets);
        }
        let message = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
        let rules = socket
            .dump(&request(0, message), |part| Some((named(part, 2), shown(part.attributes(), &[3, 6]))))?;
        let mut places = BTreeMap::<String, usize>::new();
        for (chain, octets) in rules {
            let place = places.entry(chain.clone()).or_default();
            *place += 1;
            found.insert(format!("rule {place} of chain {chain}"), octets);
        }
        let message = NfTablesMessage::GetObject(Vec::new());
        for (name, octets) in socket
            .dump(&request(0, message), |part| Some((named(part, 2), shown(part.attributes(), &[5, 6]))))?
        {
            found.insert(format!("counter {name}"), octets);
        }
        let message = NfTablesMessage::GetSet(SetMessage { attributes: Vec::new() });
        let sets = socket.dump(&request(0, message), |part| {
            let octets = shown(part.attributes(), &[10, 16]);
            Some((part.family(), named(part, 1), named(part, 2), octets))
        })?;
        for (family, table, name, octets) in sets {
            let of = vec![SetElementList::Table(table), SetElementList::Set(name.clone())];
            let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes: of });
            let elements = socket.dump(&request(family, message), |part| {
                let list = attribute(part.attributes(), 3).unwrap_or_default();
                // Neither when it goes.
                Some(attributes(list).map(|(_, element)| shown(element, &[5])).collect::<Vec<_>>())
            })?;
            let mut elements: Vec<String> = elements.into_iter().flatten().collect();
            elements.sort();
            found.insert(format!("set {name}"), format!("{octets}\n{}", elements.join("\n")));
        }
        Ok(found)
    })
}

/// Attributes in hexadecimal, those left out that are numbered `without`.
fn shown(all: &[u8], without: &[u16]) -> String {
    let hex = |value: &[u8]| value.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let each = attributes(all).filter(|(kind, _)| !without.contains(kind));
    each.map(|(kind, value)| format!("{kind}:{}", hex(value))).collect::<Vec<_>>().join(" ")
}

fn request(family: u8, message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::from(family), 0, 0), message)
}
