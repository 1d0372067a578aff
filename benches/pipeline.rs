//! The whole way from the tunnel device to the UDP socket, per packet.
//!
//! `memory`: the data path's own loop with both sides in memory, so what our code costs.
//! `kernel`: the same loop between a real TUN device and a real socket in a private network namespace, fed by a
//! sender on the same machine, so what a packet costs with its system calls. Needs root, or a kernel that allows
//! user namespaces.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a benchmark owns its clock and may fail loudly"
)]

mod settings;

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::offload::Features;
use encap::offload::vnet::VNET_LEN;
use encap::{Fib, Framing, NextHop, Owner, PeerCaps, PeerId, SourceCheck};
use etherparse::PacketBuilder;
use loden::adapter::packet::WakeFd;
use loden::adapter::packet::tun::TunDevice;
use loden::adapter::packet::udp::OuterSocket;
use loden::dataplane::{self, BATCH, Shared};
use loden::ports::{Batch, DatagramIo, FrameIo, SendError, Transmit, Wake};
use nix::sched::{CloneFlags, unshare};

const SIZES: [usize; 3] = [64, 512, 1472];
const PORT: u16 = 8285;
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 5);
const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn shared() -> Arc<Shared> {
    let mut fib = Fib::builder();
    fib.network("10.244.0.0/16".parse().expect("a prefix"));
    fib.route("10.244.1.0/24".parse().expect("a prefix"), Owner::Local);
    let caps = PeerCaps::default();
    let hop = NextHop { peer: PeerId(1), addr: IpAddr::V4(PEER), mtu: 1472, caps, mac: None };
    fib.route("10.244.2.0/24".parse().expect("a prefix"), Owner::Peer(hop)).sender(hop.addr, hop.peer);
    let shared = Shared::new(SourceCheck::Enforce, PORT, 1);
    shared.publish(fib.build());
    shared
}

fn packet(size: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(size);
    let builder = PacketBuilder::ipv4([10, 244, 1, 3], POD.octets(), 64).udp(4000, 5000);
    builder.write(&mut packet, &vec![0; size - 28]).expect("a packet");
    packet
}

/// A device in memory: hands out one packet until its budget is spent.
struct Device {
    packet: Vec<u8>,
    left: u64,
}

impl FrameIo for Device {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let len = VNET_LEN + self.packet.len();
        if let Some((header, packet)) = memory.get_mut(..len).and_then(|m| m.split_at_mut_checked(VNET_LEN)) {
            header.fill(0);
            // What a read does, less the kernel.
            packet.copy_from_slice(&self.packet);
        }
        Ok(Some(len))
    }

    fn write(&mut self, _: &[IoSlice<'_>]) -> Result<(), SendError> {
        Ok(())
    }

    fn has_headers(&self) -> bool {
        false
    }

    fn wait(&mut self) -> io::Result<Wake> {
        Ok(Wake::Stop)
    }
}

/// A socket in memory: takes everything.
struct Sink;

impl DatagramIo for Sink {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        Ok(())
    }

    fn send(&mut self, transmits: &[Transmit<'_>]) -> Result<usize, SendError> {
        Ok(transmits.len())
    }

    fn flow_ports(&self) -> usize {
        1
    }

    fn wait(&mut self) -> io::Result<Wake> {
        Ok(Wake::Stop)
    }
}

fn memory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline_memory");
    group.throughput(Throughput::Elements(1));
    for size in SIZES {
        group.bench_with_input(BenchmarkId::new("encapsulate", size), &size, |bencher, &size| {
            let shared = shared();
            bencher.iter_custom(|iterations| {
                let mut tun = Device { packet: packet(size), left: iterations };
                let start = Instant::now();
                dataplane::encapsulate(&shared, 0, Framing::Plain, &mut tun, &mut Sink, || 0)
                    .expect("memory does not fail");
                start.elapsed()
            });
        });
    }
    group.finish();
}

/// Keeps at most this many packets between sender and sink, so that no queue on the way overflows.
const WINDOW: u64 = 1024;

fn kernel(criterion: &mut Criterion) {
    if let Err(error) = private_network() {
        eprintln!("pipeline_kernel is left out: {error}");
        return;
    }
    let tunnel = TunDevice::open("flannel0", Features::NONE).expect("a tunnel device");
    for line in [
        "link set lo up",
        "link set flannel0 up mtu 1472 txqueuelen 10000",
        "addr add 10.244.1.0/32 dev flannel0",
        "route add 10.244.0.0/16 dev flannel0",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip of iproute2");
        assert!(status.success(), "ip {line}");
    }
    let shared = shared();
    let socket = OuterSocket::bind(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT, 1).expect("a socket");
    socket.enlarge_buffers().expect("buffers");
    let sink = UdpSocket::bind(SocketAddr::from((PEER, PORT))).expect("a sink");
    let wake = Arc::new(WakeFd::new(Duration::ZERO).expect("an eventfd"));
    let mut tun = tunnel.io(0, &wake);
    let mut udp = socket.io(0, &wake, BATCH);
    let running = shared.clone();
    let worker = std::thread::spawn(move || {
        dataplane::encapsulate(&running, 0, Framing::Plain, &mut tun, &mut udp, || 0)
    });

    let mut group = criterion.benchmark_group("pipeline_kernel");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for size in SIZES {
        group.bench_with_input(BenchmarkId::new("tun_to_udp", size), &size, |bencher, &size| {
            let sender = UdpSocket::bind("10.244.1.0:0").expect("a sender");
            sender.connect((POD, 5000)).expect("a destination");
            let payload = vec![0; size - 28];
            bencher.iter_custom(|iterations| carry(&shared, &sender, &sink, &payload, iterations));
        });
    }
    group.finish();
    shared.stop();
    wake.ring().expect("a wake-up");
    worker.join().expect("no panic").expect("the device works");
}

/// Time to carry `count` packets from the sender through the tunnel device to the socket of the peer.
fn carry(shared: &Shared, sender: &UdpSocket, sink: &UdpSocket, payload: &[u8], count: u64) -> Duration {
    let mut buffer = [0; 2048];
    sink.set_nonblocking(true).expect("non-blocking");
    while sink.recv(&mut buffer).is_ok() {}
    let base = shared.tx.packets();
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let done = shared.tx.packets() - base;
        if done >= count {
            return start.elapsed();
        }
        if sent < count && sent - done < WINDOW {
            sender.send(payload).expect("the device takes it");
            sent += 1;
        } else {
            while sink.recv(&mut buffer).is_ok() {}
            std::thread::yield_now();
        }
    }
}

fn private_network() -> nix::Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
}

criterion_group! {
    name = benches;
    config = settings::short();
    targets = memory, kernel
}
criterion_main!(benches);
