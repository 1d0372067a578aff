//! The program beside [`encap::flow::hash`], by having the kernel run it (`BPF_PROG_TEST_RUN`).

use std::fs;
use std::path::Path;

use encap::{IpPacket, flow};
use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// What `BPF_PROG_TEST_RUN` reads and writes of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl Steering {
    /// What the program answers for a packet of at least one byte.
    fn answer(&self, packet: &[u8]) -> io::Result<u32> {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        // The kernel takes an Ethernet frame, and shows a program of this kind what is behind the header.
        let mut frame = vec![0; 12];
        frame.extend(if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(packet);
        let mut run = TestRun {
            program: self.as_raw_fd() as u32,
            size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: `run` is laid out as the kernel's structure begins, its size is told, and the frame that it points to
        // lives across the call. The kernel writes into `run` only.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>()) };
        if result == 0 { Ok(run.answer) } else { Err(io::Error::last_os_error()) }
    }
}

/// The loaded program. Where the kernel does not take it from us the comparison is left out, and says so; in the lab, whose
/// programs know where `flanneld` is, that is a failure.
fn program() -> Option<Steering> {
    match Steering::load() {
        Ok(program) => Some(program),
        Err(error) if std::env::var_os("FLANNELD_BIN").is_none() => {
            eprintln!(
                "the steering program was NOT compared with the flow hash ({error}): `make test` as root does it"
            );
            None
        }
        Err(error) => panic!("the steering program cannot be loaded: {error}; this test needs CAP_BPF"),
    }
}

fn compare(program: &Steering, packet: &[u8]) {
    let answer = program.answer(packet).expect("the kernel runs the program");
    assert_eq!(answer, flow::hash(packet), "{packet:02x?}");
}

/// A packet with everything that the program looks at, and whether it is a fragment.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let addresses = (any::<[u8; 16]>(), any::<[u8; 16]>());
    let ports = (any::<u16>(), any::<u16>());
    let fragment = prop_oneof![Just(0), Just(0x4000), Just(0x2000), 1..0x3fff_u16, any::<u16>()];
    let protocol = prop_oneof![Just(6), Just(17), Just(1), any::<u8>()];
    (any::<bool>(), addresses, ports, fragment, protocol, 0..=10_u8).prop_map(
        |(v6, (from, to), ports, fragment, protocol, options)| {
            let mut packet = Vec::new();
            if v6 {
                let builder = PacketBuilder::ipv6(from, to, 64).tcp(ports.0, ports.1, 7, 9);
                builder.write(&mut packet, &[1; 20]).unwrap();
                packet[6] = protocol;
            } else {
                let [from, to] = [from, to].map(|address| [address[0], address[1], address[2], address[3]]);
                let builder = PacketBuilder::ipv4(from, to, 64).tcp(ports.0, ports.1, 7, 9);
                builder.write(&mut packet, &[1; 20]).unwrap();
                packet.splice(20..20, vec![1; usize::from(options) * 4]);
                packet[0] = 0x45 + options;
                packet[6..8].copy_from_slice(&fragment.to_be_bytes());
                packet[9] = protocol;
            }
            packet
        },
    )
}

#[test]
fn the_kernels_program_and_the_flow_hash_give_each_packet_the_same_number() {
    let Some(program) = program() else { return };
    let mut runner = TestRunner::new(ProptestConfig { cases: 5000, ..ProptestConfig::default() });
    runner
        .run(&packets(), |packet| {
            compare(&program, &packet);
            Ok(())
        })
        .unwrap();
    for protocol in 0..=255 {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 244, 1, 3], [10, 244, 2, 5], 64);
        builder.write(&mut packet, IpNumber(protocol), &[3; 40]).unwrap();
        compare(&program, &packet);
    }
    compare(&program, &[0x50; 60]);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("encap/fuzz/corpus");
    let mut compared = 0;
    for input in ["ip_view", "icmp"].iter().flat_map(|target| fs::read_dir(corpus.join(target)).unwrap()) {
        let input = fs::read(input.unwrap().path()).unwrap();
        // One that ends before its ports has no flow, and goes to the first queue.
        if input.len() >= 64 && input.len() < 2048 && IpPacket::parse(&input).is_ok() {
            compare(&program, &input);
            compared += 1;
        }
    }
    assert!(compared >= 5, "{compared} packets in {}", corpus.display());
}

#[test]
fn a_packet_that_ends_too_early_goes_to_the_first_queue() {
    let Some(program) = program() else { return };
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 244, 1, 3], [10, 244, 2, 5], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut packet, &[])
        .unwrap();
    for len in 20..24 {
        assert_eq!(program.answer(&packet[..len]).ok(), Some(0), "{len} bytes");
    }
}
