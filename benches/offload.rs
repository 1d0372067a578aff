//! What offloads cost in our code: the checksum, cutting a super-packet, joining what comes of it.
#![expect(clippy::expect_used, reason = "a benchmark stops at the first surprise")]

mod settings;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::offload::checksum::Sum;
use encap::offload::coalesce::{Coalescer, HEAD};
use encap::offload::segment::Segments;
use encap::offload::vnet::{Gso, GsoKind};
use etherparse::PacketBuilder;

/// Payload of a super-packet as TCP makes them: 44 segments of an MTU of 1,472.
const PAYLOAD: usize = 44 * 1420;

fn super_packet(payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 244, 1, 3], [10, 244, 2, 5], 64)
        .tcp(4000, 5000, 77, 1000)
        .ack(9)
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .expect("options that fit");
    builder.write(&mut packet, &vec![0x5a; payload]).expect("writing to a Vec");
    packet
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1448, 65_536] {
        let bytes = vec![0xa5; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |b, bytes| {
            b.iter(|| Sum::default().bytes(black_box(bytes)).fold());
        });
    }
    group.finish();
}

/// One super-packet to the headers of its segments, checksums included.
fn cut(c: &mut Criterion) {
    let mut group = c.benchmark_group("cut");
    for size in [1420, 8932] {
        let packet = super_packet(PAYLOAD);
        let gso = Gso { kind: GsoKind::TcpV4, size, ecn: false };
        let mut headers = vec![0; 64 * 64];
        group.throughput(Throughput::Bytes(PAYLOAD as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &packet, |b, packet| {
            b.iter(|| {
                let plan = Segments::plan(black_box(packet), None, gso).expect("a plan");
                for (index, out) in headers.chunks_exact_mut(plan.header_len()).enumerate().take(plan.count())
                {
                    plan.write_headers(packet, index, out);
                }
                plan.count()
            });
        });
    }
    group.finish();
}

/// The segments of one super-packet to one again, checksums verified.
fn join(c: &mut Criterion) {
    let mut group = c.benchmark_group("join");
    for size in [1420, 8932] {
        let packet = super_packet(PAYLOAD);
        let gso = Gso { kind: GsoKind::TcpV4, size, ecn: false };
        let plan = Segments::plan(&packet, None, gso).expect("a plan");
        let (mut memory, mut ranges) = (Vec::new(), Vec::new());
        for index in 0..plan.count() {
            let start = memory.len();
            memory.resize(start + plan.header_len(), 0);
            plan.write_headers(&packet, index, &mut memory[start..]);
            memory.extend_from_slice(&packet[plan.payload(index)]);
            ranges.push(start..memory.len());
        }
        let mut coalescer = Coalescer::new(1024, true, true);
        group.throughput(Throughput::Bytes(PAYLOAD as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &memory, |b, memory| {
            b.iter(|| {
                coalescer.clear();
                for range in &ranges {
                    coalescer.push(black_box(memory), range.clone(), ());
                }
                let mut head = [0; HEAD];
                coalescer.groups().filter_map(|group| group.write_headers(memory, &mut head)).count()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = settings::short();
    targets = checksum, cut, join
}
criterion_main!(benches);
