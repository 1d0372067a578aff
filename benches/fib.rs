//! Route lookup by number of nodes and of threads that read, beside the structures one would reach for first.
//!
//! All are read as the data path reads them, through an `ArcSwap` that the control plane may replace at any time;
//! `DashMap` is shared as it is. `HashMap` and `DashMap` are keyed by the masked /24, so they answer an easier
//! question: no longest-prefix match. Times are per lookup of one thread. The comparisons, and tables of all sizes, are
//! measured with `LODEN_BENCH_LONG=1` only (`make bench LONG=1`): they take a minute more.
#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark stops at the first surprise")]

mod settings;

use arc_swap::{ArcSwap, Cache};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use encap::{Fib, NextHop, Owner, PeerCaps, PeerId, Prefix};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// The smallest table and the largest.
const NODES: &[u32] = &[1, 5000];
/// With `LODEN_BENCH_LONG` set.
const ALL_NODES: &[u32] = &[1, 100, 1000, 5000];
const READERS: [usize; 2] = [1, 2];
const ADDRESSES: u32 = 4096;

/// 10.0.0.0/8 holds a /24 for each of 5,000 nodes.
const NETWORK: u32 = 10 << 24;

fn subnet(node: u32) -> u32 {
    NETWORK | node << 8
}

fn hop(node: u32) -> NextHop {
    let addr = Ipv4Addr::from_bits(0xc612_0000 | node).into();
    NextHop { peer: PeerId(node), addr, mtu: 1472, caps: PeerCaps::default(), mac: None }
}

fn prefix(addr: u32, len: u8) -> Prefix {
    Prefix::new(Ipv4Addr::from_bits(addr).into(), len).expect("a valid length")
}

/// One /24 per node, and a host route for every `host_every`th of them, as a pod that kept its address has.
fn table(nodes: u32, host_every: Option<usize>) -> Fib {
    let mut fib = Fib::builder();
    fib.network(prefix(NETWORK, 8));
    for node in 0..nodes {
        fib.route(prefix(subnet(node), 24), Owner::Peer(hop(node)));
    }
    for node in (0..nodes).step_by(host_every.unwrap_or(usize::MAX)).filter(|_| host_every.is_some()) {
        fib.route(prefix(subnet(node) | 5, 32), Owner::Peer(hop((node + 1) % nodes)));
    }
    fib.build()
}

/// Pod addresses in no order that a cache could foresee (a multiplicative generator, the same in each run).
fn addresses(nodes: u32) -> Vec<Ipv4Addr> {
    let mut seed = 0x9e37_79b9_u32;
    let mut random = || {
        seed = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        seed >> 8
    };
    (0..ADDRESSES).map(|_| Ipv4Addr::from_bits(subnet(random() % nodes) | (random() % 254 + 1))).collect()
}

/// Runs `lookup` for `count` addresses in each of `readers` threads at once; the slowest thread's time. Each thread
/// gets its own state, made by `start`.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn timed<S, T>(
    readers: usize,
    count: u64,
    addresses: &[Ipv4Addr],
    start: impl Fn() -> S + Sync,
    lookup: impl Fn(&mut S, Ipv4Addr) -> T + Sync,
) -> Duration {
    let together = Barrier::new(readers);
    let run = || {
        let mut state = start();
        let mut next = addresses.iter().cycle();
        together.wait();
        let begun = Instant::now();
        for _ in 0..count {
            let addr = *next.next().expect("a cycle");
            black_box(lookup(&mut state, black_box(addr)));
        }
        begun.elapsed()
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..readers).map(|_| scope.spawn(run)).collect();
        let ours = run();
        others.into_iter().map(|other| other.join().expect("a reader")).fold(ours, Duration::max)
    })
}

fn lookup(c: &mut Criterion) {
    let long = std::env::var_os("LODEN_BENCH_LONG").is_some();
    for readers in READERS {
        let mut group = c.benchmark_group(format!("fib_lookup_{readers}_readers"));
        for &nodes in if long { ALL_NODES } else { NODES } {
            let addresses = addresses(nodes);
            let fib = ArcSwap::from_pointee(table(nodes, None));
            let peer = |owner: Option<&Owner>| match owner {
                Some(Owner::Peer(hop)) => hop.peer,
                other => panic!("{other:?}"),
            };
            group.bench_function(BenchmarkId::new("fib_cached", nodes), |b| {
                b.iter_custom(|count| {
                    timed(
                        readers,
                        count,
                        &addresses,
                        || Cache::new(&fib),
                        |cache, addr| peer(cache.load().lookup_v4(addr)),
                    )
                });
            });
            group.bench_function(BenchmarkId::new("fib_load", nodes), |b| {
                b.iter_custom(|count| {
                    timed(readers, count, &addresses, || (), |(), addr| peer(fib.load().lookup_v4(addr)))
                });
            });
            if !long {
                continue;
            }
            let map: HashMap<u32, NextHop> = (0..nodes).map(|node| (subnet(node), hop(node))).collect();
            let map = ArcSwap::from_pointee(map);
            group.bench_function(BenchmarkId::new("hashmap_load", nodes), |b| {
                b.iter_custom(|count| {
                    timed(
                        readers,
                        count,
                        &addresses,
                        || (),
                        |(), addr| map.load().get(&(addr.to_bits() & !0xff)).map(|hop| hop.peer),
                    )
                });
            });
            let map: DashMap<u32, NextHop> = (0..nodes).map(|node| (subnet(node), hop(node))).collect();
            group.bench_function(BenchmarkId::new("dashmap", nodes), |b| {
                b.iter_custom(|count| {
                    timed(
                        readers,
                        count,
                        &addresses,
                        || (),
                        |(), addr| map.get(&(addr.to_bits() & !0xff)).map(|hop| hop.peer),
                    )
                });
            });
        }
        group.finish();
    }
}

/// What hash maps cannot do: host routes inside podCIDRs. And how long a change takes.
fn mixed_and_build(c: &mut Criterion) {
    let addresses = addresses(5000);
    for (name, host_every) in [("sparse", 50), ("every_node", 1)] {
        let fib = table(5000, Some(host_every));
        c.bench_function(&format!("fib_with_host_routes/{name}"), |b| {
            let mut next = addresses.iter().cycle();
            b.iter(|| fib.lookup_v4(*next.next().expect("a cycle")));
        });
    }
    let (old, new) = (table(5000, None), table(5000, Some(50)));
    c.bench_function("fib_build/5000", |b| b.iter(|| table(black_box(5000), None)));
    c.bench_function("fib_diff/5000", |b| b.iter(|| black_box(&old).diff(&new)));
}

criterion_group! {
    name = benches;
    config = settings::short();
    targets = lookup, mixed_and_build
}
criterion_main!(benches);
