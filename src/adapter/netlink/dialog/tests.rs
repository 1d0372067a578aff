//! The kernel's answers as bytes: cut short, broken off, out of turn, and made up.

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_MULTIPART};
use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use proptest::prelude::*;

use super::*;
use crate::adapter::netlink::wire::{Rtnetlink, attribute, attributes, number, number64, text};

const OBJECT: u16 = 0x7f;

/// A message of the kernel's.
fn answer(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = (HEADER + payload.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An acknowledgement: the error number, the header of the request, the kernel's words.
fn ack(sequence: u32, errno: i32, words: Option<&str>) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.extend([0; HEADER]);
    payload.extend(words.into_iter().flat_map(said));
    let tlvs = if words.is_some() { NLM_F_ACK_TLVS } else { 0 };
    answer(NLMSG_ERROR, NLM_F_CAPPED | tlvs, sequence, &payload)
}

fn said(words: &str) -> Vec<u8> {
    let length = (4 + words.len() + 1) as u16;
    [&length.to_ne_bytes()[..], &1_u16.to_ne_bytes()[..], words.as_bytes(), b"\0"].concat()
}

fn done(sequence: u32, flags: u16, errno: i32) -> Vec<u8> {
    answer(NLMSG_DONE, NLM_F_MULTIPART | flags, sequence, &(-errno).to_ne_bytes())
}

fn links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

fn number_in(part: &Part<'_>) -> Option<u32> {
    number(part.payload())
}

fn object(sequence: u32, value: u32) -> Vec<u8> {
    answer(OBJECT, NLM_F_MULTIPART, sequence, &value.to_be_bytes())
}

#[test]
fn a_dump_goes_on_over_datagrams_and_ends_with_its_end() {
    let requests = Sequence::default().dump(&links());
    let mut dump = Dump::new(number_in);
    let first = [object(1, 10), object(1, 11)].concat();
    assert!(!dump.hear(&requests, &first).unwrap());
    assert!(dump.hear(&requests, &[object(1, 12), done(1, 0, 0)].concat()).unwrap());
    assert_eq!(dump.found, [10, 11, 12]);
    assert!(!dump.is_to_be_repeated(&Ok(())));
}

#[test]
fn an_error_in_the_middle_of_a_dump_is_an_error_and_so_is_one_at_its_end() {
    for end in [ack(1, libc::EPERM, None), done(1, 0, libc::EPERM)] {
        let requests = Sequence::default().dump(&links());
        let mut dump = Dump::new(number_in);
        let heard = dump.hear(&requests, &[object(1, 10), end].concat());
        assert_eq!(heard.unwrap_err().errno(), Some(Errno::EPERM));
    }
}

#[test]
fn a_dump_that_raced_with_a_change_is_to_be_repeated_whichever_message_says_so() {
    let flagged = answer(OBJECT, NLM_F_MULTIPART | NLM_F_DUMP_INTR, 1, &[0; 4]);
    for datagram in [[flagged, done(1, 0, 0)].concat(), [object(1, 10), done(1, NLM_F_DUMP_INTR, 0)].concat()]
    {
        let requests = Sequence::default().dump(&links());
        let mut dump = Dump::new(number_in);
        let heard = dump.hear(&requests, &datagram).map(drop);
        assert!(heard.is_ok() && dump.is_to_be_repeated(&heard));
        dump.begin_anew();
        assert!(dump.found.is_empty() && !dump.raced);
    }
}

#[test]
fn an_overrun_is_no_answer() {
    let requests = Sequence::default().dump(&links());
    let mut dump = Dump::new(number_in);
    let heard = dump.hear(&requests, &answer(NLMSG_OVERRUN, 0, 1, &[])).map(drop);
    assert!(matches!(heard, Err(Error::Overrun)) && dump.is_to_be_repeated(&heard));
    // What is left unanswered after a loss is neither done nor refused by the kernel.
    let requests = Sequence::default().batch::<Rtnetlink>(&[(links(), 0), (links(), 0)]);
    let mut answers = Acknowledgements::new(&requests);
    assert!(!answers.hear(&requests, &ack(2, 0, None)).unwrap());
    let outcomes = answers.after(Err(Error::Overrun)).unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap_err().errno, Errno::ENOBUFS);
    assert_eq!(outcomes[1], Ok(()));
}

#[test]
fn answers_to_earlier_requests_are_passed_over() {
    let mut sequence = Sequence::default();
    sequence.dump(&links());
    let requests = sequence.dump(&links());
    let mut dump = Dump::new(number_in);
    let late = [object(1, 10), done(1, 0, libc::EPERM), object(2, 20), done(2, 0, 0)].concat();
    assert!(dump.hear(&requests, &late).unwrap());
    assert_eq!(dump.found, [20]);
}

#[test]
fn a_cut_message_is_an_error_and_not_an_end() {
    let whole = [object(1, 10), object(1, 11)].concat();
    for cut in 1..20 {
        let requests = Sequence::default().dump(&links());
        let mut dump = Dump::new(number_in);
        let heard = dump.hear(&requests, &whole[..whole.len() - cut]);
        assert!(matches!(heard, Err(Error::Truncated)), "{cut}: {heard:?}");
        assert_eq!(dump.found, [10]);
    }
    let requests = Sequence::default().batch::<Rtnetlink>(&[(links(), 0)]);
    let short = answer(NLMSG_ERROR, 0, 1, &[0; 3]);
    assert!(matches!(Acknowledgements::new(&requests).hear(&requests, &short), Err(Error::Truncated)));
}

#[test]
fn the_kernels_words_are_kept() {
    let requests = Sequence::default().batch::<Rtnetlink>(&[(links(), 0), (links(), 0), (links(), 0)]);
    let mut answers = Acknowledgements::new(&requests);
    let first = [ack(1, 0, None), ack(3, libc::EEXIST, Some("a device has this VNI"))].concat();
    assert!(!answers.hear(&requests, &first).unwrap());
    assert!(answers.hear(&requests, &ack(2, libc::EINVAL, None)).unwrap());
    let outcomes = answers.after(Ok(())).unwrap();
    assert_eq!(outcomes[0], Ok(()));
    assert_eq!(outcomes[1].as_ref().unwrap_err().to_string(), "Invalid argument");
    let text = outcomes[2].as_ref().unwrap_err().to_string();
    assert_eq!(text, "File exists (a device has this VNI)");
    // Without the cap, the whole request stands before the words.
    let mut payload = (-libc::EPERM).to_ne_bytes().to_vec();
    payload.extend(20_u32.to_ne_bytes());
    payload.extend([0; 16]);
    payload.extend(said("no"));
    let uncapped = answer(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, &payload);
    let refusal = parts(&uncapped).next().unwrap().unwrap().acknowledged().unwrap().unwrap();
    assert_eq!(refusal, Refusal { errno: Errno::EPERM, text: Some("no".into()) });
}

#[test]
fn a_transaction_is_acknowledged_by_its_last_message_and_an_error_names_the_one_it_is_about() {
    let generation = || {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        (NetfilterMessage::new(header, NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() })), 0)
    };
    let changes = [generation(), generation(), generation()];
    let requests = Sequence::default().transaction(&changes);
    let acknowledged: Vec<bool> =
        parts(&requests.bytes).map(|part| part.unwrap().flags & NLM_F_ACK != 0).collect();
    assert_eq!(acknowledged, [false, false, false, true, false]);
    assert!(Transaction.hear(&requests, &ack(4, 0, None)).unwrap());
    let failed = [ack(3, libc::ENOENT, None), ack(4, 0, None)].concat();
    let error = Transaction.hear(&requests, &failed).unwrap_err();
    assert_eq!(error.to_string(), "message 2 of the transaction: No such file or directory");
    // Refused as a whole: the error is about the message that begins it.
    let error = Transaction.hear(&requests, &ack(1, libc::EPERM, None)).unwrap_err();
    assert!(matches!(&error, Error::Refused(refusal) if refusal.errno == Errno::EPERM), "{error:?}");
}

#[test]
fn requests_are_aligned_and_numbered() {
    let requests = Sequence(u32::MAX).batch::<Rtnetlink>(&[(links(), 0), (links(), 0)]);
    let numbers: Vec<u32> = parts(&requests.bytes).map(|part| part.unwrap().sequence).collect();
    assert_eq!(numbers, [0, 1]);
    let places = parts(&requests.bytes).map(|part| requests.answered_by(&part.unwrap()));
    assert_eq!(places.collect::<Vec<_>>(), [Some(0), Some(1)]);
}

/// Hears bytes with every dialog, and reads them in every way.
fn hear_all(bytes: &[u8]) {
    let mut sequence = Sequence::default();
    let dump = sequence.dump(&links());
    let _ = Dump::new(|part| part.object::<RouteNetlinkMessage>()).hear(&dump, bytes);
    let _ = Answer::new(number_in).hear(&dump, bytes);
    let _ = Acknowledgements::new(&dump).hear(&dump, bytes);
    let _ = Transaction.hear(&dump, bytes);
    for part in parts(bytes).flatten() {
        let _ = (part.family(), part.broken_off(), part.acknowledged(), part.object::<RouteNetlinkMessage>());
        for (kind, value) in attributes(part.attributes()) {
            let _ = (text(value), number(value), number64(value), attribute(value, kind));
        }
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        hear_all(&bytes);
    }

    /// Nearly right: real kinds of messages, with a payload and a length that lie.
    #[test]
    fn nor_do_messages_that_lie(
        kind in prop_oneof![Just(NLMSG_ERROR), Just(NLMSG_DONE), 16_u16..32, any::<u16>()],
        flags in any::<u16>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        length in prop_oneof![Just(None), (0_u32..300).prop_map(Some), Just(Some(u32::MAX))],
    ) {
        let mut bytes = answer(kind, flags, 1, &payload);
        if let Some(length) = length {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
        }
        hear_all(&bytes);
    }
}
